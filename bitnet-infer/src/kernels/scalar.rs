//! The portable kernel: what every other kernel must equal.
//!
//! ```text
//! for each group, block, row of the group, slot of a byte: u[0..4] = (bytes >> shift) & mask
//!     for each token: raw[token][row] += sum(u * a)
//! ```
//!
//! Overflow: products and sums are i32; [`super::layout`] shows that `raw` fits for any allowed number of columns.
//!
//! Float sums run in [`FLOAT_LANES`] interleaved f32 sums, added pairwise at the end: a fixed order that a compiler can
//! vectorize and that no tile or thread count changes.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::float::FLOAT_ROWS;
use super::layout::{CodeKind, FloatRows, Job};
use super::{Kernel, Panel, base3};

/// Runs everywhere.
pub static KERNEL: Kernel = ROW;

/// [`KERNEL`] as a constant, for kernels that differ in few functions.
pub(super) const ROW: Kernel = Kernel {
    name: "scalar",
    supported: || true,
    lanes: 16,
    panel: |_, cols, _| Panel::small(4, cols),
    ternary: sums,
    base3: Some(sums),
    binary: sums,
    int8: sums,
    int4: sums,
    code_floats: code_floats::<4>,
    f32: |w, x, out| float_sums(w, |w, values| values.copy_from_slice(w), x, out),
    f16: |w: &[f16], x, out| float_sums(w, HalfFloatSliceExt::convert_to_f32_slice, x, out),
    bf16: |w: &[bf16], x, out| float_sums(w, HalfFloatSliceExt::convert_to_f32_slice, x, out),
};

/// `raw` of every token and row, `[tokens, rows of the job]`.
pub(super) fn sums(job: &Job<'_, i8>, out: &mut [i32]) {
    out.fill(0);
    let (rows, slots) = (job.lanes / 4, job.kind.slots());
    let width = job.rows;
    for (group, bytes) in job.groups().enumerate() {
        for (block, bytes) in bytes.chunks(job.lanes).enumerate() {
            for (r, bytes) in bytes.as_chunks::<4>().0.iter().enumerate() {
                for slot in 0..slots {
                    let u = bytes.map(|byte| decode(job.kind, byte, slot));
                    for (x, out) in job.x.chunks(job.stride).zip(out.chunks_mut(width)) {
                        let x = &x[(block * slots + slot) * 4..][..4];
                        out[group * rows + r] +=
                            u.iter().zip(x).map(|(&u, &a)| i32::from(u) * i32::from(a)).sum::<i32>();
                    }
                }
            }
        }
    }
}

fn decode(kind: CodeKind, byte: u8, slot: usize) -> u8 {
    if kind == CodeKind::Base3 {
        return base3::decode(byte, slot);
    }
    (byte >> (slot * kind.bits())) & ((1u16 << kind.bits()) - 1) as u8
}

/// `sum(code * x)` for `[tokens, rows of the job]`, two tokens at a time, in groups of `ROWS` rows.
#[inline(always)]
pub(super) fn code_floats<const ROWS: usize>(job: &Job<'_, f32>, out: &mut [f32]) {
    let width = job.rows;
    for (group, bytes) in job.groups().enumerate() {
        let blocks = bytes.as_chunks::<4>().0.as_chunks::<ROWS>().0;
        for (x, out) in job.x.chunks(2 * job.stride).zip(out.chunks_mut(2 * width)) {
            let out = out.chunks_mut(width).map(|out| &mut out[group * ROWS..][..ROWS]);
            if x.len() == 2 * job.stride {
                let (x, y) = x.split_at(job.stride);
                out.zip(code_sums(job.kind, blocks, [x, y])).for_each(|(out, sums)| out.copy_from_slice(&sums));
            } else {
                out.zip(code_sums(job.kind, blocks, [x])).for_each(|(out, sums)| out.copy_from_slice(&sums));
            }
        }
    }
}

/// Base three apart: a choice of decoding inside the loops would keep them from vectorizing.
#[inline(always)]
fn code_sums<const ROWS: usize, const T: usize>(
    kind: CodeKind,
    blocks: &[[[u8; 4]; ROWS]],
    x: [&[f32]; T],
) -> [[f32; ROWS]; T] {
    match kind {
        CodeKind::Base3 => code_tile::<ROWS, T, true>(kind, blocks, x),
        _ => code_tile::<ROWS, T, false>(kind, blocks, x),
    }
}

/// Each of the four columns of a slot has a sum of its own, added pairwise at the end; rows stand in lanes, so any width of
/// vectors gives the same bits.
#[inline(always)]
fn code_tile<const ROWS: usize, const T: usize, const BASE3: bool>(
    kind: CodeKind,
    blocks: &[[[u8; 4]; ROWS]],
    x: [&[f32]; T],
) -> [[f32; ROWS]; T] {
    let (multiplier, offset) = (kind.multiplier() as f32, kind.offset() as f32);
    let (bits, slots) = (kind.bits(), kind.slots());
    let mask = (1u32 << bits) - 1;
    let x = x.map(|x| x.as_chunks::<4>().0);
    let mut sums = [[[0f32; ROWS]; 4]; T];
    for (block, words) in blocks.iter().enumerate() {
        let words = words.map(u32::from_le_bytes);
        for slot in 0..slots {
            let x = x.map(|x| x[block * slots + slot]);
            for j in 0..4 {
                let u = |word: u32| match BASE3 {
                    true => u32::from(base3::decode((word >> (8 * j)) as u8, slot)),
                    false => (word >> (8 * j + slot * bits)) & mask,
                };
                let codes = words.map(|word| multiplier * u(word) as f32 - offset);
                for (sums, x) in sums.iter_mut().zip(x) {
                    sums[j].iter_mut().zip(codes).for_each(|(sum, code)| *sum += code * x[j]);
                }
            }
        }
    }
    sums.map(|sums| std::array::from_fn(|r| (sums[0][r] + sums[1][r]) + (sums[2][r] + sums[3][r])))
}

/// Rows of floats times inputs; `to_f32` widens a row once for all tokens.
fn float_sums<W>(weights: &[W], to_f32: impl Fn(&[W], &mut [f32]), x: FloatRows<'_>, out: &mut [f32]) {
    let stride = weights.len() / FLOAT_ROWS;
    let mut values = vec![0f32; stride];
    for row in 0..FLOAT_ROWS {
        to_f32(&weights[row * stride..][..stride], &mut values);
        for (x, out) in x.values.chunks(x.stride).zip(out.chunks_mut(FLOAT_ROWS)) {
            let mut lanes = [0f32; FLOAT_LANES];
            add_products(&mut lanes, &values, &x[..stride]);
            out[row] = add_lanes(lanes);
        }
    }
}

#[inline(always)]
fn add_products(lanes: &mut [f32; FLOAT_LANES], a: &[f32], b: &[f32]) {
    for (a, b) in a.chunks_exact(FLOAT_LANES).zip(b.chunks_exact(FLOAT_LANES)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
}

#[inline(always)]
fn add_lanes(lanes: [f32; FLOAT_LANES]) -> f32 {
    let mut sums = lanes;
    let mut width = FLOAT_LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Interleaved float sums.
const FLOAT_LANES: usize = 16;
