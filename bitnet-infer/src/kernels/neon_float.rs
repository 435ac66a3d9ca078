//! NEON: float matrices.
//!
//! ```text
//! for each two tokens t, for each 8 columns: for each of 4 rows r: acc[t][r] = fma(to_f32(w[r]), x[t], acc[t][r])
//! ```
//!
//! Each product keeps two vectors of four f32 sums, in column order, whatever the number of tokens: a token's result does not
//! depend on its neighbours. Eight chains of FMA for a lone token, sixteen for two, hide its latency. Widening f16 (`fcvtl`)
//! and bf16 (a shift) belongs to plain NEON.

use std::arch::aarch64::*;

use half::{bf16, f16};

use super::float::FLOAT_ROWS;
use super::layout::FloatRows;

#[target_feature(enable = "neon")]
pub(super) fn f32_sums(weights: &[f32], x: FloatRows<'_>, out: &mut [f32]) {
    sums(weights, x, out);
}

#[target_feature(enable = "neon")]
pub(super) fn f16_sums(weights: &[f16], x: FloatRows<'_>, out: &mut [f32]) {
    sums(weights, x, out);
}

#[target_feature(enable = "neon")]
pub(super) fn bf16_sums(weights: &[bf16], x: FloatRows<'_>, out: &mut [f32]) {
    sums(weights, x, out);
}

#[inline]
#[target_feature(enable = "neon")]
fn sums<W: Weight>(weights: &[W], x: FloatRows<'_>, out: &mut [f32]) {
    let stride = weights.len() / FLOAT_ROWS;
    let rows = std::array::from_fn(|r| weights[r * stride..][..stride].as_chunks().0);
    let (pairs, last) = out.as_chunks_mut::<FLOAT_ROWS>().0.as_chunks_mut::<2>();
    let mut x = x.values.chunks_exact(x.stride).map(|x| x.as_chunks().0);
    for out in pairs {
        let (Some(first), Some(second)) = (x.next(), x.next()) else { return };
        *out = tile(rows, [first, second]);
    }
    if let ([out], Some(x)) = (last, x.next()) {
        [*out] = tile(rows, [x]);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn tile<W: Weight, const T: usize>(
    rows: [&[[W; LANES]]; FLOAT_ROWS],
    x: [&[[f32; LANES]]; T],
) -> [[f32; FLOAT_ROWS]; T] {
    let steps = rows[0].len();
    let (mut rows, mut x) = (rows, x);
    rows.iter_mut().for_each(|row| *row = &row[..steps]);
    x.iter_mut().for_each(|x| *x = &x[..steps]);
    let mut sums = [[[vdupq_n_f32(0.0); 2]; FLOAT_ROWS]; T];
    for i in 0..steps {
        let mut x_i = [[vdupq_n_f32(0.0); 2]; T];
        for (x_i, x) in x_i.iter_mut().zip(x) {
            // SAFETY: this function has the feature.
            *x_i = unsafe { f32::load(&x[i]) };
        }
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: this function has the feature.
            let w = unsafe { W::load(&row[i]) };
            for (x, sums) in x_i.iter().zip(&mut sums) {
                let [low, high] = &mut sums[r];
                *low = vfmaq_f32(*low, w[0], x[0]);
                *high = vfmaq_f32(*high, w[1], x[1]);
            }
        }
    }
    sums.map(|sums| sums.map(|[low, high]| vaddvq_f32(vaddq_f32(low, high))))
}

/// Numbers that widen to f32, eight at a time.
trait Weight: Sized {
    /// # Safety
    /// The CPU has NEON.
    unsafe fn load(values: &[Self; LANES]) -> [float32x4_t; 2];
}

impl Weight for f32 {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(values: &[Self; LANES]) -> [float32x4_t; 2] {
        // SAFETY: 32 bytes are readable; the loads need no alignment.
        unsafe { [vld1q_f32(values.as_ptr()), vld1q_f32(values[4..].as_ptr())] }
    }
}

impl Weight for f16 {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(values: &[Self; LANES]) -> [float32x4_t; 2] {
        // SAFETY: an `f16` is a transparent `u16`, so 16 bytes are readable; the load needs no alignment.
        let bits = unsafe { vld1q_u16(values.as_ptr().cast()) };
        let widen = |bits| vcvt_f32_f16(vreinterpret_f16_u16(bits));
        [widen(vget_low_u16(bits)), widen(vget_high_u16(bits))]
    }
}

impl Weight for bf16 {
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn load(values: &[Self; LANES]) -> [float32x4_t; 2] {
        // SAFETY: a `bf16` is a transparent `u16`, so 16 bytes are readable; the load needs no alignment.
        let bits = unsafe { vld1q_u16(values.as_ptr().cast()) };
        // A bf16 is the upper half of an f32.
        let (low, high) = (vshll_n_u16::<16>(vget_low_u16(bits)), vshll_high_n_u16::<16>(bits));
        [vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)]
    }
}

/// Floats of a step.
const LANES: usize = 8;
