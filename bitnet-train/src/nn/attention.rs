//! The attention half of a block.

use candle_core::{Result, Tensor};

use super::bit_linear::BitLinear;
use crate::ops::{AttentionSpec, Ops};

/// `o_proj(attn_sub_norm(attention(q_proj x, k_proj x, v_proj x)))`; LLaMA-shaped models have no sub-norm.
pub struct Attention {
    /// Query, key and value projections.
    pub q_proj: BitLinear,
    /// Key projection.
    pub k_proj: BitLinear,
    /// Value projection.
    pub v_proj: BitLinear,
    /// Output projection.
    pub o_proj: BitLinear,
    /// Weight of the norm before the output projection, `[heads * head_dim]`.
    pub sub_norm: Option<Tensor>,
    /// Added to the mean square in the norm.
    pub eps: f32,
    /// Heads and positions.
    pub spec: AttentionSpec,
}

impl Attention {
    /// `[batch, seq, hidden]`, normed, to `[batch, seq, hidden]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, ops: &dyn Ops, x_bth: &Tensor) -> Result<Tensor> {
        let mut mixed_btq = self.mixed(ops, x_bth)?;
        if let Some(weight) = &self.sub_norm {
            mixed_btq = ops.rms_norm(&mixed_btq, weight, self.eps)?;
        }
        self.o_proj.forward(ops, &mixed_btq)
    }

    /// What enters the sub-norm, or the output projection where there is none: `[batch, seq, heads * head_dim]`.
    ///
    /// # Errors
    /// As [`Attention::forward`].
    pub fn mixed(&self, ops: &dyn Ops, x_bth: &Tensor) -> Result<Tensor> {
        let q_btq = self.q_proj.forward(ops, x_bth)?;
        let k_btk = self.k_proj.forward(ops, x_bth)?;
        let v_btk = self.v_proj.forward(ops, x_bth)?;
        ops.attention(&q_btq, &k_btk, &v_btk, &self.spec)
    }
}
