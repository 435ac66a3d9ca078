//! What a run starts from: random numbers, or the weights of a model in full precision (`model.init_from`).
//!
//! Where the run's network has sub-norms and the model has none, each is inserted as near to the identity as a norm can be: its
//! weights are the magnitude that its input has in the model, measured on the first batch. With one magnitude for all tokens
//! the network would compute what the model does; what is left of a difference is how much tokens differ in it.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitnet_infer::engine::ModelFiles;
use bitnet_infer::{hub, tell};
use bitnet_model::ModelConfig;
use bitnet_model::config::Quantization;
use bitnet_model::files::gguf::GgufOptions;
use bitnet_model::files::source::{TableView, WARNING, WeightSource};
use bitnet_model::tokenizer::Tokenizer;
use bitnet_model::weights::LinearWeights;
use candle_core::Tensor;

use crate::config::Run;
use crate::data::{Batches, Prepared};
use crate::nn::estimator;
use crate::nn::parameters::Parameters;
use crate::nn::transformer::Transformer;
use crate::ops;

/// The parameters before the first step.
pub(super) fn parameters(run: &Run, config: &ModelConfig, prepared: &Prepared) -> Result<Parameters> {
    let (model, train) = (&run.config.model, &run.config.train);
    let Some(source) = &model.init_from else {
        return Parameters::initialize(config, run.config.run.seed, model.init_std);
    };
    let tokenizer = Tokenizer::from_bytes(&prepared.tokenizer_json, "tokenizer.json")?;
    let seq = train.sequence_length;
    let batch = Batches::new(prepared.train.clone(), train.batch_size, seq, run.config.run.seed)?.batch(0, 0);
    let sequences = train.batch_size.min((MEASURED_TOKENS / seq).max(1));
    parameters_of(source, config, &tokenizer, (&batch.inputs[..sequences * seq], sequences))
        .with_context(|| format!("{}: `model.init_from`", run.origin()))
}

/// The weights of the model `source` (a path, or `hub:OWNER/NAME`) for a network of `config`, whose tokens are `tokenizer`'s.
/// Sub-norms that the model lacks are fitted to `sample`: tokens, and how many sequences they are.
///
/// # Errors
/// One line: the model does not load, holds packed codes, or has another shape or other tokens.
pub fn parameters_of(
    source: &str,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
    sample: (&[u32], usize),
) -> Result<Parameters> {
    let path = hub::local(source, false)?;
    let files = ModelFiles::open(&path, GgufOptions::default())?;
    files.with_weights(|weights| -> Result<Parameters> {
        let theirs = weights.config();
        weights.notes().iter().filter(|note| note.starts_with(WARNING)).for_each(|warning| tell!("{warning}"));
        check_shape(theirs, config).map_err(|reason| anyhow!("{}: {reason}", path.display()))?;
        if let Some(other) = files.tokenizer(theirs)? {
            check_tokens(&other, tokenizer, config.vocab_size, &path)?;
        }
        let parameters = Parameters::from_values(config, |name, shape| {
            let values = values_of(weights, config, name, shape);
            files.release();
            values
        })?;
        if config.sub_norms && !theirs.sub_norms {
            fit_sub_norms(config, &parameters, sample)?;
        }
        Ok(parameters)
    })
}

/// Whether a network of `ours` can hold the weights of `theirs`; the error is a sentence that says what to change.
fn check_shape(theirs: &ModelConfig, ours: &ModelConfig) -> Result<(), String> {
    for (key, theirs, ours) in [
        ("hidden_size", theirs.hidden_size, ours.hidden_size),
        ("intermediate_size", theirs.intermediate_size, ours.intermediate_size),
        ("num_hidden_layers", theirs.num_hidden_layers, ours.num_hidden_layers),
        ("num_attention_heads", theirs.num_attention_heads, ours.num_attention_heads),
        ("num_key_value_heads", theirs.num_key_value_heads, ours.num_key_value_heads),
        ("head_dim", theirs.head_dim, ours.head_dim),
    ] {
        if theirs != ours {
            return Err(format!("has {key} {theirs}, and the config {ours}: set model.{key} = {theirs}"));
        }
    }
    for (key, theirs, ours) in
        [("rope_theta", theirs.rope_theta, ours.rope_theta), ("rms_norm_eps", theirs.rms_norm_eps, ours.rms_norm_eps)]
    {
        if theirs != ours {
            return Err(format!("has {key} {theirs}, and the config {ours}: set model.{key} = {theirs}"));
        }
    }
    if theirs.hidden_act != ours.hidden_act {
        let name = format!("{:?}", theirs.hidden_act).to_lowercase();
        return Err(format!("has another hidden_act: set model.hidden_act = \"{name}\""));
    }
    if theirs.rope_scaling.is_some() {
        return Err("has scaled rotary frequencies, which training does not know".into());
    }
    if theirs.sub_norms && !ours.sub_norms {
        return Err("has sub-norms, and the config none: set model.sub_norms = true".into());
    }
    if !theirs.tie_word_embeddings && ours.tie_word_embeddings {
        return Err("has a head of its own: set model.tie_word_embeddings = false".into());
    }
    if theirs.vocab_size < ours.vocab_size {
        let (theirs, ours) = (theirs.vocab_size, ours.vocab_size);
        return Err(format!(
            "has an embedding of {theirs} tokens, fewer than the tokenizer's {ours}: use its own tokenizer"
        ));
    }
    Ok(())
}

