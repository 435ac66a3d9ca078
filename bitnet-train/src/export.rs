//! From latent weights to a packed model: codes and the scales that training multiplied by, to the bit.

use std::path::Path;

use anyhow::{Result, anyhow};
use bitnet_model::ModelConfig;
use bitnet_model::config::Storage;
use bitnet_model::files::hugging_face::{self, ModelParts, quantize};
use bitnet_model::oddities;
use bitnet_model::weights::{FloatMatrix, FloatType, LayerWeights, LinearWeights};

use crate::nn::parameters::Parameters;

/// The packed form of a model: what is written, and what samples are generated with during training.
///
/// `config` is the trainer's (latent) configuration; the parts carry its packed one.
///
/// # Errors
/// If a parameter is missing, or holds a number that is not finite, or not in `float_type`: its name, and where.
pub fn pack(
    config: &ModelConfig,
    parameters: &Parameters,
    float_type: FloatType,
) -> Result<(ModelConfig, PackedParts)> {
    let mut packed_config = config.clone();
    packed_config.storage = if config.quantization.weight.is_some() { Storage::Packed } else { Storage::Float };
    let table = |name: &str| floats(parameters, name, config.vocab_size, float_type);
    let parts = PackedParts {
        embedding: table("model.embed_tokens.weight")?,
        head: if config.tie_word_embeddings { None } else { Some(table("lm_head.weight")?) },
        final_norm: floats(parameters, "model.norm.weight", 1, float_type)?.to_f32(),
        layers: (0..config.num_hidden_layers)
            .map(|layer| pack_layer(config, parameters, layer, float_type))
            .collect::<Result<_>>()?,
    };
    Ok((packed_config, parts))
}

/// The weights of a packed model.
pub struct PackedParts {
    embedding: FloatMatrix,
    head: Option<FloatMatrix>,
    final_norm: Vec<f32>,
    layers: Vec<LayerWeights>,
}

impl PackedParts {
    /// With its configuration and tokenizer, ready to be written or run.
    pub fn into_model_parts(self, config: &ModelConfig, tokenizer_json: Option<Vec<u8>>) -> ModelParts<'_> {
        let Self { embedding, head, final_norm, layers } = self;
        ModelParts { config, embedding, head, final_norm, layers, tokenizer_json }
    }
}

/// Writes a model folder in Hugging Face's BitNet layout, all or nothing. Returns what looks wrong in it, a sentence each.
///
/// # Errors
/// As [`pack`], or if the folder cannot be written; an earlier folder at `path` is then untouched.
pub fn export(
    path: &Path,
    config: &ModelConfig,
    parameters: &Parameters,
    float_type: FloatType,
    tokenizer_json: Vec<u8>,
) -> Result<Vec<String>> {
    let (packed_config, parts) = pack(config, parameters, float_type)?;
    let blocks = parts.layers.iter().enumerate();
    let odd = blocks.flat_map(|(layer, weights)| oddities::of_block(&packed_config, layer, weights)).collect();
    hugging_face::write(path, &parts.into_model_parts(&packed_config, Some(tokenizer_json)))?;
    Ok(odd)
}

/// A parameter of `rows` rows in the type of all floats of a model, norms too: other programs cannot multiply one type with
/// another.
fn floats(parameters: &Parameters, name: &str, rows: usize, float_type: FloatType) -> Result<FloatMatrix> {
    let values = parameters.values(name)?;
    let rounded = FloatMatrix::rounded(rows, values.len() / rows.max(1), &values, float_type);
    rounded.map_err(|reason| anyhow!("parameter `{name}` {reason}"))
}

fn pack_layer(
    config: &ModelConfig,
    parameters: &Parameters,
    layer: usize,
    float_type: FloatType,
) -> Result<LayerWeights> {
    let full = |name: &str| format!("model.layers.{layer}.{name}.weight");
    let norm = |name| Ok::<_, anyhow::Error>(floats(parameters, &full(name), 1, float_type)?.to_f32());
    let sub_norm = |name| config.sub_norms.then(|| norm(name)).transpose();
    let linear = |(name, rows, cols): (&str, usize, usize)| -> Result<LinearWeights> {
        let name = full(name);
        let Some(scheme) = config.quantization.weight else {
            return Ok(LinearWeights::Float(floats(parameters, &name, rows, float_type)?));
        };
        let packed = quantize(scheme, &parameters.values(&name)?, rows, cols);
        Ok(LinearWeights::Packed(packed.map_err(|reason| anyhow!("parameter `{name}` {reason}"))?))
    };
    let [q, k, v, o, gate, up, down] = config.projections();
    Ok(LayerWeights {
        input_layernorm: norm("input_layernorm")?,
        q_proj: linear(q)?,
        k_proj: linear(k)?,
        v_proj: linear(v)?,
        attn_sub_norm: sub_norm("self_attn.attn_sub_norm")?,
        o_proj: linear(o)?,
        post_attention_layernorm: norm("post_attention_layernorm")?,
        gate_proj: linear(gate)?,
        up_proj: linear(up)?,
        ffn_sub_norm: sub_norm("mlp.ffn_sub_norm")?,
        down_proj: linear(down)?,
    })
}
