//! AVX2: `maddubs` multiplies 32 unsigned codes by 32 signed activations; codes are taken apart in registers.
//!
//! ```text
//! for each token t, or two together; for each block; for each of 4 rows r:
//!     v = 32 bytes of row r
//!     for each slot i of a byte:
//!         u = v & mask; v >>= bits                             (once for both tokens)
//!         acc[t][r] += maddubs(u, x[t][i])
//!     after WIDEN blocks: sum[t][r] += widen(acc[t][r])
//! ```
//!
//! A block is 4 rows of 32 bytes; the slots of byte `j` are columns `j, 32 + j, 64 + j, ...` of the block:
//!
//! ```text
//! ternary   bits 7 6 | 5 4 | 3 2 | 1 0      binary   bit 7 | ... | 0       int4   bits 7..4 | 3..0
//! column      96 + j  64+j   32+j    j              224 + j       j               32 + j       j
//! ```
//!
//! Deviation: for one token, two slots of a ternary byte share one shift. The upper is masked in place, so its products
//! come out 4 times too large and are collected, and scaled back, apart.
//!
//! Tried: taking the codes of 1,024 columns apart once for 64 tokens, through a 4 KiB buffer, is not faster.
//!
//! Overflow. `maddubs` adds two products in i16, which holds -32768..=32767. With any activation code (-128..=127):
//!
//! ```text
//!              largest u    one maddubs      per block   WIDEN   worst sum in i16
//! ternary      2            -512..=508       4           8       -16384
//!   in place   8            -2048..=2032     2           8       -32768..=32512
//! binary       1            -256..=254       8           8       -16384
//! int4         15           -3840..=3810     2           4       -30720
//! ```
//!
//! int8 has no room in i16: codes are extended to i16 and `madd` adds pairs in i32 (at most `2 * 255 * 128`).
//! i32 sums are bounded in [`super::layout`].

use std::arch::x86_64::*;

use super::layout::{GROUP_ROWS, Job};
use super::{Kernel, avx2_float};

/// Haswell, Zen and later.
pub static KERNEL: Kernel = Kernel {
    name: "avx2",
    supported,
    lanes: LANES,
    ternary,
    binary,
    int8,
    int4,
    code_floats: avx2_float::code_floats,
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
    if let [out] = out.as_chunks_mut().0 {
        *out = ternary_one(blocks(job), job.x.as_chunks().0.as_chunks().0);
    } else {
        sums::<2, 4, 8>(job, out);
    }
}

#[target_feature(enable = "avx2")]
fn binary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<1, 8, 8>(job, out);
}

#[target_feature(enable = "avx2")]
fn int4(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<4, 2, 4>(job, out);
}

/// All tokens, two at a time. `WIDEN` is the number of blocks whose products fit in i16.
#[target_feature(enable = "avx2")]
fn sums<const BITS: i32, const SLOTS: usize, const WIDEN: usize>(job: &Job<'_, i8>, out: &mut [i32]) {
    let blocks = blocks(job);
    let (pairs, last) = out.as_chunks_mut::<GROUP_ROWS>().0.as_chunks_mut::<2>();
    let mut x = job.x.chunks_exact(job.stride).map(|x| x.as_chunks().0.as_chunks().0);
    for out in pairs {
        let (Some(first), Some(second)) = (x.next(), x.next()) else { return };
        tile::<BITS, SLOTS, WIDEN, 2>(blocks, [first, second], out);
    }
    if let ([out], Some(x)) = (last, x.next()) {
        tile::<BITS, SLOTS, WIDEN, 1>(blocks, [x], std::array::from_mut(out));
    }
}

/// Products of 4 rows and `T` tokens.
#[target_feature(enable = "avx2")]
fn tile<const BITS: i32, const SLOTS: usize, const WIDEN: usize, const T: usize>(
    blocks: &[Rows],
    x: [&[[[i8; LANES]; SLOTS]]; T],
    out: &mut [[i32; GROUP_ROWS]; T],
) {
    let (mask, ones) = (_mm256_set1_epi8(((1u16 << BITS) - 1) as i8), _mm256_set1_epi16(1));
    let mut sums = [[_mm256_setzero_si256(); GROUP_ROWS]; T];
    for (part, blocks) in blocks.chunks(WIDEN).enumerate() {
        let x = x.map(|x| &x[part * WIDEN..][..blocks.len()]);
        let mut acc = [[_mm256_setzero_si256(); GROUP_ROWS]; T];
        for (i, block) in blocks.iter().enumerate() {
            for (r, row) in block.iter().enumerate() {
                let mut bits = load(row);
                for slot in 0..SLOTS {
                    let u = _mm256_and_si256(bits, mask);
                    bits = _mm256_srli_epi16::<BITS>(bits);
                    for (x, acc) in x.iter().zip(&mut acc) {
                        acc[r] = _mm256_add_epi16(acc[r], _mm256_maddubs_epi16(u, load_i8(&x[i][slot])));
                    }
                }
            }
        }
        for (sum, acc) in sums.as_flattened_mut().iter_mut().zip(acc.as_flattened()) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*acc, ones));
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = add_columns(sums);
    }
}

