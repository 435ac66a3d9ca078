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
//! One or two tokens leave most of the work to taking codes apart; there, two slots of ternary and binary codes share a
//! shift, and the upper is masked where it stands: its products, 2^bits times too large, have an `acc` of their own.
//! Many tokens with ternary codes are looked up instead ([`avx2_lut`]).
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
//!                   largest u   one maddubs     a block   WIDEN   worst sum in i16
//! ternary           2           -512..=508      4         16      -32768..=32512
//! binary            1           -256..=254      8         16      -32768..=32512
//! int4              15          -3840..=3810    2         4       -30720..=30480
//! ternary, upper    8           -2048..=2032    2         8       -32768..=32512
//! binary, upper     2           -512..=508      4         16      -32768..=32512
//! ```
//!
//! int8 has no room in i16: codes are extended to i16 and `madd` adds pairs in i32 (at most `2 * 255 * 128`).
//! i32 sums are bounded in [`super::layout`].

use std::arch::x86_64::*;

use super::layout::{CodeKind, Job};
use super::{Kernel, Panel, avx2_float, avx2_lut, scalar};

/// Haswell, Zen and later.
pub static KERNEL: Kernel = Kernel {
    name: "avx2",
    supported,
    lanes: LANES,
    panel,
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

fn panel(kind: CodeKind, cols: usize, tokens: usize) -> Panel {
    let looked_up = if kind == CodeKind::Ternary { avx2_lut::panel(tokens) } else { None };
    looked_up.unwrap_or_else(|| Panel::small(ROWS, cols))
}

/// Looks sums up where that is faster, and multiplies for the other tokens.
#[target_feature(enable = "avx2")]
fn ternary(job: &Job<'_, i8>, out: &mut [i32]) {
    let looked_up = avx2_lut::tokens_served(job.rows, job.x.len() / job.stride);
    let (x, rest) = job.x.split_at(looked_up * job.stride);
    let (out, rest_out) = out.split_at_mut(looked_up * job.rows);
    if looked_up > 0 {
        avx2_lut::sums(&Job { x, ..*job }, out);
    }
    sums::<Narrow<2, 4>, 4>(&Job { x: rest, ..*job }, rest_out);
}

#[target_feature(enable = "avx2")]
fn binary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Narrow<1, 8>, 8>(job, out);
}

#[target_feature(enable = "avx2")]
fn int4(job: &Job<'_, i8>, out: &mut [i32]) {
    sums::<Narrow<4, 2>, 2>(job, out);
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
    /// Whether the sums of two groups and four tokens stay in registers.
    const FOUR_TOKENS: bool;

    /// Products of `G` groups and `T` tokens; all slices have one length.
    ///
    /// # Safety
    /// The CPU has AVX2.
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[[u8; LANES]]; G],
        x: [&[[[i8; 4]; SLOTS]]; T],
    ) -> [[__m256i; G]; T];
}

/// Codes narrow enough for sums in i16.
struct Narrow<const BITS: i32, const SLOTS: usize>;

impl<const BITS: i32, const SLOTS: usize> Product<SLOTS> for Narrow<BITS, SLOTS> {
    const FOUR_TOKENS: bool = true;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[[u8; LANES]]; G],
        x: [&[[[i8; 4]; SLOTS]]; T],
    ) -> [[__m256i; G]; T] {
        if BITS <= 2 && T <= 2 {
            narrow::<BITS, SLOTS, 2, G, T>(groups, x)
        } else {
            narrow::<BITS, SLOTS, 1, G, T>(groups, x)
        }
    }
}

