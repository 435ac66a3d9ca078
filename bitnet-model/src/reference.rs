//! The whole forward pass, scalar and without a cache: the definition that both fast sides are tested against.
//!
//! Written to be read beside the architecture: pre-norm blocks, grouped-query attention with rotary positions (half-rotated
//! pairs, as Hugging Face does), `attn_sub_norm` before the output projection, a gated feed-forward half with `ffn_sub_norm`
//! before the down projection, no biases. Sums that are floating-point run in f64 and are rounded once, so the reference is
//! closer to the exact result than anything it judges.
//!
//! Shapes: `t` tokens, `h` hidden, `q` query width, `k` key/value width, `f` feed-forward width.

use crate::config::{HiddenAct, ModelConfig, rope_frequency};
use crate::error::Result;
use crate::files::hugging_face::WeightReader;
use crate::files::source::WeightSource;
use crate::files::tensors::TensorFile;
use crate::quant::{ActivationScheme, add_group, rescale};
use crate::weights::{FloatMatrix, LayerWeights, LinearWeights};

/// A loaded model that runs one sequence at a time, slowly.
pub struct Reference {
    config: ModelConfig,
    embedding: FloatMatrix,
    head: Option<FloatMatrix>,
    final_norm: Vec<f32>,
    layers: Vec<LayerWeights>,
}

