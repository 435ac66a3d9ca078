//! AVX-512 with VNNI: `dpbusd` multiplies 64 unsigned codes by 64 signed activations and adds groups of four in i32.
//!
//! ```text
//! for two groups of 16 rows g together, for eight (or four, two, one) tokens t together; for each block:
//!     v[g] = 64 bytes of group g
//!     for each slot i of a byte:
//!         u[g] = v[g] & mask; v[g] >>= bits                    (once for all tokens)
//!         sum[g][t] = dpbusd(sum[g][t], u[g], broadcast(four codes of x[t]))
//! ```
//!
//! The block (see [`super::layout`]) is a vector: lane `r` is row `r`, byte `j` of a lane, slot `i`, is column `4i + j`.
//!
//! ```text
//! ternary   bits 7 6 | 5 4 | 3 2 | 1 0      binary   bit 7 | ... | 0      int4   bits 7..4 | 3..0     int8   bits 7..0
//! column      12 + j  8 + j  4 + j   j              28 + j       j               4 + j       j               j
//! ```
//!
//! With eight tokens all 16 sums, both weights and the mask stay in registers, one `dpbusd` starts in every cycle, and
//! taking the codes apart costs nothing, as it fits between: on Zen 4 this runs at the peak of the instruction, which is
//! why there is no buffer of unpacked codes and no table look-up here.
//!
//! Overflow: `dpbusd` (not the saturating `dpbusds`) adds four products of at most 255 * 128 into i32, and nothing narrower
//! is ever kept. The whole sum is bounded in [`super::layout`].

use std::arch::x86_64::*;

use super::layout::Job;
use super::{Kernel, avx2, avx2_float, scalar};

/// Cascade Lake and later.
pub static KERNEL: Kernel = ROW;

/// [`KERNEL`] as a constant, for kernels that differ in few functions.
pub(super) const ROW: Kernel = Kernel {
    name: "avx512vnni",
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

fn supported() -> bool {
    avx2::supported()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn ternary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<2, 4>(job, out);
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

/// All groups, two at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn sums<const BITS: u32, const SLOTS: usize>(job: &Job<'_, i8>, out: &mut [i32]) {
    let mut groups = job.groups().map(|group| group.as_chunks().0);
    let mut column = 0;
    while let Some(first) = groups.next() {
        if let Some(second) = groups.next() {
            tokens::<BITS, SLOTS, 2>([first, second], job, out, column);
        } else {
            tokens::<BITS, SLOTS, 1>([first], job, out, column);
        }
        column += 2 * ROWS;
    }
}

/// All tokens: eight at a time, then four, two, one. Writes the columns of `out` from `column` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tokens<const BITS: u32, const SLOTS: usize, const G: usize>(
    groups: [&[[u8; LANES]]; G],
    job: &Job<'_, i8>,
    out: &mut [i32],
    column: usize,
) {
    let tokens = job.x.len() / job.stride;
    let eights = tokens / 8 * 8;
    for first in (0..eights).step_by(8) {
        tile::<BITS, SLOTS, G, 8, 1>(groups, job, first, out, column);
    }
    if tokens & 4 != 0 {
        tile::<BITS, SLOTS, G, 4, 1>(groups, job, eights, out, column);
    }
    if tokens & 2 != 0 {
        tile::<BITS, SLOTS, G, 2, 2>(groups, job, tokens & !3, out, column);
    }
    if tokens & 1 != 0 {
        tile::<BITS, SLOTS, G, 1, 4>(groups, job, tokens - 1, out, column);
    }
}

/// Products of `G` groups and `T` tokens from the one numbered `first` on. Slots take turns in `C` sums, so that `G * T * C`
/// chains hide the latency of `dpbusd`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const BITS: u32, const SLOTS: usize, const G: usize, const T: usize, const C: usize>(
    groups: [&[[u8; LANES]]; G],
    job: &Job<'_, i8>,
    first: usize,
    out: &mut [i32],
    column: usize,
) {
    let groups = groups.map(|group| &group[..job.blocks]);
    let x: [&[[[i8; 4]; SLOTS]]; T] = std::array::from_fn(|t| {
        &job.x[(first + t) * job.stride..][..job.stride].as_chunks().0.as_chunks().0[..job.blocks]
    });
    let mask = _mm512_set1_epi8(((1u16 << BITS) - 1) as i8);
    let mut sums = [[[_mm512_setzero_si512(); G]; C]; T];
    for block in 0..job.blocks {
        let mut v = [_mm512_setzero_si512(); G];
        for (v, group) in v.iter_mut().zip(groups) {
            *v = load(&group[block]);
        }
        for slot in 0..SLOTS {
            let mut u = [_mm512_setzero_si512(); G];
            for (u, v) in u.iter_mut().zip(&mut v) {
                *u = _mm512_and_si512(*v, mask);
                *v = _mm512_srli_epi16::<BITS>(*v);
            }
            for (x, sums) in x.iter().zip(&mut sums) {
                let four = _mm512_set1_epi32(i32::from_le_bytes(x[block][slot].map(|code| code as u8)));
                for (sum, u) in sums[slot % C].iter_mut().zip(u) {
                    *sum = _mm512_dpbusd_epi32(*sum, u, four);
                }
            }
        }
    }
    for (out, sums) in out.chunks_exact_mut(job.rows).skip(first).zip(sums) {
        for (g, out) in out[column..].as_chunks_mut::<ROWS>().0.iter_mut().take(G).enumerate() {
            let sum = sums.iter().fold(_mm512_setzero_si512(), |sum, chain| _mm512_add_epi32(sum, chain[g]));
            store(out, sum);
        }
    }
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
