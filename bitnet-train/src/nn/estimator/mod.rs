//! Gradient estimators: what a weight quantizer's derivative is said to be.
//!
//! A quantizer is a staircase, flat almost everywhere; training needs another slope. Adding one: one file, one line in
//! [`ESTIMATORS`].

mod clipped;
mod straight_through;

use bitnet_model::quant::scale_of;

/// A rule for the gradient of the latent weights, given that of the quantized ones.
pub trait Estimator: Send + Sync {
    /// The name used in configs.
    fn name(&self) -> &'static str;

    /// Turns `gradient` (`[rows, cols]`, of the dequantized weights) into that of the `latent` weights, in place.
    fn weight_gradient(&self, latent: &[f32], grid: &Grid, gradient: &mut [f32]);
}

/// The levels that the weights were quantized to.
pub struct Grid<'a> {
    /// Rows of the matrix.
    pub rows: usize,
    /// The quantizer's scales: one, or one per row.
    pub scales: &'a [f32],
    /// Largest magnitude of a code.
    pub max_code: u8,
}

impl Grid<'_> {
    /// The scale of `row`.
    pub fn scale_of(&self, row: usize) -> f32 {
        scale_of(self.scales, row)
    }
}

/// Every estimator, by name.
pub static ESTIMATORS: &[&dyn Estimator] = &[&straight_through::StraightThrough, &clipped::Clipped];

/// Looks an estimator up.
///
/// # Errors
/// The list of known names.
pub fn by_name(name: &str) -> Result<&'static dyn Estimator, String> {
    ESTIMATORS.iter().copied().find(|e| e.name() == name).ok_or_else(|| {
        let known: Vec<_> = ESTIMATORS.iter().map(|e| e.name()).collect();
        format!("is `{name}`, expected one of: {}", known.join(", "))
    })
}
