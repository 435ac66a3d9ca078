//! What a step will cost, told before the first one.

use bitnet_model::ModelConfig;

use crate::config::Run;
use crate::nn::parameters::shapes;
use crate::ops::resident;

impl Run {
    /// Multiplications and additions of the matrix products of one step, forward and backward: six for each weight of the
    /// projections and of the head and each token, and causal attention's two products forward and four backward.
    pub fn operations_per_step(&self, config: &ModelConfig) -> f64 {
        let train = &self.config.train;
        let weights = config.projection_parameters() + config.vocab_size as u64 * config.hidden_size as u64;
        let seen = (train.sequence_length + 1) as f64 / 2.0;
        let attention = 12.0 * seen * (config.query_size() * config.num_hidden_layers) as f64;
        (6.0 * weights as f64 + attention) * self.tokens_per_step() as f64
    }

    /// Bytes of resident memory that steps are expected to take: parameters, gradients and moments, what passes keep
    /// and work in ([`crate::ops::Ops::memory`]), and the program itself; `None` where the ops do not know.
    pub fn memory_of_steps(&self, config: &ModelConfig) -> Option<usize> {
        let train = &self.config.train;
        // A parameter, its gradient and two moments lie apart.
        let sizes = shapes(config).into_values().map(|shape| shape.iter().product::<usize>());
        let state: usize = sizes.map(|numbers| 4 * resident(F32 * numbers)).sum();
        let passes = self.ops.memory(config, train.batch_size * train.sequence_length)?;
        // A micro-batch after the first adds to gradients what it makes in a place of its own.
        let fresh = if train.gradient_accumulation > 1 { F32 * largest_projection(config) } else { 0 };
        Some(state + passes + fresh + PROGRAM)
    }

    /// The same for a whole run on `data` bytes of mapped shards: the codes of two reports, and what validates, saves or
    /// exports beside the buffers of steps.
    pub fn memory_of_run(&self, config: &ModelConfig, data: usize) -> Option<usize> {
        let (vocabulary, projections) =
            (config.vocab_size * config.hidden_size, config.projection_parameters() as usize);
        let codes = if config.quantization.weight.is_some() { 2 * projections } else { 0 };
        // A report copies a projection on each thread. A checkpoint becomes bytes tensor by tensor.
        let report = F32 * largest_projection(config) * rayon::current_num_threads();
        let saving = F32 * vocabulary.max(largest_projection(config));
        // Export, and the packed model that a sample comes from: tables of 2 bytes a number with one copy as f32, and
        // projections as codes (or 2 bytes a number) and as what is written.
        let tables = if config.tie_word_embeddings { 1 } else { 2 };
        let packed = if config.quantization.weight.is_some() { projections / 2 } else { 4 * projections };
        let exporting = F32 * vocabulary + tables * 4 * vocabulary + packed;
        Some(self.memory_of_steps(config)? + codes + report.max(saving).max(exporting) + data)
    }
}

/// Whether `needed` bytes fit into a machine of `there`; either may be unknown.
///
/// # Errors
/// Both numbers and what to do, unless `force`.
pub(super) fn check_memory(needed: Option<usize>, there: Option<u64>, force: bool) -> Result<(), String> {
    let (Some(needed), Some(there)) = (needed, there) else { return Ok(()) };
    if force || needed as u64 <= there {
        return Ok(());
    }
    Err(format!(
        "the run needs about {:.1} GB of memory, and this machine has {:.1} GB: lower train.batch_size, set \
         train.gradient_checkpointing = true or take a smaller model; `--force` tries it nevertheless",
        needed as f64 / 1e9,
        there as f64 / 1e9
    ))
}

fn largest_projection(config: &ModelConfig) -> usize {
    config.projections().iter().map(|(_, rows, cols)| rows * cols).max().unwrap_or(0)
}

const F32: usize = size_of::<f32>();

/// Code, tokenizer, thread stacks and the allocator's own.
const PROGRAM: usize = 30 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_does_not_fit_needs_force() {
        let message = check_memory(Some(3 << 30), Some(2 << 30), false).expect_err("too large");
        assert!(message.contains("3.2 GB") && message.contains("2.1 GB") && message.contains("--force"), "{message}");
        for (needed, there, force) in [
            (Some(3 << 30), Some(2 << 30), true),
            (Some(2 << 30), Some(2 << 30), false),
            (None, Some(1), false),
            (Some(1), None, false),
        ] {
            assert_eq!(check_memory(needed, there, force), Ok(()));
        }
    }
}
