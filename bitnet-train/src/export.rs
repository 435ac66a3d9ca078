//! From latent weights to a packed model: codes and scales by the function that a step calls, so those that validation of the same
//! weights multiplies by, to the bit.

use std::path::Path;

use anyhow::{Context, Result};
use bitnet_model::ModelConfig;
use bitnet_model::config::Storage;
use bitnet_model::files::hugging_face::{self, ModelParts, quantize};
use bitnet_model::weights::{FloatMatrix, FloatType, LayerWeights, LinearWeights};

use crate::nn::parameters::Parameters;

/// The packed form of a model: what is written, and what samples are generated with during training.
///
/// `config` is the trainer's (latent) configuration; the parts carry its packed one.
///
/// # Errors
/// If a parameter is missing or its weights are not finite.
pub fn pack(
    config: &ModelConfig,
    parameters: &Parameters,
    float_type: FloatType,
) -> Result<(ModelConfig, PackedParts)> {
    let mut packed_config = config.clone();
    packed_config.storage = if config.quantization.weight.is_some() { Storage::Packed } else { Storage::Float };
    let table = |name: &str| -> Result<FloatMatrix> {
        Ok(FloatMatrix::new(config.vocab_size, config.hidden_size, &parameters.values(name)?, float_type))
    };
    let parts = PackedParts {
        embedding: table("model.embed_tokens.weight")?,
        head: if config.tie_word_embeddings { None } else { Some(table("lm_head.weight")?) },
        final_norm: rounded(parameters.values("model.norm.weight")?, float_type),
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

/// Writes a model folder in Hugging Face's BitNet layout, all or nothing.
///
/// # Errors
/// As [`pack`], or if the folder cannot be written; an earlier folder at `path` is then untouched.
pub fn export(
    path: &Path,
    config: &ModelConfig,
    parameters: &Parameters,
    float_type: FloatType,
    tokenizer_json: Vec<u8>,
) -> Result<()> {
    let (packed_config, parts) = pack(config, parameters, float_type)?;
    Ok(hugging_face::write(path, &parts.into_model_parts(&packed_config, Some(tokenizer_json)))?)
}

/// Norms have the type of all floats of a model: other programs cannot multiply one type with another.
fn rounded(values: Vec<f32>, float_type: FloatType) -> Vec<f32> {
    FloatMatrix::new(1, values.len(), &values, float_type).to_f32()
}

fn pack_layer(
    config: &ModelConfig,
    parameters: &Parameters,
    layer: usize,
    float_type: FloatType,
) -> Result<LayerWeights> {
    let values = |name: &str| parameters.values(&format!("model.layers.{layer}.{name}.weight"));
    let norm = |name| Ok::<_, anyhow::Error>(rounded(values(name)?, float_type));
    let sub_norm = |name| config.sub_norms.then(|| norm(name)).transpose();
    let linear = |(name, rows, cols): (&str, usize, usize)| -> Result<LinearWeights> {
        let latent = values(name)?;
        Ok(match config.quantization.weight {
            Some(scheme) => LinearWeights::Packed(
                quantize(scheme, &latent, rows, cols)
                    .map_err(anyhow::Error::msg)
                    .with_context(|| format!("model.layers.{layer}.{name}.weight"))?,
            ),
            None => LinearWeights::Float(FloatMatrix::new(rows, cols, &latent, float_type)),
        })
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
