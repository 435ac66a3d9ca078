//! Rotary positions and causal grouped-query attention, forward and backward, a block of queries at a time.
//!
//! Forward, for each sequence and key/value head (one task): rotate the keys; for each query head of the group and each
//! block of queries: rotate and scale the queries, `S = Q K^T` over the keys that the block may see, softmax, `O = P V`.
//! Kept for backward: the logarithm of each softmax's denominator. Nothing of size `t x t` exists at any time.
//!
//! Backward (arXiv:2205.14135, Appendix B): `P` again from `S` and the kept logarithms; `dV += P^T dO`, `dP = dO V^T`,
//! `dS = P (dP - rowsum(dO O))`, `dQ = dS K`, `dK += dS^T Q`, and the inverse rotation on `dQ` and `dK`.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::ops::AttentionSpec;
use crate::ops::kernels::elementwise::{dot, rotate};
use crate::ops::kernels::gemm::{Matrix, Output, Threads, matmul};
use crate::ops::kernels::softmax;
use crate::ops::values::{operand, tensor_like, values};

/// Queries that are worked on at once.
const BLOCK: usize = 64;

pub(super) struct Attention {
    spec: AttentionSpec,
    /// `log(sum(exp(S)))` of every query, `[b, kv_head, group, t]`; taken by the backward pass.
    log_sums: Mutex<Option<Vec<f32>>>,
}

/// Sizes, and where a head lies in a row.
#[derive(Clone, Copy)]
struct Sizes {
    t: usize,
    d: usize,
    kv_heads: usize,
    group: usize,
    q_stride: usize,
    kv_stride: usize,
}

/// What a task computes in backward: gradients of its queries (`[group][t, d]`), keys and values (`[t, d]`).
struct TaskGradients {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Attention {
    pub(super) fn new(spec: AttentionSpec) -> Self {
        Self { spec, log_sums: Mutex::default() }
    }

