//! The portable kernel: what every other kernel must equal.
//!
//! ```text
//! for each row of the group:
//!     for each block of columns: u[..] = (bytes >> shift) & mask
//!         for each token: raw[token][row] += sum(u * a)
//! ```
//!
//! Overflow: products and sums are i32; [`super::layout`] shows that `raw` fits for any allowed number of columns.
//!
//! Float sums run in [`FLOAT_LANES`] interleaved f32 sums, added pairwise at the end: a fixed order that a compiler can
//! vectorize and that no tile or thread count changes.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Kernel;
use super::layout::{FloatRows, GROUP_ROWS, Job, block_cols};

/// Runs everywhere.
pub static KERNEL: Kernel = Kernel {
    name: "scalar",
    supported: || true,
    lanes: 32,
    ternary: sums,
    binary: sums,
    int8: sums,
    int4: sums,
    code_floats,
    f32: |w, x, out| float_sums(w, |w, values| values.copy_from_slice(w), x, out),
    f16: |w: &[f16], x, out| float_sums(w, HalfFloatSliceExt::convert_to_f32_slice, x, out),
    bf16: |w: &[bf16], x, out| float_sums(w, HalfFloatSliceExt::convert_to_f32_slice, x, out),
};

/// `raw` of every token and row, `[tokens, GROUP_ROWS]`.
pub(super) fn sums(job: &Job<'_, i8>, out: &mut [i32]) {
    out.fill(0);
    let mut u = [0u8; MAX_BLOCK];
    for (block, bytes) in job.bytes.chunks(GROUP_ROWS * job.lanes).enumerate() {
        for (row, bytes) in bytes.chunks(job.lanes).enumerate() {
            let u = decode(job.kind.bits(), bytes, &mut u);
            for (x, out) in job.x.chunks(job.stride).zip(out.chunks_mut(GROUP_ROWS)) {
                let x = &x[block * u.len()..][..u.len()];
                out[row] += u.iter().zip(x).map(|(&u, &a)| i32::from(u) * i32::from(a)).sum::<i32>();
            }
        }
    }
}

/// `sum(code * x)`. Codes become floats one block at a time, once for [`FLOAT_TOKENS`] tokens.
#[inline(always)]
pub(super) fn code_floats(job: &Job<'_, f32>, out: &mut [f32]) {
    let cols = block_cols(job.kind, job.lanes);
    let (multiplier, offset) = (job.kind.multiplier() as f32, job.kind.offset() as f32);
    let mut u = [0u8; MAX_BLOCK];
    let mut codes = [0f32; MAX_BLOCK];
    let tiles = job.x.chunks(FLOAT_TOKENS * job.stride).zip(out.chunks_mut(FLOAT_TOKENS * GROUP_ROWS));
    for (x, out) in tiles {
        for row in 0..GROUP_ROWS {
            let mut lanes = [[0f32; FLOAT_LANES]; FLOAT_TOKENS];
            for block in 0..job.blocks {
                let bytes = &job.bytes[(block * GROUP_ROWS + row) * job.lanes..][..job.lanes];
                for (code, &u) in codes.iter_mut().zip(decode(job.kind.bits(), bytes, &mut u)) {
                    *code = multiplier * f32::from(u) - offset;
                }
                for (x, lanes) in x.chunks(job.stride).zip(&mut lanes) {
                    add_products(lanes, &codes[..cols], &x[block * cols..][..cols]);
                }
            }
            for (out, lanes) in out.chunks_mut(GROUP_ROWS).zip(lanes) {
                out[row] = add_lanes(lanes);
            }
        }
    }
}

/// Rows of floats times inputs; `to_f32` widens a row once for all tokens.
fn float_sums<W>(weights: &[W], to_f32: impl Fn(&[W], &mut [f32]), x: FloatRows<'_>, out: &mut [f32]) {
    let stride = weights.len() / GROUP_ROWS;
    let mut values = vec![0f32; stride];
    for row in 0..GROUP_ROWS {
        to_f32(&weights[row * stride..][..stride], &mut values);
        for (x, out) in x.values.chunks(x.stride).zip(out.chunks_mut(GROUP_ROWS)) {
            let mut lanes = [0f32; FLOAT_LANES];
            add_products(&mut lanes, &values, &x[..stride]);
            out[row] = add_lanes(lanes);
        }
    }
}

/// The `u` of one block of one row, in column order.
#[inline(always)]
fn decode<'a>(bits: usize, bytes: &[u8], u: &'a mut [u8; MAX_BLOCK]) -> &'a [u8] {
    let mask = ((1u16 << bits) - 1) as u8;
    for (i, u) in u.chunks_mut(bytes.len()).take(8 / bits).enumerate() {
        for (u, &byte) in u.iter_mut().zip(bytes) {
            *u = (byte >> (i * bits)) & mask;
        }
    }
    &u[..bytes.len() * 8 / bits]
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

/// Tokens that share the decoding of a block.
const FLOAT_TOKENS: usize = 8;

/// Columns of the largest block: 64 bytes of one-bit codes.
const MAX_BLOCK: usize = 512;
