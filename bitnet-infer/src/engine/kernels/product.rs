//! The small matrix product that both halves of attention are.

use super::LANES;

/// `[m, k]` times `[k, n]`, with `n` a multiple of [`LANES`].
pub(in crate::engine) struct Product<'a> {
    /// Rows of `k` numbers, one every `a_stride`.
    pub a: &'a [f32],
    /// From one row of `a` to the next, at least `k`.
    pub a_stride: usize,
    /// Rows of `n` numbers, one behind the other.
    pub b: &'a [f32],
    /// Length of the sums.
    pub k: usize,
    /// Columns.
    pub n: usize,
}

/// `c += a b`, `c` being whole rows of `n`. Every number of `c` is one chain of `mul_add` from the first to the last of `k`,
/// whatever else is computed: so a row does not depend on its neighbours. Tiles are `CHUNKS` times [`LANES`] wide, more for few
/// rows.
#[inline(always)]
pub(super) fn add_product<const CHUNKS: usize>(product: &Product, c: &mut [f32]) {
    let rows = c.len() / product.n;
    let mut row = 0;
    while row < rows {
        let a = &product.a[row * product.a_stride..];
        let c = &mut c[row * product.n..];
        // With one chunk the sums fit sixteen registers of eight numbers, with two 32 of sixteen, beside a row of `b` and a
        // number of `a`.
        row += match rows - row {
            6.. => strip::<6, CHUNKS>(product, a, c),
            4.. => strip::<4, CHUNKS>(product, a, c),
            2.. => strip::<2, 2>(product, a, c),
            _ => strip::<1, 4>(product, a, c),
        };
    }
}

/// All columns of `ROWS` rows.
#[inline(always)]
fn strip<const ROWS: usize, const CHUNKS: usize>(product: &Product, a: &[f32], c: &mut [f32]) -> usize {
    let mut column = 0;
    while column + CHUNKS * LANES <= product.n {
        tile::<ROWS, CHUNKS>(product, a, c, column);
        column += CHUNKS * LANES;
    }
    while column < product.n {
        tile::<ROWS, 1>(product, a, c, column);
        column += LANES;
    }
    ROWS
}

/// A tile of `c`, which stays in registers from the first of `k` to the last.
#[inline(always)]
fn tile<const ROWS: usize, const CHUNKS: usize>(product: &Product, a: &[f32], c: &mut [f32], column: usize) {
    let Product { a_stride, k, n, .. } = *product;
    let a: [&[f32]; ROWS] = std::array::from_fn(|row| &a[row * a_stride..][..k]);
    let mut sums = [[[0f32; LANES]; CHUNKS]; ROWS];
    for (row, sums) in sums.iter_mut().enumerate() {
        let c = &c[row * n + column..][..CHUNKS * LANES];
        sums.iter_mut().zip(c.chunks_exact(LANES)).for_each(|(sums, c)| sums.copy_from_slice(c));
    }
    for (i, b) in product.b.chunks_exact(n).take(k).enumerate() {
        let b: [&[f32; LANES]; CHUNKS] =
            std::array::from_fn(|chunk| b[column + chunk * LANES..].first_chunk().expect("n is whole chunks"));
        for row in 0..ROWS {
            let factor = a[row][i];
            for chunk in 0..CHUNKS {
                for lane in 0..LANES {
                    sums[row][chunk][lane] = factor.mul_add(b[chunk][lane], sums[row][chunk][lane]);
                }
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let c = &mut c[row * n + column..][..CHUNKS * LANES];
        sums.iter().zip(c.chunks_exact_mut(LANES)).for_each(|(sums, c)| c.copy_from_slice(sums));
    }
}