impl Reference {
    /// Loads all weights of `file`.
    ///
    /// # Errors
    /// If a tensor is missing or not what the configuration says.
    pub fn load(config: ModelConfig, file: &TensorFile) -> Result<Self> {
        let reader = WeightReader::new(&config, file);
        let (embedding, head, final_norm) = (reader.embedding()?, reader.head()?, reader.final_norm()?);
        let layers = (0..config.num_hidden_layers).map(|i| reader.layer(i)).collect::<Result<_>>()?;
        let config = reader.config().clone();
        Ok(Self { config, embedding, head, final_norm, layers })
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The blocks.
    pub fn layers(&self) -> &[LayerWeights] {
        &self.layers
    }

    /// Logits of every position, `[t, vocab]`.
    ///
    /// # Panics
    /// If a token is not below `vocab_size`.
    pub fn logits(&self, tokens: &[u32]) -> Vec<f32> {
        let config = &self.config;
        let h = config.hidden_size;
        let mut x_th = vec![0f32; tokens.len() * h];
        for (row, &token) in x_th.chunks_mut(h).zip(tokens) {
            self.embedding.row_to_f32(token as usize, row);
        }
        for layer in &self.layers {
            let normed_th = rms_norm(&x_th, &layer.input_layernorm, config.rms_norm_eps);
            add(&mut x_th, &attention(config, layer, &normed_th));
            let normed_th = rms_norm(&x_th, &layer.post_attention_layernorm, config.rms_norm_eps);
            add(&mut x_th, &feed_forward(config, layer, &normed_th));
        }
        let normed_th = rms_norm(&x_th, &self.final_norm, config.rms_norm_eps);
        float_linear(&normed_th, self.head.as_ref().unwrap_or(&self.embedding))
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over rows of `weight.len()` (arXiv:1910.07467).
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for row in x.chunks(weight.len()) {
        let mean_square = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / row.len() as f64;
        let inverse = 1.0 / (mean_square + f64::from(eps)).sqrt();
        out.extend(row.iter().zip(weight).map(|(&v, &w)| (f64::from(v) * inverse * f64::from(w)) as f32));
    }
    out
}

/// A BitLinear layer: quantizes each token of `x` `[t, cols]` if a scheme is given, multiplies by the weights, `[t, rows]`.
///
/// With packed weights and quantized activations the sum is an exact integer, and [`rescale`] is all the floating point.
///
/// # Panics
/// If an integer sum leaves `i32`, which needs more than 133,000 columns of the largest codes.
pub fn bit_linear(x: &[f32], weights: &LinearWeights, activation: Option<&dyn ActivationScheme>) -> Vec<f32> {
    let (rows, cols) = (weights.rows(), weights.cols());
    let mut out = vec![0f32; x.len() / cols * rows];
    let mut codes = vec![0i8; cols];
    let mut weight_row = vec![0i8; cols];
    for (x, out) in x.chunks(cols).zip(out.chunks_mut(rows)) {
        let step = activation.map(|scheme| scheme.quantize(x, &mut codes));
        for (row, out) in out.iter_mut().enumerate() {
            *out = match (weights, step) {
                (LinearWeights::Packed(m), Some(step)) => {
                    m.unpack_row(row, &mut weight_row);
                    match m.group() {
                        None => rescale(integer_dot(&weight_row, &codes), step, m.scale_of(row)),
                        Some(group) => {
                            let sums = weight_row.chunks(group).zip(codes.chunks(group));
                            let sums = sums.map(|(w, x)| integer_dot(w, x)).zip(m.scales_of(row));
                            sums.fold(0.0, |total, (sum, &scale)| add_group(total, sum, scale)) * step
                        }
                    }
                }
                (LinearWeights::Packed(m), None) => {
                    m.unpack_row(row, &mut weight_row);
                    let group = m.group().unwrap_or(cols);
                    let groups = weight_row.chunks(group).zip(x.chunks(group)).zip(m.scales_of(row));
                    let sum = |w: &[i8], x: &[f32]| -> f64 {
                        w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
                    };
                    groups.map(|((w, x), &scale)| sum(w, x) * f64::from(scale)).sum::<f64>() as f32
                }
                (LinearWeights::Float(m), Some(step)) => {
                    (float_dot(m, row, codes.iter().map(|&c| f64::from(c))) * f64::from(step)) as f32
                }
                (LinearWeights::Float(m), None) => float_dot(m, row, x.iter().map(|&x| f64::from(x))) as f32,
            };
        }
    }
    out
}

/// The exact product of weight codes and activation codes.
///
/// # Panics
/// If the sum leaves `i32`.
pub fn integer_dot(weights: &[i8], activations: &[i8]) -> i32 {
    let sum: i64 = weights.iter().zip(activations).map(|(&w, &a)| i64::from(w) * i64::from(a)).sum();
    i32::try_from(sum).expect("fewer than 133,000 columns")
}

/// A plain linear layer, `[t, rows]`: the head.
pub fn float_linear(x: &[f32], weights: &FloatMatrix) -> Vec<f32> {
    let matrix = weights.to_f32();
    let rows = x.chunks(weights.cols);
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() as f32;
    rows.flat_map(|x| matrix.chunks(weights.cols).map(move |w| dot(x, w))).collect()
}

/// Rotates the heads of `x` `[t, heads * head_dim]` in place; token `i` is at position `start + i`.
///
/// Pair `j` is `(x[j], x[j + head_dim / 2])` with angle `position * frequency(j)` (arXiv:2104.09864, in the half-rotated form
/// of Hugging Face), see [`ModelConfig::rope_frequency`].
pub fn rope(x: &mut [f32], heads: usize, config: &ModelConfig, start: usize) {
    let head_dim = config.head_dim;
    let half = head_dim / 2;
    for (i, token) in x.chunks_mut(heads * head_dim).enumerate() {
        for head in token.chunks_mut(head_dim) {
            let (first, second) = head.split_at_mut(half);
            for (j, (a, b)) in first.iter_mut().zip(second).enumerate() {
                let angle = f64::from((start + i) as f32 * config.rope_frequency(j));
                let (sin, cos) = (angle.sin() as f32, angle.cos() as f32);
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// The angle of pair `pair` at `position` without any scaling, computed as PyTorch does (frequency and product rounded to f32).
pub fn rope_angle(position: usize, pair: usize, head_dim: usize, theta: f32) -> f64 {
    f64::from(position as f32 * rope_frequency(pair, head_dim, theta))
}

/// Causal grouped-query attention of one sequence from its normed input `[t, h]`, output projection included.
pub fn attention(config: &ModelConfig, layer: &LayerWeights, x_th: &[f32]) -> Vec<f32> {
    let activation = config.quantization.activation;
    let mut q_tq = bit_linear(x_th, &layer.q_proj, activation);
    let mut k_tk = bit_linear(x_th, &layer.k_proj, activation);
    let v_tk = bit_linear(x_th, &layer.v_proj, activation);
    rope(&mut q_tq, config.num_attention_heads, config, 0);
    rope(&mut k_tk, config.num_key_value_heads, config, 0);
    let mut mixed_tq = causal_attention(config, &q_tq, &k_tk, &v_tk);
    if let Some(norm) = &layer.attn_sub_norm {
        mixed_tq = rms_norm(&mixed_tq, norm, config.rms_norm_eps);
    }
    bit_linear(&mixed_tq, &layer.o_proj, activation)
}

/// `softmax(q k^T / sqrt(head_dim)) v` with a causal mask; rotated queries `[t, q]`, keys and values `[t, k]`.
pub fn causal_attention(config: &ModelConfig, q_tq: &[f32], k_tk: &[f32], v_tk: &[f32]) -> Vec<f32> {
    let (d, q, k) = (config.head_dim, config.query_size(), config.key_value_size());
    let group = config.num_attention_heads / config.num_key_value_heads;
    let scale = 1.0 / (d as f64).sqrt();
    let mut out = vec![0f32; q_tq.len()];
    for (t, (query, out)) in q_tq.chunks(q).zip(out.chunks_mut(q)).enumerate() {
        for head in 0..config.num_attention_heads {
            let kv = head / group * d;
            let query = &query[head * d..][..d];
            let scores: Vec<f64> = (0..=t)
                .map(|s| {
                    scale
                        * query
                            .iter()
                            .zip(&k_tk[s * k + kv..][..d])
                            .map(|(&a, &b)| f64::from(a) * f64::from(b))
                            .sum::<f64>()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for (i, out) in out[head * d..][..d].iter_mut().enumerate() {
                let sum: f64 = weights.iter().enumerate().map(|(s, w)| w * f64::from(v_tk[s * k + kv + i])).sum();
                *out = (sum / total) as f32;
            }
        }
    }
    out
}

/// The gated feed-forward half from its normed input `[t, h]`.
pub fn feed_forward(config: &ModelConfig, layer: &LayerWeights, x_th: &[f32]) -> Vec<f32> {
    let activation = config.quantization.activation;
    let gate_tf = bit_linear(x_th, &layer.gate_proj, activation);
    let up_tf = bit_linear(x_th, &layer.up_proj, activation);
    let mut gated_tf: Vec<f32> =
        gate_tf.iter().zip(&up_tf).map(|(&g, &u)| activate(config.hidden_act, g) * u).collect();
    if let Some(norm) = &layer.ffn_sub_norm {
        gated_tf = rms_norm(&gated_tf, norm, config.rms_norm_eps);
    }
    bit_linear(&gated_tf, &layer.down_proj, activation)
}

/// The gate's activation of one value.
pub fn activate(act: HiddenAct, x: f32) -> f32 {
    match act {
        HiddenAct::Relu2 => x.max(0.0) * x.max(0.0),
        HiddenAct::Silu => x / (1.0 + (-x).exp()),
    }
}

fn float_dot(matrix: &FloatMatrix, row: usize, x: impl Iterator<Item = f64>) -> f64 {
    let mut weights = vec![0f32; matrix.cols];
    matrix.row_to_f32(row, &mut weights);
    weights.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