#[target_feature(enable = "avx2")]
fn int8(job: &Job<'_, i8>, out: &mut [i32]) {
    let steps = blocks(job);
    let (pairs, last) = out.as_chunks_mut::<GROUP_ROWS>().0.as_chunks_mut::<2>();
    let mut x = job.x.chunks_exact(job.stride).map(|x| x.as_chunks().0);
    for out in pairs {
        let (Some(first), Some(second)) = (x.next(), x.next()) else { return };
        let sums = int8_tile(steps, [first, second]);
        *out = [add_columns(sums[0]), add_columns(sums[1])];
    }
    if let ([out], Some(x)) = (last, x.next()) {
        *out = add_columns(int8_tile(steps, [x])[0]);
    }
}

/// One block of a group: 32 bytes of each row.
type Rows = [[u8; LANES]; GROUP_ROWS];

fn blocks<'a>(job: &Job<'a, i8>) -> &'a [Rows] {
    job.bytes.as_chunks().0.as_chunks().0
}

/// Products of 4 rows and one token. Two slots share one shift: the upper is masked in place.
#[target_feature(enable = "avx2")]
fn ternary_one(blocks: &[Rows], x: &[[[i8; LANES]; 4]]) -> [i32; GROUP_ROWS] {
    let (mask_1, mask_4, ones) = (_mm256_set1_epi8(0x03), _mm256_set1_epi8(0x0c), _mm256_set1_epi16(1));
    let mut sums = [_mm256_setzero_si256(); GROUP_ROWS];
    for (blocks, x) in blocks.chunks(8).zip(x.chunks(8)) {
        let (mut acc_1, mut acc_4) = ([_mm256_setzero_si256(); GROUP_ROWS], [_mm256_setzero_si256(); GROUP_ROWS]);
        for (block, x) in blocks.iter().zip(x) {
            let [x_0, x_1, x_2, x_3] = [load_i8(&x[0]), load_i8(&x[1]), load_i8(&x[2]), load_i8(&x[3])];
            for ((row, acc_1), acc_4) in block.iter().zip(&mut acc_1).zip(&mut acc_4) {
                let low = load(row);
                let high = _mm256_srli_epi16::<4>(low);
                let sum_1 = _mm256_add_epi16(
                    _mm256_maddubs_epi16(_mm256_and_si256(low, mask_1), x_0),
                    _mm256_maddubs_epi16(_mm256_and_si256(high, mask_1), x_2),
                );
                let sum_4 = _mm256_add_epi16(
                    _mm256_maddubs_epi16(_mm256_and_si256(low, mask_4), x_1),
                    _mm256_maddubs_epi16(_mm256_and_si256(high, mask_4), x_3),
                );
                *acc_1 = _mm256_add_epi16(*acc_1, sum_1);
                *acc_4 = _mm256_add_epi16(*acc_4, sum_4);
            }
        }
        for ((sum, acc_1), acc_4) in sums.iter_mut().zip(acc_1).zip(acc_4) {
            // Sums of multiples of 4 are multiples of 4: the shift loses nothing.
            let fours = _mm256_srai_epi32::<2>(_mm256_madd_epi16(acc_4, ones));
            *sum = _mm256_add_epi32(*sum, _mm256_add_epi32(_mm256_madd_epi16(acc_1, ones), fours));
        }
    }
    add_columns(sums)
}

/// Products of 4 rows and `T` tokens in i32, 16 columns at a time.
#[target_feature(enable = "avx2")]
fn int8_tile<const T: usize>(steps: &[Rows], x: [&[[i8; LANES]]; T]) -> [[__m256i; GROUP_ROWS]; T] {
    let x = x.map(|x| &x[..steps.len()]);
    let mut sums = [[_mm256_setzero_si256(); GROUP_ROWS]; T];
    for (i, step) in steps.iter().enumerate() {
        let (mut low, mut high) = ([_mm256_setzero_si256(); T], [_mm256_setzero_si256(); T]);
        for ((x, low), high) in x.iter().zip(&mut low).zip(&mut high) {
            let x = load_i8(&x[i]);
            *low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(x));
            *high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(x));
        }
        for (r, row) in step.iter().enumerate() {
            let u = load(row);
            let u_low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(u));
            let u_high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(u));
            for ((low, high), sums) in low.iter().zip(&high).zip(&mut sums) {
                let products = _mm256_add_epi32(_mm256_madd_epi16(u_low, *low), _mm256_madd_epi16(u_high, *high));
                sums[r] = _mm256_add_epi32(sums[r], products);
            }
        }
    }
    sums
}

/// The sum of each of four vectors of i32.
#[target_feature(enable = "avx2")]
fn add_columns(v: [__m256i; GROUP_ROWS]) -> [i32; GROUP_ROWS] {
    let halves = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    let sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
    let mut out = [0; GROUP_ROWS];
    // SAFETY: `out` is 16 bytes; the store needs no alignment.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), sums) };
    out
}

#[target_feature(enable = "avx2")]
fn load(bytes: &[u8; LANES]) -> __m256i {
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx2")]
fn load_i8(codes: &[i8; LANES]) -> __m256i {
    // SAFETY: as in `load`.
    unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) }
}

/// Bytes of a vector.
const LANES: usize = 32;
