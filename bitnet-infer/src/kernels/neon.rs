//! NEON, which every 64-bit ARM has: `smlal` multiplies eight codes by eight activations into i16 sums.
//!
//! ```text
//! for four groups of 4 rows g together, for two (or one) tokens t together; for each block:
//!     v[g] = 16 bytes of group g
//!     for each slot i of a byte:
//!         four[t] = broadcast(four codes of x[t])
//!         u = v[g] & mask; v[g] >>= bits                       (once for all tokens)
//!         acc[g][t][half] = smlal(acc[g][t][half], half of u, half of four[t])
//!     after WIDEN blocks: sum[g][t][half] = sadalp(sum[g][t][half], acc[g][t][half])
//! ```
//!
//! The block (see [`super::layout`]) is a vector: byte `4r + j` is row `r`, and its slot `i` is column `4i + j`.
//!
//! ```text
//! ternary   bits 7 6 | 5 4 | 3 2 | 1 0      binary   bit 7 | ... | 0       int4   bits 7..4 | 3..0
//! column      12 + j  8 + j  4 + j   j              28 + j       j                4 + j       j
//! ```
//!
//! Overflow. Every lane of `acc` takes one product of a slot, in i16, which holds -32768..=32767. These codes `u` fit i8, and
//! with any activation code (-128..=127):
//!
//! ```text
//!           largest u   a product      a block        WIDEN   worst sum in i16
//! ternary   2           -256..=254     -1024..=1016   32      -32768..=32512
//! binary    1           -128..=127     -1024..=1016   32      -32768..=32512
//! int4      15          -1920..=1905   -3840..=3810   8       -30720..=30480
//! ```
//!
//! `sadalp` adds pairs of these in i32. int8 has no room in i16: both sides are extended to i16 and `smlal` adds their products
//! (at most 255 * 128) in i32. i32 sums are bounded in [`super::layout`]; a part of the columns is below that bound too.

use std::arch::aarch64::*;
use std::arch::is_aarch64_feature_detected;

use super::layout::Job;
use super::{Kernel, Panel, neon_float, scalar};

/// Any 64-bit ARM: Cortex-A53, A57, A72, A73.
pub static KERNEL: Kernel = Kernel {
    name: "neon",
    supported,
    lanes: LANES,
    panel: |_, cols, _| Panel::small(ROWS, cols),
    ternary,
    base3: None,
    binary,
    int8,
    int4,
    code_floats: scalar::code_floats::<ROWS>,
    f32: neon_float::f32_sums,
    f16: neon_float::f16_sums,
    bf16: neon_float::bf16_sums,
};

pub(super) fn supported() -> bool {
    is_aarch64_feature_detected!("neon")
}

#[target_feature(enable = "neon")]
fn ternary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Narrow<2, 32>, 4, 4, 2>(job, out);
}

#[target_feature(enable = "neon")]
fn binary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Narrow<1, 32>, 8, 4, 2>(job, out);
}

#[target_feature(enable = "neon")]
fn int4(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Narrow<4, 8>, 2, 4, 2>(job, out);
}

#[target_feature(enable = "neon")]
fn int8(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Wide, 1, 2, 2>(job, out);
}

/// How codes of one width meet activations: `SLOTS` codes a byte.
pub(super) trait Product<const SLOTS: usize> {
    /// What products take away from every `u`.
    const OFFSET: i32;

    /// `sum((u - OFFSET) * a)` of `G` groups and `T` tokens; all slices have one length.
    ///
    /// # Safety
    /// The CPU has the instructions of this product.
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[Block]; G],
        x: [&[[[i8; 4]; SLOTS]]; T],
    ) -> [[int32x4_t; G]; T];
}

/// Codes narrow enough for sums in i16 over `WIDEN` blocks.
struct Narrow<const BITS: i32, const WIDEN: usize>;

impl<const BITS: i32, const WIDEN: usize, const SLOTS: usize> Product<SLOTS> for Narrow<BITS, WIDEN> {
    const OFFSET: i32 = 0;

