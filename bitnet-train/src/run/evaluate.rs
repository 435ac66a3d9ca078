//! Validation loss on the held-out windows, and a sample of what the packed model says.

use std::ops::ControlFlow;

use anyhow::{Context, Result, bail, ensure};
use bitnet_infer::engine::{Model, SamplerConfig};
use bitnet_infer::eval::perplexity;
use bitnet_infer::generate::{GenerateOptions, Generator};
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;
use bitnet_model::tokenizer::Tokenizer;
use bitnet_model::weights::FloatType;

use crate::config::EvaluationSection;
use crate::data::{self, Shard};
use crate::export;
use crate::nn::parameters::Parameters;
use crate::nn::transformer::{Sequences, Transformer};

/// The held-out windows that a run is validated on.
///
/// The convention is `bitnet-infer perplexity`'s `windows`: window `i` reads tokens `[i seq, (i + 1) seq)` and predicts the
/// next token at each position; nothing is carried from one window to the next.
pub struct Validation {
    shard: Shard,
    seq: usize,
    windows: usize,
    /// Bytes of text that the predicted tokens stand for.
    bytes: usize,
}

impl Validation {
    /// The first `windows` windows of `seq` tokens (0: all).
    ///
    /// # Errors
    /// If the shard is shorter than one window, or holds tokens that the tokenizer cannot decode.
    pub fn new(shard: Shard, tokenizer: &Tokenizer, seq: usize, windows: usize) -> Result<Self> {
        let all = data::windows(&shard, seq)?.len();
        let windows = if windows == 0 { all } else { windows.min(all) };
        let tokens = shard.tokens(0, windows * seq + 1);
        let scored = (0..windows).map(|i| i * seq + 1..(i + 1) * seq + 1);
        let bytes = perplexity::scored_bytes(tokenizer, &tokens, scored)?;
        Ok(Self { shard, seq, windows, bytes })
    }

    /// Mean negative log-likelihood, in nats per token. `progress` hears of windows done and of their number.
    ///
    /// # Errors
    /// If the model cannot be computed.
    pub fn loss(
        &self,
        model: &Transformer,
        parameters: &Parameters,
        batch_size: usize,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<f64> {
        let mut left = data::windows(&self.shard, self.seq)?.take(self.windows);
        let (mut total, mut done) = (0f64, 0);
        while done < self.windows {
            progress(done, self.windows);
            let batch: Vec<_> = left.by_ref().take(batch_size).collect();
            let inputs: Vec<u32> = batch.iter().flat_map(|w| w.inputs.iter().copied()).collect();
            let targets: Vec<u32> = batch.iter().flat_map(|w| w.targets.iter().copied()).collect();
            let sequences = Sequences { inputs: &inputs, targets: &targets, count: batch.len(), index: 0 };
            total += model.loss(parameters, sequences)? * batch.len() as f64;
            done += batch.len();
        }
        Ok(total / self.windows as f64)
    }

    /// A loss in nats per token as bits of information per byte of the text that was scored.
    pub fn bits_per_byte(&self, loss: f64) -> f64 {
        let bits = loss * (self.windows * self.seq) as f64 / std::f64::consts::LN_2;
        bits / self.bytes.max(1) as f64
    }
}

/// Refuses a prompt that a model of `longest` positions and this tokenizer cannot begin a sample with.
///
/// # Errors
/// The key, what is wrong with it, and what to set instead.
pub fn check_prompt(evaluation: &EvaluationSection, tokenizer: &Tokenizer, longest: usize) -> Result<()> {
    let instead = "set it to text of known characters, or evaluation.sample_tokens = 0 for no sample";
    let prompt = &evaluation.prompt;
    let tokens = match tokenizer.encode(prompt) {
        Ok(tokens) => tokens,
        Err(error) => match tokenizer.first_unknown(prompt) {
            Some(unknown) => {
                bail!("`evaluation.prompt` is {prompt:?}: the tokenizer does not know {unknown}; {instead}")
            }
            None => return Err(error).context("`evaluation.prompt`"),
        },
    };
    ensure!(!tokens.is_empty(), "`evaluation.prompt` is empty, expected some text to begin the sample with");
    let length = tokens.len();
    ensure!(length < longest, "`evaluation.prompt` has {length} tokens, expected fewer than the model's {longest}");
    Ok(())
}

/// Text that the model continues the configured prompt with, through the packed form and the integer kernels: what a
/// served model would say.
///
/// # Errors
/// If the model cannot be packed or the prompt cannot be encoded.
pub fn sample(
    config: &ModelConfig,
    parameters: &Parameters,
    tokenizer: &Tokenizer,
    evaluation: &EvaluationSection,
    float_type: FloatType,
    seed: u64,
) -> Result<String> {
    let (packed_config, parts) = export::pack(config, parameters, float_type)?;
    let kernel = kernels::best().map_err(anyhow::Error::msg)?;
    let model = Model::from_parts(parts.into_model_parts(&packed_config, None), kernel);
    let sampler = SamplerConfig { temperature: evaluation.temperature, seed, ..SamplerConfig::default() };
    let options = GenerateOptions { max_new_tokens: evaluation.sample_tokens, sampler, ..GenerateOptions::default() };
    let prompt = &evaluation.prompt;
    let generation = Generator::new(&model, tokenizer).run(prompt, &options, |_| ControlFlow::Continue(()))?;
    Ok(format!("{prompt}{}", generation.text))
}
