//! What a `config.json` means where a key is missing: the defaults of the class that its architecture names.
//!
//! Read off `transformers` 5.24 (`LlamaConfig()`, `Qwen2Config()`, `Qwen3Config()`, `BitNetConfig()`); those of
//! `BitnetForCausalLM` off the `configuration_bitnet.py` that comes with 1bitLLM's models.

use super::HiddenAct;

/// The defaults of one class.
pub(super) struct Defaults {
    /// Its architecture and its model type.
    pub names: &'static [&'static str],
    /// Whether its blocks have sub-norms; no key says so.
    pub sub_norms: bool,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    pub max_position_embeddings: usize,
    pub hidden_act: HiddenAct,
    /// `None`: as many as query heads.
    pub num_key_value_heads: Option<usize>,
    /// `None`: the hidden size shared out among the query heads.
    pub head_dim: Option<usize>,
}

const LLAMA: Defaults = Defaults {
    names: &["LlamaForCausalLM", "llama"],
    sub_norms: false,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    max_position_embeddings: 2048,
    hidden_act: HiddenAct::Silu,
    num_key_value_heads: None,
    head_dim: None,
};

const QWEN2: Defaults = Defaults {
    names: &["Qwen2ForCausalLM", "qwen2"],
    max_position_embeddings: 32_768,
    num_key_value_heads: Some(32),
    ..LLAMA
};

/// Every class that is read. All of them leave the head untied where nothing is said.
pub(super) const CLASSES: [Defaults; 5] = [
    Defaults {
        names: &["BitNetForCausalLM", "bitnet"],
        sub_norms: true,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        hidden_act: HiddenAct::Relu2,
        num_key_value_heads: Some(5),
        ..LLAMA
    },
    Defaults { names: &["BitnetForCausalLM"], sub_norms: true, ..LLAMA },
    LLAMA,
    QWEN2,
    Defaults { names: &["Qwen3ForCausalLM", "qwen3"], head_dim: Some(128), ..QWEN2 },
];
