//! Operands in the order in which tiles read them.
//!
//! `[k, width]` becomes panels of `w` columns (of the right operand; rows of the left one), each `[words, w]`: a word is one
//! number, or two neighbours along `k` as bf16, the earlier one in the lower half. Columns beyond the last are 0.

use crate::ops::kernels::multiversion;

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

#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    bf16(low) | bf16(high) << 16
}

/// Rows `k` to `k + depth` of the inner dimension, `width` numbers of each from column `first` on, into one word each.
#[inline(always)]
fn words(width: usize, depth: usize, out: &mut [u32], at: impl Fn(usize, usize) -> f32) {
    if depth == 1 {
        out[..width].iter_mut().enumerate().for_each(|(j, out)| *out = at(0, j).to_bits());
    } else {
        out[..width].iter_mut().enumerate().for_each(|(j, out)| *out = pair(at(0, j), at(1, j)));
    }
    out[width..].fill(0);
}

multiversion! {
/// A panel whose columns are contiguous in memory: number `(k, j)` of the panel at `data[k * stride + j]`, times
/// `factors[k]` if there are any.
pub fn contiguous_panel(data: &[f32], stride: usize, panel: Panel, factors: &[f32], out: &mut [u32]) {
    let Panel { ks, width, depth, w } = panel;
    for (k, out) in (0..ks).step_by(depth).zip(out.chunks_exact_mut(w)) {
        let rows = [&data[k * stride..][..width], if k + 1 < ks { &data[(k + 1) * stride..][..width] } else { &[] }];
        match (factors, k + depth <= ks) {
            ([], true) => words(width, depth, out, |d, j| rows[d][j]),
            ([], false) => words(width, depth, out, |d, j| if d == 0 { rows[0][j] } else { 0.0 }),
            (factors, true) => words(width, depth, out, |d, j| rows[d][j] * factors[k + d]),
            (factors, false) => words(width, depth, out, |d, j| if d == 0 { rows[0][j] * factors[k] } else { 0.0 }),
        }
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
        match (factors, depth) {
            ([], 1) => out.zip(row).for_each(|(out, x)| *out = x.to_bits()),
            (factors, 1) => out.zip(row).zip(factors).for_each(|((out, x), f)| *out = (x * f).to_bits()),
            ([], _) => out.zip(row.chunks(2)).for_each(|(out, x)| *out = pair(x[0], x.get(1).copied().unwrap_or(0.0))),
            (factors, _) => out.zip(row.chunks(2)).zip(factors.chunks(2)).for_each(|((out, x), f)| {
                *out = pair(x[0] * f[0], x.get(1).map_or(0.0, |x| x * f[1]));
            }),
        }
    }
}
}

multiversion! {
/// A panel of codes whose columns are contiguous, each code as a number, times `factors[k]` if there are any.
pub fn code_panel(data: &[i8], stride: usize, panel: Panel, factors: &[f32], out: &mut [u32]) {
    let Panel { ks, width, depth, w } = panel;
    for (k, out) in (0..ks).step_by(depth).zip(out.chunks_exact_mut(w)) {
        let rows = [&data[k * stride..][..width], if k + 1 < ks { &data[(k + 1) * stride..][..width] } else { &[] }];
        match (factors, k + depth <= ks) {
            ([], true) => words(width, depth, out, |d, j| f32::from(rows[d][j])),
            ([], false) => words(width, depth, out, |d, j| if d == 0 { f32::from(rows[0][j]) } else { 0.0 }),
            ([factor], true) => words(width, depth, out, |d, j| f32::from(rows[d][j]) * factor),
            ([factor], false) => words(width, depth, out, |d, j| if d == 0 { f32::from(rows[0][j]) * factor } else { 0.0 }),
            (factors, true) => words(width, depth, out, |d, j| f32::from(rows[d][j]) * factors[k + d]),
            (factors, false) => words(width, depth, out, |d, j| if d == 0 { f32::from(rows[0][j]) * factors[k] } else { 0.0 }),
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
        for tile in 0..tiles {
            let out = out[tile * tile_stride + first / depth * 8..].as_chunks_mut::<8>().0;
            for (k, out) in some.clone().step_by(depth).zip(out) {
                let row = |k: usize| -> [f32; 8] {
                    let mut row: [f32; 8] = data[k * stride + tile * 8..][..8].try_into().expect("8 numbers");
                    if let Some(factor) = factors.get(k) {
                        row.iter_mut().for_each(|x| *x *= factor);
                    }
                    row
                };
                let low = row(k);
                if depth == 1 {
                    *out = low.map(f32::to_bits);
                } else {
                    let high = if k + 1 < ks { row(k + 1) } else { [0.0; 8] };
                    for i in 0..8 {
                        out[i] = pair(low[i], high[i]);
                    }
                }
            }
        }
    }
}
}
