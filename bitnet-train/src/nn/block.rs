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

    /// As [`Block::forward`] of a block without sub-norms, with the magnitudes (root mean squares over all tokens) of what enters
    /// the output and the down projection: where sub-norms of these weights would change least.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn measured(&self, ops: &dyn Ops, x_bth: &Tensor) -> Result<(Tensor, [f32; 2])> {
        let normed_bth = ops.rms_norm(x_bth, &self.input_layernorm, self.eps)?;
        let mixed_btq = self.attention.mixed(ops, &normed_bth)?;
        let x_bth = (x_bth + self.attention.o_proj.forward(ops, &mixed_btq)?)?;
        let normed_bth = ops.rms_norm(&x_bth, &self.post_attention_layernorm, self.eps)?;
        let gated_btf = self.feed_forward.gated(ops, &normed_bth)?;
        let x_bth = (&x_bth + self.feed_forward.down_proj.forward(ops, &gated_btf)?)?;
        let magnitude = |x: &Tensor| x.sqr()?.mean_all()?.sqrt()?.to_scalar::<f32>();
        Ok((x_bth, [magnitude(&mixed_btq)?, magnitude(&gated_btf)?]))
    }
}
