//! BitLinear: quantize, multiply, rescale; the straight-through backward pass.
//!
//! Forward, with both sides quantized: integer codes times integer codes. The codes are laid out as f32 and multiplied by
//! the f32 `gemm`: all partial sums are integers below 2^24, so the product is exact whatever its order, and equal to
//! that of the inference kernels. Where `columns * max|code| * max|code|` could pass 2^24 the columns are split and the
//! partial sums added as i32.
//!
//! Backward: `dx = dy W_q`, `dW = est(dy^T x_q)` with the dequantized `W_q`, `x_q` of the forward pass.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::ROWS_PER_TASK;
use crate::nn::estimator::Grid;
use crate::ops::BitLinearSpec;
use crate::ops::kernels::elementwise::{expand, rescale_row};
use crate::ops::kernels::gemm::{Matrix, Output, Threads, matmul};
use crate::ops::values::{operand, tensor_like, values};

pub(super) struct BitLinear {
    spec: BitLinearSpec,
    saved: Mutex<Saved>,
}

#[derive(Default)]
struct Saved {
    x: Option<Codes>,
    w: Option<Codes>,
}

/// Quantized rows: one factor (step or scale) for all, or one per row.
struct Codes {
    codes: Vec<i8>,
    factors: Vec<f32>,
    max_code: u8,
}

impl BitLinear {
    pub(super) fn new(spec: BitLinearSpec) -> Self {
        Self { spec, saved: Mutex::default() }
    }

    fn quantize_x(&self, x: &[f32], k: usize) -> Option<Codes> {
        let scheme = self.spec.quantization.activation?;
        let mut codes = vec![0i8; x.len()];
        let mut factors = vec![0f32; x.len() / k];
        let rows = x.par_chunks(k * ROWS_PER_TASK).zip(codes.par_chunks_mut(k * ROWS_PER_TASK));
        rows.zip(factors.par_chunks_mut(ROWS_PER_TASK)).for_each(|((x, codes), factors)| {
            for ((x, codes), factor) in x.chunks(k).zip(codes.chunks_mut(k)).zip(factors) {
                *factor = scheme.quantize(x, codes);
            }
        });
        Some(Codes { codes, factors, max_code: scheme.max_code().unsigned_abs() })
    }

    fn quantize_w(&self, w: &[f32], rows: usize) -> Option<Codes> {
        let scheme = self.spec.quantization.weight?;
        let mut codes = vec![0i8; w.len()];
        let factors = scheme.quantize(w, rows, &mut codes);
        let (low, high) = scheme.code_range();
        Some(Codes { codes, factors, max_code: low.unsigned_abs().max(high.unsigned_abs()) })
    }
}

impl Codes {
    /// The codes as floats.
    fn as_floats(&self) -> Vec<f32> {
        let mut out = vec![0f32; self.codes.len()];
        let chunk = 1 << 14;
        out.par_chunks_mut(chunk).zip(self.codes.par_chunks(chunk)).for_each(|(out, codes)| expand(codes, 1.0, out));
        out
    }

    /// Codes times factors: the dequantized rows of `cols` numbers.
    fn dequantized(&self, cols: usize) -> Vec<f32> {
        let mut out = vec![0f32; self.codes.len()];
        let rows = out.par_chunks_mut(cols).zip(self.codes.par_chunks(cols)).enumerate();
        rows.with_min_len(ROWS_PER_TASK).for_each(|(row, (out, codes))| {
            let factor = if self.factors.len() == 1 { self.factors[0] } else { self.factors[row] };
            expand(codes, factor, out);
        });
        out
    }
}

