//! Rotary positions and causal grouped-query attention on slices, forward and backward, a block of queries at a time.
//!
//! Forward, for each sequence and key/value head (one task): rotate the keys; for each query head of the group and each
//! block of queries: rotate and scale the queries, `S = Q K^T` over the keys that the block may see, softmax, `O = P V`.
//! Kept for backward: the logarithm of each softmax's denominator. Nothing of size `t x t` exists at any time.
//!
//! Backward (arXiv:2205.14135, Appendix B): `P` again from `S` and the kept logarithms; `dV += P^T dO`, `dP = dO V^T`,
//! `dS = P (dP - rowsum(P dP))`, `dQ = dS K`, `dK += dS^T Q`, and the inverse rotation on `dQ` and `dK`. The paper takes
//! `rowsum(dO O)`, which is the same number before rounding; from the very `P` and `dP` that it is subtracted from, rows of
//! `dS` sum to 0 however these were rounded.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::ops::AttentionSpec;
use crate::ops::kernels::columns::{Block, split};
use crate::ops::kernels::elementwise::rotate;
use crate::ops::kernels::product::{Matrix, Output, Packed, Threads, TileKernel, multiply};
use crate::ops::kernels::softmax;

/// Queries that are worked on at once.
const BLOCK: usize = 64;

/// An attention layer over sequences of `t` tokens. Rows hold the heads' queries, then their keys, then their values.
pub(super) struct Attention<'a> {
    pub(super) spec: &'a AttentionSpec,
    pub(super) t: usize,
    /// For all products; the backward pass makes the scores of the forward pass again, so both take the same.
    pub(super) tiles: &'static TileKernel,
}

