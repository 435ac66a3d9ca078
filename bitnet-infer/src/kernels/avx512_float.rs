//! AVX-512: float matrices, with the sums of [`super::avx2_float`], bit for bit.
//!
//! ```text
//! for each row r for a lone token, or for four rows r and three (or two, one) tokens t together; for each 32 columns:
//!     for each 16 of them: acc[r][t][i] = fma(to_f32(w[r][i]), x[t][i], acc[r][t][i])
//! ```

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::avx2_float;
use super::float::FLOAT_ROWS;
use super::layout::FloatRows;

#[target_feature(enable = "avx512f,avx2")]
pub(super) fn f32_sums(weights: &[f32], x: FloatRows<'_>, out: &mut [f32]) {
    sums(weights, x, out);
}

#[target_feature(enable = "avx512f,avx2")]
pub(super) fn f16_sums(weights: &[f16], x: FloatRows<'_>, out: &mut [f32]) {
    sums(weights, x, out);
}

#[target_feature(enable = "avx512f,avx2")]
pub(super) fn bf16_sums(weights: &[bf16], x: FloatRows<'_>, out: &mut [f32]) {
    sums(weights, x, out);
}

#[inline]
#[target_feature(enable = "avx512f,avx2")]
fn sums<W: Weight>(weights: &[W], x: FloatRows<'_>, out: &mut [f32]) {
    let stride = weights.len() / FLOAT_ROWS;
    let tokens = x.values.len() / x.stride;
    let row = |row: usize| weights[row * stride..][..stride].as_chunks().0.as_chunks().0;
    if tokens == 1 {
        // One row, one stream.
        (0..FLOAT_ROWS).for_each(|r| tile::<W, 1, 1>([row(r)], x, 0, &mut out[r..]));
        return;
    }
    let rows: [_; FLOAT_ROWS] = std::array::from_fn(row);
    for first in (0..tokens - tokens % 3).step_by(3) {
        tile::<W, FLOAT_ROWS, 3>(rows, x, first, out);
    }
    match tokens % 3 {
        2 => tile::<W, FLOAT_ROWS, 2>(rows, x, tokens - 2, out),
        1 => tile::<W, FLOAT_ROWS, 1>(rows, x, tokens - 1, out),
        _ => {}
    }
}

/// Products of `R` rows and `T` tokens from the one numbered `first` on; `out` is `[tokens, FLOAT_ROWS]`.
#[inline]
#[target_feature(enable = "avx512f,avx2")]
fn tile<W: Weight, const R: usize, const T: usize>(
    rows: [&[[[W; LANES]; CHAINS]]; R],
    x: FloatRows<'_>,
    first: usize,
    out: &mut [f32],
) {
    let steps = rows[0].len();
    let x: [&[[[f32; LANES]; CHAINS]]; T] =
        std::array::from_fn(|t| &x.values[(first + t) * x.stride..][..x.stride].as_chunks().0.as_chunks().0[..steps]);
    let rows: [&[[[W; LANES]; CHAINS]]; R] = std::array::from_fn(|r| &rows[r][..steps]);
    let mut sums = [[[_mm512_setzero_ps(); CHAINS]; T]; R];
    for step in 0..steps {
        for chain in 0..CHAINS {
            let mut x_t = [_mm512_setzero_ps(); T];
            for t in 0..T {
                // SAFETY: this function has the features.
                x_t[t] = unsafe { f32::load(&x[t][step][chain]) };
            }
            for r in 0..R {
                // SAFETY: this function has the features.
                let w = unsafe { W::load(&rows[r][step][chain]) };
                for t in 0..T {
                    sums[r][t][chain] = _mm512_fmadd_ps(w, x_t[t], sums[r][t][chain]);
                }
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        for (out, sums) in out[r..].iter_mut().step_by(FLOAT_ROWS).skip(first).zip(sums) {
            let sixteen = _mm512_add_ps(sums[0], sums[1]);
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sixteen)));
            *out = avx2_float::add_lanes(_mm256_add_ps(_mm512_castps512_ps256(sixteen), high));
        }
    }
}

/// Numbers that widen to f32, sixteen at a time.
trait Weight: Sized {
    /// # Safety
    /// The CPU has AVX-512F.
    unsafe fn load(values: &[Self; LANES]) -> __m512;
}

impl Weight for f32 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(values: &[Self; LANES]) -> __m512 {
        // SAFETY: 64 bytes are readable; the load needs no alignment.
        unsafe { _mm512_loadu_ps(values.as_ptr()) }
    }
}

impl Weight for f16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(values: &[Self; LANES]) -> __m512 {
        // SAFETY: an `f16` is a transparent `u16`, so 32 bytes are readable; the load needs no alignment.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(values.as_ptr().cast()) })
    }
}

impl Weight for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(values: &[Self; LANES]) -> __m512 {
        // SAFETY: a `bf16` is a transparent `u16`, so 32 bytes are readable; the load needs no alignment.
        let bits = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
        // A bf16 is the upper half of an f32.
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
    }
}

/// Floats of a vector.
const LANES: usize = 16;

/// Vectors of sums of a product: 32 numbers, to a multiple of which rows are padded.
const CHAINS: usize = 2;
