//! Matrix products in f32 through the `gemm` crate, behind a safe and bounds-checked wrapper.

/// A strided view of a matrix.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major `[rows, cols]` matrix at the start of `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A `[rows, cols]` matrix whose rows begin `row_stride` apart.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
        assert!(data.len() >= needed, "a {rows} x {cols} matrix with stride {row_stride} in {} numbers", data.len());
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// What becomes of the earlier content of the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// It is overwritten.
    Replace,
    /// The product is added to it.
    Add,
}

/// Whether one product uses all threads or the caller runs several products at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All threads of the current rayon pool.
    All,
    /// The calling thread only.
    One,
}

/// `out = factor * a b` (or `+=`), with `out` row-major `[a.rows, b.cols]` whose rows begin `out_stride` apart.
///
/// # Panics
/// If the inner sizes differ or `out` is too short.
pub fn matmul(out: &mut [f32], out_stride: usize, a: Matrix, b: Matrix, factor: f32, output: Output, threads: Threads) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(a.cols, b.rows, "inner sizes of {m} x {k} and {} x {n}", b.rows);
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        out_stride >= n && out.len() >= (m - 1) * out_stride + n,
        "an output of {m} x {n} with stride {out_stride}"
    );
    let parallelism = match threads {
        Threads::All if rayon::current_num_threads() > 1 => gemm::Parallelism::Rayon(rayon::current_num_threads()),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: `Matrix` proves that every element of `a` and `b` lies inside its slice (strides are non-negative and the
    // last element was checked), the assertion above proves it for `out`, and `out` is borrowed mutably, so it overlaps
    // neither.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            output == Output::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0f32,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_of_small_integers_are_exact(m in 1usize..20, n in 1usize..20, k in 1usize..40, seed in any::<u32>()) {
            let number = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 20) as f32 % 7.0 - 3.0;
            let a: Vec<f32> = (0..m * k).map(number).collect();
            let b: Vec<f32> = (0..n * k).map(|i| number(i + 1000)).collect();
            let mut out = vec![1f32; m * n];
            matmul(&mut out, n, Matrix::new(&a, m, k), Matrix::new(&b, n, k).t(), 2.0, Output::Add, Threads::All);
            for i in 0..m {
                for j in 0..n {
                    let dot: f32 = (0..k).map(|l| a[i * k + l] * b[j * k + l]).sum();
                    prop_assert_eq!(out[i * n + j], 1.0 + 2.0 * dot);
                }
            }
        }
    }
}
