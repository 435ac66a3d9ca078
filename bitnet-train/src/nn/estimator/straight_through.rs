//! The identity (Bengio et al., arXiv:1308.3432): what BitNet trains with.

use super::{Estimator, Grid};

/// `ste`: the gradient of the quantized weights is that of the latent ones.
pub struct StraightThrough;

impl Estimator for StraightThrough {
    fn name(&self) -> &'static str {
        "ste"
    }

    fn weight_gradient(&self, _latent: &[f32], _grid: &Grid, _gradient: &mut [f32]) {}
}
