//! f32 tiles of 6 x 16 in twelve AVX2 registers.

use std::arch::x86_64::{
    _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};
use std::hint::black_box;

use super::tiles::{Layout, Left, SUMS, TileKernel, Unit};

pub(super) static KERNEL: TileKernel = TileKernel {
    name: "avx2",
    supported: || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
    depth: 1,
    rows: ROWS,
    cols: 16,
    left: Layout::Strided,
    unit: || Unit::Vectors(tile),
    registers,
    products_per_round: SUMS * 8,
};

const ROWS: usize = 6;

#[target_feature(enable = "avx2,fma")]
unsafe fn tile(a: Left, b: &[u32], out: &mut [f32]) {
    let words = b.len() / 16;
    debug_assert!(out.len() == ROWS * 16);
    let (start, mut b) = (a.words.as_ptr().cast::<f32>(), b.as_ptr().cast::<f32>());
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    // SAFETY: the caller has seen to it that every row of `a` has `words` words at its strides, and that `out` has room
    // for 12 stores of 8 numbers; `b` holds `words` steps of 16 numbers.
    unsafe {
        let rows: [_; ROWS] = std::array::from_fn(|i| start.add(i * a.row_stride));
        let mut at = 0;
        for _ in 0..words {
            let [left, right] = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
            for (sums, row) in sums.iter_mut().zip(rows) {
                let x = _mm256_set1_ps(*row.add(at));
                sums[0] = _mm256_fmadd_ps(x, left, sums[0]);
                sums[1] = _mm256_fmadd_ps(x, right, sums[1]);
            }
            (at, b) = (at + a.word_stride, b.add(16));
        }
        for (i, sums) in sums.iter().enumerate() {
            _mm256_storeu_ps(out.as_mut_ptr().add(i * 16), sums[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(i * 16 + 8), sums[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn registers(rounds: usize) -> f32 {
    let [x, y] = black_box([0.999, 1e-3]).map(|x| _mm256_set1_ps(x));
    let mut sums = [y; SUMS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, x, y));
    }
    sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
}
