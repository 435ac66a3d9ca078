//! The model's configuration: the fields of a Hugging Face `config.json` of a BitNet, validated.

mod defaults;
mod json;
mod rope;
mod unread;

use std::fmt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files;
use crate::packed::Layout;
use crate::quant::{self, ActivationScheme, WeightScheme};

pub use rope::RopeScaling;

/// The activation of the gated feed-forward half, by its Hugging Face name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HiddenAct {
    /// `max(x, 0)^2` (BitNet b1.58 2B4T).
    Relu2,
    /// `x * sigmoid(x)` (LLaMA).
    Silu,
}

/// Which quantizers a model's projections use; `None` means "not quantized".
#[derive(Clone, Copy)]
pub struct Quantization {
    /// Weights of every projection.
    pub weight: Option<&'static dyn WeightScheme>,
    /// Inputs of every projection.
    pub activation: Option<&'static dyn ActivationScheme>,
}

impl Quantization {
    /// No quantization at all.
    pub const NONE: Self = Self { weight: None, activation: None };

    /// Looks both names up (`"none"` for not quantized).
    ///
    /// # Errors
    /// Which of the two is unknown, and the list of known names.
    pub fn by_name(weight: &str, activation: &str) -> Result<Self, String> {
        Ok(Self {
            weight: quant::weight_scheme(weight).map_err(|e| format!("weight scheme {e}"))?,
            activation: quant::activation_scheme(activation).map_err(|e| format!("activation scheme {e}"))?,
        })
    }

    /// Name of the weight scheme.
    pub fn weight_name(&self) -> &'static str {
        self.weight.map_or(quant::NONE, |s| s.name())
    }

    /// Name of the activation scheme.
    pub fn activation_name(&self) -> &'static str {
        self.activation.map_or(quant::NONE, |s| s.name())
    }
}

impl PartialEq for Quantization {
    fn eq(&self, other: &Self) -> bool {
        (self.weight_name(), self.activation_name()) == (other.weight_name(), other.activation_name())
    }
}

impl fmt::Debug for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} weights, {} activations", self.weight_name(), self.activation_name())
    }
}

/// How the projections are stored in the file that this configuration came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Float matrices: an unquantized model, or latent weights that are quantized at load ("online").
    Float,
    /// Packed codes, `weight = code * weight_scale` (`autobitlinear`, and everything this project writes).
    Packed,
    /// Packed codes, `weight = code / weight_scale` (`bitlinear`).
    PackedInverseScale,
    /// As `Packed`, but ternary codes lie five to a byte, [`crate::packed::Layout::Base3`] (`base3`: this project's own, which
    /// other readers refuse by that name).
    PackedBase3,
}

impl Storage {
    /// How the codes of `scheme` lie in the file.
    pub fn layout(self, scheme: &dyn WeightScheme) -> Layout {
        if self == Self::PackedBase3 { Layout::Base3 } else { scheme.layout() }
    }
}