/// What a task needs beside its input; kept by each thread from one task to the next.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    rows: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    keys_dt: Packed,
    keys_td: Packed,
    values: Packed,
    queries_of_block: Packed,
    gradient_of_block: Packed,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Attention<'_> {
    fn d(&self) -> usize {
        self.spec.head_dim
    }

    fn group(&self) -> usize {
        self.spec.heads / self.spec.kv_heads
    }

    /// Numbers of a row of queries or outputs.
    pub(super) fn q_width(&self) -> usize {
        self.spec.heads * self.d()
    }

    /// Numbers of a row of queries, keys and values.
    pub(super) fn width(&self) -> usize {
        self.q_width() + 2 * self.spec.kv_heads * self.d()
    }

    /// Where the queries of each key/value head lie in a row.
    fn query_columns(&self) -> impl Iterator<Item = Range<usize>> {
        let width = self.group() * self.d();
        (0..self.spec.kv_heads).map(move |head| head * width..(head + 1) * width)
    }

    /// Multiplications and additions of both products of the forward pass over `sequences`.
    pub(super) fn multiply_adds(&self, sequences: usize) -> usize {
        let seen: usize =
            (0..self.t).step_by(BLOCK).map(|start| BLOCK.min(self.t - start) * self.t.min(start + BLOCK)).sum();
        2 * sequences * self.spec.heads * self.d() * seen
    }

    /// `out [b * t, heads * d]` and the log-sums `[b, kv_head, group, t]` of `qkv [b * t, width]`.
    pub(super) fn forward(&self, qkv: &[f32], out: &mut [f32], log_sums: &mut [f32]) {
        let columns: Vec<_> = self.query_columns().collect();
        let blocks = split(out, self.q_width(), self.t, &columns);
        let tasks: Vec<_> = blocks
            .into_iter()
            .enumerate()
            .flat_map(|(s, heads)| heads.into_iter().enumerate().map(move |(h, block)| (s, h, block)))
            .collect();
        tasks.into_par_iter().zip(log_sums.par_chunks_mut(self.group() * self.t)).with_max_len(1).for_each(
            |((sequence, head, out), log_sums)| {
                let rows = &qkv[sequence * self.t * self.width()..][..self.t * self.width()];
                SCRATCH.with_borrow_mut(|scratch| self.forward_task(rows, head, out, log_sums, scratch));
            },
        );
    }

    /// Turns `qkv` into its own gradient, given that of `out`.
    pub(super) fn backward(&self, qkv: &mut [f32], d_out: &[f32], log_sums: &[f32]) {
        let (d, kv) = (self.d(), self.spec.kv_heads);
        let heads_from = |first: usize| (0..kv).map(move |head| first + head * d..first + (head + 1) * d);
        let columns: Vec<_> =
            self.query_columns().chain(heads_from(self.q_width())).chain(heads_from(self.q_width() + kv * d)).collect();
        let mut tasks = Vec::new();
        for (sequence, blocks) in split(qkv, self.width(), self.t, &columns).into_iter().enumerate() {
            let mut blocks = blocks.into_iter();
            let mut next = || blocks.by_ref().take(kv).collect::<Vec<_>>();
            let (q, k, v) = (next(), next(), next());
            tasks
                .extend(q.into_iter().zip(k).zip(v).enumerate().map(|(head, ((q, k), v))| (sequence, head, [q, k, v])));
        }
        tasks.into_par_iter().zip(log_sums.par_chunks(self.group() * self.t)).with_max_len(1).for_each(
            |((sequence, head, qkv), log_sums)| {
                let at = sequence * self.t * self.q_width() + head * self.group() * d;
                SCRATCH.with_borrow_mut(|scratch| self.backward_task(qkv, &d_out[at..], log_sums, scratch));
            },
        );
    }

    /// Rotates one head's row of position `p` into `out`, times `factor`; backwards if `direction` is -1.
    fn rotate(&self, x: &[f32], p: usize, direction: f32, factor: f32, out: &mut [f32]) {
        let half = self.d() / 2;
        let rope = &self.spec.rope;
        let (cos, sin) = (&rope.cos[p * half..][..half], &rope.sin[p * half..][..half]);
        rotate(x, cos, sin, direction, factor, out);
    }

    fn forward_task(&self, rows: &[f32], head: usize, mut out: Block, log_sums: &mut [f32], scratch: &mut Scratch) {
        let (t, d, width) = (self.t, self.d(), self.width());
        let k_at = self.q_width() + head * d;
        let v_at = k_at + self.spec.kv_heads * d;
        let keys = sized(&mut scratch.keys, t * d);
        for (p, key) in keys.chunks_mut(d).enumerate() {
            self.rotate(&rows[p * width + k_at..][..d], p, 1.0, 1.0, key);
        }
        scratch.keys_dt.floats(self.tiles, Matrix::new(keys, t, d).t(), Threads::One);
        scratch.values.floats(self.tiles, Matrix::strided(&rows[v_at..], t, d, width), Threads::One);
        for g in 0..self.group() {
            let q_at = (head * self.group() + g) * d;
            for start in (0..t).step_by(BLOCK) {
                let (count, seen) = (BLOCK.min(t - start), t.min(start + BLOCK));
                let queries = sized(&mut scratch.queries, count * d);
                for (p, query) in (start..).zip(queries.chunks_mut(d)) {
                    self.rotate(&rows[p * width + q_at..][..d], p, 1.0, 1.0 / (d as f32).sqrt(), query);
                }
                let scores = sized(&mut scratch.scores, count * seen);
                let keys = scratch.keys_dt.first(d, seen);
                multiply(scores, seen, Matrix::new(queries, count, d), keys, Output::Replace, Threads::One);
                let inverses = &mut [0f32; BLOCK][..count];
                let log_sums = &mut log_sums[g * t + start..][..count];
                softmax::causal_softmax(scores, seen, start + 1, inverses, log_sums);
                let mixed = sized(&mut scratch.rows, count * d);
                let values = scratch.values.first(seen, d);
                multiply(mixed, d, Matrix::new(scores, count, seen), values, Output::Replace, Threads::One);
                for ((p, mixed), inverse) in (start..).zip(mixed.chunks(d)).zip(inverses) {
                    let out = out.row(p)[g * d..][..d].iter_mut().zip(mixed);
                    out.for_each(|(out, mixed)| *out = mixed * *inverse);
                }
            }
        }
    }

    /// `d_out` begins at the sequence's first row and the group's first column.
    fn backward_task(&self, qkv: [Block; 3], d_out: &[f32], log_sums: &[f32], scratch: &mut Scratch) {
        let (t, d, stride) = (self.t, self.d(), self.q_width());
        let [mut q, mut k, mut v] = qkv;
        let scale = 1.0 / (d as f32).sqrt();
        let Scratch {
            keys,
            queries,
            scores,
            d_scores,
            rows,
            dq,
            dk,
            dv,
            keys_dt,
            keys_td,
            values,
            queries_of_block,
            gradient_of_block,
        } = scratch;
        let keys = sized(keys, t * d);
        let dv = sized(dv, t * d);
        for (p, (key, value)) in keys.chunks_mut(d).zip(dv.chunks_mut(d)).enumerate() {
            self.rotate(k.row(p), p, 1.0, 1.0, key);
            value.copy_from_slice(v.row(p));
        }
        keys_dt.floats(self.tiles, Matrix::new(keys, t, d).t(), Threads::One);
        keys_td.floats(self.tiles, Matrix::new(keys, t, d), Threads::One);
        values.floats(self.tiles, Matrix::new(dv, t, d).t(), Threads::One);
        dv.fill(0.0);
        let dk = sized(dk, t * d);
        dk.fill(0.0);
        for g in 0..self.group() {
            for start in (0..t).step_by(BLOCK) {
                let (count, seen) = (BLOCK.min(t - start), t.min(start + BLOCK));
                let queries = sized(queries, count * d);
                for (p, query) in (start..).zip(queries.chunks_mut(d)) {
                    self.rotate(&q.row(p)[g * d..][..d], p, 1.0, scale, query);
                }
                let queries = Matrix::new(queries, count, d);
                let d_out_rows = Matrix::strided(&d_out[start * stride + g * d..], count, d, stride);

                let p = sized(scores, count * seen);
                multiply(p, seen, queries, keys_dt.first(d, seen), Output::Replace, Threads::One);
                softmax::causal_probabilities(p, seen, start + 1, &log_sums[g * t + start..][..count]);
                let d_out_packed = gradient_of_block.floats(self.tiles, d_out_rows, Threads::One);
                multiply(dv, d, Matrix::new(p, count, seen).t(), d_out_packed, Output::Add, Threads::One);

                let dp = sized(d_scores, count * seen);
                multiply(dp, seen, d_out_rows, values.first(d, seen), Output::Replace, Threads::One);
                softmax::causal_softmax_backward(p, dp, seen, start + 1);
                let ds = Matrix::new(p, count, seen);
                let queries = queries_of_block.floats(self.tiles, queries, Threads::One);
                multiply(dk, d, ds.t(), queries, Output::Add, Threads::One);
                let dq = sized(dq, count * d);
                multiply(dq, d, ds, keys_td.first(seen, d), Output::Replace, Threads::One);
                let row = sized(rows, d);
                for (p, dq) in (start..).zip(dq.chunks(d)) {
                    self.rotate(dq, p, -1.0, scale, row);
                    q.row(p)[g * d..][..d].copy_from_slice(row);
                }
            }
        }
        for (p, (dk, dv)) in dk.chunks(d).zip(dv.chunks(d)).enumerate() {
            self.rotate(dk, p, -1.0, 1.0, k.row(p));
            v.row(p).copy_from_slice(dv);
        }
    }
}

/// The first `count` numbers of a buffer, which grows if it has to. What they hold is whatever was written last.
pub(super) fn sized(buffer: &mut Vec<f32>, count: usize) -> &mut [f32] {
    if buffer.len() < count {
        buffer.resize(count, 0.0);
    }
    &mut buffer[..count]
}
