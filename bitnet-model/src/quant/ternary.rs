//! Ternary weights by absmean (BitNet b1.58).
//!
//! `scale = max(mean|W|, 1e-5)`, `code = clamp(round(W / scale), -1, 1)`, one scale for the matrix
//! (arXiv:2402.17764, Eq. 1-3; the multiplication by `1 / scale` and the clamp are those of the official
//! "Training Tips, Code and FAQ", Figure 3). For normal weights 31 % of the codes are zero.

use super::{Granularity, WeightScheme, floored, mean_of, to_code};
use crate::packed::Layout;

/// `ternary`: {-1, 0, +1} with the mean magnitude as scale.
pub struct AbsMean;

impl WeightScheme for AbsMean {
    fn name(&self) -> &'static str {
        "ternary"
    }

    fn code_range(&self) -> (i8, i8) {
        (-1, 1)
    }

    fn granularity(&self) -> Granularity {
        Granularity::Tensor
    }

    fn layout(&self) -> Layout {
        Layout::TwoBit
    }

    fn quantize(&self, weights: &[f32], _rows: usize, codes: &mut [i8]) -> Vec<f32> {
        assert_eq!(weights.len(), codes.len(), "one code per weight");
        let scale = floored(mean_of(weights, f32::abs) as f32);
        let multiplier = 1.0 / scale;
        for (code, &w) in codes.iter_mut().zip(weights) {
            *code = to_code(w, multiplier, 1.0);
        }
        vec![scale]
    }
}
