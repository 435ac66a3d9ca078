//! AVX2 with FMA and F16C: float matrices.
//!
//! ```text
//! for each two tokens t, for each 8 columns: for each of 4 rows r: acc[t][r] = fma(to_f32(w[r]), x[t], acc[t][r])
//! ```
//!
//! Each product keeps one vector of eight f32 sums, in column order, whatever the number of tokens: a token's result
//! does not depend on its neighbours. Eight chains of FMA hide its latency; a lone token has four, still faster than memory.

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
    let rows = std::array::from_fn(|r| weights[r * stride..][..stride].as_chunks().0);
    let (pairs, last) = out.as_chunks_mut::<FLOAT_ROWS>().0.as_chunks_mut::<2>();
    let mut x = x.values.chunks_exact(x.stride).map(|x| x.as_chunks().0);
    for out in pairs {
        let (Some(first), Some(second)) = (x.next(), x.next()) else { return };
        let sums = tile(rows, [first, second]);
        *out = [add_columns(sums[0]), add_columns(sums[1])];
    }
    if let ([out], Some(x)) = (last, x.next()) {
        *out = add_columns(tile(rows, [x])[0]);
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn tile<W: Weight, const T: usize>(
    rows: [&[[W; LANES]]; FLOAT_ROWS],
    x: [&[[f32; LANES]]; T],
) -> [[__m256; FLOAT_ROWS]; T] {
    let steps = rows[0].len();
    let (rows, x) = (rows.map(|row| &row[..steps]), x.map(|x| &x[..steps]));
    let mut sums = [[_mm256_setzero_ps(); FLOAT_ROWS]; T];
    for i in 0..steps {
        let mut x_i = [_mm256_setzero_ps(); T];
        for (x_i, x) in x_i.iter_mut().zip(x) {
            // SAFETY: this function has the features.
            *x_i = unsafe { f32::load(&x[i]) };
        }
        for (r, row) in rows.iter().enumerate() {
            // SAFETY: this function has the features.
            let w = unsafe { W::load(&row[i]) };
            for (x, sums) in x_i.iter().zip(&mut sums) {
                sums[r] = _mm256_fmadd_ps(w, *x, sums[r]);
            }
        }
    }
    sums
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

/// The sum of each of four vectors.
#[target_feature(enable = "avx2")]
fn add_columns(v: [__m256; FLOAT_ROWS]) -> [f32; FLOAT_ROWS] {
    let halves = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
    let mut out = [0.0; FLOAT_ROWS];
    // SAFETY: `out` is 16 bytes; the store needs no alignment.
    unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
    out
}

/// Floats of a vector.
const LANES: usize = 8;
