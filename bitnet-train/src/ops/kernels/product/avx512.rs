//! f32 tiles of 8 x 32 in sixteen AVX-512 registers: two vectors of `b` meet eight broadcast numbers of `a`.

use std::arch::x86_64::{
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::hint::black_box;

use super::tiles::{Layout, Left, SUMS, TileKernel, Unit};

pub(super) static KERNEL: TileKernel = TileKernel {
    name: "avx512",
    supported: || is_x86_feature_detected!("avx512f"),
    depth: 1,
    rows: ROWS,
    cols: 32,
    left: Layout::Strided,
    unit: || Unit::Vectors(tile),
    registers,
    products_per_round: SUMS * 16,
};

const ROWS: usize = 8;

#[target_feature(enable = "avx512f")]
unsafe fn tile(a: Left, b: &[u32], out: &mut [f32]) {
    let words = b.len() / 32;
    debug_assert!(out.len() == ROWS * 32);
    let (start, mut b) = (a.words.as_ptr().cast::<f32>(), b.as_ptr().cast::<f32>());
    let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
    // SAFETY: the caller has seen to it that every row of `a` has `words` words at its strides, and that `out` has room
    // for 16 stores of 16 numbers; `b` holds `words` steps of 32 numbers.
    unsafe {
        let rows: [_; ROWS] = std::array::from_fn(|i| start.add(i * a.row_stride));
        let mut at = 0;
        for _ in 0..words {
            let [left, right] = [_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16))];
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = _mm512_set1_ps(*row.add(at));
                sums[0] = _mm512_fmadd_ps(x, left, sums[0]);
                sums[1] = _mm512_fmadd_ps(x, right, sums[1]);
            }
            (at, b) = (at + a.word_stride, b.add(32));
        }
        for (i, sums) in sums.iter().enumerate() {
            _mm512_storeu_ps(out.as_mut_ptr().add(i * 32), sums[0]);
            _mm512_storeu_ps(out.as_mut_ptr().add(i * 32 + 16), sums[1]);
        }
    }
}

#[target_feature(enable = "avx512f")]
fn registers(rounds: usize) -> f32 {
    let [x, y] = black_box([0.999, 1e-3]).map(|x| _mm512_set1_ps(x));
    let mut sums = [y; SUMS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, x, y));
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}
