//! Validation loss on the held-out windows, and a sample of what the packed model says.

use std::ops::ControlFlow;

use anyhow::Result;
use bitnet_infer::engine::{Model, SamplerConfig};
use bitnet_infer::generate::{GenerateOptions, Generator};
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;
use bitnet_model::tokenizer::Tokenizer;
use bitnet_model::weights::FloatType;

use crate::config::EvaluationSection;
use crate::data::Shard;
use crate::export;
use crate::nn::parameters::Parameters;
use crate::nn::transformer::Transformer;

/// Mean negative log-likelihood (nats per token) over the first `windows` windows of `seq` tokens (0: all).
///
/// The convention is `bitnet-infer perplexity`'s `windows`: window `i` reads tokens `[i seq, (i + 1) seq)` and predicts the
/// next token at each position; nothing is carried from one window to the next.
///
/// # Errors
/// If the shard is shorter than one window.
pub fn validation_loss(
    model: &Transformer,
    shard: &Shard,
    seq: usize,
    batch_size: usize,
    windows: usize,
    mut progress: impl FnMut(usize, usize),
) -> Result<f64> {
    let all: Vec<_> = crate::data::windows(shard, seq)?.take(if windows == 0 { usize::MAX } else { windows }).collect();
    let mut total = 0f64;
    for (i, batch) in all.chunks(batch_size).enumerate() {
        progress(i * batch_size, all.len());
        let inputs: Vec<u32> = batch.iter().flat_map(|w| w.inputs.iter().copied()).collect();
        let targets: Vec<u32> = batch.iter().flat_map(|w| w.targets.iter().copied()).collect();
        let loss = model.loss(&inputs, &targets, batch.len())?.detach().to_scalar::<f32>()?;
        total += f64::from(loss) * batch.len() as f64;
    }
    Ok(total / all.len() as f64)
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
