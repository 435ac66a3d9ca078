//! How much memory a pass takes, from the sizes alone.

use bitnet_model::ModelConfig;

use super::{FusedSettings, Precision};

/// What a buffer of `bytes` takes: its last page is half empty on average, and large buffers lie on pages of 2 MiB.
pub(crate) fn resident(bytes: usize) -> usize {
    const PAGE: usize = 2 << 20;
    bytes + bytes.min(PAGE) / 2
}

impl FusedSettings {
    /// Bytes that passes over batches of `t` tokens keep and work in.
    pub(super) fn memory(&self, config: &ModelConfig, t: usize) -> usize {
        const F32: usize = size_of::<f32>();
        let (h, q, f, v) = (config.hidden_size, config.query_size(), config.intermediate_size, config.vocab_size);
        let (kv, layers) = (config.key_value_size(), config.num_hidden_layers);
        let (weights_coded, inputs_coded) =
            (config.quantization.weight.is_some(), config.quantization.activation.is_some());
        let floats = |numbers: usize| resident(numbers * F32);

        // q|k|v, what attention gives, the stream between the halves, gate|up; the inputs of four projections as codes.
        let values: usize = [q + 2 * kv, q, h, 2 * f].map(|width| floats(t * width)).iter().sum();
        let codes = if inputs_coded { [h, q, h, f].map(|width| resident(t * width)).iter().sum() } else { 0 };
        // A root for each norm, a step and a sum for each code's row, a logarithm for each head.
        let single = t * (4 + 4 * 2 + config.num_attention_heads) * F32;
        let kept = (values + codes + single) * if self.recompute { 1 } else { layers };
        let stream = (layers + 1) * floats(t * h);

        let widest = f.max(q).max(h);
        // The stream's gradient, the head's input and its gradient, the narrow buffer; the wide one; an input in floats.
        let work = 4 * floats(t * h)
            + floats(t * f.max(2 * q))
            + if inputs_coded { 0 } else { floats(t * widest) }
            + resident(t * widest * if self.precision == Precision::Bf16 { 2 } else { F32 });
        let head = floats(LOGIT_ROWS * v) + 2 * floats(v * h);
        // Codes of a byte each, and once more in the layout of the integer kernels, where these run.
        let projections = config.projection_parameters() as usize;
        let kernel_bytes = match config.quantization.weight {
            Some(scheme) if inputs_coded => projections / scheme.layout().codes_per_byte(),
            _ => 0,
        };
        let weights = if weights_coded { projections + kernel_bytes } else { 0 };
        kept + stream + work + head + weights
    }
}

/// Tokens whose logits exist at once.
const LOGIT_ROWS: usize = 256;
