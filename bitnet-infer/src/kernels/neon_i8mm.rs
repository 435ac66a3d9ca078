//! NEON with the matrix instructions: `smmla` multiplies 2 rows x 8 columns by 8 columns x 2 tokens, adding in i32.
//!
//! ```text
//! for two groups of 4 rows g together, for eight (or four, two) tokens together, p pairs of them; for each block:
//!     v[g] = 16 bytes of group g
//!     for each two slots of a byte:
//!         u = v[g] & mask; w = (v[g] >> bits) & mask; v[g] >>= 2 * bits
//!         a[g][0] = zip1(u, w)      rows 0 and 1, eight columns each
//!         a[g][1] = zip2(u, w)      rows 2 and 3
//!         sum[g][p][half] = smmla(sum[g][p][half], a[g][half], eight codes of x[2p] and of x[2p + 1])
//! sum[g][p][0] = row 0 token 2p | row 0 token 2p+1 | row 1 token 2p | row 1 token 2p+1;   uzp1, uzp2: a vector a token
//! ```
//!
//! The block is that of [`super::neon`]. int8 has one slot a byte: two adjacent blocks take the place of two slots, and an
//! odd last block goes to `sdot`. So does a lone token.
//!
//! Overflow: as in [`super::neon_dot`], with eight products to a lane.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::layout::Job;
use super::neon::{self, Block, Product, load_blocks};
use super::neon_dot::{self, Dot, offset, signed_codes};
use super::{Kernel, Panel, neon_float, scalar};

/// Neoverse V1, N2, Cortex-A510, A710 and later, Apple M2.
pub static KERNEL: Kernel = Kernel {
    name: "neon-i8mm",
    supported: || neon_dot::supported() && is_aarch64_feature_detected!("i8mm"),
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

#[target_feature(enable = "neon,dotprod,i8mm")]
fn ternary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<2, 4>(job, out);
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn binary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<1, 8>(job, out);
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn int4(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<4, 2>(job, out);
}

#[target_feature(enable = "neon,dotprod,i8mm")]
fn int8(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<8, 1>(job, out);
}

#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn sums<const BITS: i32, const SLOTS: usize>(job: &Job<'_, i8>, out: &mut [i32]) {
    if job.x.len() == job.stride {
        neon::sums::<Dot<BITS>, SLOTS, 4, 4>(job, out);
    } else {
        neon::sums::<Matrix<BITS>, SLOTS, 2, 8>(job, out);
    }
}

/// Codes of `BITS` bits.
struct Matrix<const BITS: i32>;

impl<const BITS: i32, const SLOTS: usize> Product<SLOTS> for Matrix<BITS> {
    const OFFSET: i32 = offset(BITS);

    #[target_feature(enable = "neon,dotprod,i8mm")]
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[Block]; G],
        x: [&[[[i8; 4]; SLOTS]]; T],
    ) -> [[int32x4_t; G]; T] {
        if T == 1 {
            // SAFETY: this function has the instructions.
            return unsafe { Dot::<BITS>::tile::<G, T>(groups, x) };
        }
        let blocks = groups[0].len();
        let (mut groups, mut x) = (groups, x);
        groups.iter_mut().for_each(|group| *group = &group[..blocks]);
        x.iter_mut().for_each(|x| *x = &x[..blocks]);
        // `sums[2p + half]` belongs to half the rows and to tokens 2p and 2p + 1.
        let mut sums = [[vdupq_n_s32(0); G]; T];
        if SLOTS == 1 {
            // Two blocks hold eight columns.
            let mut pairs = [&[][..]; T];
            pairs.iter_mut().zip(x).for_each(|(pairs, x)| *pairs = &x.as_flattened().as_chunks().0[..blocks / 2]);
            for pair in 0..blocks / 2 {
                let mut eights = [vdup_n_s8(0); T];
                for (eight, x) in eights.iter_mut().zip(pairs) {
                    *eight = load_eight(&x[pair]);
                }
                let (mut v, mut w) = (load_blocks(groups, 2 * pair), load_blocks(groups, 2 * pair + 1));
                add_products::<BITS, G, T>(&mut sums, &mut v, Some(&mut w), eights);
            }
        } else {
            for block in 0..blocks {
                let mut v = load_blocks(groups, block);
                for pair in 0..SLOTS / 2 {
                    let mut eights = [vdup_n_s8(0); T];
                    for (eight, x) in eights.iter_mut().zip(x) {
                        *eight = load_eight(&x[block].as_chunks().0[pair]);
                    }
                    add_products::<BITS, G, T>(&mut sums, &mut v, None, eights);
                }
            }
        }
        for sums in sums.as_chunks_mut::<2>().0 {
            let [low, high] = *sums;
            *sums = [
                std::array::from_fn(|g| vuzp1q_s32(low[g], high[g])),
                std::array::from_fn(|g| vuzp2q_s32(low[g], high[g])),
            ];
        }
        if SLOTS == 1 && blocks % 2 == 1 {
            // SAFETY: this function has the instructions.
            let last =
                unsafe { Dot::<BITS>::tile::<G, T>(groups.map(|g| &g[blocks - 1..]), x.map(|x| &x[blocks - 1..])) };
            for (sum, last) in sums.as_flattened_mut().iter_mut().zip(last.as_flattened()) {
                *sum = vaddq_s32(*sum, *last);
            }
        }
        sums
    }
}

/// Adds the products of eight columns: the next codes of `v`, and the next of `w`, or of `v` again if there is no `w`.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn add_products<const BITS: i32, const G: usize, const T: usize>(
    sums: &mut [[int32x4_t; G]; T],
    v: &mut [uint8x16_t; G],
    mut w: Option<&mut [uint8x16_t; G]>,
    x: [int8x8_t; T],
) {
    for g in 0..G {
        let first = vreinterpretq_s32_s8(signed_codes::<BITS>(&mut v[g]));
        let second = if let Some(w) = &mut w { &mut w[g] } else { &mut v[g] };
        let second = vreinterpretq_s32_s8(signed_codes::<BITS>(second));
        let low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
        let high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
        for (sums, x) in sums.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0) {
            let x = vcombine_s8(x[0], x[1]);
            sums[0][g] = smmla(sums[0][g], low, x);
            sums[1][g] = smmla(sums[1][g], high, x);
        }
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn load_eight(codes: &[[i8; 4]; 2]) -> int8x8_t {
    // SAFETY: 8 bytes are readable; the load needs no alignment.
    unsafe { vld1_s8(codes.as_ptr().cast()) }
}

/// `sum + a * transpose(b)`, 2 x 8 by 8 x 2. `vmmlaq_s32` is this instruction, but not stable yet.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: this function has the instruction, which touches these registers and nothing else.
    unsafe {
        asm!(
            "smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
