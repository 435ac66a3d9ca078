//! The exponential function without a library call, so that it vectorizes.

/// `e^x` for `x` up to 88, within 2 units in the last place; 0 below -87, where the result would leave the normal numbers.
///
/// `x = n ln 2 + r` with an integer `n` and `|r| <= ln 2 / 2`, `e^x = 2^n e^r`, and `e^r` by its Taylor series: what is left
/// out, `r^8 / 8!`, is less than a tenth of a unit.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the mantissa.
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts, the first of few enough bits that its product with `n` is exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = (std::f64::consts::LN_2 - LN_2_HIGH as f64) as f32;
    let clamped = x.max(LOWEST);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, clamped));
    let mut series = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = r.mul_add(series, term);
    }
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23);
    if x < LOWEST { 0.0 } else { series * power }
}

/// [`exp`] of every number.
#[cfg(test)]
#[inline(always)]
pub(super) fn exp_all(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = exp(*x));
}

/// `e^-87` is about `2^-125.5`.
const LOWEST: f32 = -87.0;
