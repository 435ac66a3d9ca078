//! Perplexity under a named convention: without the name the number says little.

use std::fmt;
use std::str::FromStr;

use rayon::prelude::*;

use bitnet_model::tokenizer::Tokenizer;

use crate::engine::{Error, KvCache, KvType, Model, Result, Sequence};

/// How a text is cut into windows, and which positions count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Convention {
    /// Window `i` reads `tokens[i*n .. i*n+n]` and predicts `tokens[i*n+1 .. i*n+n+1]`: every position counts, no special
    /// token, nothing carried over. [`Tail`] says what becomes of the tokens behind the last whole window.
    Windows,
    /// llama.cpp's `llama-perplexity`: windows of `n` tokens whose first is replaced by BOS (if the model has one, which
    /// also stands before the text), and only the predictions of tokens `n/2+1 .. n` of each window count.
    Llama,
}

impl Convention {
    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Windows => "windows",
            Self::Llama => "llama",
        }
    }
}

impl fmt::Display for Convention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Convention {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Windows, Self::Llama];
        all.into_iter()
            .find(|convention| convention.name() == name)
            .ok_or_else(|| format!("is `{name}`, expected `windows` or `llama`"))
    }
}

/// What [`Convention::Windows`] does with tokens that fill no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tail {
    /// The last window is shorter, so that every token but the first is scored.
    Scored,
    /// They are left out: all `(len-1) / n` whole windows, which is what training's validation loss means.
    Dropped,
}

/// A convention and its window.
#[derive(Clone, Copy, Debug)]
pub struct PerplexityOptions {
    /// How windows are cut and scored.
    pub convention: Convention,
    /// Tokens of a window.
    pub context: usize,
    /// What becomes of the end of a text; the convention `llama` drops it.
    pub tail: Tail,
    /// What keys and values are kept as.
    pub kv: KvType,
}

/// A measured perplexity.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// How windows were cut and scored.
    pub convention: Convention,
    /// Tokens of a window.
    pub context: usize,
    /// What keys and values were kept as.
    pub kv: KvType,
    /// Bytes of the keys and values of one window.
    pub kv_bytes: usize,
    /// Windows.
    pub windows: usize,
    /// Predictions that count.
    pub tokens_scored: usize,
    /// Mean negative log-likelihood of a scored token, in nats.
    pub loss_nats: f64,
    /// `exp(loss_nats)`.
    pub perplexity: f64,
    /// One standard error of the perplexity, if the tokens were independent.
    pub standard_error: f64,
    /// Bytes of text that the scored tokens stand for, where the text is known.
    pub bytes_scored: Option<usize>,
    /// Bits of information per byte of text: comparable between tokenizers.
    pub bits_per_byte: Option<f64>,
}

/// Perplexity of a text. `progress` hears of windows done and of their number.
///
/// # Errors
/// If the text cannot be encoded or is too short for one window.
pub fn of_text(
    model: &Model,
    tokenizer: &Tokenizer,
    text: &str,
    options: PerplexityOptions,
    progress: impl FnMut(usize, usize),
) -> Result<Perplexity> {
    let tokens = tokenizer.encode(text)?;
    let mut measured = of_tokens(model, &tokens, options, progress)?;
    let windows = windows(&tokens, model.config().bos_token_id, options)?;
    let bytes = scored_bytes(tokenizer, &tokens, windows.iter().map(|window| window.scored.clone()))?;
    measured.bytes_scored = Some(bytes);
    let bits = measured.loss_nats * measured.tokens_scored as f64 / std::f64::consts::LN_2;
    measured.bits_per_byte = Some(bits / bytes.max(1) as f64);
    Ok(measured)
}

