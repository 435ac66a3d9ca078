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
/// whatever else is computed: so a row does not depend on its neighbours.
#[inline(always)]
pub(super) fn add_product(product: &Product, c: &mut [f32]) {
    let rows = c.len() / product.n;
    let mut row = 0;
    while row < rows {
        let a = &product.a[row * product.a_stride..];
        let c = &mut c[row * product.n..];
        // The sums of a tile fit sixteen registers of eight numbers, beside a row of `b` and a number of `a`.
        row += match rows - row {
            6.. => strip::<6, LANES>(product, a, c),
            4.. => strip::<4, LANES>(product, a, c),
            2.. => strip::<2, { 2 * LANES }>(product, a, c),
            _ => strip::<1, { 4 * LANES }>(product, a, c),
        };
    }
}

/// All columns of `ROWS` rows; returns `ROWS`.
#[inline(always)]
fn strip<const ROWS: usize, const WIDTH: usize>(product: &Product, a: &[f32], c: &mut [f32]) -> usize {
    let mut column = 0;
    while column + WIDTH <= product.n {
        tile::<ROWS, WIDTH>(product, a, c, column);
        column += WIDTH;
    }
    while column < product.n {
        tile::<ROWS, LANES>(product, a, c, column);
        column += LANES;
    }
    ROWS
}

/// A tile of `c`, which stays in registers from the first of `k` to the last. The loop over `WIDTH` becomes vectors for the
/// sizes of [`add_product`]; with 6 times 32 it did not. A closure in it could end up compiled without the instructions.
#[inline(always)]
fn tile<const ROWS: usize, const WIDTH: usize>(product: &Product, a: &[f32], c: &mut [f32], column: usize) {
    let Product { a_stride, k, n, .. } = *product;
    let a: [&[f32]; ROWS] = std::array::from_fn(|row| &a[row * a_stride..][..k]);
    let mut sums = [[0f32; WIDTH]; ROWS];
    for (row, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(&c[row * n + column..][..WIDTH]);
    }
    for (i, b) in product.b.chunks_exact(n).take(k).enumerate() {
        let b: &[f32; WIDTH] = b[column..].first_chunk().expect("n is whole tiles");
        for row in 0..ROWS {
            let factor = a[row][i];
            for lane in 0..WIDTH {
                sums[row][lane] = factor.mul_add(b[lane], sums[row][lane]);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        c[row * n + column..][..WIDTH].copy_from_slice(sums);
    }
}
