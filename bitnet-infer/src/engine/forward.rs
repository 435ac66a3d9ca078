//! The forward pass: token ids in, hidden states or logits out, one sequence or many, prefill or decode.

use std::ops::Range;

use super::attention::{Attention, Queries};
use super::buffers::Buffers;
use super::cache::KvCache;
use super::error::{Error, Result};
use super::head::NextLogits;
use super::math;
use super::model::{Layer, Model};
use super::profile::{Op, Profile};
use super::sampler::Wanted;
use crate::kernels::team;
use crate::linear::Activations;

/// Rows that go through the blocks together at most; longer batches are cut. Large enough to make the matrix products
/// worth their loading of weights, small enough to keep the intermediate results in a core's cache.
const MAX_ROWS: usize = 256;

/// Which positions' logits a caller wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// Those of the last token, `[vocab]`.
    Last,
    /// Those of every token, `[t, vocab]`.
    All,
    /// None: the tokens are only added to the cache.
    None,
}

/// New tokens of one sequence of a batch.
pub struct Sequence<'a> {
    /// The tokens that follow what is in the cache.
    pub tokens: &'a [u32],
    /// The sequence's own cache.
    pub cache: &'a mut KvCache,
}

/// The part of a sequence that is in one step: rows `rows` of the step are tokens `tokens` of sequence `sequence`.
struct Segment {
    sequence: usize,
    tokens: Range<usize>,
    first_row: usize,
}

