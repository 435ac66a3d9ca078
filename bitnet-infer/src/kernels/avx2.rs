//! AVX2: `maddubs` multiplies 32 unsigned codes by 32 signed activations; codes are taken apart in registers.
//!
//! ```text
//! for two groups of 8 rows g together, for four (or two, one) tokens t together; for each block:
//!     v[g] = 32 bytes of group g
//!     for each slot i of a byte:
//!         u[g] = v[g] & mask; v[g] >>= bits                    (once for all tokens)
//!         acc[g][t] += maddubs(u[g], broadcast(four codes of x[t]))
//!     after WIDEN blocks: sum[g][t] += widen(acc[g][t])
//! ```
//!
//! The block (see [`super::layout`]) is a vector: lane `r` is row `r`, byte `j` of a lane, slot `i`, is column `4i + j`.
//!
//! ```text
//! ternary   bits 7 6 | 5 4 | 3 2 | 1 0      binary   bit 7 | ... | 0       int4   bits 7..4 | 3..0
//! column      12 + j  8 + j  4 + j   j              28 + j       j                4 + j       j
//! ```
//!
//! Overflow. `maddubs` adds two products in i16, which holds -32768..=32767. With any activation code (-128..=127):
//!
//! ```text
//!           largest u   one maddubs     a block   WIDEN   worst sum in i16
//! ternary   2           -512..=508      4         16      -32768..=32512
//! binary    1           -256..=254      8         16      -32768..=32512
//! int4      15          -3840..=3810    2         4       -30720..=30480
//! ```
//!
//! int8 has no room in i16: codes are extended to i16 and `madd` adds pairs in i32 (at most `2 * 255 * 128`).
//! i32 sums are bounded in [`super::layout`].

use std::arch::x86_64::*;

use super::layout::Job;
use super::{Kernel, avx2_float, scalar};

/// Haswell, Zen and later.
pub static KERNEL: Kernel = Kernel {
    name: "avx2",
    supported,
    lanes: LANES,
    ternary,
    base3: None,
    binary,
    int8,
    int4,
    code_floats,
    f32: avx2_float::f32_sums,
    f16: avx2_float::f16_sums,
    bf16: avx2_float::bf16_sums,
};

/// AVX2 with the two extensions that every CPU with AVX2 has had from the start.
pub(super) fn supported() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[target_feature(enable = "avx2")]
fn ternary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Narrow<2, 4, 16>, 4>(job, out);
}

#[target_feature(enable = "avx2")]
fn binary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Narrow<1, 8, 16>, 8>(job, out);
}

#[target_feature(enable = "avx2")]
fn int4(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Narrow<4, 2, 4>, 2>(job, out);
}

#[target_feature(enable = "avx2")]
fn int8(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Wide, 1>(job, out);
}

/// The portable code with wider vectors.
#[target_feature(enable = "avx2")]
fn code_floats(job: &Job<'_, f32>, out: &mut [f32]) {
    scalar::code_floats::<ROWS>(job, out);
}

/// How codes of one width meet activations: `SLOTS` codes a byte.
trait Product<const SLOTS: usize> {
    /// Products of `G` groups and `T` tokens; all slices have one length.
    ///
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[[u8; LANES]]; G],
        x: [&[[[i8; 4]; SLOTS]]; T],
    ) -> [[__m256i; G]; T];
}

/// Codes narrow enough for sums in i16 over `WIDEN` blocks.
struct Narrow<const BITS: i32, const SLOTS: usize, const WIDEN: usize>;

impl<const BITS: i32, const SLOTS: usize, const WIDEN: usize> Product<SLOTS> for Narrow<BITS, SLOTS, WIDEN> {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[[u8; LANES]]; G],
        x: [&[[[i8; 4]; SLOTS]]; T],
    ) -> [[__m256i; G]; T] {
        let (mask, ones) = (_mm256_set1_epi8(((1u16 << BITS) - 1) as i8), _mm256_set1_epi16(1));
        let mut sums = [[_mm256_setzero_si256(); G]; T];
        for start in (0..groups[0].len()).step_by(WIDEN) {
            let end = groups[0].len().min(start + WIDEN);
            let (groups, x) = (groups.map(|group| &group[start..end]), x.map(|x| &x[start..end]));
            let mut acc = [[_mm256_setzero_si256(); G]; T];
            for block in 0..end - start {
                let mut v = [_mm256_setzero_si256(); G];
                for (v, group) in v.iter_mut().zip(groups) {
                    *v = load(&group[block]);
                }
                for slot in 0..SLOTS {
                    let mut u = [_mm256_setzero_si256(); G];
                    for (u, v) in u.iter_mut().zip(&mut v) {
                        *u = _mm256_and_si256(*v, mask);
                        *v = _mm256_srli_epi16::<BITS>(*v);
                    }
                    for (x, acc) in x.iter().zip(&mut acc) {
                        let four = _mm256_set1_epi32(i32::from_le_bytes(x[block][slot].map(|code| code as u8)));
                        for (acc, u) in acc.iter_mut().zip(u) {
                            *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(u, four));
                        }
                    }
                }
            }
            for (sum, acc) in sums.as_flattened_mut().iter_mut().zip(acc.as_flattened()) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*acc, ones));
            }
        }
        sums
    }
}

