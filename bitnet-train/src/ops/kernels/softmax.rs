//! Exponentials and softmax over one row.

use super::{LANES, lane_sum, multiversion};

/// `e^x` to about one unit in the last place for `-87 <= x <= 88`, without a library call so that loops vectorize.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; a Taylor polynomial of degree 7 gives `e^r` to 1e-8; `2^n` is made of bits.
/// Smaller `x` give 0 (the smallest normal number is 1.2e-38), larger are clamped.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    // ln 2 in two parts, so that n * LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    // The low bits of `shifted` are n in two's complement; moved into the exponent field they are 2^n.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { p * power }
}

multiversion! {
/// The largest value of `x`; minus infinity if it is empty.
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = x.chunks_exact(LANES);
    for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = if v > *lane { v } else { *lane };
    }
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}
}

multiversion! {
/// Replaces `x` by `e^(x - shift)` and returns the sum of the results.
pub fn exp_shifted(x: &mut [f32], shift: f32) -> f32 {
    for v in x.iter_mut() {
        *v = exp(*v - shift);
    }
    lane_sum(x.len(), |i| x[i])
}
}

multiversion! {
/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    for v in x.iter_mut() {
        *v *= factor;
    }
}
}

multiversion! {
/// The softmax's backward pass on one row, in place of the probabilities: `p * (dp - sum(p * dp))`.
pub fn softmax_backward(p: &mut [f32], dp: &[f32]) {
    let dp = &dp[..p.len()];
    let delta = lane_sum(p.len(), |i| p[i] * dp[i]);
    for (p, &dp) in p.iter_mut().zip(dp) {
        *p *= dp - delta;
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in -8_700_000..8_800_000i64 {
            if i % 7 != 0 {
                continue;
            }
            let x = i as f32 * 1e-5;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.4e-7, "{worst:e}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn rows_agree_with_plain_loops() {
        let x: Vec<f32> = (0..100).map(|i| ((i * 37) % 100) as f32 * 0.1 - 5.0).collect();
        assert_eq!(max(&x), x.iter().copied().fold(f32::MIN, f32::max));
        let mut e = x.clone();
        let sum = exp_shifted(&mut e, 4.9);
        let exact: f64 = x.iter().map(|&v| f64::from(v - 4.9).exp()).sum();
        assert!((f64::from(sum) - exact).abs() < 1e-5 * exact);
    }
}
