//! AVX-512 with VNNI: `dpbusd` multiplies 64 unsigned codes by 64 signed activations and adds groups of four in i32.
//!
//! ```text
//! for each group of 16 rows, for sixteen (or eight, four, two, one) tokens t together; for each block:
//!     v = 64 bytes of the group
//!     for each slot i of a byte:
//!         u = v & mask; v >>= bits                             (once for all tokens)
//!         sum[t] = dpbusd(sum[t], u, broadcast(four codes of x[t]))
//! ```
//!
//! The block (see [`super::layout`]) is a vector: lane `r` is row `r`, byte `j` of a lane, slot `i`, is column `4i + j`.
//!
//! ```text
//! ternary   bits 7 6 | 5 4 | 3 2 | 1 0      binary   bit 7 | ... | 0      int4   bits 7..4 | 3..0     int8   bits 7..0
//! column      12 + j  8 + j  4 + j   j              28 + j       j               4 + j       j               j
//! ```
//!
//! With eight tokens and more one `dpbusd` starts in every cycle, and taking the codes apart costs nothing, as it fits
//! between: on Zen 4 this runs at the peak of the instruction, which is why there is no buffer of unpacked codes and no
//! table look-up here.
//!
//! One group at a time, and so one stream of bytes: with two groups, two streams a few KiB apart, the prefetchers of Zen 4
//! lose track, and a lone token's weights come from memory at 12 GB/s a core instead of 29.
//!
//! Overflow: `dpbusd` (not the saturating `dpbusds`) adds four products of at most 255 * 128 into i32, and nothing narrower
//! is ever kept. The whole sum is bounded in [`super::layout`].

use std::arch::x86_64::*;

use super::layout::Job;
use super::{Kernel, Panel, avx2, avx512_float, scalar};

/// Cascade Lake and later.
pub static KERNEL: Kernel = ROW;

/// [`KERNEL`] as a constant, for kernels that differ in few functions.
pub(super) const ROW: Kernel = Kernel {
    name: "avx512vnni",
    supported,
    lanes: LANES,
    panel: |_, cols, _| Panel::small(ROWS, cols),
    ternary,
    base3: None,
    binary,
    int8,
    int4,
    code_floats,
    f32: avx512_float::f32_sums,
    f16: avx512_float::f16_sums,
    bf16: avx512_float::bf16_sums,
};