/// int8: four codes of four rows at a time, as i16.
struct Wide;

impl Product<1> for Wide {
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[[u8; LANES]]; G],
        x: [&[[[i8; 4]; 1]]; T],
    ) -> [[__m256i; G]; T] {
        let blocks = groups[0].len();
        let (groups, x) = (groups.map(|group| &group[..blocks]), x.map(|x| &x[..blocks]));
        // Two sums for each row, of columns 0 and 1 and of columns 2 and 3: rows 0..4 in the first, 4..8 in the second.
        let mut sums = [[[_mm256_setzero_si256(); 2]; G]; T];
        for block in 0..blocks {
            let mut u = [[_mm256_setzero_si256(); 2]; G];
            for (u, group) in u.iter_mut().zip(groups) {
                let v = load(&group[block]);
                *u = [
                    _mm256_cvtepu8_epi16(_mm256_castsi256_si128(v)),
                    _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(v)),
                ];
            }
            for (x, sums) in x.iter().zip(&mut sums) {
                let four = i32::from_le_bytes(x[block][0].map(|code| code as u8));
                let four = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
                for (sums, u) in sums.as_flattened_mut().iter_mut().zip(u.as_flattened()) {
                    *sums = _mm256_add_epi32(*sums, _mm256_madd_epi16(*u, four));
                }
            }
        }
        // `hadd` leaves rows 0 1 4 5 | 2 3 6 7.
        sums.map(|sums| sums.map(|[low, high]| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(low, high))))
    }
}

/// All groups, two at a time.
#[inline]
#[target_feature(enable = "avx2")]
fn sums<P: Product<SLOTS>, const SLOTS: usize>(job: &Job<'_, i8>, out: &mut [i32]) {
    let mut groups = job.groups().map(|group| group.as_chunks().0);
    let mut column = 0;
    while let Some(first) = groups.next() {
        if let Some(second) = groups.next() {
            tokens::<P, SLOTS, 2>([first, second], job, out, column);
        } else {
            tokens::<P, SLOTS, 1>([first], job, out, column);
        }
        column += 2 * ROWS;
    }
}

/// All tokens: four at a time, then two, one. Writes the columns of `out` from `column` on.
#[inline]
#[target_feature(enable = "avx2")]
fn tokens<P: Product<SLOTS>, const SLOTS: usize, const G: usize>(
    groups: [&[[u8; LANES]]; G],
    job: &Job<'_, i8>,
    out: &mut [i32],
    column: usize,
) {
    let tokens = job.x.len() / job.stride;
    let fours = tokens / 4 * 4;
    for first in (0..fours).step_by(4) {
        some_tokens::<P, SLOTS, G, 4>(groups, job, first, out, column);
    }
    if tokens & 2 != 0 {
        some_tokens::<P, SLOTS, G, 2>(groups, job, fours, out, column);
    }
    if tokens & 1 != 0 {
        some_tokens::<P, SLOTS, G, 1>(groups, job, tokens - 1, out, column);
    }
}

/// Products of `G` groups and `T` tokens from the one numbered `first` on.
#[inline]
#[target_feature(enable = "avx2")]
fn some_tokens<P: Product<SLOTS>, const SLOTS: usize, const G: usize, const T: usize>(
    groups: [&[[u8; LANES]]; G],
    job: &Job<'_, i8>,
    first: usize,
    out: &mut [i32],
    column: usize,
) {
    let x = std::array::from_fn(|t| {
        &job.x[(first + t) * job.stride..][..job.stride].as_chunks::<4>().0.as_chunks::<SLOTS>().0[..job.blocks]
    });
    // SAFETY: this function has the feature.
    let sums = unsafe { P::tile::<G, T>(groups, x) };
    for (out, sums) in out.chunks_exact_mut(job.rows).skip(first).zip(sums) {
        for (out, sum) in out[column..].as_chunks_mut::<ROWS>().0.iter_mut().zip(sums) {
            store(out, sum);
        }
    }
}

#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; LANES]) -> __m256i {
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn store(out: &mut [i32; ROWS], sums: __m256i) {
    // SAFETY: 32 bytes are writable; the store needs no alignment.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
}

/// Bytes of a vector.
const LANES: usize = 32;

/// Rows of a group: 32-bit lanes of a vector.
const ROWS: usize = LANES / 4;
