//! Operands in the order in which tiles read them.
//!
//! `[k, width]` becomes panels of `w` columns (of the right operand; rows of the left one), each `[words, w]`: a word is one
//! number, or two neighbours along `k` as bf16, the earlier one in the lower half. Columns beyond the last are 0.

use crate::ops::kernels::{multiversion, prefetch};

/// The size of a panel.
#[derive(Clone, Copy)]
pub struct Panel {
    /// Of the inner dimension.
    pub ks: usize,
    /// Columns that there are.
    pub width: usize,
    /// Numbers of a word.
    pub depth: usize,
    /// Columns that the panel has.
    pub w: usize,
}

/// The upper half of an f32 rounded to nearest, ties to even: a bf16 number. Infinities stay what they are; so do the NaNs
/// that arithmetic makes.
#[inline(always)]
pub(super) fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
}

/// Two numbers as the halves of a word, rounded to bf16.
#[inline(always)]
pub(super) fn pair(low: f32, high: f32) -> u32 {
    bf16(low) | bf16(high) << 16
}

/// The same of numbers that are exact in bf16.
#[inline(always)]
fn exact_pair(low: f32, high: f32) -> u32 {
    low.to_bits() >> 16 | high.to_bits() & 0xffff_0000
}

/// What number `k` of the inner dimension is multiplied by: nothing, the same for all, or one of its own.
#[inline(always)]
pub(super) fn factor(factors: &[f32], k: usize) -> f32 {
    match factors {
        [] => 1.0,
        [one] => *one,
        each => each[k],
    }
}

/// A panel whose columns are contiguous in memory.
#[inline(always)]
fn panel_of<T: Copy>(
    data: &[T],
    stride: usize,
    panel: Panel,
    factors: &[f32],
    out: &mut [u32],
    (float, pair): (impl Fn(T) -> f32, impl Fn(f32, f32) -> u32),
) {
    let Panel { ks, width, depth, w } = panel;
    for (k, out) in (0..ks).step_by(depth).zip(out.chunks_exact_mut(w)) {
        let (out, beyond) = out.split_at_mut(width);
        beyond.fill(0);
        let (low, by) = (&data[k * stride..][..width], factor(factors, k));
        if depth == 1 {
            out.iter_mut().zip(low).for_each(|(out, &x)| *out = (float(x) * by).to_bits());
        } else if k + 1 < ks {
            let (high, by_high) = (&data[(k + 1) * stride..][..width], factor(factors, k + 1));
            let both = out.iter_mut().zip(low).zip(high);
            both.for_each(|((out, &low), &high)| *out = pair(float(low) * by, float(high) * by_high));
        } else {
            out.iter_mut().zip(low).for_each(|(out, &low)| *out = pair(float(low) * by, 0.0));
        }
    }
}

multiversion! {
/// A panel whose columns are contiguous in memory: number `(k, j)` of the panel at `data[k * stride + j]`, times
/// `factors[k]` if there are any.
pub fn contiguous_panel(data: &[f32], stride: usize, panel: Panel, factors: &[f32], out: &mut [u32]) {
    panel_of(data, stride, panel, factors, out, (|x| x, pair));
}
}

multiversion! {
/// A panel of codes whose columns are contiguous, each code as a number, times `factors[k]` if there are any.
pub fn code_panel(data: &[i8], stride: usize, panel: Panel, factors: &[f32], out: &mut [u32]) {
    if factors.is_empty() {
        panel_of(data, stride, panel, factors, out, (f32::from, exact_pair));
    } else {
        panel_of(data, stride, panel, factors, out, (f32::from, pair));
    }
}
}

