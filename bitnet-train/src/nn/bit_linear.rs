//! A linear layer that quantizes its input and its latent weights on the way.

use candle_core::{Result, Tensor};

use crate::ops::{BitLinearSpec, Ops};

/// `y = Q(x) Q(W)^T`, no bias.
pub struct BitLinear {
    weight_nk: Tensor,
    spec: BitLinearSpec,
}

impl BitLinear {
    /// A layer of latent weights `[out_features, in_features]`.
    pub fn new(weight_nk: Tensor, spec: BitLinearSpec) -> Self {
        Self { weight_nk, spec }
    }

    /// `[batch, seq, in_features]` to `[batch, seq, out_features]`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, ops: &dyn Ops, x_btk: &Tensor) -> Result<Tensor> {
        ops.bit_linear(x_btk, &self.weight_nk, &self.spec)
    }
}