/// `C` neighbouring slots share a shift and are masked where they stand; slot `c` of them is 2^(`BITS` * c) times too large
/// and has a sum of its own until it is widened.
#[inline]
#[target_feature(enable = "avx2")]
fn narrow<const BITS: i32, const SLOTS: usize, const C: usize, const G: usize, const T: usize>(
    groups: [&[[u8; LANES]]; G],
    x: [&[[[i8; 4]; SLOTS]]; T],
) -> [[__m256i; G]; T] {
    let ones = _mm256_set1_epi16(1);
    let blocks = groups[0].len();
    let mut sums = [[_mm256_setzero_si256(); G]; T];
    // Plain loops: a closure passed to a function without AVX2 would be called, not inlined.
    for start in (0..blocks).step_by(const { blocks_in_i16(BITS, SLOTS, C) }) {
        let end = blocks.min(start + const { blocks_in_i16(BITS, SLOTS, C) });
        let (mut groups, mut x) = (groups, x);
        for group in &mut groups {
            *group = &group[start..end];
        }
        for x in &mut x {
            *x = &x[start..end];
        }
        let mut acc = [[[_mm256_setzero_si256(); C]; G]; T];
        for block in 0..end - start {
            let mut v = [_mm256_setzero_si256(); G];
            for (v, group) in v.iter_mut().zip(groups) {
                *v = load(&group[block]);
            }
            for slot in 0..SLOTS {
                let (c, shift) = (slot % C, BITS * (slot / C * C) as i32);
                let mask = _mm256_set1_epi8((((1u16 << BITS) - 1) << (BITS * c as i32)) as i8);
                let mut u = [_mm256_setzero_si256(); G];
                for (u, v) in u.iter_mut().zip(v) {
                    *u = _mm256_and_si256(_mm256_srl_epi16(v, _mm_cvtsi32_si128(shift)), mask);
                }
                for (x, acc) in x.iter().zip(&mut acc) {
                    let [a, b, k, d] = x[block][slot];
                    let four = _mm256_set1_epi32(i32::from_le_bytes([a as u8, b as u8, k as u8, d as u8]));
                    for (acc, u) in acc.iter_mut().zip(u) {
                        acc[c] = _mm256_add_epi16(acc[c], _mm256_maddubs_epi16(u, four));
                    }
                }
            }
        }
        for (sum, acc) in sums.as_flattened_mut().iter_mut().zip(acc.as_flattened()) {
            let mut total = acc[0];
            for (c, &acc) in acc.iter().enumerate().skip(1) {
                total = _mm256_add_epi16(total, _mm256_sra_epi16(acc, _mm_cvtsi32_si128(BITS * c as i32)));
            }
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(total, ones));
        }
    }
    sums
}

/// Blocks whose products fit i16 in each of `chains` sums: see the table above.
const fn blocks_in_i16(bits: i32, slots: usize, chains: usize) -> usize {
    let largest_u = if bits == 2 { 2 } else { (1 << bits) - 1 };
    let largest_product = (largest_u << (bits as usize * (chains - 1))) * 2 * 128;
    (1 << 15) / (largest_product * (slots / chains))
}

/// int8: four codes of four rows at a time, as i16.
struct Wide;

impl Product<1> for Wide {
    const FOUR_TOKENS: bool = false;

    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn tile<const G: usize, const T: usize>(
        groups: [&[[u8; LANES]]; G],
        x: [&[[[i8; 4]; 1]]; T],
    ) -> [[__m256i; G]; T] {
        let blocks = groups[0].len();
        let (mut groups, mut x) = (groups, x);
        for group in &mut groups {
            *group = &group[..blocks];
        }
        for x in &mut x {
            *x = &x[..blocks];
        }
        // Two sums for each row, of columns 0 and 1 and of columns 2 and 3: rows 0..4 in the first, 4..8 in the second.
        let mut sums = [[[_mm256_setzero_si256(); 2]; G]; T];
        for block in 0..blocks {
            let mut u = [[_mm256_setzero_si256(); 2]; G];
            for (u, group) in u.iter_mut().zip(groups) {
                let halves = group[block].as_chunks().0;
                *u = [_mm256_cvtepu8_epi16(load_half(&halves[0])), _mm256_cvtepu8_epi16(load_half(&halves[1]))];
            }
            for (x, sums) in x.iter().zip(&mut sums) {
                let [a, b, c, d] = x[block][0];
                let four = i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
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

/// All tokens: four at a time if registers allow, then two, one. Writes the columns of `out` from `column` on.
#[inline]
#[target_feature(enable = "avx2")]
fn tokens<P: Product<SLOTS>, const SLOTS: usize, const G: usize>(
    groups: [&[[u8; LANES]]; G],
    job: &Job<'_, i8>,
    out: &mut [i32],
    column: usize,
) {
    let tokens = job.x.len() / job.stride;
    let fours = if P::FOUR_TOKENS { tokens / 4 * 4 } else { 0 };
    for first in (0..fours).step_by(4) {
        some_tokens::<P, SLOTS, G, 4>(groups, job, first, out, column);
    }
    for first in (fours..tokens & !1).step_by(2) {
        some_tokens::<P, SLOTS, G, 2>(groups, job, first, out, column);
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
    let mut x: [&[[[i8; 4]; SLOTS]]; T] = [&[]; T];
    for (t, x) in x.iter_mut().enumerate() {
        *x = &job.x[(first + t) * job.stride..][..job.stride].as_chunks().0.as_chunks().0[..job.blocks];
    }
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
fn load_half(bytes: &[u8; LANES / 2]) -> __m128i {
    // SAFETY: 16 bytes are readable; the load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
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
