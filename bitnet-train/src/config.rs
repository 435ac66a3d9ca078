//! One TOML file is one run: parsed, overridden by `--set`, and resolved with every value checked before any work starts.

mod idle;
mod overrides;
mod resolve;

use std::path::PathBuf;

use bitnet_model::config::HiddenAct;
use bitnet_model::weights::FloatType;
use serde::{Deserialize, Serialize};

pub use resolve::Run;

use crate::data::{DataConfig, TokenizerConfig};
use crate::ops::{Backward, Precision};
use crate::optim::{AdamWConfig, ScheduleConfig};

/// What a config file says. Unknown keys are refused; keys with a default may be left out. Written back whole, defaults
/// included, into the run folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name, place and machine.
    pub run: RunSection,
    /// Shape of the network.
    pub model: ModelSection,
    /// Quantizers and estimator.
    #[serde(default)]
    pub quantization: QuantizationSection,
    /// How text becomes tokens.
    pub tokenizer: TokenizerConfig,
    /// Where text comes from.
    pub data: DataConfig,
    /// Steps and batches.
    pub train: TrainSection,
    /// AdamW.
    pub optimizer: AdamWConfig,
    /// Learning rate over the steps.
    pub schedule: ScheduleConfig,
    /// Validation and samples of text.
    #[serde(default)]
    pub evaluation: EvaluationSection,
    /// What is kept of a run.
    #[serde(default)]
    pub checkpoint: CheckpointSection,
    /// The packed model at the end.
    #[serde(default)]
    pub export: ExportSection,
}

/// `[run]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Name of the run folder.
    pub name: String,
    /// Folder that run folders lie in.
    #[serde(default = "default_dir")]
    pub dir: PathBuf,
    /// Seed of everything random.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Threads; 0 means one per core.
    #[serde(default)]
    pub threads: usize,
    /// `fused` or `reference`: how the network is computed (the same numbers to float rounding).
    #[serde(default = "default_ops")]
    pub ops: String,
}

/// `[model]`: names as in Hugging Face's `config.json`. The vocabulary is the tokenizer's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward half.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; 0 means as many as query heads.
    #[serde(default)]
    pub num_key_value_heads: usize,
    /// Width of a head; 0 means `hidden_size / num_attention_heads`.
    #[serde(default)]
    pub head_dim: usize,
    /// `relu2` (BitNet) or `silu` (LLaMA).
    #[serde(default = "default_hidden_act")]
    pub hidden_act: HiddenAct,
    /// Norms before the output and down projections (BitNet).
    #[serde(default = "yes")]
    pub sub_norms: bool,
    /// Added to the mean square in norms.
    #[serde(default = "default_eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    #[serde(default = "default_theta")]
    pub rope_theta: f64,
    /// Whether the head is the embedding.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// Longest sequence that the exported model claims; 0 means `train.sequence_length`.
    #[serde(default)]
    pub max_position_embeddings: usize,
    /// A full-precision model to start from: a folder, a file, or `hub:OWNER/NAME`; none: random numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<String>,
    /// Standard deviation of the initial matrices.
    #[serde(default = "default_init_std")]
    pub init_std: f64,
}

/// `[quantization]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizationSection {
    /// `ternary`, `binary`, `int8`, `int4` or `none`.
    pub weight: String,
    /// `int8`, `none`, or `auto`: `int8` where weights are quantized, so that `weight = "none"` alone is a full-precision
    /// model.
    pub activation: String,
    /// Gradient of the weight quantizer: `ste` or `clipped-ste`.
    pub estimator: String,
}

impl Default for QuantizationSection {
    fn default() -> Self {
        Self { weight: "ternary".into(), activation: "auto".into(), estimator: "ste".into() }
    }
}

/// `[train]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// Optimizer steps.
    pub steps: u64,
    /// Sequences of one forward and backward pass.
    pub batch_size: usize,
    /// Tokens of one sequence.
    pub sequence_length: usize,
    /// Passes whose gradients are averaged into one step.
    #[serde(default = "one")]
    pub gradient_accumulation: u32,
    /// Steps between two lines of metrics.
    #[serde(default = "ten")]
    pub log_every: u64,
    /// `f32`, or `bf16`: what the factors of a step's float products are rounded to.
    #[serde(default)]
    pub precision: Precision,
    /// Whether the backward pass computes each block again instead of keeping what it needs of all of them.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// `float`, or `int8`: whether the gradients that enter a projection's backward products are quantized.
    #[serde(default)]
    pub backward: Backward,
}

/// `[evaluation]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvaluationSection {
    /// Steps between two validations; 0 means only at the end.
    pub every: u64,
    /// Windows of `train.sequence_length` that a validation scores, from the first; 0 means all.
    pub windows: usize,
    /// What the sample of text begins with.
    pub prompt: String,
    /// Tokens of the sample; 0 means no sample.
    pub sample_tokens: usize,
    /// Temperature of the sample.
    pub temperature: f32,
}

impl Default for EvaluationSection {
    fn default() -> Self {
        Self { every: 0, windows: 0, prompt: "Once".into(), sample_tokens: 64, temperature: 0.8 }
    }
}

/// `[checkpoint]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSection {
    /// Steps between two checkpoints; 0 means only at the end.
    pub every: u64,
    /// Newest checkpoints that are kept.
    pub keep_last: usize,
    /// Whether the checkpoint of the lowest validation loss is kept too.
    pub keep_best: bool,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every: 0, keep_last: 2, keep_best: true }
    }
}

/// `[export]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportSection {
    /// Whether the run ends with an export into its `model` folder.
    pub at_end: bool,
    /// Type of the embedding, the head, norms and unquantized projections: `f16`, `bf16` or `f32`.
    pub float_type: FloatType,
}

impl Default for ExportSection {
    fn default() -> Self {
        Self { at_end: true, float_type: FloatType::F16 }
    }
}

fn default_dir() -> PathBuf {
    "runs".into()
}
fn default_seed() -> u64 {
    1
}
fn default_ops() -> String {
    "fused".into()
}
fn default_hidden_act() -> HiddenAct {
    HiddenAct::Relu2
}
fn default_eps() -> f64 {
    1e-5
}
fn default_theta() -> f64 {
    10_000.0
}
fn default_init_std() -> f64 {
    0.02
}
fn yes() -> bool {
    true
}
fn one() -> u32 {
    1
}
fn ten() -> u64 {
    10
}
