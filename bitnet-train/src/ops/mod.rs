//! The one seam between the network and how it is computed.
//!
//! [`ReferenceOps`] is plain candle, to be read and to be tested against: a graph of small ops, differentiated by candle.
//! [`FusedOps`] computes loss and gradients of the whole model by hand-written passes over buffers that outlive the step,
//! because candle's generic backward costs several times its arithmetic. Both call the quantization arithmetic of
//! `bitnet-model`, so their integers are equal.
//!
//! Shape letters: `b` batch, `t` sequence, `h` hidden, `k` input features, `n` output features, `v` vocabulary.

mod codes;
mod fused;
pub mod kernels;
mod reference;
mod values;

use std::sync::Arc;

use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, Quantization};
use bitnet_model::reference::rope_angle;
use candle_core::{Result, Tensor};

pub use codes::{Codes, codes, quantized};
pub(crate) use fused::resident;
pub use fused::{Backward, FusedOps, FusedSettings, MOST_INT8_LAYERS, OPS, Op, Precision, Spent};
pub use reference::ReferenceOps;
pub use values::{Values, values, values_mut};

use crate::nn::estimator::Estimator;
use crate::nn::parameters::Parameters;
use crate::nn::transformer::{Sequences, Transformer};
use crate::optim::Gradients;

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

    /// The loss of a checked batch; by default that of the network's graph.
    ///
    /// # Errors
    /// If the model cannot be computed.
    fn loss(&self, model: &Transformer, _parameters: &Parameters, batch: Sequences) -> anyhow::Result<f64> {
        Ok(f64::from(model.graph(batch)?.detach().to_scalar::<f32>()?))
    }

    /// The same, adding the gradient of every parameter; by default through candle's automatic differentiation.
    ///
    /// # Errors
    /// As [`Ops::loss`], or if a parameter has no gradient.
    fn differentiate(
        &self,
        model: &Transformer,
        parameters: &Parameters,
        batch: Sequences,
        gradients: &mut Gradients,
    ) -> anyhow::Result<f64> {
        let loss = model.graph(batch)?;
        gradients.accumulate(&loss, parameters)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// The codes that the last pass over `parameters` multiplied by, while no step has changed them since; by default they
    /// are computed again.
    ///
    /// # Errors
    /// If a parameter is missing.
    fn codes(&self, model: &Transformer, parameters: &Parameters) -> anyhow::Result<Codes> {
        codes(&model.config, parameters)
    }

    /// Bytes that passes over `tokens` tokens keep and work in, if that is known.
    fn memory(&self, _config: &ModelConfig, _tokens: usize) -> Option<usize> {
        None
    }

    /// Where the time went since the last call, in the order of [`OPS`], if that is known.
    fn take_profile(&self) -> Option<Vec<Spent>> {
        None
    }
}

/// Looks an implementation up by its name in the config.
///
/// # Errors
/// The list of known names.
pub fn by_name(name: &str) -> std::result::Result<Arc<dyn Ops>, String> {
    with_settings(name, FusedSettings::default())
}

/// The same, computed as `settings` say.
///
/// # Errors
/// The list of known names, or that the readable ops know no settings.
pub fn with_settings(name: &str, settings: FusedSettings) -> std::result::Result<Arc<dyn Ops>, String> {
    let plain = FusedSettings { seed: settings.seed, ..FusedSettings::default() };
    match name {
        "fused" => Ok(Arc::new(FusedOps::new(settings))),
        "reference" if settings == plain => Ok(Arc::new(ReferenceOps)),
        "reference" => Err("is `reference`, which computes in f32 and keeps everything: leave train.precision, \
            train.backward and train.gradient_checkpointing out, or take `fused`"
            .to_owned()),
        _ => Err(format!("is `{name}`, expected `fused` or `reference`")),
    }
}