    fn sizes(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<(usize, Sizes)> {
        let AttentionSpec { heads, kv_heads, head_dim: d, rope } = &self.spec;
        let &[b, t, q_stride] = q else { bail!("attention: queries {q:?}, expected three dimensions") };
        let kv_stride = kv_heads * d;
        if q_stride != heads * d || k != [b, t, kv_stride] || v != [b, t, kv_stride] {
            bail!("attention: shapes {q:?}, {k:?}, {v:?} do not fit {heads} and {kv_heads} heads of {d}");
        }
        if rope.cos.len() < t * d / 2 {
            bail!("attention: {t} positions, but rotary angles for {}", rope.cos.len() / (d / 2));
        }
        Ok((b, Sizes { t, d: *d, kv_heads: *kv_heads, group: heads / kv_heads, q_stride, kv_stride }))
    }

    /// Rotates `[t, d]` rows that lie `stride` apart in `x` into a contiguous matrix.
    fn rotated(&self, x: &[f32], stride: usize, s: Sizes, factor: f32) -> Vec<f32> {
        let mut out = vec![0f32; s.t * s.d];
        let half = s.d / 2;
        for (p, out) in out.chunks_mut(s.d).enumerate() {
            let (cos, sin) = (&self.spec.rope.cos[p * half..][..half], &self.spec.rope.sin[p * half..][..half]);
            rotate(&x[p * stride..][..s.d], cos, sin, 1.0, factor, out);
        }
        out
    }

    /// The inverse of [`Attention::rotated`] on gradients, in place.
    fn unrotate(&self, x: &mut [f32], s: Sizes, factor: f32) {
        let half = s.d / 2;
        let mut row = vec![0f32; s.d];
        for (p, x) in x.chunks_mut(s.d).enumerate() {
            let (cos, sin) = (&self.spec.rope.cos[p * half..][..half], &self.spec.rope.sin[p * half..][..half]);
            rotate(x, cos, sin, -1.0, factor, &mut row);
            x.copy_from_slice(&row);
        }
    }

    /// One sequence and key/value head: outputs `[group][t, d]` and log-sums `[group][t]`. `q`, `k`, `v` begin at the
    /// sequence's first row and at the head's columns.
    fn forward_task(&self, q: &[f32], k: &[f32], v: &[f32], s: Sizes) -> (Vec<f32>, Vec<f32>) {
        let keys = self.rotated(k, s.kv_stride, s, 1.0);
        let mut out = vec![0f32; s.group * s.t * s.d];
        let mut log_sums = vec![0f32; s.group * s.t];
        let mut scores = vec![0f32; BLOCK * s.t];
        for g in 0..s.group {
            let queries = self.rotated(&q[g * s.d..], s.q_stride, s, 1.0 / (s.d as f32).sqrt());
            for start in (0..s.t).step_by(BLOCK) {
                let (rows, seen) = (BLOCK.min(s.t - start), s.t.min(start + BLOCK));
                score(&mut scores, &queries, &keys, start, rows, seen, s.d);
                for (i, row) in scores.chunks_mut(seen).take(rows).enumerate() {
                    let (visible, hidden) = row.split_at_mut(start + i + 1);
                    hidden.fill(0.0);
                    let largest = softmax::max(visible);
                    let sum = softmax::exp_shifted(visible, largest);
                    softmax::scale(visible, 1.0 / sum);
                    log_sums[g * s.t + start + i] = largest + sum.ln();
                }
                let p = Matrix::new(&scores, rows, seen);
                let values = Matrix::strided(v, seen, s.d, s.kv_stride);
                let out = &mut out[(g * s.t + start) * s.d..][..rows * s.d];
                matmul(out, s.d, p, values, 1.0, Output::Replace, Threads::One);
            }
        }
        (out, log_sums)
    }

    fn backward_task(&self, [q, k, v, o, d_o]: [&[f32]; 5], log_sums: &[f32], s: Sizes) -> TaskGradients {
        let scale = 1.0 / (s.d as f32).sqrt();
        let keys = self.rotated(k, s.kv_stride, s, 1.0);
        let mut dq = vec![0f32; s.group * s.t * s.d];
        let (mut dk, mut dv) = (vec![0f32; s.t * s.d], vec![0f32; s.t * s.d]);
        let (mut p, mut dp) = (vec![0f32; BLOCK * s.t], vec![0f32; BLOCK * s.t]);
        for g in 0..s.group {
            let queries = self.rotated(&q[g * s.d..], s.q_stride, s, scale);
            for start in (0..s.t).step_by(BLOCK) {
                let (rows, seen) = (BLOCK.min(s.t - start), s.t.min(start + BLOCK));
                let at = start * s.q_stride + g * s.d;
                let (o, d_o) = (&o[at..], &d_o[at..]);
                let d_o_rows = Matrix::strided(d_o, rows, s.d, s.q_stride);

                score(&mut p, &queries, &keys, start, rows, seen, s.d);
                for (i, row) in p.chunks_mut(seen).take(rows).enumerate() {
                    let (visible, hidden) = row.split_at_mut(start + i + 1);
                    hidden.fill(0.0);
                    softmax::exp_shifted(visible, log_sums[g * s.t + start + i]);
                }
                let p_rows = Matrix::new(&p, rows, seen);
                matmul(&mut dv, s.d, p_rows.t(), d_o_rows, 1.0, Output::Add, Threads::One);

                let values = Matrix::strided(v, seen, s.d, s.kv_stride);
                matmul(&mut dp, seen, d_o_rows, values.t(), 1.0, Output::Replace, Threads::One);
                for (i, (p, dp)) in p.chunks_mut(seen).zip(dp.chunks(seen)).take(rows).enumerate() {
                    let delta = dot(&o[i * s.q_stride..][..s.d], &d_o[i * s.q_stride..][..s.d]);
                    softmax::softmax_backward(p, dp, delta);
                }
                let ds = Matrix::new(&p, rows, seen);
                let dq = &mut dq[(g * s.t + start) * s.d..][..rows * s.d];
                matmul(dq, s.d, ds, Matrix::new(&keys, seen, s.d), 1.0, Output::Replace, Threads::One);
                let query_rows = Matrix::new(&queries[start * s.d..], rows, s.d);
                matmul(&mut dk, s.d, ds.t(), query_rows, 1.0, Output::Add, Threads::One);
            }
        }
        for dq in dq.chunks_mut(s.t * s.d) {
            self.unrotate(dq, s, scale);
        }
        self.unrotate(&mut dk, s, 1.0);
        TaskGradients { dq, dk, dv }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (operand(s1, l1)?, operand(s2, l2)?, operand(s3, l3)?);
        let (b, s) = self.sizes(l1.dims(), l2.dims(), l3.dims())?;
        let results: Vec<_> = (0..b * s.kv_heads)
            .into_par_iter()
            .map(|task| {
                let [q_at, kv_at] = s.offsets(task);
                self.forward_task(&q[q_at..], &k[kv_at..], &v[kv_at..], s)
            })
            .collect();
        let mut out = vec![0f32; q.len()];
        let mut log_sums = Vec::with_capacity(b * s.kv_heads * s.group * s.t);
        for (task, (heads, sums)) in results.iter().enumerate() {
            for (g, head) in heads.chunks(s.t * s.d).enumerate() {
                scatter(&mut out[s.offsets(task)[0] + g * s.d..], head, s.d, s.q_stride);
            }
            log_sums.extend_from_slice(sums);
        }
        *self.log_sums.lock().expect("no panic while held") = Some(log_sums);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (b, s) = self.sizes(q.dims(), k.dims(), v.dims())?;
        let Some(log_sums) = self.log_sums.lock().expect("no panic while held").take() else {
            bail!("attention: a second backward pass on the same graph");
        };
        let d_out = d_out.contiguous()?;
        let (qv, kv, vv, ov, dv) = (values(q)?, values(k)?, values(v)?, values(out)?, values(&d_out)?);
        let [q_all, k_all, v_all, o_all, d_all]: [&[f32]; 5] = [&qv, &kv, &vv, &ov, &dv];
        let results: Vec<_> = (0..b * s.kv_heads)
            .into_par_iter()
            .map(|task| {
                let [q_at, kv_at] = s.offsets(task);
                let slices = [&q_all[q_at..], &k_all[kv_at..], &v_all[kv_at..], &o_all[q_at..], &d_all[q_at..]];
                self.backward_task(slices, &log_sums[task * s.group * s.t..][..s.group * s.t], s)
            })
            .collect();
        let (mut dq, mut dk, mut dv) = (vec![0f32; q_all.len()], vec![0f32; k_all.len()], vec![0f32; v_all.len()]);
        for (task, gradients) in results.iter().enumerate() {
            let [q_at, kv_at] = s.offsets(task);
            for (g, head) in gradients.dq.chunks(s.t * s.d).enumerate() {
                scatter(&mut dq[q_at + g * s.d..], head, s.d, s.q_stride);
            }
            scatter(&mut dk[kv_at..], &gradients.dk, s.d, s.kv_stride);
            scatter(&mut dv[kv_at..], &gradients.dv, s.d, s.kv_stride);
        }
        Ok((Some(tensor_like(dq, q)?), Some(tensor_like(dk, k)?), Some(tensor_like(dv, v)?)))
    }
}

impl Sizes {
    /// Where the queries and the keys (or values) of a task begin.
    fn offsets(self, task: usize) -> [usize; 2] {
        let (sequence, head) = (task / self.kv_heads, task % self.kv_heads);
        let row = sequence * self.t;
        [row * self.q_stride + head * self.group * self.d, row * self.kv_stride + head * self.d]
    }
}

/// `scores[rows, seen] = queries[start..start + rows] keys[..seen]^T`.
fn score(scores: &mut [f32], queries: &[f32], keys: &[f32], start: usize, rows: usize, seen: usize, d: usize) {
    let queries = Matrix::new(&queries[start * d..], rows, d);
    matmul(scores, seen, queries, Matrix::new(keys, seen, d).t(), 1.0, Output::Replace, Threads::One);
}

/// Writes contiguous rows of `d` numbers to rows that lie `stride` apart.
fn scatter(out: &mut [f32], rows: &[f32], d: usize, stride: usize) {
    for (p, row) in rows.chunks(d).enumerate() {
        out[p * stride..][..d].copy_from_slice(row);
    }
}
