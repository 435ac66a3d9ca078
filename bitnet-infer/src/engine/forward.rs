//! The forward pass: token ids in, hidden states or logits out, one sequence or many, prefill or decode.

use std::ops::Range;

use super::attention::{Attention, Queries};
use super::buffers::Buffers;
use super::cache::KvCache;
use super::error::{Error, Result};
use super::finite::Part;
use super::head::NextLogits;
use super::math;
use super::model::{Layer, Model};
use super::profile::{Op, Profile};
use super::sampler::Wanted;
use crate::kernels::team;
use crate::linear::Activations;

/// Rows that go through the blocks together at most; longer batches are cut. Large enough to make the matrix products
/// worth their loading of weights, small enough to keep the intermediate results in a core's cache.
pub(super) const MAX_ROWS: usize = 256;

/// Sees numbers behind a part of the model.
type Watch<'a> = dyn FnMut(Part, &[f32]) + 'a;

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

/// The part of a sequence that is in one step: rows from `first_row` on are its tokens `tokens`.
struct Segment {
    sequence: usize,
    tokens: Range<usize>,
    first_row: usize,
    /// The tokens at the end of which the hidden states are wanted.
    wanted: usize,
}

impl Model {
    /// Runs `tokens` behind what is in `cache`.
    ///
    /// # Errors
    /// If a token is not below the vocabulary size or the cache is too small. The cache is then as it was.
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache, logits: LogitsFor) -> Result<Vec<f32>> {
        let batch = &mut [Sequence { tokens, cache }];
        Ok(self.logits(&self.states_for(batch, &[logits], &mut Profile::default())?))
    }

    /// Runs a batch of sequences, each behind its own cache, and returns what the head takes: the normed hidden states of
    /// all tokens, `[t, h]`, sequence after sequence. A sequence's states do not depend on its company.
    ///
    /// # Errors
    /// As [`Model::forward`]; no cache is then changed.
    pub fn hidden_states(&self, batch: &mut [Sequence]) -> Result<Vec<f32>> {
        let all = vec![LogitsFor::All; batch.len()];
        self.states_for(batch, &all, &mut Profile::default())
    }

    /// As [`Model::hidden_states`], of the last token of each sequence alone (of those that bring tokens), `[sequences, h]`,
    /// and adds to `profile` where the time went. In the last block the other tokens only leave their keys and values.
    ///
    /// # Errors
    /// As [`Model::hidden_states`].
    pub fn last_states(&self, batch: &mut [Sequence], profile: &mut Profile) -> Result<Vec<f32>> {
        let last = vec![LogitsFor::Last; batch.len()];
        self.states_for(batch, &last, profile)
    }

    /// As [`Model::hidden_states`], of the tokens of each sequence that `wanted` says for it.
    ///
    /// # Errors
    /// As [`Model::hidden_states`].
    ///
    /// # Panics
    /// If `wanted` is not as long as the batch.
    pub fn states_for(&self, batch: &mut [Sequence], wanted: &[LogitsFor], profile: &mut Profile) -> Result<Vec<f32>> {
        self.watched_states(batch, wanted, profile, &mut |_, _| {})
    }

    /// The same; `watch` sees the residual stream `[rows, h]` behind each part of the model.
    pub(super) fn watched_states(
        &self,
        batch: &mut [Sequence],
        wanted: &[LogitsFor],
        profile: &mut Profile,
        watch: &mut Watch,
    ) -> Result<Vec<f32>> {
        assert_eq!(wanted.len(), batch.len(), "one for each sequence");
        for sequence in batch.iter() {
            self.check(sequence)?;
        }
        let steps = plan(batch, wanted);
        let wanted = |segments: &[Segment]| segments.iter().map(|segment| segment.wanted).sum::<usize>();
        let rows: usize = steps.iter().map(|segments| wanted(segments)).sum();
        let mut hidden_th = vec![0f32; rows * self.config.hidden_size];
        team::engaged(|| {
            let mut rest = hidden_th.as_mut_slice();
            for segments in steps {
                let (out, later) = rest.split_at_mut(wanted(&segments) * self.config.hidden_size);
                self.step(batch, &segments, out, profile, watch);
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
        self.next_logits_of(hidden_h, std::slice::from_ref(wanted)).pop().expect("one for one state")
    }

    /// The same of several states `[n, h]`, which go through the head together; what each gives does not depend on the others.
    ///
    /// # Panics
    /// If there are not as many states as `wanted`.
    pub fn next_logits_of(&self, hidden_nh: &[f32], wanted: &[Wanted]) -> Vec<NextLogits> {
        assert_eq!(hidden_nh.len(), self.config.hidden_size * wanted.len(), "one hidden state for each");
        team::engaged(|| self.head.next(hidden_nh, wanted))
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

    fn step(
        &self,
        batch: &mut [Sequence],
        segments: &[Segment],
        out_th: &mut [f32],
        profile: &mut Profile,
        watch: &mut Watch,
    ) {
        let (h, vectors) = (self.config.hidden_size, self.vectors);
        let rows = segments.iter().map(|segment| segment.tokens.len()).sum::<usize>();
        let mut x_th = vec![0f32; rows * h];
        let tokens = segments.iter().flat_map(|s| &batch[s.sequence].tokens[s.tokens.clone()]);
        profile.time(Op::Embedding, || {
            for (row, &token) in x_th.chunks_exact_mut(h).zip(tokens) {
                self.embedding.row_to_f32(token as usize, 0..h, row);
            }
        });
        watch(Part::Embedding, &x_th);
        let mut buffers = self.spare_buffers.take();
        buffers.fit(&self.config, rows);
        let mut asked: Vec<Asked> = segments.iter().map(|s| Asked::all(s, batch[s.sequence].cache.len())).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            self.queries_keys_values(index, batch, segments, &x_th, &mut buffers, profile);
            if index + 1 == self.layers.len() {
                asked = keep_wanted(segments, asked, [(&mut x_th, h), (&mut buffers.q_tq, self.config.query_size())]);
                x_th.truncate(out_th.len());
            }
            if x_th.is_empty() {
                break;
            }
            self.attention(index, batch, &asked, &mut buffers, profile);
            let out = &buffers.out_th[..x_th.len()];
            profile.time(Op::Residual, || math::add(vectors, &mut x_th, out, h));
            watch(Part::Attention(index), &x_th);
            self.feed_forward(layer, &x_th, &mut buffers, profile);
            let out = &buffers.out_th[..x_th.len()];
            profile.time(Op::Residual, || math::add(vectors, &mut x_th, out, h));
            watch(Part::FeedForward(index), &x_th);
        }
        for segment in segments {
            batch[segment.sequence].cache.advance(segment.tokens.len());
        }
        let eps = self.config.rms_norm_eps;
        profile.time(Op::Norm, || math::rms_norm(vectors, &x_th, &self.final_norm, eps, out_th));
        self.spare_buffers.put(buffers);
    }

    /// Queries of all rows, and their keys and values, which go to the caches.
    fn queries_keys_values(
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
        let rows = x_th.len() / config.hidden_size;
        let qkv = &mut buffers.qkv[..rows * (q + 2 * k)];
        let q_tq = &mut buffers.q_tq[..rows * q];
        let (k_tk, v_tk) = (&mut buffers.k_tk[..rows * k], &mut buffers.v_tk[..rows * k]);
        let input = profile.time(Op::Norm, || self.normed(x_th, &layer.input_layernorm));
        profile.time(Op::Qkv, || layer.qkv_proj.forward(&input, qkv));
        profile.time(Op::Rope, || {
            math::split(qkv, [q_tq, k_tk, v_tk], [q, k, k]);
            self.rotate(batch, segments, q_tq, k_tk);
            for segment in segments {
                let rows = segment.first_row * k..(segment.first_row + segment.tokens.len()) * k;
                batch[segment.sequence].cache.write(index, &k_tk[rows.clone()], &v_tk[rows]);
            }
        });
    }

    /// From the queries of the rows that are asked for to what their residual stream takes from it.
    fn attention(
        &self,
        index: usize,
        batch: &[Sequence],
        asked: &[Asked],
        buffers: &mut Buffers,
        profile: &mut Profile,
    ) {
        let (config, layer) = (&self.config, &self.layers[index]);
        let q = config.query_size();
        let rows = asked.iter().map(|asked| asked.tokens).sum::<usize>();
        let (q_tq, mixed_tq) = (&buffers.q_tq[..rows * q], &mut buffers.mixed_tq[..rows * q]);
        let queries = asked.iter().map(|asked| {
            let Asked { sequence, first_row, tokens, start } = *asked;
            Queries { cache: &*batch[sequence].cache, first_row, tokens, start }
        });
        let attention = Attention { config, vectors: self.vectors, layer: index };
        profile.time(Op::Attention, || attention.run(&queries.collect::<Vec<_>>(), q_tq, mixed_tq));
        let output = profile.time(Op::Norm, || match &layer.attn_sub_norm {
            Some(norm) => self.normed(mixed_tq, norm),
            None => Activations::new(mixed_tq, q, config.quantization.activation),
        });
        let out_th = &mut buffers.out_th[..rows * config.hidden_size];
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
        let (f, vectors) = (self.config.intermediate_size, self.vectors);
        let gate_up = &mut buffers.gate_up[..x_th.len() / self.config.hidden_size * 2 * f];
        let input = profile.time(Op::Norm, || self.normed(x_th, &layer.post_attention_layernorm));
        profile.time(Op::GateUp, || layer.gate_up_proj.forward(&input, gate_up));
        let (act, eps) = (self.config.hidden_act, self.config.rms_norm_eps);
        let activation = self.config.quantization.activation;
        let output = profile.time(Op::Activation, || {
            Activations::produced(gate_up.len() / (2 * f), f, activation, |row, out| {
                math::gated_row(vectors, act, &gate_up[row * 2 * f..][..2 * f], out);
                if let Some(norm) = &layer.ffn_sub_norm {
                    vectors.rms_norm_in_place(out, norm, eps);
                }
            })
        });
        let out_th = &mut buffers.out_th[..x_th.len()];
        profile.time(Op::Down, || layer.down_proj.forward(&output, out_th));
    }

    /// Norms rows of `x`, and quantizes them.
    fn normed(&self, x: &[f32], weight: &[f32]) -> Activations {
        let (width, eps) = (weight.len(), self.config.rms_norm_eps);
        Activations::produced(x.len() / width, width, self.config.quantization.activation, |row, out| {
            self.vectors.rms_norm_row(&x[row * width..][..width], weight, eps, out);
        })
    }
}

/// The rows of a segment that attend.
struct Asked {
    sequence: usize,
    first_row: usize,
    tokens: usize,
    /// Position of the first.
    start: usize,
}

impl Asked {
    /// All rows of a segment whose first token is at position `start`.
    fn all(segment: &Segment, start: usize) -> Self {
        Self { sequence: segment.sequence, first_row: segment.first_row, tokens: segment.tokens.len(), start }
    }
}

/// Moves the rows that are wanted to the front of each matrix (rows of the width beside it), and says where they are.
fn keep_wanted(segments: &[Segment], asked: Vec<Asked>, matrices: [(&mut Vec<f32>, usize); 2]) -> Vec<Asked> {
    let mut kept = 0;
    let moves = segments.iter().zip(asked).map(|(segment, asked)| {
        let passed_over = asked.tokens - segment.wanted;
        let from = asked.first_row + passed_over;
        let to = kept;
        kept += segment.wanted;
        (from, Asked { first_row: to, tokens: segment.wanted, start: asked.start + passed_over, ..asked })
    });
    let moves: Vec<(usize, Asked)> = moves.collect();
    for (matrix, width) in matrices {
        for (from, asked) in &moves {
            matrix.copy_within(from * width..(from + asked.tokens) * width, asked.first_row * width);
        }
    }
    moves.into_iter().map(|(_, asked)| asked).filter(|asked| asked.tokens > 0).collect()
}

/// Cuts a batch into steps of at most [`MAX_ROWS`] rows, in order.
fn plan(batch: &[Sequence], wanted: &[LogitsFor]) -> Vec<Vec<Segment>> {
    let (mut steps, mut rows) = (vec![Vec::new()], 0);
    let lengths = batch.iter().map(|sequence| sequence.tokens.len());
    for (sequence, (tokens, wants)) in lengths.zip(wanted).enumerate() {
        let mut done = 0;
        while done < tokens {
            if rows == MAX_ROWS {
                steps.push(Vec::new());
                rows = 0;
            }
            let take = (tokens - done).min(MAX_ROWS - rows);
            let wanted = match wants {
                LogitsFor::All => take,
                LogitsFor::Last => usize::from(done + take == tokens),
                LogitsFor::None => 0,
            };
            let segment = Segment { sequence, tokens: done..done + take, first_row: rows, wanted };
            steps.last_mut().expect("never empty").push(segment);
            (done, rows) = (done + take, rows + take);
        }
    }
    steps.retain(|step| !step.is_empty());
    steps
}