/// Perplexity of a text that is tokens already, without special tokens.
///
/// # Errors
/// If there are too few tokens for one window, one of them is not in the vocabulary, or a likelihood is not finite.
pub fn of_tokens(
    model: &Model,
    tokens: &[u32],
    options: PerplexityOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<Perplexity> {
    let longest = model.config().max_position_embeddings;
    if options.context > longest {
        let n = options.context;
        return Err(Error::Input(format!("a context of {n} tokens is longer than this model's {longest}")));
    }
    let windows = windows(tokens, model.config().bos_token_id, options)?;
    let at_once = (ROWS_AT_ONCE / options.context).clamp(1, windows.len());
    let new_cache = || KvCache::with_type(model.config(), options.context, options.kv);
    let mut caches = (0..at_once).map(|_| new_cache()).collect::<Result<Vec<_>>>()?;
    let (mut sum, mut sum_of_squares, mut count) = (0f64, 0f64, 0usize);
    for (group, group_windows) in windows.chunks(at_once).enumerate() {
        for (nats, at) in losses(model, &mut caches, group_windows)? {
            if !nats.is_finite() {
                let (index, window) = (group * at_once + at, &group_windows[at]);
                return Err(not_finite(model, index, window, options.kv));
            }
            (sum, sum_of_squares, count) = (sum + nats, sum_of_squares + nats * nats, count + 1);
        }
        progress(group * at_once + group_windows.len(), windows.len());
    }
    let loss_nats = sum / count as f64;
    let variance = (sum_of_squares / count as f64 - loss_nats * loss_nats).max(0.0);
    let perplexity = loss_nats.exp();
    Ok(Perplexity {
        convention: options.convention,
        context: options.context,
        kv: options.kv,
        kv_bytes: caches[0].byte_count(),
        windows: windows.len(),
        tokens_scored: count,
        loss_nats,
        perplexity,
        standard_error: perplexity * (variance / count.saturating_sub(1).max(1) as f64).sqrt(),
        bytes_scored: None,
        bits_per_byte: None,
    })
}

/// What a model reads in one go, and what of its predictions counts.
struct Window {
    /// The tokens to be read.
    input: Vec<u32>,
    /// What follows each of the last `targets.len()` tokens of `input`.
    targets: Vec<u32>,
    /// The places of the targets in the tokens of the text.
    scored: std::ops::Range<usize>,
}

fn windows(tokens: &[u32], bos: Option<u32>, options: PerplexityOptions) -> Result<Vec<Window>> {
    let n = options.context;
    let too_short = |needed: usize| {
        let found = tokens.len();
        Err(Error::Input(format!(
            "the text has {found} tokens, the convention `{}` with windows of {n} needs at least {needed}: take a longer text or a smaller context",
            options.convention
        )))
    };
    match options.convention {
        Convention::Windows => {
            if n == 0 {
                return Err(Error::Input("a context of 0 tokens is not possible".into()));
            }
            let needed = if options.tail == Tail::Dropped { n + 1 } else { 2 };
            if tokens.len() < needed {
                return too_short(needed);
            }
            let predicted = tokens.len() - 1;
            let end = if options.tail == Tail::Dropped { predicted / n * n } else { predicted };
            let starts = (0..end).step_by(n).map(|start| start..end.min(start + n));
            Ok(starts
                .map(|places| Window {
                    input: tokens[places.clone()].to_vec(),
                    targets: tokens[places.start + 1..=places.end].to_vec(),
                    scored: places.start + 1..places.end + 1,
                })
                .collect())
        }
        Convention::Llama => {
            if n < 4 {
                return Err(Error::Input(format!("a context of {n} tokens is too small for `llama`: at least 4")));
            }
            let shift = usize::from(bos.is_some());
            if tokens.len() + shift < 2 * n {
                return too_short(2 * n - shift);
            }
            let with_bos: Vec<u32> = bos.iter().chain(tokens).copied().collect();
            let chunks = with_bos.chunks_exact(n).enumerate();
            Ok(chunks
                .map(|(i, chunk)| {
                    let mut input = chunk[..n - 1].to_vec();
                    input[0] = bos.unwrap_or(input[0]);
                    let first = n / 2 + 1;
                    Window { input, targets: chunk[first..].to_vec(), scored: i * n + first - shift..i * n + n - shift }
                })
                .collect())
        }
    }
}

/// Why a window has a likelihood that is not finite.
fn not_finite(model: &Model, index: usize, window: &Window, kv: KvType) -> Error {
    let reason = match model.explained(Error::NoToken, &window.input, kv) {
        Error::NoToken => "a log-likelihood is not finite: its logits are too far apart".to_owned(),
        error => error.to_string(),
    };
    Error::Input(format!("window {index}, which ends at token {} of the text: {reason}", window.scored.end))
}

/// Negative log-likelihoods of the targets of some windows, read together, each with the place of its window.
fn losses(model: &Model, caches: &mut [KvCache], windows: &[Window]) -> Result<Vec<(f64, usize)>> {
    caches.iter_mut().for_each(KvCache::reset);
    let batch = windows.iter().zip(caches).map(|(window, cache)| Sequence { tokens: &window.input, cache });
    let hidden_th = model.hidden_states(&mut batch.collect::<Vec<_>>())?;
    let (h, vocab) = (model.config().hidden_size, model.config().vocab_size);
    let mut all = Vec::new();
    let mut rest = hidden_th.as_slice();
    for (at, window) in windows.iter().enumerate() {
        let (own, later) = rest.split_at(window.input.len() * h);
        rest = later;
        let scored = &own[(window.input.len() - window.targets.len()) * h..];
        // Logits of few rows at a time: a large vocabulary makes them the largest thing in memory.
        for (hidden, targets) in scored.chunks(LOGIT_ROWS * h).zip(window.targets.chunks(LOGIT_ROWS)) {
            let logits = model.logits(hidden);
            let rows = logits.par_chunks(vocab).zip(targets);
            all.par_extend(rows.map(|(row, &target)| (negative_log_likelihood(row, target), at)));
        }
    }
    Ok(all)
}

/// `-log(softmax(logits)[target])` in nats, summed in f64.
///
/// # Panics
/// If `target` is not below `logits.len()`.
pub fn negative_log_likelihood(logits: &[f32], target: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from((logit - largest).exp())).sum();
    total.ln() - f64::from(logits[target as usize] - largest)
}

