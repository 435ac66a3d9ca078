//! bf16 tiles of 8 x 32 with sums in f32 (`vdpbf16ps`): twice the multiplications of f32 an instruction.
//!
//! The instruction adds the product of the upper halves of a word first, then that of the lower halves, rounding each sum to
//! nearest and taking subnormal numbers as zero.

use std::arch::x86_64::{
    __m512bh, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_reduce_add_ps, _mm512_set1_epi32, _mm512_setzero_ps,
    _mm512_storeu_ps,
};
use std::hint::black_box;
use std::mem::transmute;

use super::tiles::{Layout, Left, SUMS, TileKernel, Unit};

pub(super) static KERNEL: TileKernel = TileKernel {
    name: "avx512bf16",
    supported: || is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16"),
    depth: 2,
    rows: ROWS,
    cols: 32,
    left: Layout::Strided,
    unit: || Unit::Vectors(tile),
    registers,
    products_per_round: SUMS * 32,
};

const ROWS: usize = 8;

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile(a: Left, b: &[u32], out: &mut [f32]) {
    let words = b.len() / 32;
    debug_assert!(out.len() == ROWS * 32);
    let (start, mut b) = (a.words.as_ptr().cast::<i32>(), b.as_ptr().cast::<i32>());
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: the caller has seen to it that every row of `a` has `words` words at its strides, and that `out` has room
    // for 16 stores of 16 numbers; `b` holds `words` steps of 32 words. The transmutes are between vectors of 64 bytes, of which any content is valid.
    unsafe {
        let rows: [_; ROWS] = std::array::from_fn(|i| start.add(i * a.row_stride));
        let mut at = 0;
        for _ in 0..words {
            let left: __m512bh = transmute(_mm512_loadu_si512(b.cast()));
            let right: __m512bh = transmute(_mm512_loadu_si512(b.add(16).cast()));
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x: __m512bh = transmute(_mm512_set1_epi32(*row.add(at)));
                sums[0] = _mm512_dpbf16_ps(sums[0], x, left);
                sums[1] = _mm512_dpbf16_ps(sums[1], x, right);
            }
            (at, b) = (at + a.word_stride, b.add(32));
        }
        for (i, sums) in sums.iter().enumerate() {
            _mm512_storeu_ps(out.as_mut_ptr().add(i * 32), sums[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(i * 32 + 16), sums[1]);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn registers(rounds: usize) -> f32 {
    let one = black_box(0x3f80_3f80);
    // SAFETY: a transmute between vectors of 64 bytes, of which any content is valid.
    let ones: __m512bh = unsafe { transmute(_mm512_set1_epi32(one)) };
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_dpbf16_ps(*sum, ones, ones));
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}