impl CustomOp2 for BitLinear {
    fn name(&self) -> &'static str {
        "bit-linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (operand(s1, l1)?, operand(s2, l2)?);
        let (n, k) = l2.shape().dims2()?;
        if l1.dims().last() != Some(&k) {
            bail!("bit-linear: input {:?} does not end in the weights' {k} columns", l1.dims());
        }
        let t = x.len() / k;
        let (x_codes, w_codes) = (self.quantize_x(x, k), self.quantize_w(w, n));
        let mut y_tn = vec![0f32; t * n];
        match (&x_codes, &w_codes) {
            (Some(xq), Some(wq)) => {
                integer_product(&mut y_tn, xq, wq, [t, n, k]);
                for_rows(&mut y_tn, n, |row, y| rescale_row(y, xq.factors[row], &wq.factors));
            }
            (xq, wq) => {
                let x_floats = xq.as_ref().map(|c| c.dequantized(k));
                let w_floats = wq.as_ref().map(|c| c.dequantized(k));
                let (x, w) = (x_floats.as_deref().unwrap_or(x), w_floats.as_deref().unwrap_or(w));
                matmul(
                    &mut y_tn,
                    n,
                    Matrix::new(x, t, k),
                    Matrix::new(w, n, k).t(),
                    1.0,
                    Output::Replace,
                    Threads::All,
                );
            }
        }
        *self.saved.lock().expect("no panic while held") = Saved { x: x_codes, w: w_codes };
        let mut dims = l1.dims().to_vec();
        *dims.last_mut().expect("at least one dimension") = n;
        Ok((CpuStorage::F32(y_tn), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, k) = w.dims2()?;
        let saved = std::mem::take(&mut *self.saved.lock().expect("no panic while held"));
        let dy = dy.contiguous()?;
        let (dy, latent, floats) = (values(&dy)?, values(w)?, values(x)?);
        let t = dy.len() / n;

        let mut dx_tk = vec![0f32; t * k];
        let w_floats = saved.w.as_ref().map(|c| c.dequantized(k));
        let w_nk = Matrix::new(w_floats.as_deref().unwrap_or(&latent), n, k);
        matmul(&mut dx_tk, k, Matrix::new(&dy, t, n), w_nk, 1.0, Output::Replace, Threads::All);

        let mut dw_nk = vec![0f32; n * k];
        let x_floats = saved.x.as_ref().map(|c| c.dequantized(k));
        let x_tk = Matrix::new(x_floats.as_deref().unwrap_or(&floats), t, k);
        matmul(&mut dw_nk, k, Matrix::new(&dy, t, n).t(), x_tk, 1.0, Output::Replace, Threads::All);
        if let Some(codes) = &saved.w {
            let grid = Grid { rows: n, scales: &codes.factors, max_code: codes.max_code };
            self.spec.estimator.weight_gradient(&latent, &grid, &mut dw_nk);
        }
        Ok((Some(tensor_like(dx_tk, x)?), Some(tensor_like(dw_nk, w)?)))
    }
}

/// `y = x_codes w_codes^T`, exact, as floats that hold integers (sums beyond 2^24 are rounded once, at the end).
fn integer_product(y_tn: &mut [f32], x: &Codes, w: &Codes, [t, n, k]: [usize; 3]) {
    let (x_floats, w_floats) = (x.as_floats(), w.as_floats());
    let exact_columns = (1usize << 24) / (usize::from(x.max_code) * usize::from(w.max_code));
    let product = |y: &mut [f32], start: usize, columns: usize| {
        let a = Matrix::strided(&x_floats[start..], t, columns, k);
        let b = Matrix::strided(&w_floats[start..], n, columns, k).t();
        matmul(y, n, a, b, 1.0, Output::Replace, Threads::All);
    };
    if k <= exact_columns {
        return product(y_tn, 0, k);
    }
    let mut sums = vec![0i32; t * n];
    let mut part = vec![0f32; t * n];
    for start in (0..k).step_by(exact_columns) {
        product(&mut part, start, exact_columns.min(k - start));
        sums.par_iter_mut().zip(&part).for_each(|(sum, &part)| *sum += part as i32);
    }
    y_tn.par_iter_mut().zip(&sums).for_each(|(y, &sum)| *y = sum as f32);
}

fn for_rows(y: &mut [f32], cols: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    y.par_chunks_mut(cols * ROWS_PER_TASK).enumerate().for_each(|(task, rows)| {
        for (i, row) in rows.chunks_mut(cols).enumerate() {
            f(task * ROWS_PER_TASK + i, row);
        }
    });
}
