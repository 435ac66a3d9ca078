//! Binary weights by the sign of the centred value (the original BitNet).
//!
//! `scale = mean|W|` of the weights as they are, `code = +1 where W - mean(W) > 0, else -1` (arXiv:2310.11453,
//! Eq. 1-3: the sign of zero is -1). The scale has the floor of the ternary scheme, so it is positive.

use super::{Granularity, WeightScheme, floored, mean_of};
use crate::packed::Layout;

/// `binary`: {-1, +1} with mean-centring and the mean magnitude as scale.
pub struct CentredSign;

impl WeightScheme for CentredSign {
    fn name(&self) -> &'static str {
        "binary"
    }

    fn code_range(&self) -> (i8, i8) {
        (-1, 1)
    }

    fn is_code(&self, code: i8) -> bool {
        code == 1 || code == -1
    }

    fn granularity(&self) -> Granularity {
        Granularity::Tensor
    }

    fn layout(&self) -> Layout {
        Layout::OneBit
    }

    fn quantize(&self, weights: &[f32], _rows: usize, codes: &mut [i8]) -> Vec<f32> {
        assert_eq!(weights.len(), codes.len(), "one code per weight");
        let mean = mean_of(weights, |w| w) as f32;
        for (code, &w) in codes.iter_mut().zip(weights) {
            *code = if w > mean { 1 } else { -1 };
        }
        vec![floored(mean_of(weights, f32::abs) as f32)]
    }
}