/// Whether the tokens of the run mean the same to the model.
fn check_tokens(theirs: &Tokenizer, ours: &Tokenizer, vocab_size: usize, path: &Path) -> Result<()> {
    for id in 0..u32::try_from(vocab_size)? {
        if let Some(token) = ours.text_of(id)
            && theirs.text_of(id).as_ref() != Some(&token)
        {
            let other = theirs.text_of(id).map_or("nothing".into(), |other| format!("`{}`", other.escape_debug()));
            bail!(
                "{}: token {id} is {other} in its tokenizer and `{}` in the run's: set tokenizer.type = \"file\" and \
                 tokenizer.path to its tokenizer.json",
                path.display(),
                token.escape_debug()
            );
        }
    }
    Ok(())
}

/// The numbers of one parameter; those of a sub-norm that the model lacks are 1 until they are fitted.
fn values_of(weights: &dyn WeightSource, config: &ModelConfig, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    match name {
        "model.embed_tokens.weight" => return table(&weights.embedding_table()?, shape[0]),
        // A network with a head of its own may start from one whose head is its embedding.
        "lm_head.weight" => {
            return table(&weights.head_table()?.map_or_else(|| weights.embedding_table(), Ok)?, shape[0]);
        }
        "model.norm.weight" => return Ok(weights.final_norm()?),
        _ => {}
    }
    let part = name.strip_prefix("model.layers.").and_then(|rest| rest.strip_suffix(".weight"));
    let (layer, part) = part.and_then(|rest| rest.split_once('.')).with_context(|| format!("no parameter `{name}`"))?;
    let layer: usize = layer.parse()?;
    if let Some(index) = config.norms().iter().position(|(norm, _)| *norm == part) {
        let there = index < weights.config().norms().len();
        return Ok(if there { weights.norm(layer, index)? } else { vec![1.0; shape[0]] });
    }
    let index = config.projections().iter().position(|(projection, ..)| *projection == part);
    let index = index.with_context(|| format!("no parameter `{name}`"))?;
    if let Some(latent) = weights.latent(layer, index)? {
        return Ok(latent.to_f32());
    }
    match weights.projection(layer, index)? {
        LinearWeights::Float(matrix) => Ok(matrix.to_f32()),
        LinearWeights::Packed(_) => {
            let scheme = weights.config().quantization.weight_name();
            bail!(
                "`{name}` holds packed codes (`{scheme}`), expected floats: start from the model that they were made of"
            )
        }
    }
}

/// The first `rows` rows of a table: an embedding may have more than its tokenizer has tokens.
fn table(view: &TableView, rows: usize) -> Result<Vec<f32>> {
    let mut values = vec![0f32; rows * view.cols];
    values.chunks_exact_mut(view.cols).enumerate().for_each(|(row, values)| view.row_to_f32(row, values));
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(view.not_finite(index).into()),
        None => Ok(values),
    }
}

/// Sets each sub-norm's weights to the magnitude of its input.
fn fit_sub_norms(config: &ModelConfig, parameters: &Parameters, (tokens, sequences): (&[u32], usize)) -> Result<()> {
    let plain = ModelConfig { sub_norms: false, quantization: Quantization::NONE, ..config.clone() };
    let (ste, plain_ops) = (estimator::by_name("ste").map_err(anyhow::Error::msg)?, ops::by_name("reference"));
    let ops = plain_ops.map_err(anyhow::Error::msg)?;
    let network = Transformer::new(&plain, parameters, tokens.len() / sequences.max(1), ste, ops)?;
    let magnitudes = network.magnitudes(tokens, sequences)?;
    for (name, var) in parameters.iter() {
        let place = match name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
            Some((layer, "self_attn.attn_sub_norm.weight")) => (layer, 0),
            Some((layer, "mlp.ffn_sub_norm.weight")) => (layer, 1),
            _ => continue,
        };
        let magnitude = magnitudes[place.0.parse::<usize>()?][place.1];
        ensure!(magnitude.is_finite() && magnitude > 0.0, "`{name}` would norm an input of magnitude {magnitude}");
        var.set(&Tensor::full(magnitude, var.shape(), var.device())?)?;
    }
    Ok(())
}

/// Tokens that magnitudes are measured on, at least one sequence.
const MEASURED_TOKENS: usize = 2048;