    #[target_feature(enable = "neon")]
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[Block]; G],
        x: [&[[[i8; 4]; SLOTS]]; T],
    ) -> [[int32x4_t; G]; T] {
        // Rows 0 and 1 are the lower half of a vector, rows 2 and 3 the upper.
        let mut sums = [[[vdupq_n_s32(0); 2]; G]; T];
        for start in (0..groups[0].len()).step_by(WIDEN) {
            let end = groups[0].len().min(start + WIDEN);
            let (groups, x) = (groups.map(|group| &group[start..end]), x.map(|x| &x[start..end]));
            let mut acc = [[[vdupq_n_s16(0); 2]; G]; T];
            for block in 0..end - start {
                let mut v = load_blocks(groups, block);
                for slot in 0..SLOTS {
                    let fours = broadcasts(x, block, slot);
                    for (g, v) in v.iter_mut().enumerate() {
                        let u = next_codes::<BITS>(v);
                        for (four, acc) in fours.iter().zip(&mut acc) {
                            let [low, high] = &mut acc[g];
                            *low = vmlal_s8(*low, vget_low_s8(u), vget_low_s8(*four));
                            *high = vmlal_high_s8(*high, u, *four);
                        }
                    }
                }
            }
            let halves = sums.as_flattened_mut().as_flattened_mut().iter_mut();
            for (sum, acc) in halves.zip(acc.as_flattened().as_flattened()) {
                *sum = vpadalq_s16(*sum, *acc);
            }
        }
        sums.map(|sums| sums.map(|[low, high]| vpaddq_s32(low, high)))
    }
}

/// int8: the four codes of a row as i16, a sum for each of the four columns.
struct Wide;

impl Product<1> for Wide {
    const OFFSET: i32 = 0;

    #[target_feature(enable = "neon")]
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[Block]; G],
        x: [&[[[i8; 4]; 1]]; T],
    ) -> [[int32x4_t; G]; T] {
        let blocks = groups[0].len();
        let (groups, x) = (groups.map(|group| &group[..blocks]), x.map(|x| &x[..blocks]));
        let mut sums = [[[vdupq_n_s32(0); ROWS]; G]; T];
        for block in 0..blocks {
            let fours = broadcasts(x, block, 0);
            let v = load_blocks(groups, block);
            for (g, v) in v.iter().enumerate() {
                let u01 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(*v)));
                let u23 = vreinterpretq_s16_u16(vmovl_high_u8(*v));
                for (four, sums) in fours.iter().zip(&mut sums) {
                    let four = vmovl_s8(vget_low_s8(*four));
                    let [r0, r1, r2, r3] = &mut sums[g];
                    *r0 = vmlal_s16(*r0, vget_low_s16(u01), vget_low_s16(four));
                    *r1 = vmlal_high_s16(*r1, u01, four);
                    *r2 = vmlal_s16(*r2, vget_low_s16(u23), vget_low_s16(four));
                    *r3 = vmlal_high_s16(*r3, u23, four);
                }
            }
        }
        sums.map(|sums| sums.map(|[r0, r1, r2, r3]| vpaddq_s32(vpaddq_s32(r0, r1), vpaddq_s32(r2, r3))))
    }
}

