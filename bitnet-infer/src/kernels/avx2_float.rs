//! AVX2 with FMA and F16C: float matrices.
//!
//! ```text
//! for each row r, for three (or two, one) tokens t together; for each 32 columns:
//!     for each 8 of them: acc[t][i] = fma(to_f32(w[r][i]), x[t][i], acc[t][i])
//! ```
//!
//! Each product keeps 32 f32 sums, column `c` in sum `c % 32`, added pairwise at the end (`i` and `i + 16`, then 8, 4, 2,
//! 1), whatever the number of tokens: a token's result does not depend on its neighbours. Four chains hide the latency of
//! FMA, so a row at a time is enough, and a lone token reads its weights in one stream: with four rows, four streams a few
//! KiB apart, the prefetchers lose track and memory gives half.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::float::FLOAT_ROWS;
use super::layout::FloatRows;

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn f32_sums(weights: &[f32], x: FloatRows<'_>, out: &mut [f32]) {
    sums(weights, x, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn f16_sums(weights: &[f16], x: FloatRows<'_>, out: &mut [f32]) {
    sums(weights, x, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn bf16_sums(weights: &[bf16], x: FloatRows<'_>, out: &mut [f32]) {
    sums(weights, x, out);
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn sums<W: Weight>(weights: &[W], x: FloatRows<'_>, out: &mut [f32]) {
    let stride = weights.len() / FLOAT_ROWS;
    let tokens = x.values.len() / x.stride;
    for row in 0..FLOAT_ROWS {
        let weights = weights[row * stride..][..stride].as_chunks().0.as_chunks().0;
        for first in (0..tokens - tokens % 3).step_by(3) {
            tile::<W, 3>(weights, x, first, &mut out[row..]);
        }
        match tokens % 3 {
            2 => tile::<W, 2>(weights, x, tokens - 2, &mut out[row..]),
            1 => tile::<W, 1>(weights, x, tokens - 1, &mut out[row..]),
            _ => {}
        }
    }
}

/// Products of a row and `T` tokens from the one numbered `first` on, into every [`FLOAT_ROWS`]th of `out`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<W: Weight, const T: usize>(weights: &[[[W; LANES]; CHAINS]], x: FloatRows<'_>, first: usize, out: &mut [f32]) {
    let steps = weights.len();
    let x: [&[[[f32; LANES]; CHAINS]]; T] =
        std::array::from_fn(|t| &x.values[(first + t) * x.stride..][..x.stride].as_chunks().0.as_chunks().0[..steps]);
    let mut sums = [[_mm256_setzero_ps(); CHAINS]; T];
    for (step, weights) in weights.iter().enumerate() {
        for chain in 0..CHAINS {
            // SAFETY: this function has the features.
            let w = unsafe { W::load(&weights[chain]) };
            for t in 0..T {
                // SAFETY: this function has the features.
                let x = unsafe { f32::load(&x[t][step][chain]) };
                sums[t][chain] = _mm256_fmadd_ps(w, x, sums[t][chain]);
            }
        }
    }
    for (out, sums) in out.iter_mut().step_by(FLOAT_ROWS).skip(first).zip(sums) {
        let halves = [_mm256_add_ps(sums[0], sums[2]), _mm256_add_ps(sums[1], sums[3])];
        *out = add_lanes(_mm256_add_ps(halves[0], halves[1]));
    }
}

/// Numbers that widen to f32, eight at a time.
trait Weight: Sized {
    /// # Safety
    /// The CPU has AVX2 and F16C.
    unsafe fn load(values: &[Self; LANES]) -> __m256;
}

impl Weight for f32 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(values: &[Self; LANES]) -> __m256 {
        // SAFETY: 32 bytes are readable; the load needs no alignment.
        unsafe { _mm256_loadu_ps(values.as_ptr()) }
    }
}

impl Weight for f16 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(values: &[Self; LANES]) -> __m256 {
        // SAFETY: an `f16` is a transparent `u16`, so 16 bytes are readable; the load needs no alignment.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(values.as_ptr().cast()) })
    }
}

impl Weight for bf16 {
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn load(values: &[Self; LANES]) -> __m256 {
        // SAFETY: a `bf16` is a transparent `u16`, so 16 bytes are readable; the load needs no alignment.
        let bits = unsafe { _mm_loadu_si128(values.as_ptr().cast()) };
        // A bf16 is the upper half of an f32.
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
    }
}

/// The sum of eight numbers: of `i` and `i + 4`, then 2, 1.
#[target_feature(enable = "avx2")]
pub(super) fn add_lanes(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// Floats of a vector.
const LANES: usize = 8;

/// Vectors of sums of a product: 32 numbers, to a multiple of which rows are padded.
const CHAINS: usize = 4;