/// What a model is. Field names are Hugging Face's.
///
/// Invariant (checked by [`ModelConfig::validate`], which every reader calls): all sizes are positive and below 2^24,
/// heads divide as grouped-query attention needs, `head_dim` is even, and the numbers are finite.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Entries of the token embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward half.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; query heads are shared out among them.
    pub num_key_value_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Activation of the gate.
    pub hidden_act: HiddenAct,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// How the rotary frequencies are stretched, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether `attn_sub_norm` and `ffn_sub_norm` exist (BitNet) or not (LLaMA-shaped).
    pub sub_norms: bool,
    /// The quantizers of the projections.
    pub quantization: Quantization,
    /// How projections are stored beside this configuration.
    pub storage: Storage,
    /// Token put before a text, if any.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads and validates a `config.json`.
    ///
    /// # Errors
    /// The file, the key and the reason.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = files::read_ordinary(path, 1 << 20)?;
        Self::from_json(&bytes, &path.display().to_string())
    }

    /// Parses and validates the bytes of a `config.json`; `origin` names them in errors.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn from_json(bytes: &[u8], origin: &str) -> Result<Self> {
        let config = json::parse(bytes, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// The `config.json` of this model, for Hugging Face and for this project.
    pub fn to_json(&self) -> String {
        json::write(self)
    }

    /// Checks that a model of this shape can exist.
    ///
    /// # Errors
    /// The first key that cannot be, and why.
    pub fn validate(&self, origin: &str) -> Result<()> {
        let fail = |key: &str, reason: String| Err(Error::config(origin, key, reason));
        for (key, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 || value >= 1 << 24 {
                return fail(key, format!("is {value}, expected 1 to {}", (1 << 24) - 1));
            }
        }
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv_heads) {
            return fail(
                "num_key_value_heads",
                format!("is {kv_heads}, which does not divide num_attention_heads = {heads}"),
            );
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail("head_dim", format!("is {}, expected an even number (RoPE rotates halves)", self.head_dim));
        }
        if heads.saturating_mul(self.head_dim) >= 1 << 24 {
            return fail("head_dim", format!("times {heads} heads is too large: {}", self.head_dim));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return fail("rms_norm_eps", format!("is {}, expected a positive number", self.rms_norm_eps));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return fail("rope_theta", format!("is {}, expected a positive number", self.rope_theta));
        }
        if let Some(scaling) = &self.rope_scaling {
            scaling.validate(self.head_dim).or_else(|reason| fail("rope_scaling", reason))?;
        }
        for (key, id) in self
            .bos_token_id
            .iter()
            .map(|id| ("bos_token_id", id))
            .chain(self.eos_token_ids.iter().map(|id| ("eos_token_id", id)))
        {
            if *id as usize >= self.vocab_size {
                return fail(key, format!("is {id}, expected a token below vocab_size = {}", self.vocab_size));
            }
        }
        Ok(())
    }

    /// Width of all query heads together: input of `o_proj`.
    pub fn query_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// The rotary frequency of pair `pair`: radians by which a position turns it.
    pub fn rope_frequency(&self, pair: usize) -> f32 {
        let frequency = rope_frequency(pair, self.head_dim, self.rope_theta);
        self.rope_scaling.as_ref().map_or(frequency, |scaling| scaling.scale(pair, frequency))
    }

    /// The seven projections of a block: name under `model.layers.N.`, output and input features.
    pub fn projections(&self) -> [(&'static str, usize, usize); 7] {
        let (h, q, kv, f) = (self.hidden_size, self.query_size(), self.key_value_size(), self.intermediate_size);
        [
            ("self_attn.q_proj", q, h),
            ("self_attn.k_proj", kv, h),
            ("self_attn.v_proj", kv, h),
            ("self_attn.o_proj", h, q),
            ("mlp.gate_proj", f, h),
            ("mlp.up_proj", f, h),
            ("mlp.down_proj", h, f),
        ]
    }

    /// The norms of a block: name under `model.layers.N.` and width.
    pub fn norms(&self) -> Vec<(&'static str, usize)> {
        let mut norms = vec![("input_layernorm", self.hidden_size), ("post_attention_layernorm", self.hidden_size)];
        if self.sub_norms {
            norms.push(("self_attn.attn_sub_norm", self.query_size()));
            norms.push(("mlp.ffn_sub_norm", self.intermediate_size));
        }
        norms
    }

    /// Parameters of all projections: those that a weight scheme quantizes.
    pub fn projection_parameters(&self) -> u64 {
        let block: u64 = self.projections().iter().map(|(_, rows, cols)| *rows as u64 * *cols as u64).sum();
        block * self.num_hidden_layers as u64
    }

    /// All parameters; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        let block: u64 = self.norms().iter().map(|(_, n)| *n as u64).sum();
        let tables = if self.tie_word_embeddings { 1 } else { 2 } * self.vocab_size as u64 * self.hidden_size as u64;
        self.projection_parameters() + block * self.num_hidden_layers as u64 + tables + self.hidden_size as u64
    }
}

/// `theta^(-2 pair / head_dim)`, computed as PyTorch does (in f32).
pub fn rope_frequency(pair: usize, head_dim: usize, theta: f32) -> f32 {
    let exponent = (2 * pair) as f32 / head_dim as f32;
    1.0 / theta.powf(exponent)
}
