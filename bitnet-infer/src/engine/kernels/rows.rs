//! Loops over one row.

use half::f16;

use super::BLOCK;

/// The bits of an f16, moved to where an f32 has them, are the number times `2^-112`; this undoes it exactly, for subnormal
/// numbers too. (Infinity and NaN would become numbers; no cache holds them.)
#[inline(always)]
pub(super) fn widen_f16(narrow: &[f16], wide: &mut [f32]) {
    const UNDO: f32 = f32::from_bits((112 + 127) << 23);
    for (wide, narrow) in wide.iter_mut().zip(narrow) {
        let bits = u32::from(narrow.to_bits());
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * UNDO;
        *wide = f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16);
    }
}

#[inline(always)]
pub(super) fn widen_int8_columns(codes: &[i8], steps: &[f32], wide: &mut [f32]) {
    for (wide, codes) in wide.chunks_exact_mut(BLOCK).zip(codes.chunks_exact(BLOCK)) {
        for ((wide, &code), step) in wide.iter_mut().zip(codes).zip(&steps[..BLOCK]) {
            *wide = f32::from(code) * step;
        }
    }
}

#[inline(always)]
pub(super) fn widen_int8_rows(codes: &[i8], steps: &[f32], wide: &mut [f32]) {
    let width = codes.len() / steps.len();
    for ((wide, codes), step) in wide.chunks_exact_mut(width).zip(codes.chunks_exact(width)).zip(steps) {
        wide.iter_mut().zip(codes).for_each(|(wide, &code)| *wide = f32::from(code) * step);
    }
}

#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    out.copy_from_slice(x);
    rms_norm_in_place(out, weight, eps);
}

#[inline(always)]
pub(super) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let mean_square = sum_of_squares(x) / weight.len() as f64;
    let inverse = 1.0 / (mean_square + f64::from(eps)).sqrt();
    for (x, &w) in x.iter_mut().zip(weight) {
        *x = (f64::from(*x) * inverse * f64::from(w)) as f32;
    }
}

/// In f64: a norm's sum decides every code behind it.
#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = x.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(v) * f64::from(v);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[inline(always)]
pub(super) fn gated_relu2(gate: &mut [f32], up: &[f32]) {
    gate.iter_mut().zip(up).for_each(|(g, &u)| *g = (g.max(0.0) * g.max(0.0)) * u);
}

#[inline(always)]
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

#[inline(always)]
pub(super) fn rotate_head(x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = x.split_at_mut(x.len() / 2);
    for ((a, b), (&cos, &sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
