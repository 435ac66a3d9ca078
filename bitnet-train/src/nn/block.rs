//! One pre-norm transformer block.

use candle_core::{Result, Tensor};

use super::attention::Attention;
use super::feed_forward::FeedForward;
use crate::ops::Ops;

/// `x += attention(norm(x)); x += feed_forward(norm(x))`.
pub struct Block {
    /// Weight of the norm before attention, `[hidden]`.
    pub input_layernorm: Tensor,
    /// The attention half.
    pub attention: Attention,
    /// Weight of the norm before the feed-forward half, `[hidden]`.
    pub post_attention_layernorm: Tensor,
    /// The feed-forward half.
    pub feed_forward: FeedForward,
    /// Added to the mean square in the norms.
    pub eps: f32,
}

impl Block {
    /// The residual stream `[batch, seq, hidden]` through both halves.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, ops: &dyn Ops, x_bth: &Tensor) -> Result<Tensor> {
        let normed_bth = ops.rms_norm(x_bth, &self.input_layernorm, self.eps)?;
        let x_bth = (x_bth + self.attention.forward(ops, &normed_bth)?)?;
        let normed_bth = ops.rms_norm(&x_bth, &self.post_attention_layernorm, self.eps)?;
        &x_bth + self.feed_forward.forward(ops, &normed_bth)?
    }
}