impl Model {
    /// Runs `tokens` behind what is in `cache`.
    ///
    /// # Errors
    /// If a token is not below the vocabulary size or the cache is too small. The cache is then as it was.
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache, logits: LogitsFor) -> Result<Vec<f32>> {
        let hidden_th = self.hidden_states(&mut [Sequence { tokens, cache }])?;
        let h = self.config.hidden_size;
        Ok(match logits {
            LogitsFor::None => Vec::new(),
            LogitsFor::All => self.logits(&hidden_th),
            LogitsFor::Last => self.logits(&hidden_th[hidden_th.len() - h.min(hidden_th.len())..]),
        })
    }

    /// Runs a batch of sequences, each behind its own cache, and returns what the head takes: the normed hidden states of
    /// all tokens, `[t, h]`, sequence after sequence. A sequence's states do not depend on its company.
    ///
    /// # Errors
    /// As [`Model::forward`]; no cache is then changed.
    pub fn hidden_states(&self, batch: &mut [Sequence]) -> Result<Vec<f32>> {
        self.hidden_states_profiled(batch, &mut Profile::default())
    }

    /// The same, and adds to `profile` where the time went.
    ///
    /// # Errors
    /// As [`Model::hidden_states`].
    pub fn hidden_states_profiled(&self, batch: &mut [Sequence], profile: &mut Profile) -> Result<Vec<f32>> {
        for sequence in batch.iter() {
            self.check(sequence)?;
        }
        let rows = batch.iter().map(|sequence| sequence.tokens.len()).sum::<usize>();
        let mut hidden_th = vec![0f32; rows * self.config.hidden_size];
        team::engaged(|| {
            let mut rest = hidden_th.as_mut_slice();
            for segments in plan(batch) {
                let rows = segments.iter().map(|segment| segment.tokens.len()).sum::<usize>();
                let (out, later) = rest.split_at_mut(rows * self.config.hidden_size);
                self.step(batch, &segments, out, profile);
                rest = later;
            }
        });
        Ok(hidden_th)
    }

    /// The logits `[t, vocab]` of hidden states `[t, h]`.
    ///
    /// # Panics
    /// If `hidden_th` is not a whole number of rows.
    pub fn logits(&self, hidden_th: &[f32]) -> Vec<f32> {
        let h = self.config.hidden_size;
        assert!(hidden_th.len().is_multiple_of(h), "whole rows of {h}");
        let mut logits = vec![0f32; hidden_th.len() / h * self.config.vocab_size];
        if !logits.is_empty() {
            team::engaged(|| self.head.forward(hidden_th, &mut logits));
        }
        logits
    }

    /// The logits that a sampler wants, of one hidden state `[h]`.
    ///
    /// # Panics
    /// If `hidden_h` is not one state.
    pub fn next_logits(&self, hidden_h: &[f32], wanted: &Wanted) -> NextLogits {
        assert_eq!(hidden_h.len(), self.config.hidden_size, "one hidden state");
        team::engaged(|| self.head.next(hidden_h, wanted))
    }

    fn check(&self, sequence: &Sequence) -> Result<()> {
        if !sequence.cache.fits(&self.config) {
            return Err(Error::Input("the cache was made for a model of another shape".into()));
        }
        sequence.cache.check_room(sequence.tokens.len())?;
        let vocab_size = self.config.vocab_size;
        match sequence.tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocab_size) {
            Some((index, &token)) => Err(Error::Token { token, index, vocab_size }),
            None => Ok(()),
        }
    }

    fn step(&self, batch: &mut [Sequence], segments: &[Segment], out_th: &mut [f32], profile: &mut Profile) {
        let (h, vectors) = (self.config.hidden_size, self.vectors);
        let mut x_th = vec![0f32; out_th.len()];
        let tokens = segments.iter().flat_map(|s| &batch[s.sequence].tokens[s.tokens.clone()]);
        profile.time(Op::Embedding, || {
            for (row, &token) in x_th.chunks_exact_mut(h).zip(tokens) {
                self.embedding.row_to_f32(token as usize, 0..h, row);
            }
        });
        let mut buffers = self.spare_buffers.take();
        buffers.fit(&self.config, out_th.len() / h);
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(index, batch, segments, &x_th, &mut buffers, profile);
            profile.time(Op::Residual, || math::add(vectors, &mut x_th, &buffers.out_th, h));
            self.feed_forward(layer, &x_th, &mut buffers, profile);
            profile.time(Op::Residual, || math::add(vectors, &mut x_th, &buffers.out_th, h));
        }
        for segment in segments {
            batch[segment.sequence].cache.advance(segment.tokens.len());
        }
        let eps = self.config.rms_norm_eps;
        profile.time(Op::Norm, || math::rms_norm(vectors, &x_th, &self.final_norm, eps, out_th));
        self.spare_buffers.put(buffers);
    }

    fn attention(
        &self,
        index: usize,
        batch: &mut [Sequence],
        segments: &[Segment],
        x_th: &[f32],
        buffers: &mut Buffers,
        profile: &mut Profile,
    ) {
        let (config, layer) = (&self.config, &self.layers[index]);
        let (q, k) = (config.query_size(), config.key_value_size());
        let Buffers { normed, qkv, q_tq, k_tk, v_tk, mixed_tq, out_th, .. } = buffers;
        let input = profile.time(Op::Norm, || self.normed(x_th, &layer.input_layernorm, normed));
        profile.time(Op::Qkv, || layer.qkv_proj.forward(&input, qkv));
        profile.time(Op::Rope, || {
            math::split(qkv, [q_tq, k_tk, v_tk], [q, k, k]);
            self.rotate(batch, segments, q_tq, k_tk);
            for segment in segments {
                let rows = segment.first_row * k..(segment.first_row + segment.tokens.len()) * k;
                batch[segment.sequence].cache.write(index, &k_tk[rows.clone()], &v_tk[rows]);
            }
        });
        let queries = segments.iter().map(|s| {
            let cache = &*batch[s.sequence].cache;
            Queries { cache, first_row: s.first_row, tokens: s.tokens.len(), start: cache.len() }
        });
        let attention = Attention { config, vectors: self.vectors, layer: index };
        profile.time(Op::Attention, || attention.run(&queries.collect::<Vec<_>>(), q_tq, mixed_tq));
        let output = profile.time(Op::Norm, || match &layer.attn_sub_norm {
            Some(norm) => self.normed(mixed_tq, norm, normed),
            None => self.activations(mixed_tq, q),
        });
        profile.time(Op::Output, || layer.o_proj.forward(&output, out_th));
    }

    /// Turns queries and keys to their positions.
    fn rotate(&self, batch: &[Sequence], segments: &[Segment], q_tq: &mut [f32], k_tk: &mut [f32]) {
        let (q, k) = (self.config.query_size(), self.config.key_value_size());
        let positions = segments.iter().flat_map(|s| (batch[s.sequence].cache.len()..).take(s.tokens.len()));
        let positions: Vec<usize> = positions.collect();
        let some = math::ROWS_PER_TASK;
        let tasks = q_tq.chunks_mut(some * q).zip(k_tk.chunks_mut(some * k)).zip(positions.chunks(some));
        team::each(tasks.collect(), |((q_tq, k_tk), positions)| {
            for ((q, k), &position) in q_tq.chunks_mut(q).zip(k_tk.chunks_mut(k)).zip(positions) {
                self.rope.rotate(self.vectors, q, position);
                self.rope.rotate(self.vectors, k, position);
            }
        });
    }

    fn feed_forward(&self, layer: &Layer, x_th: &[f32], buffers: &mut Buffers, profile: &mut Profile) {
        let f = self.config.intermediate_size;
        let Buffers { normed, gate_up, gated_tf, out_th, .. } = buffers;
        let input = profile.time(Op::Norm, || self.normed(x_th, &layer.post_attention_layernorm, normed));
        profile.time(Op::GateUp, || layer.gate_up_proj.forward(&input, gate_up));
        let act = self.config.hidden_act;
        profile.time(Op::Activation, || math::gated(self.vectors, act, gate_up, gated_tf, f));
        let output = profile.time(Op::Norm, || match &layer.ffn_sub_norm {
            Some(norm) => self.normed(gated_tf, norm, normed),
            None => self.activations(gated_tf, f),
        });
        profile.time(Op::Down, || layer.down_proj.forward(&output, out_th));
    }

    /// Norms `x` through `buffer`, which is as long at least.
    fn normed(&self, x: &[f32], weight: &[f32], buffer: &mut [f32]) -> Activations {
        let normed = &mut buffer[..x.len()];
        math::rms_norm(self.vectors, x, weight, self.config.rms_norm_eps, normed);
        self.activations(normed, weight.len())
    }

    fn activations(&self, x: &[f32], width: usize) -> Activations {
        Activations::new(x, width, self.config.quantization.activation)
    }
}

/// Cuts a batch into steps of at most [`MAX_ROWS`] rows, in order.
fn plan(batch: &[Sequence]) -> Vec<Vec<Segment>> {
    let (mut steps, mut rows) = (vec![Vec::new()], 0);
    for (sequence, tokens) in batch.iter().map(|sequence| sequence.tokens.len()).enumerate() {
        let mut done = 0;
        while done < tokens {
            if rows == MAX_ROWS {
                steps.push(Vec::new());
                rows = 0;
            }
            let take = (tokens - done).min(MAX_ROWS - rows);
            let segment = Segment { sequence, tokens: done..done + take, first_row: rows };
            steps.last_mut().expect("never empty").push(segment);
            (done, rows) = (done + take, rows + take);
        }
    }
    steps.retain(|step| !step.is_empty());
    steps
}
