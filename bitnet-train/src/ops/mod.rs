//! The one seam between the network and how it is computed.
//!
//! [`ReferenceOps`] is plain candle, to be read and to be tested against; [`FusedOps`] are few and coarse custom ops with
//! hand-written backward passes, because candle's generic backward costs several times its arithmetic. Both call the
//! quantization arithmetic of `bitnet-model`, so their integers are equal.
//!
//! Shape letters: `b` batch, `t` sequence, `h` hidden, `k` input features, `n` output features, `v` vocabulary.

mod fused;
pub mod kernels;
mod reference;
mod values;

use std::sync::Arc;

use bitnet_model::config::{HiddenAct, Quantization};
use bitnet_model::reference::rope_angle;
use candle_core::{Result, Tensor};

pub use fused::FusedOps;
pub use reference::ReferenceOps;
pub use values::values;

use crate::nn::estimator::Estimator;

/// What a BitLinear layer does beside multiplying.
#[derive(Clone, Copy)]
pub struct BitLinearSpec {
    /// Quantizers of the weights and of the input.
    pub quantization: Quantization,
    /// The gradient of the weight quantizer. The input's is always the identity.
    pub estimator: &'static dyn Estimator,
}

/// Heads and positions of an attention layer.
#[derive(Clone)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rotary angles.
    pub rope: Arc<RopeTable>,
}

/// Cosines and sines of the rotary angles, `[positions, head_dim / 2]` each.
pub struct RopeTable {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
    /// Half the width of a head.
    pub half: usize,
}

impl RopeTable {
    /// The table for positions `0..positions`.
    pub fn new(positions: usize, head_dim: usize, theta: f32) -> Self {
        let half = head_dim / 2;
        let angles: Vec<f64> =
            (0..positions).flat_map(|p| (0..half).map(move |j| rope_angle(p, j, head_dim, theta))).collect();
        let table = |f: fn(f64) -> f64| angles.iter().map(|&a| f(a) as f32).collect();
        Self { cos: table(f64::cos), sin: table(f64::sin), half }
    }
}

/// Everything the network computes that is worth computing well. All tensors are f32 and contiguous.
pub trait Ops: Send + Sync {
    /// The name used in configs and reports.
    fn name(&self) -> &'static str;

    /// Quantizes input and weights as `spec` says and multiplies: `[.., k] x [n, k] -> [.., n]`.
    fn bit_linear(&self, x: &Tensor, w_nk: &Tensor, spec: &BitLinearSpec) -> Result<Tensor>;

    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor>;

    /// Rotary positions and causal softmax attention: `q [b, t, heads * d]`, `k` and `v` `[b, t, kv_heads * d]` to
    /// `[b, t, heads * d]`.
    fn attention(&self, q_btq: &Tensor, k_btk: &Tensor, v_btk: &Tensor, spec: &AttentionSpec) -> Result<Tensor>;

    /// `act(gate) * up`, element by element.
    fn gated(&self, gate: &Tensor, up: &Tensor, act: HiddenAct) -> Result<Tensor>;

    /// Mean negative log-likelihood (nats) of `targets` (`b * t` tokens) under `softmax(x_bth head_vh^T)`: a scalar.
    fn cross_entropy(&self, x_bth: &Tensor, head_vh: &Tensor, targets: &[u32]) -> Result<Tensor>;
}

/// Looks an implementation up by its name in the config.
///
/// # Errors
/// The list of known names.
pub fn by_name(name: &str) -> std::result::Result<Arc<dyn Ops>, String> {
    match name {
        "fused" => Ok(Arc::new(FusedOps)),
        "reference" => Ok(Arc::new(ReferenceOps)),
        _ => Err(format!("is `{name}`, expected `fused` or `reference`")),
    }
}
