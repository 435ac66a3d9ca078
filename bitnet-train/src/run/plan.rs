//! What a step will cost, told before the first one.

use bitnet_model::ModelConfig;

use crate::config::Run;

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

    /// Bytes of resident memory that training is expected to take: parameters, gradients and moments, what passes keep
    /// and work in ([`crate::ops::Ops::memory`]), and the program itself; `None` where the ops do not know.
    pub fn estimated_memory(&self, config: &ModelConfig) -> Option<usize> {
        let train = &self.config.train;
        let state = 4 * size_of::<f32>() * config.parameters() as usize;
        let passes = self.ops.memory(config, train.batch_size * train.sequence_length)?;
        Some(state + passes + PROGRAM)
    }
}

/// Code, tokenizer, thread stacks and the allocator's own.
const PROGRAM: usize = 30 << 20;
