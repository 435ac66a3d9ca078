//! Exponentials and softmax over one row.

use super::{LANES, lane_sum, multiversion, reduce};

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

#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, v);
    }
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    reduce(lanes, larger)
}

/// `e^(x - shift)` in place; the sum of the results in the order of [`super::lane_sum`].
#[inline(always)]
fn exponentials(x: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *v = exp(*v - shift);
            *lane += *v;
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *v = exp(*v - shift);
        *lane += *v;
    }
    reduce(lanes, |a, b| a + b)
}

multiversion! {
/// The largest value of `x`; minus infinity if it is empty.
pub fn max(x: &[f32]) -> f32 {
    largest(x)
}
}

multiversion! {
/// Replaces `x` by `e^(x - shift)` and returns the sum of the results.
pub fn exp_shifted(x: &mut [f32], shift: f32) -> f32 {
    exponentials(x, shift)
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
/// The softmax of a block of causal attention, without its division: of row `i`, `width` scores long, the first `seen + i`
/// become `e^(score - largest)` and the others 0. `inverses` receives one over the rows' sums, `log_sums` the logarithms of
/// the sums of `e^score`.
pub fn causal_softmax(scores: &mut [f32], width: usize, seen: usize, inverses: &mut [f32], log_sums: &mut [f32]) {
    let rows = scores.chunks_exact_mut(width).zip(inverses).zip(log_sums);
    for (i, ((row, inverse), log_sum)) in rows.enumerate() {
        let (visible, hidden) = row.split_at_mut(seen + i);
        hidden.fill(0.0);
        let largest = largest(visible);
        let sum = exponentials(visible, largest);
        *inverse = 1.0 / sum;
        *log_sum = largest + sum.ln();
    }
}
}

multiversion! {
/// The probabilities of [`causal_softmax`] again, from the scores and the logarithms.
pub fn causal_probabilities(scores: &mut [f32], width: usize, seen: usize, log_sums: &[f32]) {
    for (i, (row, log_sum)) in scores.chunks_exact_mut(width).zip(log_sums).enumerate() {
        let (visible, hidden) = row.split_at_mut(seen + i);
        hidden.fill(0.0);
        visible.iter_mut().for_each(|v| *v = exp(*v - log_sum));
    }
}
}

multiversion! {
/// The backward pass of [`causal_softmax`], in place of the probabilities: `p * (dp - sum(p * dp))` in each row.
pub fn causal_softmax_backward(p: &mut [f32], dp: &[f32], width: usize, seen: usize) {
    for (i, (p, dp)) in p.chunks_exact_mut(width).zip(dp.chunks_exact(width)).enumerate() {
        let (p, dp) = (&mut p[..seen + i], &dp[..seen + i]);
        let delta = lane_sum(p.len(), |i| p[i] * dp[i]);
        p.iter_mut().zip(dp).for_each(|(p, &dp)| *p *= dp - delta);
    }
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_two_units_in_the_last_place() {
        for i in -8_700_000..8_800_000i64 {
            if i % 7 != 0 {
                continue;
            }
            let x = i as f32 * 1e-5;
            let exact = f64::from(x).exp();
            let error = ((f64::from(exp(x)) - exact) / exact).abs();
            assert!(error < 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn gradients_of_a_row_sum_to_nothing() {
        for len in [1, 2, 17, 300] {
            let p: Vec<f32> = (0..len).map(|i| ((i * 7) % len + 1) as f32).collect();
            let sum: f32 = p.iter().sum();
            let p: Vec<f32> = p.iter().map(|p| p / sum).collect();
            // All far on one side, so that what is subtracted must be exact.
            let dp: Vec<f32> = (0..len).map(|i| 100.0 + (i as f32 * 0.7).sin()).collect();
            let mut ds = p.clone();
            causal_softmax_backward(&mut ds, &dp, len, len);
            let mean: f64 = p.iter().zip(&dp).map(|(p, dp)| f64::from(p * dp)).sum();
            for ((ds, p), dp) in ds.iter().zip(&p).zip(&dp) {
                let exact = f64::from(*p) * (f64::from(*dp) - mean);
                assert!((f64::from(*ds) - exact).abs() < 3e-5 * f64::from(*p), "{ds} for {exact}");
            }
            let size: f32 = ds.iter().map(|ds| ds.abs()).sum();
            assert!(ds.iter().sum::<f32>().abs() <= 1e-4 * size, "{len}: {size}");
        }
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
