//! Head and cross-entropy in one op: the logits of a few hundred tokens at a time, never of all.
//!
//! The loss is a scalar, so its gradients are known up to the factor that arrives in backward: they are computed in the
//! forward pass, while the logits are there, and only scaled afterwards.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::ops::kernels::gemm::{Matrix, Output, Threads, matmul};
use crate::ops::kernels::softmax;
use crate::ops::values::{operand, tensor_like};

/// Tokens whose logits exist at once.
const TOKENS_PER_CHUNK: usize = 256;

pub(super) struct CrossEntropy {
    targets: Vec<u32>,
    with_gradient: bool,
    /// Gradients of the input and of the head for an incoming gradient of 1.
    gradients: Mutex<Option<(Vec<f32>, Vec<f32>)>>,
}

impl CrossEntropy {
    pub(super) fn new(targets: &[u32], with_gradient: bool) -> Self {
        Self { targets: targets.to_vec(), with_gradient, gradients: Mutex::default() }
    }
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, head) = (operand(s1, l1)?, operand(s2, l2)?);
        let (v, h) = l2.shape().dims2()?;
        let t = self.targets.len();
        if l1.dims().last() != Some(&h) || x.len() != t * h {
            bail!("cross-entropy: input {:?} for {t} targets and a head of {v} x {h}", l1.dims());
        }
        if let Some(bad) = self.targets.iter().find(|&&target| target as usize >= v) {
            bail!("cross-entropy: target {bad} is not below the vocabulary of {v}");
        }
        let (mut dx, mut dhead) = (Vec::new(), Vec::new());
        if self.with_gradient {
            (dx, dhead) = (vec![0f32; x.len()], vec![0f32; head.len()]);
        }
        let head_vh = Matrix::new(head, v, h);
        let mut logits = vec![0f32; TOKENS_PER_CHUNK.min(t) * v];
        let mut total = 0f64;
        for (chunk, (x, targets)) in
            x.chunks(TOKENS_PER_CHUNK * h).zip(self.targets.chunks(TOKENS_PER_CHUNK)).enumerate()
        {
            let rows = targets.len();
            let x_th = Matrix::new(x, rows, h);
            let logits = &mut logits[..rows * v];
            matmul(logits, v, x_th, head_vh.t(), 1.0, Output::Replace, Threads::All);
            let losses: Vec<f64> = logits
                .par_chunks_mut(v)
                .zip(targets)
                .map(|(row, &target)| row_loss(row, target as usize, self.with_gradient.then_some(1.0 / t as f32)))
                .collect();
            total += losses.iter().sum::<f64>();
            if self.with_gradient {
                let d_tv = Matrix::new(logits, rows, v);
                let dx = &mut dx[chunk * TOKENS_PER_CHUNK * h..][..rows * h];
                matmul(dx, h, d_tv, head_vh, 1.0, Output::Replace, Threads::All);
                matmul(&mut dhead, h, d_tv.t(), x_th, 1.0, Output::Add, Threads::All);
            }
        }
        if self.with_gradient {
            *self.gradients.lock().expect("no panic while held") = Some((dx, dhead));
        }
        Ok((CpuStorage::F32(vec![(total / t as f64) as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        head: &Tensor,
        _loss: &Tensor,
        dloss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some((mut dx, mut dhead)) = self.gradients.lock().expect("no panic while held").take() else {
            bail!("cross-entropy: a second backward pass on the same graph, or one without gradients from forward");
        };
        let factor = dloss.to_scalar::<f32>()?;
        if factor != 1.0 {
            [&mut dx, &mut dhead].into_par_iter().for_each(|d| softmax::scale(d, factor));
        }
        Ok((Some(tensor_like(dx, x)?), Some(tensor_like(dhead, head)?)))
    }
}

/// `logsumexp(row) - row[target]`; with a factor, the row becomes `factor * (softmax(row) - onehot(target))`.
fn row_loss(row: &mut [f32], target: usize, factor: Option<f32>) -> f64 {
    let target_logit = row[target];
    let largest = softmax::max(row);
    let sum = softmax::exp_shifted(row, largest);
    if let Some(factor) = factor {
        softmax::scale(row, factor / sum);
        row[target] -= factor;
    }
    f64::from(largest) - f64::from(target_logit) + f64::from(sum).ln()
}
