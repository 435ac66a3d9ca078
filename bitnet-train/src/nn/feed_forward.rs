//! The feed-forward half of a block.

use bitnet_model::config::HiddenAct;
use candle_core::{Result, Tensor};

use super::bit_linear::BitLinear;
use crate::ops::Ops;

/// `down_proj(ffn_sub_norm(act(gate_proj x) * up_proj x))`; LLaMA-shaped models have no sub-norm.
pub struct FeedForward {
    /// Gate projection.
    pub gate_proj: BitLinear,
    /// Up projection.
    pub up_proj: BitLinear,
    /// Down projection.
    pub down_proj: BitLinear,
    /// Weight of the norm before the down projection, `[intermediate]`.
    pub sub_norm: Option<Tensor>,
    /// Added to the mean square in the norm.
    pub eps: f32,
    /// Activation of the gate.
    pub act: HiddenAct,
}

impl FeedForward {
    /// `[batch, seq, hidden]`, normed, to `[batch, seq, hidden]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, ops: &dyn Ops, x_bth: &Tensor) -> Result<Tensor> {
        let mut gated_btf = self.gated(ops, x_bth)?;
        if let Some(weight) = &self.sub_norm {
            gated_btf = ops.rms_norm(&gated_btf, weight, self.eps)?;
        }
        self.down_proj.forward(ops, &gated_btf)
    }

    /// What enters the sub-norm, or the down projection where there is none: `[batch, seq, intermediate]`.
    ///
    /// # Errors
    /// As [`FeedForward::forward`].
    pub fn gated(&self, ops: &dyn Ops, x_bth: &Tensor) -> Result<Tensor> {
        let gate_btf = self.gate_proj.forward(ops, x_bth)?;
        let up_btf = self.up_proj.forward(ops, x_bth)?;
        ops.gated(&gate_btf, &up_btf, self.act)
    }
}
