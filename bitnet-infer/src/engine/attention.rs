//! Causal grouped-query attention over the cache.
//!
//! A query sees the keys block by block, in an order of steps that its position alone decides: within a span of keys one
//! running softmax, block after block; then span after span is merged. So what it gives depends neither on how a prompt is
//! cut nor on how the work is shared out, and nothing as long as the sequence is kept for it.

use bitnet_model::ModelConfig;

use super::cache::{KvCache, Scratch};
use super::kernels::{BLOCK, Mix, RowSpan, Vectors};
use crate::kernels::team;

/// Tokens that one task answers: all of them use a block of keys while it is in the cache of a core.
const TOKENS_PER_TASK: usize = 48;

/// Blocks of a span: spans of a long context may be seen by several threads at a time.
const BLOCKS_PER_SPAN: usize = 8;

/// With fewer tasks for each thread than this, spans become tasks of their own.
const TASKS_PER_THREAD: usize = 4;

/// Multiplications and additions that are worth handing out.
const WORTH_A_TASK: usize = 1 << 15;

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

/// Some queries of one sequence, all heads that share one key and value head.
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
        let (d, width) = (self.config.head_dim, q / kv_heads);
        let tasks: Vec<Task> = batch.iter().flat_map(|sequence| tasks_of(sequence, kv_heads)).collect();
        let mixes: Vec<Mix> = if tasks.len() < TASKS_PER_THREAD * rayon::current_num_threads() {
            self.run_spans(&tasks, q_tq)
        } else {
            let least = self.tasks_at_once(&tasks, |task| task.tokens * task.positions());
            team::map(&tasks, least, |task| self.run_task(task, q_tq))
        };
        let mut rows = vec![0f32; TOKENS_PER_TASK * width];
        for (task, mix) in tasks.iter().zip(&mixes) {
            let rows = &mut rows[..task.tokens * width];
            mix.finish(d, rows);
            for (i, row) in rows.chunks_exact(width).enumerate() {
                out_tq[(task.sequence.first_row + task.first + i) * q + task.kv_head * width..][..width]
                    .copy_from_slice(row);
            }
        }
    }

    /// A task, span after span.
    fn run_task(&self, task: &Task, q_tq: &[f32]) -> Mix {
        let rows = self.queries(task, q_tq);
        let mut mix = self.mix(task);
        self.see_span(task, &rows, 0, &mut mix);
        if task.spans() > 1 {
            let mut later = self.mix(task);
            for span in 1..task.spans() {
                later.clear();
                self.see_span(task, &rows, span, &mut later);
                self.vectors.merge(&mut mix, &later);
            }
        }
        mix
    }

    /// Tasks whose spans may be seen at the same time.
    fn run_spans(&self, tasks: &[Task], q_tq: &[f32]) -> Vec<Mix> {
        let queries: Vec<Vec<f32>> = tasks.iter().map(|task| self.queries(task, q_tq)).collect();
        let spans: Vec<(usize, usize)> = (tasks.iter().enumerate())
            .flat_map(|(index, task)| (0..task.spans()).map(move |span| (index, span)))
            .collect();
        let pairs =
            |&(index, _): &(usize, usize)| tasks[index].tokens * tasks[index].positions() / tasks[index].spans();
        let least = self.tasks_at_once(&spans, pairs);
        let see = |&(index, span): &(usize, usize)| {
            let mut mix = self.mix(&tasks[index]);
            self.see_span(&tasks[index], &queries[index], span, &mut mix);
            mix
        };
        let seen: Vec<Mix> = team::map(&spans, least, see);
        let mut mixes: Vec<Mix> = Vec::with_capacity(tasks.len());
        for (&(_, span), mix) in spans.iter().zip(seen) {
            match mixes.last_mut() {
                Some(earlier) if span > 0 => self.vectors.merge(earlier, &mix),
                _ => mixes.push(mix),
            }
        }
        mixes
    }

    /// Lets the queries of a task see one span of its keys.
    fn see_span(&self, task: &Task, queries: &[f32], span: usize, mix: &mut Mix) {
        let rows = RowSpan {
            queries,
            head_dim: self.config.head_dim,
            group: self.group(),
            start: task.sequence.start + task.first,
        };
        let mut scratch = Scratch::default();
        let blocks = task.positions().div_ceil(BLOCK);
        for block in span * BLOCKS_PER_SPAN..((span + 1) * BLOCKS_PER_SPAN).min(blocks) {
            let place = (self.layer, task.kv_head);
            let block = task.sequence.cache.block(place, block, self.vectors, &mut scratch);
            self.vectors.see_block(&rows, &block, mix);
        }
    }

    /// The queries of a task `[tokens * group, d]`, scaled.
    fn queries(&self, task: &Task, q_tq: &[f32]) -> Vec<f32> {
        let (q, width) = (self.config.query_size(), self.group() * self.config.head_dim);
        let scale = (1.0 / (self.config.head_dim as f64).sqrt()) as f32;
        let first_row = task.sequence.first_row + task.first;
        let rows = q_tq[first_row * q..].chunks_exact(q).take(task.tokens);
        rows.flat_map(|row| row[task.kv_head * width..][..width].iter().map(|x| x * scale)).collect()
    }

    fn mix(&self, task: &Task) -> Mix {
        Mix::new(task.tokens * self.group(), self.config.head_dim)
    }

    /// Query heads that share a key and value head.
    fn group(&self) -> usize {
        self.config.num_attention_heads / self.config.num_key_value_heads
    }

    /// How many of some tasks are worth handing to another thread together, from the pairs of token and position of each.
    fn tasks_at_once<T>(&self, tasks: &[T], pairs: impl Fn(&T) -> usize) -> usize {
        let pairs = tasks.iter().map(pairs).max().unwrap_or(0);
        let macs = 2 * pairs * self.group() * self.config.head_dim;
        WORTH_A_TASK / macs.max(1) + 1
    }
}

impl Task<'_> {
    /// Positions that its last query sees.
    fn positions(&self) -> usize {
        self.sequence.start + self.first + self.tokens
    }

    fn spans(&self) -> usize {
        self.positions().div_ceil(BLOCKS_PER_SPAN * BLOCK)
    }
}

fn tasks_of<'a>(sequence: &'a Queries<'a>, kv_heads: usize) -> impl Iterator<Item = Task<'a>> {
    // Late queries see more keys and take longer: handing them out first evens the end out.
    let starts = (0..sequence.tokens).step_by(TOKENS_PER_TASK).rev();
    starts.flat_map(move |first| {
        let tokens = TOKENS_PER_TASK.min(sequence.tokens - first);
        (0..kv_heads).map(move |kv_head| Task { sequence, first, tokens, kv_head })
    })
}

#[cfg(test)]
mod tests;