/// All groups, `G` at a time, with all tokens, `T` (2, 4 or 8) at a time; what remains of tokens in powers of two.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sums<P: Product<SLOTS>, const SLOTS: usize, const G: usize, const T: usize>(
    job: &Job<'_, i8>,
    out: &mut [i32],
) {
    for (x, out) in job.x.chunks_exact(job.stride).zip(out.chunks_exact_mut(job.rows)) {
        let sum = if P::OFFSET == 0 { 0 } else { x.iter().map(|&a| i32::from(a)).sum() };
        out.fill(P::OFFSET * sum);
    }
    let count = job.rows / ROWS;
    let mut groups = job.groups().map(|group| group.as_chunks().0);
    for first in (0..count / G * G).step_by(G) {
        let groups = std::array::from_fn(|_| groups.next().expect("as many groups as rows demand"));
        tokens::<P, SLOTS, G, T>(groups, job, out, first * ROWS);
    }
    for (first, group) in (count / G * G..).zip(groups) {
        tokens::<P, SLOTS, 1, T>([group], job, out, first * ROWS);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn tokens<P: Product<SLOTS>, const SLOTS: usize, const G: usize, const T: usize>(
    groups: [&[Block]; G],
    job: &Job<'_, i8>,
    out: &mut [i32],
    column: usize,
) {
    let tokens = job.x.len() / job.stride;
    let mut first = tokens / T * T;
    for first in (0..first).step_by(T) {
        add_tile::<P, SLOTS, G, T>(groups, job, first, out, column);
    }
    if T > 4 && tokens - first >= 4 {
        add_tile::<P, SLOTS, G, 4>(groups, job, first, out, column);
        first += 4;
    }
    if T > 2 && tokens - first >= 2 {
        add_tile::<P, SLOTS, G, 2>(groups, job, first, out, column);
        first += 2;
    }
    if tokens > first {
        add_tile::<P, SLOTS, G, 1>(groups, job, first, out, column);
    }
}

/// Adds the products of `G` groups and `T` tokens from the one numbered `first` on to the columns of `out` from `column` on.
#[inline]
#[target_feature(enable = "neon")]
fn add_tile<P: Product<SLOTS>, const SLOTS: usize, const G: usize, const T: usize>(
    groups: [&[Block]; G],
    job: &Job<'_, i8>,
    first: usize,
    out: &mut [i32],
    column: usize,
) {
    let x = std::array::from_fn(|t| {
        &job.x[(first + t) * job.stride..][..job.stride].as_chunks::<4>().0.as_chunks::<SLOTS>().0[..job.blocks]
    });
    // SAFETY: a kernel's functions run on CPUs with the instructions of its products only.
    let sums = unsafe { P::tile::<G, T>(groups, x) };
    for (out, sums) in out.chunks_exact_mut(job.rows).skip(first).zip(sums) {
        for (out, sum) in out[column..].as_chunks_mut::<ROWS>().0.iter_mut().zip(sums) {
            // SAFETY: 16 bytes are readable and writable; neither needs an alignment.
            unsafe { vst1q_s32(out.as_mut_ptr(), vaddq_s32(vld1q_s32(out.as_ptr()), sum)) };
        }
    }
}

/// The next code of each byte, from the lowest bits up.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn next_codes<const BITS: i32>(v: &mut uint8x16_t) -> int8x16_t {
    let u = vandq_u8(*v, vdupq_n_u8(((1u16 << BITS) - 1) as u8));
    *v = vshrq_n_u8::<BITS>(*v);
    vreinterpretq_s8_u8(u)
}

/// One block of each group. (`map` on an array would keep it in memory; loops leave it in registers.)
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_blocks<const G: usize>(groups: [&[Block]; G], block: usize) -> [uint8x16_t; G] {
    let mut v = [vdupq_n_u8(0); G];
    for (v, group) in v.iter_mut().zip(groups) {
        let bytes = &group[block];
        // SAFETY: 16 bytes are readable; the load needs no alignment.
        *v = unsafe { vld1q_u8(bytes.as_ptr()) };
    }
    v
}

/// Four activation codes of each token, in all lanes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn broadcasts<const SLOTS: usize, const T: usize>(
    x: [&[[[i8; 4]; SLOTS]]; T],
    block: usize,
    slot: usize,
) -> [int8x16_t; T] {
    let mut fours = [vdupq_n_s8(0); T];
    for (four, x) in fours.iter_mut().zip(x) {
        let codes = x[block][slot].map(|code| code as u8);
        *four = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes(codes)));
    }
    fours
}

/// A vector of codes.
pub(super) type Block = [u8; LANES];

/// Bytes of a vector.
pub(super) const LANES: usize = 16;

/// Rows of a group: 32-bit lanes of a vector.
pub(super) const ROWS: usize = LANES / 4;