multiversion! {
/// A panel whose inner dimension is contiguous in memory: number `(k, j)` of the panel at `data[j * stride + k]`, times
/// `factors[k]` if there are any.
pub fn transposed_panel(data: &[f32], stride: usize, panel: Panel, factors: &[f32], out: &mut [u32]) {
    let Panel { ks, width, depth, w } = panel;
    let words = ks.div_ceil(depth);
    let out = &mut out[..words * w];
    if width < w {
        out.fill(0);
    }
    for j in 0..width {
        let row = &data[j * stride..][..ks];
        let out = out[j..].iter_mut().step_by(w);
        if depth == 1 {
            out.zip(row).enumerate().for_each(|(k, (out, x))| *out = (x * factor(factors, k)).to_bits());
        } else {
            out.zip(row.chunks(2)).enumerate().for_each(|(word, (out, x))| {
                let high = x.get(1).map_or(0.0, |high| high * factor(factors, 2 * word + 1));
                *out = pair(x[0] * factor(factors, 2 * word), high);
            });
        }
    }
}
}

multiversion! {
/// Rows of a left operand that are contiguous along the inner dimension, as words: row `i` at `out[i * words..]`.
pub fn rows(data: &[f32], stride: usize, ks: usize, factors: &[f32], depth: usize, out: &mut [u32]) {
    let words = ks.div_ceil(depth);
    for (i, out) in out.chunks_exact_mut(words.max(1)).enumerate() {
        let row = &data[i * stride..][..ks];
        match (factors, depth) {
            ([], 1) => out.iter_mut().zip(row).for_each(|(out, x)| *out = x.to_bits()),
            (factors, 1) => out.iter_mut().zip(row).zip(factors).for_each(|((out, x), f)| *out = (x * f).to_bits()),
            (factors, _) => {
                let (pairs, last) = row.as_chunks::<2>();
                if factors.is_empty() {
                    out.iter_mut().zip(pairs).for_each(|(out, x)| *out = pair(x[0], x[1]));
                } else {
                    let factors = factors.as_chunks::<2>().0;
                    out.iter_mut().zip(pairs).zip(factors).for_each(|((out, x), f)| *out = pair(x[0] * f[0], x[1] * f[1]));
                }
                if let ([x], Some(out)) = (last, out.last_mut()) {
                    *out = pair(x * factors.last().copied().unwrap_or(1.0), 0.0);
                }
            }
        }
    }
}
}

/// Columns of a left operand's transpose that go from memory into one tile after the other while a few rows are in the
/// first-level cache.
const ROWS_AT_ONCE: usize = 16;

multiversion! {
/// A left operand whose rows are contiguous in memory (a transpose): tiles of 8 rows, word `w` of row `i` of tile `n` at
/// `out[n * tile_stride + w * 8 + i]`.
pub fn tiles_of_8(data: &[f32], stride: usize, ks: usize, factors: &[f32], depth: usize, tile_stride: usize, out: &mut [u32]) {
    let tiles = out.len() / tile_stride;
    for first in (0..ks).step_by(ROWS_AT_ONCE) {
        let some = first..ks.min(first + ROWS_AT_ONCE);
        // The rows are far apart, which hardware does not foresee.
        for k in some.end..ks.min(some.end + ROWS_AT_ONCE) {
            (0..tiles).step_by(2).for_each(|tile| prefetch(data, k * stride + tile * 8));
        }
        for tile in 0..tiles {
            let out = out[tile * tile_stride + first / depth * 8..].as_chunks_mut::<8>().0;
            let row = |k: usize| -> [f32; 8] {
                let row: [f32; 8] = data[k * stride + tile * 8..][..8].try_into().expect("8 numbers");
                let by = factor(factors, k);
                row.map(|x| x * by)
            };
            if depth == 1 {
                some.clone().zip(out).for_each(|(k, out)| *out = row(k).map(f32::to_bits));
                continue;
            }
            for (k, out) in some.clone().step_by(2).zip(out) {
                let (low, high) = (row(k), if k + 1 < ks { row(k + 1) } else { [0.0; 8] });
                *out = std::array::from_fn(|i| pair(low[i], high[i]));
            }
        }
    }
}
}
