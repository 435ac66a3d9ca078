//! How much memory a pass takes, from the sizes alone.

use bitnet_model::ModelConfig;

use super::{FusedSettings, Precision};

impl FusedSettings {
    /// Bytes that passes over batches of `t` tokens keep and work in.
    pub(super) fn memory(&self, config: &ModelConfig, t: usize) -> usize {
        const F32: usize = size_of::<f32>();
        let (h, q, f, v) = (config.hidden_size, config.query_size(), config.intermediate_size, config.vocab_size);
        let (kv, layers) = (config.key_value_size(), config.num_hidden_layers);
        let quantized = config.quantization;

        let values = q + 2 * kv + q + h + 2 * f;
        let codes = if quantized.activation.is_some() { 2 * h + q + f } else { 0 };
        let single = 4 + 3 * 2 + config.num_attention_heads;
        let block = t * (values * F32 + codes + single * F32);
        let stream = (layers + 1) * t * h * F32;

        let widest = f.max(2 * q);
        let floats = if quantized.activation.is_some() { h } else { f.max(q).max(h) };
        let packed = t * f.max(q).max(h) * if self.precision == Precision::Bf16 { 2 } else { F32 };
        // The stream's gradient, the head's input and its gradient, the narrow and the wide buffer, an input in floats.
        let work = t * (4 * h + widest + if quantized.activation.is_some() { 0 } else { floats }) * F32 + packed;
        let head = (LOGIT_ROWS * v + 2 * v * h) * F32;
        let weights = if quantized.weight.is_some() { config.projection_parameters() as usize * 5 / 4 } else { 0 };
        stream + block * if self.recompute { 1 } else { layers } + work + head + weights
    }
}

/// Tokens whose logits exist at once.
const LOGIT_ROWS: usize = 256;
