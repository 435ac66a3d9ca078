//! Head and cross-entropy: the logits of a few hundred tokens at a time, never of all.
//!
//! The loss is a mean, so its gradients are known as soon as the logits are there: forward and backward pass are one.

use rayon::prelude::*;

use super::attention::sized;
use super::profile::{Op, Profile};
use crate::ops::kernels::product::{Matrix, Output, Packed, Threads, TileKernel, multiply};
use crate::ops::kernels::softmax;

/// Tokens whose logits exist at once.
const TOKENS_PER_CHUNK: usize = 256;

/// Memory that is used again from step to step.
#[derive(Default)]
pub(super) struct HeadBuffers {
    logits: Vec<f32>,
    head_hv: Packed,
    head_vh: Packed,
    x: Packed,
}

/// Where the gradients go: of the input, overwritten, and of the head, overwritten or added to.
pub(super) struct HeadGradients<'a> {
    pub(super) dx: &'a mut [f32],
    pub(super) d_head: &'a mut [f32],
    pub(super) add: bool,
}

/// The mean negative log-likelihood of `targets` under `softmax(x head^T)`, `x [t, h]`, `head [v, h]`, and its gradients.
pub(super) fn cross_entropy(
    x: &[f32],
    head: &[f32],
    targets: &[u32],
    mut gradients: Option<HeadGradients>,
    tiles: &'static TileKernel,
    (buffers, profile): (&mut HeadBuffers, &Profile),
) -> f32 {
    let t = targets.len();
    let h = x.len() / t;
    let v = head.len() / h;
    let head = Matrix::new(head, v, h);
    let HeadBuffers { logits, head_hv, head_vh, x: packed_x } = buffers;
    let head_hv = profile.time(Op::Head, 0, || head_hv.floats(tiles, head.t(), Threads::All));
    let packed_vh =
        gradients.as_ref().map(|_| profile.time(Op::HeadGradient, 0, || head_vh.floats(tiles, head, Threads::All)));
    let mut total = 0f64;
    for (chunk, (x, targets)) in x.chunks(TOKENS_PER_CHUNK * h).zip(targets.chunks(TOKENS_PER_CHUNK)).enumerate() {
        let rows = targets.len();
        let x = Matrix::new(x, rows, h);
        let logits = sized(logits, rows * v);
        profile.time(Op::Head, rows * v * h, || {
            multiply(logits, v, x, head_hv, Output::Replace, Threads::All);
            let factor = gradients.as_ref().map(|_| 1.0 / t as f32);
            let rows = logits.par_chunks_mut(v).zip(targets).with_min_len(4);
            let losses: Vec<f64> = rows.map(|(row, &target)| row_loss(row, target as usize, factor)).collect();
            total += losses.iter().sum::<f64>();
        });
        if let (Some(HeadGradients { dx, d_head, add }), Some(head_vh)) = (&mut gradients, packed_vh) {
            profile.time(Op::HeadGradient, 2 * rows * v * h, || {
                let d_logits = Matrix::new(logits, rows, v);
                let dx = &mut dx[chunk * TOKENS_PER_CHUNK * h..][..rows * h];
                multiply(dx, h, d_logits, head_vh, Output::Replace, Threads::All);
                let output = if *add || chunk > 0 { Output::Add } else { Output::Replace };
                let x = packed_x.floats(tiles, x, Threads::All);
                multiply(d_head, h, d_logits.t(), x, output, Threads::All);
            });
        }
    }
    (total / t as f64) as f32
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
