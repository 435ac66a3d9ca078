//! AVX-512 with VNNI and VBMI: as [`super::avx512vnni`], and ternary codes at five to a byte ([`super::base3`]).
//!
//! ```text
//! for each group of 16 rows, for eight (or four, two, one) tokens t together; for each block:
//!     v       = 64 bytes of the group
//!     fifth   = FIFTHS[v & 127]                                (vpermi2b takes the low seven bits by itself)
//!     fours   = FOURS[v & 127]; where the top bit of v is set: fours = 0b10101010 - fours     (u = 2 - u in each two bits)
//!     u       = fifth, then fours & 3, fours >> 2 & 3, ...     (once for all tokens)
//!     sum[t] = dpbusd(sum[t], u, broadcast(four codes of x[t]))
//! ```
//!
//! Byte `j` of lane `r`, slot `i`, is row `r`, column `4i + j` of the block's 20. Per weight this takes about one and a half
//! times the instructions of two-bit codes, and reads four fifths of the bytes: which of the two is faster depends on where
//! the weights are, so it is measured when a model is loaded.
//!
//! Overflow: as in `avx512vnni`, with `u <= 2`. A slot of which `u` is left in place counts up to 64-fold, but it has a fifth
//! of the columns: `|sum| <= 2^16 / 5 * 128 * 128 < 2^28`.

use std::arch::x86_64::*;

use super::avx512vnni::{LANES, ROWS, load, store};
use super::base3::{FIFTHS, FOURS, SLOTS};
use super::layout::Job;
use super::{Kernel, avx512vnni};

/// Ice Lake, Zen 4 and later.
pub static KERNEL: Kernel = ROW;

/// [`KERNEL`] as a constant, for kernels that differ in few functions.
pub(super) const ROW: Kernel = Kernel { name: "avx512vbmi", supported, base3: Some(base3), ..avx512vnni::ROW };

fn supported() -> bool {
    avx512vnni::KERNEL.is_supported() && is_x86_feature_detected!("avx512vbmi")
}

/// All groups, one stream of bytes; all tokens: eight at a time, then four, two, one.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn base3(job: &Job<'_, i8>, out: &mut [i32]) {
    let tokens = job.x.len() / job.stride;
    for (group, bytes) in job.groups().enumerate() {
        let (group, column) = (bytes.as_chunks().0, group * ROWS);
        for first in (0..tokens & !7).step_by(8) {
            tile::<8, 1>(group, job, first, out, column);
        }
        if tokens & 4 != 0 {
            tile::<4, 2>(group, job, tokens & !7, out, column);
        }
        if tokens & 2 != 0 {
            tile::<2, 4>(group, job, tokens & !3, out, column);
        }
        if tokens & 1 != 0 {
            tile::<1, SLOTS>(group, job, tokens & !1, out, column);
        }
    }
}

/// Products of a group and `T` tokens from the one numbered `first` on, into `out` from `column` on. Slots take turns in
/// `C` sums, so that `T * C` chains hide the latency of `dpbusd`. Where each slot has a sum of its own, its `u` stay where
/// they are in their bytes, and the whole sum is shifted once.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn tile<const T: usize, const C: usize>(
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
    let (fifths, fours) = (table(&FIFTHS), table(&FOURS));
    let twos = _mm512_set1_epi8(0b1010_1010_u8 as i8);
    let in_place = C == SLOTS;
    let mut sums = [[_mm512_setzero_si512(); C]; T];
    for (block, bytes) in group.iter().enumerate() {
        let bytes = load(bytes);
        let mut u = _mm512_permutex2var_epi8(fifths[0], bytes, fifths[1]);
        let four = _mm512_permutex2var_epi8(fours[0], bytes, fours[1]);
        let mut v = _mm512_mask_sub_epi8(four, _mm512_movepi8_mask(bytes), twos, four);
        for slot in [SLOTS - 1, 0, 1, 2, 3] {
            if slot < SLOTS - 1 {
                if in_place {
                    u = _mm512_and_si512(v, _mm512_set1_epi8((3u8 << (2 * slot)) as i8));
                } else {
                    u = _mm512_and_si512(v, _mm512_set1_epi8(3));
                    v = _mm512_srli_epi16::<2>(v);
                }
            }
            for (x, sums) in x.iter().zip(&mut sums) {
                let four = _mm512_set1_epi32(i32::from_le_bytes(x[block][slot].map(|code| code as u8)));
                sums[slot % C] = _mm512_dpbusd_epi32(sums[slot % C], u, four);
            }
        }
    }
    for (out, sums) in out.chunks_exact_mut(job.rows).skip(first).zip(sums) {
        let mut sum = _mm512_setzero_si512();
        for (slot, chain) in sums.into_iter().enumerate() {
            let shift = if in_place && slot < SLOTS - 1 { 2 * slot as i32 } else { 0 };
            // Exact: all terms of the chain are multiples of the power of two.
            sum = _mm512_add_epi32(sum, _mm512_srav_epi32(chain, _mm512_set1_epi32(shift)));
        }
        if let Some(out) = out[column..].first_chunk_mut() {
            store(out, sum);
        }
    }
}

/// 128 bytes in two vectors.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn table(bytes: &[u8; 128]) -> [__m512i; 2] {
    let halves = bytes.as_chunks().0;
    [load(&halves[0]), load(&halves[1])]
}
