//! int8 activations by absmax, one step per token (BitNet b1.58).
//!
//! `multiplier = (1 / max(max|x|, 1e-5)) * 127`, `code = clamp(round(x * multiplier), -127, 127)`, `step = max|x| / 127`
//! ("Training Tips, Code and FAQ", Figure 3; its lower limit of -128 is never reached).

use super::{ActivationScheme, abs_max, floored, to_code};

/// `int8`: per-token absmax.
pub struct AbsMaxInt8;

impl ActivationScheme for AbsMaxInt8 {
    fn name(&self) -> &'static str {
        "int8"
    }

    fn max_code(&self) -> i8 {
        127
    }

    // Inlined, so that a caller that is compiled for wide vectors has this arithmetic in them.
    #[inline(always)]
    fn quantize(&self, x: &[f32], codes: &mut [i8]) -> f32 {
        assert_eq!(x.len(), codes.len(), "one code per value");
        let largest = floored(abs_max(x));
        // In this order because PyTorch computes `127 / x` as `reciprocal(x) * 127`; one rounding less moves a code now and then.
        let multiplier = (1.0 / largest) * 127.0;
        for (code, &v) in codes.iter_mut().zip(x) {
            *code = to_code(v, multiplier, 127.0);
        }
        largest / 127.0
    }
}
