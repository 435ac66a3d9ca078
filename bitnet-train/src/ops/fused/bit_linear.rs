//! BitLinear: quantize, multiply, rescale; the straight-through backward pass.
//!
//! Forward, with both sides quantized, is the product of `bitnet-infer`: the same activation codes, the same integer
//! kernels, the same `rescale`. So what a model computes in training is what it computes when it is served, bit for bit.
//! Where one side is not quantized, the other is dequantized and the product is an f32 one.
//!
//! Backward: `dx = dy W_q`, `dW = est(dy^T x_q)` in f32, with the dequantized `W_q`, `x_q` of the forward pass.

use std::sync::Mutex;

use bitnet_infer::kernels::{self, Kernel, MAX_COLS};
use bitnet_infer::linear::{Activations, Linear};
use bitnet_model::packed::PackedMatrix;
use bitnet_model::quant::WeightScheme;
use bitnet_model::weights::LinearWeights;
use candle_core::{CpuStorage, CustomOp2, Error, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::ROWS_PER_TASK;
use crate::nn::estimator::Grid;
use crate::ops::BitLinearSpec;
use crate::ops::kernels::elementwise::expand;
use crate::ops::kernels::gemm::{Matrix, Output, Threads, matmul};
use crate::ops::values::{operand, tensor_like, values};

pub(super) struct BitLinear {
    spec: BitLinearSpec,
    /// What the forward pass quantized; taken by the backward pass.
    saved: Mutex<Option<Saved>>,
}

struct Saved {
    /// Present if the input is quantized.
    x: Option<Activations>,
    /// Present if the weights are quantized.
    w: Option<WeightCodes>,
}

struct WeightCodes {
    codes: Vec<i8>,
    scales: Vec<f32>,
    scheme: &'static dyn WeightScheme,
}

impl BitLinear {
    pub(super) fn new(spec: BitLinearSpec) -> Self {
        Self { spec, saved: Mutex::default() }
    }

    fn quantize_weights(&self, w: &[f32], rows: usize) -> Option<WeightCodes> {
        let scheme = self.spec.quantization.weight?;
        let mut codes = vec![0i8; w.len()];
        let scales = scheme.quantize(w, rows, &mut codes);
        Some(WeightCodes { codes, scales, scheme })
    }
}

impl WeightCodes {
    /// In the layout of `kernel`.
    fn to_linear(&self, rows: usize, cols: usize, kernel: &'static Kernel) -> Result<Linear> {
        let packed = PackedMatrix::pack(self.scheme.layout(), rows, cols, &self.codes, self.scales.clone());
        Ok(Linear::new(&LinearWeights::Packed(packed.map_err(Error::msg)?), kernel))
    }

    fn grid(&self, rows: usize) -> Grid<'_> {
        let (low, high) = self.scheme.code_range();
        Grid { rows, scales: &self.scales, max_code: low.unsigned_abs().max(high.unsigned_abs()) }
    }

    fn dequantized(&self, rows: usize, cols: usize) -> Vec<f32> {
        let grid = self.grid(rows);
        let mut out = vec![0f32; self.codes.len()];
        let each = out.par_chunks_mut(cols).zip(self.codes.par_chunks(cols)).enumerate();
        each.with_min_len(ROWS_PER_TASK).for_each(|(row, (out, codes))| expand(codes, grid.scale_of(row), out));
        out
    }
}

/// Codes times steps, `[tokens, cols]`; `None` for inputs that are not quantized.
fn dequantized(x: &Activations) -> Option<Vec<f32>> {
    let (codes, steps) = (x.codes()?.collect::<Vec<_>>(), x.steps()?);
    let mut out = vec![0f32; x.tokens() * x.cols()];
    let rows = out.par_chunks_mut(x.cols()).zip(&codes).zip(steps);
    rows.with_min_len(ROWS_PER_TASK).for_each(|((out, codes), &step)| expand(codes, step, out));
    Some(out)
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
        if k > MAX_COLS {
            bail!("bit-linear: {k} columns, expected at most {MAX_COLS}");
        }
        let t = x.len() / k;
        let kernel = kernels::best().map_err(Error::msg)?;
        let scheme = self.spec.quantization.activation;
        let saved =
            Saved { x: scheme.map(|scheme| Activations::new(x, k, Some(scheme))), w: self.quantize_weights(w, n) };
        let mut y_tn = vec![0f32; t * n];
        if let (Some(x), Some(w)) = (&saved.x, &saved.w) {
            w.to_linear(n, k, kernel)?.forward(x, &mut y_tn);
        } else {
            let x_floats = saved.x.as_ref().and_then(dequantized);
            let w_floats = saved.w.as_ref().map(|w| w.dequantized(n, k));
            let x_tk = Matrix::new(x_floats.as_deref().unwrap_or(x), t, k);
            let w_nk = Matrix::new(w_floats.as_deref().unwrap_or(w), n, k);
            matmul(&mut y_tn, n, x_tk, w_nk.t(), 1.0, Output::Replace, Threads::All);
        }
        *self.saved.lock().expect("no panic while held") = Some(saved);
        let mut dims = l1.dims().to_vec();
        *dims.last_mut().expect("at least one dimension") = n;
        Ok((CpuStorage::F32(y_tn), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (n, k) = w.dims2()?;
        let Some(saved) = self.saved.lock().expect("no panic while held").take() else {
            bail!("bit-linear: a second backward pass on the same graph");
        };
        let dy = dy.contiguous()?;
        let (dy, latent, floats) = (values(&dy)?, values(w)?, values(x)?);
        let t = dy.len() / n;

        let mut dx_tk = vec![0f32; t * k];
        let w_floats = saved.w.as_ref().map(|w| w.dequantized(n, k));
        let w_nk = Matrix::new(w_floats.as_deref().unwrap_or(&latent), n, k);
        matmul(&mut dx_tk, k, Matrix::new(&dy, t, n), w_nk, 1.0, Output::Replace, Threads::All);

        let mut dw_nk = vec![0f32; n * k];
        let x_floats = saved.x.as_ref().and_then(dequantized);
        let x_tk = Matrix::new(x_floats.as_deref().unwrap_or(&floats), t, k);
        matmul(&mut dw_nk, k, Matrix::new(&dy, t, n).t(), x_tk, 1.0, Output::Replace, Threads::All);
        if let Some(codes) = &saved.w {
            self.spec.estimator.weight_gradient(&latent, &codes.grid(n), &mut dw_nk);
        }
        Ok((Some(tensor_like(dx_tk, x)?), Some(tensor_like(dw_nk, w)?)))
    }
}
