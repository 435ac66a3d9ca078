//! RMSNorm and its backward pass, row by row.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::ROWS_PER_TASK;
use crate::ops::kernels::elementwise::{rms_norm_backward_row, rms_norm_row};
use crate::ops::values::{operand, tensor_like, values};

pub(super) struct RmsNorm {
    eps: f32,
    /// The inverse root mean square of each row; taken by the backward pass.
    inverses: Mutex<Option<Vec<f32>>>,
}

impl RmsNorm {
    pub(super) fn new(eps: f32) -> Self {
        Self { eps, inverses: Mutex::default() }
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (operand(s1, l1)?, operand(s2, l2)?);
        let n = weight.len();
        if l1.dims().last() != Some(&n) {
            bail!("rms-norm: input {:?} does not end in the weight's {n} features", l1.dims());
        }
        let mut y = vec![0f32; x.len()];
        let mut inverses = vec![0f32; x.len() / n];
        let rows = x.par_chunks(n * ROWS_PER_TASK).zip(y.par_chunks_mut(n * ROWS_PER_TASK));
        rows.zip(inverses.par_chunks_mut(ROWS_PER_TASK)).for_each(|((x, y), inverses)| {
            for ((x, y), inverse) in x.chunks(n).zip(y.chunks_mut(n)).zip(inverses) {
                *inverse = rms_norm_row(x, weight, self.eps, y);
            }
        });
        *self.inverses.lock().expect("no panic while held") = Some(inverses);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(inverses) = self.inverses.lock().expect("no panic while held").take() else {
            bail!("rms-norm: a second backward pass on the same graph");
        };
        let dy = dy.contiguous()?;
        let (x_values, weight_values, dy) = (values(x)?, values(weight)?, values(&dy)?);
        // Through Deref once: the closures below need plain slices.
        let (x_slice, weight_slice, dy): (&[f32], &[f32], &[f32]) = (&x_values, &weight_values, &dy);
        let n = weight_slice.len();
        let mut dx = vec![0f32; x_slice.len()];
        let tasks = x_slice.par_chunks(n * ROWS_PER_TASK).zip(dy.par_chunks(n * ROWS_PER_TASK));
        let partial_dw: Vec<Vec<f32>> = tasks
            .zip(dx.par_chunks_mut(n * ROWS_PER_TASK))
            .zip(inverses.par_chunks(ROWS_PER_TASK))
            .map(|(((x, dy), dx), inverses)| {
                let mut dw = vec![0f32; n];
                for (((x, dy), dx), &inverse) in x.chunks(n).zip(dy.chunks(n)).zip(dx.chunks_mut(n)).zip(inverses) {
                    rms_norm_backward_row(x, weight_slice, dy, inverse, dx, &mut dw);
                }
                dw
            })
            .collect();
        let mut dw = vec![0f32; n];
        for partial in &partial_dw {
            dw.iter_mut().zip(partial).for_each(|(dw, p)| *dw += p);
        }
        Ok((Some(tensor_like(dx, x)?), Some(tensor_like(dw, weight)?)))
    }
}
