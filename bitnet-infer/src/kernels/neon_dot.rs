//! NEON with the dot product instructions: `sdot` multiplies 16 codes by 16 activations and adds groups of four in i32.
//!
//! ```text
//! for four groups of 4 rows g together, for four (or two, one) tokens t together; for each block:
//!     v[g] = 16 bytes of group g
//!     for each slot i of a byte:
//!         four[t] = broadcast(four codes of x[t])
//!         u = v[g] & mask; v[g] >>= bits                       (once for all tokens)
//!         sum[g][t] = sdot(sum[g][t], u, four[t])
//! ```
//!
//! The block is that of [`super::neon`].
//!
//! `sdot` takes signed bytes. An int8 code `u` (0..=255) is none, so it loses 128 (its upper bit is flipped), which is repaired
//! for all rows at once: sums start at `128 * sum(a)` instead of 0.
//!
//! Overflow: `sdot` adds four products of at most 128 * 128 into i32, and nothing narrower is ever kept. With at most 2^16
//! columns `|sum((u - 128) * a)| <= 2^16 * 2^14 = 2^30`, the start is at most `128 * 2^16 * 128 = 2^30`, and what they add up
//! to is bounded in [`super::layout`].

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::layout::Job;
use super::neon::{self, Block, Product, broadcasts, load_blocks, next_codes};
use super::{Kernel, Panel, neon_float, scalar};

/// Cortex-A55, A75 and later, Neoverse, Apple A13 and M1.
pub static KERNEL: Kernel = Kernel {
    name: "neon-dot",
    supported,
    lanes: neon::LANES,
    panel: |_, cols, _| Panel::small(neon::ROWS, cols),
    ternary,
    base3: None,
    binary,
    int8,
    int4,
    code_floats: scalar::code_floats::<{ neon::ROWS }>,
    f32: neon_float::f32_sums,
    f16: neon_float::f16_sums,
    bf16: neon_float::bf16_sums,
};

pub(super) fn supported() -> bool {
    neon::supported() && is_aarch64_feature_detected!("dotprod")
}

#[target_feature(enable = "neon,dotprod")]
fn ternary(job: &Job<'_, i8>, out: &mut [i32]) {
    neon::sums::<Dot<2>, 4, 4, 4>(job, out);
}

#[target_feature(enable = "neon,dotprod")]
fn binary(job: &Job<'_, i8>, out: &mut [i32]) {
    neon::sums::<Dot<1>, 8, 4, 4>(job, out);
}

#[target_feature(enable = "neon,dotprod")]
fn int4(job: &Job<'_, i8>, out: &mut [i32]) {
    neon::sums::<Dot<4>, 2, 4, 4>(job, out);
}

#[target_feature(enable = "neon,dotprod")]
fn int8(job: &Job<'_, i8>, out: &mut [i32]) {
    neon::sums::<Dot<8>, 1, 4, 4>(job, out);
}

/// Codes of `BITS` bits.
pub(super) struct Dot<const BITS: i32>;

impl<const BITS: i32, const SLOTS: usize> Product<SLOTS> for Dot<BITS> {
    const OFFSET: i32 = offset(BITS);

    #[target_feature(enable = "neon,dotprod")]
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[Block]; G],
        x: [&[[[i8; 4]; SLOTS]]; T],
    ) -> [[int32x4_t; G]; T] {
        let blocks = groups[0].len();
        let (groups, x) = (groups.map(|group| &group[..blocks]), x.map(|x| &x[..blocks]));
        // The slots of a lone token take turns in two sums, as four chains do not hide the latency of `sdot`.
        let mut sums = [[[vdupq_n_s32(0); G]; 2]; T];
        for block in 0..blocks {
            let mut v = load_blocks(groups, block);
            for slot in 0..SLOTS {
                let chain = if T == 1 { slot % 2 } else { 0 };
                let fours = broadcasts(x, block, slot);
                for (g, v) in v.iter_mut().enumerate() {
                    let u = signed_codes::<BITS>(v);
                    for (four, sums) in fours.iter().zip(&mut sums) {
                        sums[chain][g] = sdot(sums[chain][g], u, *four);
                    }
                }
            }
        }
        sums.map(|[even, odd]| std::array::from_fn(|g| vaddq_s32(even[g], odd[g])))
    }
}

/// What [`signed_codes`] takes away from a code.
pub(super) const fn offset(bits: i32) -> i32 {
    if bits == 8 { 128 } else { 0 }
}

/// The next code of each byte, less [`offset`].
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn signed_codes<const BITS: i32>(v: &mut uint8x16_t) -> int8x16_t {
    if BITS == 8 {
        return vreinterpretq_s8_u8(veorq_u8(*v, vdupq_n_u8(128)));
    }
    next_codes::<BITS>(v)
}

/// `sum + a * b`, four products to a lane. `vdotq_s32` is this instruction, but not stable yet.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: this function has the instruction, which touches these registers and nothing else.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
