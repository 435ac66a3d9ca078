//! AVX-512 with VNNI: `dpbusd` multiplies 64 unsigned codes by 64 signed activations and adds groups of four in i32.
//!
//! ```text
//! for each token t, or four together; for each block:
//!     v[r] = 64 bytes of each of 4 rows r
//!     for each slot i of a byte:
//!         u[r] = v[r] & mask; v[r] >>= bits                    (once for all four tokens)
//!         sum[t][r] = dpbusd(sum[t][r], u[r], x[t][i])
//! ```
//!
//! A block is 4 rows of 64 bytes; the slots of byte `j` are columns `j, 64 + j, 128 + j, ...` of the block:
//!
//! ```text
//! ternary   bits 7 6 | 5 4 | 3 2 | 1 0      binary   bit 7 | ... | 0      int4   bits 7..4 | 3..0     int8   bits 7..0
//! column      192 + j 128+j  64+j    j              448 + j       j              64 + j       j               j
//! ```
//!
//! Deviation: for one token, two slots of a ternary byte share one shift. The upper is masked in place, so its products
//! come out 4 times too large and are collected, and scaled back, apart.
//!
//! Overflow: `dpbusd` (not the saturating `dpbusds`) adds four products of at most 255 * 128 into i32, and nothing narrower
//! is ever kept. Each of the 16 lanes sees a sixteenth of the columns, and the whole is bounded in [`super::layout`];
//! masked in place a ternary u is at most 8, below the 255 of that bound.

use std::arch::x86_64::*;

use super::layout::{GROUP_ROWS, Job};
use super::{Kernel, avx2, avx2_float};

/// Ice Lake, Zen 4 and later.
pub static KERNEL: Kernel = Kernel {
    name: "avx512vnni",
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

fn supported() -> bool {
    avx2::supported()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn ternary(job: &Job<'_, i8>, out: &mut [i32]) {
    if let [out] = out.as_chunks_mut().0 {
        *out = ternary_one(blocks(job), job.x.as_chunks().0.as_chunks().0);
    } else {
        sums::<2, 4>(job, out);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn binary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<1, 8>(job, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int8(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<8, 1>(job, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn int4(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<4, 2>(job, out);
}

/// One block of a group: 64 bytes of each row.
type Rows = [[u8; LANES]; GROUP_ROWS];

fn blocks<'a>(job: &Job<'a, i8>) -> &'a [Rows] {
    job.bytes.as_chunks().0.as_chunks().0
}

/// All tokens: four at a time, then one by one.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums<const BITS: u32, const SLOTS: usize>(job: &Job<'_, i8>, out: &mut [i32]) {
    let blocks = blocks(job);
    let (fours, rest) = out.as_chunks_mut::<GROUP_ROWS>().0.as_chunks_mut::<4>();
    let mut x = job.x.chunks_exact(job.stride).map(|x| x.as_chunks().0.as_chunks().0);
    for out in fours {
        let (Some(a), Some(b), Some(c), Some(d)) = (x.next(), x.next(), x.next(), x.next()) else { return };
        tile::<BITS, SLOTS, 4>(blocks, [a, b, c, d], out);
    }
    for (out, x) in rest.iter_mut().zip(x) {
        tile::<BITS, SLOTS, 1>(blocks, [x], std::array::from_mut(out));
    }
}

/// Products of 4 rows and `T` tokens.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const BITS: u32, const SLOTS: usize, const T: usize>(
    blocks: &[Rows],
    x: [&[[[i8; LANES]; SLOTS]]; T],
    out: &mut [[i32; GROUP_ROWS]; T],
) {
    let mask = _mm512_set1_epi8(((1u16 << BITS) - 1) as i8);
    let x = x.map(|x| &x[..blocks.len()]);
    let mut sums = [[_mm512_setzero_si512(); GROUP_ROWS]; T];
    for (i, block) in blocks.iter().enumerate() {
        let mut bits = [load(&block[0]), load(&block[1]), load(&block[2]), load(&block[3])];
        for slot in 0..SLOTS {
            let mut u = [_mm512_setzero_si512(); GROUP_ROWS];
            for (u, bits) in u.iter_mut().zip(&mut bits) {
                *u = _mm512_and_si512(*bits, mask);
                *bits = _mm512_srli_epi16::<BITS>(*bits);
            }
            for (x, sums) in x.iter().zip(&mut sums) {
                let x = load_i8(&x[i][slot]);
                for (sum, u) in sums.iter_mut().zip(u) {
                    *sum = _mm512_dpbusd_epi32(*sum, u, x);
                }
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        *out = add_columns(sums);
    }
}

/// Products of 4 rows and one token. Two slots share one shift: the upper is masked in place.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn ternary_one(blocks: &[Rows], x: &[[[i8; LANES]; 4]]) -> [i32; GROUP_ROWS] {
    let (mask_1, mask_4) = (_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c));
    let (mut sum_1, mut sum_4) = ([_mm512_setzero_si512(); GROUP_ROWS], [_mm512_setzero_si512(); GROUP_ROWS]);
    for (block, x) in blocks.iter().zip(x) {
        let [x_0, x_1, x_2, x_3] = [load_i8(&x[0]), load_i8(&x[1]), load_i8(&x[2]), load_i8(&x[3])];
        for ((row, sum_1), sum_4) in block.iter().zip(&mut sum_1).zip(&mut sum_4) {
            let low = load(row);
            let high = _mm512_srli_epi16::<4>(low);
            *sum_1 = _mm512_dpbusd_epi32(*sum_1, _mm512_and_si512(low, mask_1), x_0);
            *sum_4 = _mm512_dpbusd_epi32(*sum_4, _mm512_and_si512(low, mask_4), x_1);
            *sum_1 = _mm512_dpbusd_epi32(*sum_1, _mm512_and_si512(high, mask_1), x_2);
            *sum_4 = _mm512_dpbusd_epi32(*sum_4, _mm512_and_si512(high, mask_4), x_3);
        }
    }
    for (sum_1, sum_4) in sum_1.iter_mut().zip(sum_4) {
        // Sums of multiples of 4 are multiples of 4: the shift loses nothing.
        *sum_1 = _mm512_add_epi32(*sum_1, _mm512_srai_epi32::<2>(sum_4));
    }
    add_columns(sum_1)
}

/// The sum of each of four vectors of i32.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_columns(v: [__m512i; GROUP_ROWS]) -> [i32; GROUP_ROWS] {
    let [a, b, c, d] = v;
    [_mm512_reduce_add_epi32(a), _mm512_reduce_add_epi32(b), _mm512_reduce_add_epi32(c), _mm512_reduce_add_epi32(d)]
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn load(bytes: &[u8; LANES]) -> __m512i {
    // SAFETY: 64 bytes are readable; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn load_i8(codes: &[i8; LANES]) -> __m512i {
    // SAFETY: as in `load`.
    unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) }
}

/// Bytes of a vector.
const LANES: usize = 64;
