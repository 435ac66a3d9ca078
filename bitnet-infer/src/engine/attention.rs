//! Causal grouped-query attention over the cache.

use rayon::prelude::*;

use bitnet_model::ModelConfig;

use super::cache::{BLOCK, KvCache};
use super::kernels::{TILE, Vectors};
use super::math::softmax;

/// Queries that one task answers: its keys and values stay in the cache of a core meanwhile.
const QUERIES_PER_TASK: usize = 16;

/// The queries of one sequence: `tokens` rows of a batch, beginning at `first_row`; the first one is at `start`.
pub(super) struct Queries<'a> {
    /// The sequence's cache, in which the keys and values of these tokens stand already.
    pub cache: &'a KvCache,
    /// Row of the first query in the batch.
    pub first_row: usize,
    /// Number of queries.
    pub tokens: usize,
    /// Position of the first query.
    pub start: usize,
}

/// One task: some queries of one sequence, all heads that share one key and value head.
struct Task<'a> {
    sequence: &'a Queries<'a>,
    first: usize,
    tokens: usize,
    kv_head: usize,
}

/// Attention of one layer.
pub(super) struct Attention<'a> {
    /// Sizes of heads.
    pub config: &'a ModelConfig,
    /// How float loops run.
    pub vectors: Vectors,
    /// Index of the layer in the caches.
    pub layer: usize,
}

impl Attention<'_> {
    /// `softmax(q k^T / sqrt(d)) v` with a causal mask: rotated queries `[t, q]` into `out_tq`. What a query gives depends
    /// on its own sequence alone, not on the batch or on how it is cut into tasks.
    pub(super) fn run(&self, batch: &[Queries], q_tq: &[f32], out_tq: &mut [f32]) {
        let (q, kv_heads) = (self.config.query_size(), self.config.num_key_value_heads);
        let width = q / kv_heads;
        let tasks: Vec<Task> = batch.iter().flat_map(|sequence| tasks_of(sequence, kv_heads)).collect();
        let mixed: Vec<Vec<f32>> = tasks.par_iter().map(|task| self.run_task(task, q_tq)).collect();
        for (task, mixed) in tasks.iter().zip(&mixed) {
            for (i, mixed) in mixed.chunks_exact(width).enumerate() {
                let row = task.sequence.first_row + task.first + i;
                out_tq[row * q + task.kv_head * width..][..width].copy_from_slice(mixed);
            }
        }
    }

    /// The task's part of the output, `[tokens, heads of the group * d]`.
    fn run_task(&self, task: &Task, q_tq: &[f32]) -> Vec<f32> {
        let (q, d) = (self.config.query_size(), self.config.head_dim);
        let width = q / self.config.num_key_value_heads;
        let mut mixed = vec![0f32; task.tokens * width];
        let mut scores = Vec::new();
        for (i, mixed) in mixed.chunks_exact_mut(width).enumerate() {
            let token = task.first + i;
            let query = &q_tq[(task.sequence.first_row + token) * q + task.kv_head * width..][..width];
            for (query, out) in query.chunks_exact(d).zip(mixed.chunks_exact_mut(d)) {
                self.mix(task, query, task.sequence.start + token + 1, &mut scores, out);
            }
        }
        mixed
    }

    /// One head of one query over the first `visible` positions.
    fn mix(&self, task: &Task, query: &[f32], visible: usize, scores: &mut Vec<f32>, out: &mut [f32]) {
        let (cache, d) = (task.sequence.cache, query.len());
        // Whole tiles are faster than their parts; what is computed beyond `visible` is not looked at.
        scores.clear();
        scores.resize(visible.next_multiple_of(TILE), 0.0);
        for (scores, keys) in scores.chunks_mut(BLOCK).zip(cache.keys(self.layer, task.kv_head)) {
            self.vectors.add_weighted(scores, query, keys, BLOCK);
        }
        let weights = &mut scores[..visible];
        softmax(weights, (1.0 / (d as f64).sqrt()) as f32);
        for (weights, values) in weights.chunks(BLOCK).zip(cache.values(self.layer, task.kv_head)) {
            self.vectors.add_weighted(out, weights, values, d);
        }
    }
}

fn tasks_of<'a>(sequence: &'a Queries<'a>, kv_heads: usize) -> impl Iterator<Item = Task<'a>> {
    // Late queries see more keys and take longer: handing them out first evens the end out.
    let starts = (0..sequence.tokens).step_by(QUERIES_PER_TASK).rev();
    starts.flat_map(move |first| {
        let tokens = QUERIES_PER_TASK.min(sequence.tokens - first);
        (0..kv_heads).map(move |kv_head| Task { sequence, first, tokens, kv_head })
    })
}
