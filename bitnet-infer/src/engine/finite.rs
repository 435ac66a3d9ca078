//! Numbers that are NaN or infinite: refused where a choice depends on them, and followed back to where they begin.

use std::fmt;

use super::cache::{KvCache, KvType};
use super::error::{Error, Result};
use super::forward::{LogitsFor, MAX_ROWS, Sequence};
use super::model::Model;
use super::profile::Profile;

/// A part of a model, by the name that its tensors begin with in a Hugging Face folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The embedding.
    Embedding,
    /// The attention of a block.
    Attention(usize),
    /// The feed-forward part of a block.
    FeedForward(usize),
    /// The norm before the head.
    FinalNorm,
    /// The head.
    Head,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("model.embed_tokens"),
            Self::Attention(block) => write!(f, "model.layers.{block}.self_attn"),
            Self::FeedForward(block) => write!(f, "model.layers.{block}.mlp"),
            Self::FinalNorm => f.write_str("model.norm"),
            Self::Head => f.write_str("lm_head"),
        }
    }
}

/// Refuses logits by which no token can be chosen. Minus infinity is a token that is impossible.
///
/// # Errors
/// The first token whose logit is NaN or infinity, or that no token is possible.
pub fn check_logits(logits: &[f32]) -> Result<()> {
    let refused = |logit: &f32| logit.is_nan() || *logit == f32::INFINITY;
    if let Some(token) = logits.iter().position(refused) {
        return Err(Error::Logit { token, value: logits[token] });
    }
    if logits.iter().all(|logit| *logit == f32::NEG_INFINITY) {
        return Err(Error::NoToken);
    }
    Ok(())
}

impl Model {
    /// Says of an error that a logit was not finite, behind some of `tokens`, where that began; any other error is left as it is.
    /// The tokens are read again.
    pub fn explained(&self, error: Error, tokens: &[u32], kv: KvType) -> Error {
        match error {
            Error::Logit { .. } | Error::NoToken => match self.first_not_finite(tokens, kv) {
                Ok(Some((index, part))) => Error::NotFinite { index, token: tokens[index], part, tokens: tokens.len() },
                Ok(None) | Err(_) => error,
            },
            other => other,
        }
    }

    /// The first of `tokens` at which the numbers of the model are not finite, and the first part that gives such a number.
    fn first_not_finite(&self, tokens: &[u32], kv: KvType) -> Result<Option<(usize, Part)>> {
        let (h, vocab) = (self.config.hidden_size, self.config.vocab_size);
        let mut cache = KvCache::with_type(&self.config, tokens.len(), kv)?;
        for (chunk, tokens) in tokens.chunks(MAX_ROWS).enumerate() {
            let mut first: Option<(usize, Part)> = None;
            let mut look = |part: Part, rows: &[f32], width: usize| {
                let row = rows.chunks(width).position(|row| row.iter().any(|number| !number.is_finite()));
                // What comes later in the text has its numbers from what comes before.
                if let Some(row) = row.filter(|&row| first.is_none_or(|(before, _)| row < before)) {
                    first = Some((row, part));
                }
            };
            let batch = &mut [Sequence { tokens, cache: &mut cache }];
            let watch = &mut |part: Part, x_th: &[f32]| look(part, x_th, h);
            let states = self.watched_states(batch, &[LogitsFor::All], &mut Profile::default(), watch)?;
            look(Part::FinalNorm, &states, h);
            if first.is_none() {
                for (part, states) in states.chunks(LOGIT_ROWS * h).enumerate() {
                    let logits = self.logits(states);
                    let row = logits.chunks(vocab).position(|row| row.iter().any(|logit| !logit.is_finite()));
                    if let Some(row) = row {
                        first = Some((part * LOGIT_ROWS + row, Part::Head));
                        break;
                    }
                }
            }
            if let Some((row, part)) = first {
                return Ok(Some((chunk * MAX_ROWS + row, part)));
            }
        }
        Ok(None)
    }
}

/// Rows of logits that exist at once.
const LOGIT_ROWS: usize = 32;
