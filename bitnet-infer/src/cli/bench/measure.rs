//! Prefill and decode of one model.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use bitnet_infer::engine::{KvCache, KvType, Model, Op, Profile, Sequence, Wanted, argmax};

/// What one test measured.
#[derive(Serialize)]
pub struct Row {
    /// `pp128`: a prompt of 128 tokens at once; `tg64`: 64 tokens one by one; `tg64 x4`: for four sequences together.
    pub test: String,
    /// Sequences that ran together.
    pub batch: usize,
    /// Tokens of each sequence.
    pub tokens: usize,
    /// Median over the repeats, of all sequences together.
    pub tok_per_s: f64,
    /// Multiply-adds of projections and head, in units of 10^9.
    pub gmac_per_s: f64,
    /// Bytes of weights that one forward pass reads, and of keys and values that it reads on average.
    pub bytes_per_step: usize,
    /// The same in a second, in units of 10^9.
    pub gb_per_s: f64,
    /// Time by operation, in percent, of the last repeat.
    pub shares: Vec<Share>,
}

/// One operation's part of the time.
#[derive(Serialize)]
pub struct Share {
    /// The operation.
    pub operation: &'static str,
    /// Its part of the time, in percent.
    pub percent: f64,
}

/// Reads a prompt of `tokens`, `repeats` times.
///
/// # Errors
/// If the prompt is longer than the model's context.
pub fn prefill(model: &Model, kv: KvType, tokens: usize, repeats: usize) -> Result<Row> {
    let mut samples = Vec::new();
    for _ in 0..repeats {
        let mut cache = KvCache::with_type(model.config(), tokens, kv)?;
        samples.push(time(|profile| {
            let batch = &mut [Sequence { tokens: &prompt(model, tokens, 0), cache: &mut cache }];
            step(model, batch, profile)
        })?);
    }
    let (seconds, profile) = median(samples);
    let macs = tokens as f64 * projection_macs(model) + head_macs(model);
    // Keys and values are written and read in the caches; what counts is that every weight is read once.
    Ok(row(format!("pp{tokens}"), 1, tokens, macs, 1, model.weight_bytes_per_token(), seconds, &profile))
}

/// Generates `tokens` for each of `batch` sequences together, behind prompts of `prompt_tokens`.
///
/// # Errors
/// If that is longer than the model's context.
pub fn decode(model: &Model, kv: KvType, [batch, prompt_tokens, tokens]: [usize; 3], repeats: usize) -> Result<Row> {
    let caches = (0..batch).map(|_| KvCache::with_type(model.config(), prompt_tokens + tokens, kv));
    let mut caches = caches.collect::<Result<Vec<KvCache>, _>>()?;
    let mut next = Vec::new();
    for (i, cache) in caches.iter_mut().enumerate() {
        let batch = &mut [Sequence { tokens: &prompt(model, prompt_tokens, i), cache }];
        next.extend(step(model, batch, &mut Profile::default())?);
    }
    let mut samples = Vec::new();
    for _ in 0..repeats {
        caches.iter_mut().for_each(|cache| cache.truncate(prompt_tokens));
        let mut next = next.clone();
        samples.push(time(|profile| {
            for _ in 0..tokens {
                let last = next.chunks(1).zip(&mut caches);
                let mut batch: Vec<Sequence> = last.map(|(tokens, cache)| Sequence { tokens, cache }).collect();
                let found = step(model, &mut batch, profile)?;
                drop(batch);
                next = found;
            }
            Ok(())
        })?);
    }
    let (seconds, profile) = median(samples);
    let name = if batch == 1 { format!("tg{tokens}") } else { format!("tg{tokens} x{batch}") };
    let macs = (batch * tokens) as f64 * (projection_macs(model) + head_macs(model));
    let cached = caches.iter().map(KvCache::bytes_per_token).sum::<usize>() * (prompt_tokens + tokens / 2);
    let bytes = model.weight_bytes_per_token() + cached;
    Ok(row(name, batch, tokens, macs, tokens, bytes, seconds, &profile))
}

/// One forward pass, and the likeliest next token of each sequence.
fn step(model: &Model, batch: &mut [Sequence], profile: &mut Profile) -> Result<Vec<u32>> {
    let last = model.last_states(batch, profile)?;
    let logits = profile.time(Op::Head, || match batch {
        // As generation asks for them: a screened head then computes few.
        [_] => model.next_logits(&last, &Wanted::Largest { count: 1, also: Vec::new() }).logits,
        _ => model.logits(&last),
    });
    Ok(logits.chunks(model.config().vocab_size).map(argmax).collect())
}

fn prompt(model: &Model, tokens: usize, sequence: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i + 31 * sequence) * 7919 % model.config().vocab_size) as u32).collect()
}

fn time<T>(run: impl FnOnce(&mut Profile) -> Result<T>) -> Result<(f64, Profile)> {
    let mut profile = Profile::default();
    let started = Instant::now();
    run(&mut profile)?;
    Ok((started.elapsed().as_secs_f64(), profile))
}

/// The sample in the middle (the slower of the two where there are two).
fn median(mut samples: Vec<(f64, Profile)>) -> (f64, Profile) {
    samples.sort_by(|a, b| a.0.total_cmp(&b.0));
    samples.swap_remove(samples.len() / 2)
}

#[allow(clippy::too_many_arguments)]
fn row(
    test: String,
    batch: usize,
    tokens: usize,
    macs: f64,
    steps: usize,
    bytes_per_step: usize,
    seconds: f64,
    profile: &Profile,
) -> Row {
    let total: f64 = profile.seconds().map(|(_, seconds)| seconds).sum();
    let share = |(operation, seconds): (&'static str, f64)| Share { operation, percent: 100.0 * seconds / total };
    Row {
        test,
        batch,
        tokens,
        tok_per_s: (batch * tokens) as f64 / seconds,
        gmac_per_s: macs / seconds / 1e9,
        bytes_per_step,
        gb_per_s: (bytes_per_step * steps) as f64 / seconds / 1e9,
        shares: profile.seconds().map(share).collect(),
    }
}

fn projection_macs(model: &Model) -> f64 {
    model.config().projection_parameters() as f64
}

fn head_macs(model: &Model) -> f64 {
    model.config().vocab_size as f64 * model.config().hidden_size as f64
}