fn supported() -> bool {
    avx2::supported()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn ternary(job: &Job<'_, i8>, out: &mut [i32]) {
    if job.x.len() == job.stride {
        for (group, out) in job.groups().zip(out.as_chunks_mut().0) {
            ternary_one(group.as_chunks().0, job.x.as_chunks().0.as_chunks().0, out);
        }
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

/// The portable code with wider vectors.
#[target_feature(enable = "avx512f,avx512bw")]
fn code_floats(job: &Job<'_, f32>, out: &mut [f32]) {
    scalar::code_floats::<ROWS>(job, out);
}

/// All groups and tokens: sixteen tokens at a time, then eight, four, two, one.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums<const BITS: u32, const SLOTS: usize>(job: &Job<'_, i8>, out: &mut [i32]) {
    let tokens = job.x.len() / job.stride;
    for (group, bytes) in job.groups().enumerate() {
        let (group, column) = (bytes.as_chunks().0, group * ROWS);
        for first in (0..tokens & !15).step_by(16) {
            tile::<BITS, SLOTS, 16, 1>(group, job, first, out, column);
        }
        if tokens & 8 != 0 {
            tile::<BITS, SLOTS, 8, 1>(group, job, tokens & !15, out, column);
        }
        if tokens & 4 != 0 {
            tile::<BITS, SLOTS, 4, 2>(group, job, tokens & !7, out, column);
        }
        if tokens & 2 != 0 {
            tile::<BITS, SLOTS, 2, 4>(group, job, tokens & !3, out, column);
        }
        if tokens & 1 != 0 {
            tile::<BITS, SLOTS, 1, 4>(group, job, tokens & !1, out, column);
        }
    }
}

/// Products of a group and `T` tokens from the one numbered `first` on, into `out` from `column` on. Slots take turns in
/// `C` sums, so that `T * C` chains hide the latency of `dpbusd`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const BITS: u32, const SLOTS: usize, const T: usize, const C: usize>(
    group: &[[u8; LANES]],
    job: &Job<'_, i8>,
    first: usize,
    out: &mut [i32],
    column: usize,
) {
    let group = &group[..job.blocks];
    let x: [&[[[i8; 4]; SLOTS]]; T] = std::array::from_fn(|t| {
        &job.x[(first + t) * job.stride..][..job.stride].as_chunks().0.as_chunks().0[..job.blocks]
    });
    let mask = _mm512_set1_epi8(((1u16 << BITS) - 1) as i8);
    let mut sums = [[_mm512_setzero_si512(); C]; T];
    for (block, bytes) in group.iter().enumerate() {
        let mut v = load(bytes);
        for slot in 0..SLOTS {
            let u = _mm512_and_si512(v, mask);
            v = _mm512_srli_epi16::<BITS>(v);
            for (x, sums) in x.iter().zip(&mut sums) {
                let four = _mm512_set1_epi32(i32::from_le_bytes(x[block][slot].map(|code| code as u8)));
                sums[slot % C] = _mm512_dpbusd_epi32(sums[slot % C], u, four);
            }
        }
    }
    for (out, sums) in out.chunks_exact_mut(job.rows).skip(first).zip(sums) {
        let sum = sums.into_iter().fold(_mm512_setzero_si512(), |sum, chain| _mm512_add_epi32(sum, chain));
        if let Some(out) = out[column..].first_chunk_mut() {
            store(out, sum);
        }
    }
}

/// Products of a group and a lone token. Two slots share one shift: the upper is masked in place, so its products come out
/// 4 times too large (u is at most 8) and are collected, and scaled back, apart. (Without any shift, as base three does it,
/// this runs at 150 G weights a second from cache instead of 190, for no reason that the instructions show.)
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn ternary_one(group: &[[u8; LANES]], x: &[[[i8; 4]; 4]], out: &mut [i32; ROWS]) {
    let (mask_1, mask_4) = (_mm512_set1_epi8(0x03), _mm512_set1_epi8(0x0c));
    let (mut sum_1, mut sum_4) = ([_mm512_setzero_si512(); 2], [_mm512_setzero_si512(); 2]);
    for (bytes, x) in group.iter().zip(x) {
        let [x_0, x_1, x_2, x_3] = x.map(|four| _mm512_set1_epi32(i32::from_le_bytes(four.map(|code| code as u8))));
        let low = load(bytes);
        let high = _mm512_srli_epi16::<4>(low);
        sum_1[0] = _mm512_dpbusd_epi32(sum_1[0], _mm512_and_si512(low, mask_1), x_0);
        sum_4[0] = _mm512_dpbusd_epi32(sum_4[0], _mm512_and_si512(low, mask_4), x_1);
        sum_1[1] = _mm512_dpbusd_epi32(sum_1[1], _mm512_and_si512(high, mask_1), x_2);
        sum_4[1] = _mm512_dpbusd_epi32(sum_4[1], _mm512_and_si512(high, mask_4), x_3);
    }
    // Sums of multiples of 4 are multiples of 4: the shift loses nothing.
    let fours = _mm512_srai_epi32::<2>(_mm512_add_epi32(sum_4[0], sum_4[1]));
    store(out, _mm512_add_epi32(_mm512_add_epi32(sum_1[0], sum_1[1]), fours));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn load(bytes: &[u8; LANES]) -> __m512i {
    // SAFETY: 64 bytes are readable; the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub(super) fn store(out: &mut [i32; ROWS], sums: __m512i) {
    // SAFETY: 64 bytes are writable; the store needs no alignment.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sums) };
}

/// Bytes of a vector.
pub(super) const LANES: usize = 64;

/// Rows of a group: 32-bit lanes of a vector.
pub(super) const ROWS: usize = LANES / 4;