/// Bytes of text that the tokens of some ascending ranges stand for: the growth of the decoded text over each range,
/// up to the last whole character. Special tokens, such as the end of a text, stand for none.
///
/// # Errors
/// If the tokenizer's decoder fails.
///
/// # Panics
/// If a range reaches beyond the tokens.
pub fn scored_bytes(
    tokenizer: &Tokenizer,
    tokens: &[u32],
    ranges: impl Iterator<Item = std::ops::Range<usize>>,
) -> Result<usize> {
    let length = |range: std::ops::Range<usize>| -> Result<usize> {
        Ok(tokenizer.decode(&tokens[range])?.trim_end_matches('\u{fffd}').len())
    };
    let mut bytes = 0;
    for range in ranges {
        // Decoders look at their neighbours: a few tokens before the range make the difference right.
        let context = range.start.saturating_sub(8);
        bytes += length(context..range.end)?.saturating_sub(length(context..range.start)?);
    }
    Ok(bytes)
}

/// Rows of the batches that are read together: short windows share one pass over the weights.
const ROWS_AT_ONCE: usize = 512;

/// Rows of logits that exist at once.
const LOGIT_ROWS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(len: u32, bos: Option<u32>, convention: Convention, context: usize) -> Result<Vec<Window>> {
        let tokens: Vec<u32> = (0..len).collect();
        windows(&tokens, bos, PerplexityOptions { convention, context, tail: Tail::Dropped, kv: KvType::F32 })
    }

    #[test]
    fn a_scored_tail_leaves_no_token_out() {
        for len in 2..40u32 {
            let tokens: Vec<u32> = (0..len).collect();
            for context in 1..12 {
                let options =
                    PerplexityOptions { convention: Convention::Windows, context, tail: Tail::Scored, kv: KvType::F32 };
                let windows = windows(&tokens, Some(77), options).expect("two tokens suffice");
                let targets: Vec<u32> = windows.iter().flat_map(|window| window.targets.clone()).collect();
                assert_eq!(targets, tokens[1..], "{len} tokens in windows of {context}");
                for window in &windows {
                    let range = window.scored.start - 1..window.scored.end - 1;
                    assert_eq!(window.input, tokens[range], "{len} tokens in windows of {context}");
                    assert!(window.input.len() <= context && window.input.len() == window.targets.len());
                }
            }
        }
        let options =
            PerplexityOptions { convention: Convention::Windows, context: 8, tail: Tail::Scored, kv: KvType::F32 };
        assert!(windows(&[5], None, options).is_err(), "nothing is predicted");
    }

    #[test]
    fn windows_score_every_token_but_the_first_once() {
        for (len, n, expected) in [(9, 4, 2), (10, 4, 2), (13, 4, 3), (5, 4, 1), (8, 7, 1)] {
            let windows = cut(len, Some(77), Convention::Windows, n).expect("long enough");
            assert_eq!(windows.len(), expected, "{len} tokens");
            let inputs: Vec<u32> = windows.iter().flat_map(|w| w.input.clone()).collect();
            let targets: Vec<u32> = windows.iter().flat_map(|w| w.targets.clone()).collect();
            assert_eq!(inputs, (0..(expected * n) as u32).collect::<Vec<_>>());
            assert_eq!(targets, (1..=(expected * n) as u32).collect::<Vec<_>>());
        }
        let message = cut(4, None, Convention::Windows, 4).err().expect("too short").to_string();
        assert!(message.contains("has 4 tokens") && message.contains("at least 5"), "{message}");
    }

    #[test]
    fn llama_scores_the_second_halves() {
        let windows = cut(17, Some(99), Convention::Llama, 8).expect("long enough");
        assert_eq!(windows.len(), 2);
        // The text with BOS in front is 99 0 1 2 ..; the second window's first token (7) gives way to BOS.
        assert_eq!(windows[0].input, [99, 0, 1, 2, 3, 4, 5]);
        assert_eq!(windows[0].targets, [4, 5, 6]);
        assert_eq!(windows[1].input, [99, 8, 9, 10, 11, 12, 13]);
        assert_eq!(windows[1].targets, [12, 13, 14]);
        assert_eq!(windows[1].scored, 12..15);
        let windows = cut(16, None, Convention::Llama, 8).expect("long enough");
        assert_eq!(
            (&windows[1].input[..], &windows[1].targets[..]),
            (&[8, 9, 10, 11, 12, 13, 14][..], &[13, 14, 15][..])
        );
        assert!(cut(15, None, Convention::Llama, 8).is_err());
    }

    #[test]
    fn likelihoods_are_those_of_the_softmax() {
        assert!((negative_log_likelihood(&[0.0; 4], 2) - 4f64.ln()).abs() < 1e-12);
        assert!((negative_log_likelihood(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
    }
}
