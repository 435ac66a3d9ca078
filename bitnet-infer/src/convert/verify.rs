//! Whether a converted model computes what its source does.

use bitnet_model::ModelConfig;
use bitnet_model::files::source::WeightSource;
use bitnet_model::rng::{Stream, generator};
use rand::Rng;

use super::{ConvertOptions, HeadType, SameCodes, Target, same_codes, with_wanted};
use crate::engine::{Arrangement, Error, KvCache, LogitsFor, Model, ModelFiles, Result, argmax, model_of, open_files};

/// How far two models are apart on the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Agreement {
    /// Positions that were compared.
    pub positions: usize,
    /// The largest difference of two logits.
    pub largest_difference: f64,
    /// Root mean square of the differences, over the standard deviation of the source's logits.
    pub relative_rms: f64,
    /// Mean Kullback-Leibler divergence of the probabilities, in nats.
    pub divergence: f64,
    /// Share of positions with the same most probable token.
    pub same_first: f64,
}

/// A comparison that was passed.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Verification {
    /// The codes and scales of the result against those that should be in it.
    pub codes: SameCodes,
    /// The result against what should have been written: the source, quantized in memory where that was asked for.
    pub agreement: Agreement,
    /// The relative rms that the formats explain.
    pub allowed_rms: f64,
    /// Where the source was quantized: the result against the source as it is, which is the price of quantizing.
    pub price: Option<Agreement>,
}

/// Compares the codes, then runs `positions` random tokens through both models, as many at a time as their context holds.
///
/// # Errors
/// If one of them does not load, or they differ in vocabulary; or if they differ by more than the formats explain.
pub fn verify(
    source: &ModelFiles,
    converted: &ModelFiles,
    options: &ConvertOptions,
    positions: usize,
    arrangement: Arrangement,
) -> Result<Verification> {
    check_positions(source, positions)?;
    let codes = with_wanted(source, options, |wanted| {
        let compare =
            |found: &dyn WeightSource| same_codes::compare(wanted, found, options.target, [source, converted]);
        converted.with_weights(compare)
    })?;
    // One after the other: two large models may not fit into memory together.
    let (expected, allowed_rms) = with_wanted(source, options, |wanted| {
        let model = model_of(source, wanted, arrangement)?;
        Ok((logits_of(source, &model, positions)?, allowed(wanted.config(), options)))
    })?;
    let original = match options.quantize {
        Some(_) => Some(logits_of(source, &open_files(source, arrangement)?.model, positions)?),
        None => None,
    };
    let found = logits_of(converted, &open_files(converted, arrangement)?.model, positions)?;
    let agreement = agreement(&expected, &found)?;
    let rms = agreement.relative_rms;
    if rms.is_nan() {
        let path = converted.path().display();
        return Err(Error::Input(format!("{path}: its logits, or the source's, are no numbers: do not use it")));
    }
    if rms > allowed_rms {
        return Err(Error::Input(format!(
            "{}: its logits differ from the source's by {rms:.2e} of their deviation (the largest by {:.2e}), and `{}` explains \
             {allowed_rms:.1e}: do not use it",
            converted.path().display(),
            agreement.largest_difference,
            options.target
        )));
    }
    let price = original.map(|original| self::agreement(&original, &found)).transpose()?;
    Ok(Verification { codes, agreement, allowed_rms, price })
}

/// Refuses more positions than their logits have room for.
///
/// # Errors
/// How many there may be; or if the model cannot be read.
pub fn check_positions(source: &ModelFiles, positions: usize) -> Result<()> {
    let vocab = source.with_weights(|weights| Ok::<_, Error>(weights.config().vocab_size))?;
    let most = MOST_LOGITS / vocab;
    if positions <= most {
        return Ok(());
    }
    Err(Error::Input(format!(
        "--verify: the logits of {positions} positions of {vocab} tokens would fill the memory: expected at most {most}"
    )))
}

/// Logits of one model that are kept: 512 MiB.
const MOST_LOGITS: usize = 1 << 27;

/// Relative rms that may come of a target: what rounding does to a logit, and where activations are quantized, that a float in
/// its last bit may move a code by one.
fn allowed(config: &ModelConfig, options: &ConvertOptions) -> f64 {
    let codes = config.quantization.weight.is_some();
    let activations = config.quantization.activation.is_some();
    let head: f64 = match options.head {
        Some(HeadType::Q6K) => 0.05,
        Some(HeadType::Q8_0 | HeadType::Int8) => 0.02,
        // From f32; a head in f16 stays as it is.
        Some(HeadType::F16) => 0.005,
        None if options.target.gguf_type().is_some() => 0.005,
        None => 1e-6,
    };
    let body: f64 = match options.target {
        // Weights in eight bits of precision, and activations that are not quantized any more.
        Target::Universal if activations => 0.2,
        Target::Universal => 0.05,
        // Another scale in the last bit, or another embedding, moves codes of activations.
        _ if activations => 0.05,
        Target::Gguf(_) => 0.01,
        _ => 1e-5,
    };
    // The very same codes, scales and floats: the same bits.
    let exact = matches!(options.target, Target::HfPacked | Target::Bitnet) && codes && options.head.is_none();
    if exact { 1e-6 } else { head + body }
}

struct Logits {
    vocab: usize,
    /// `[positions, vocab]`.
    logits: Vec<f32>,
}

fn logits_of(files: &ModelFiles, model: &Model, positions: usize) -> Result<Logits> {
    files.release();
    let config = model.config();
    let mut rng = generator(0, Stream::Sampling);
    let tokens: Vec<u32> = (0..positions).map(|_| rng.random_range(0..config.vocab_size as u32)).collect();
    let mut logits = Vec::with_capacity(positions * config.vocab_size);
    for tokens in tokens.chunks(config.max_position_embeddings.min(TOKENS_AT_ONCE)) {
        logits.extend(run(model, tokens)?);
    }
    Ok(Logits { vocab: config.vocab_size, logits })
}

fn agreement(expected: &Logits, found: &Logits) -> Result<Agreement> {
    if found.vocab != expected.vocab {
        let (a, b) = (expected.vocab, found.vocab);
        return Err(Error::Input(format!("the converted model has a vocabulary of {b}, the source one of {a}")));
    }
    let mut sums = Sums::default();
    for (expected, found) in expected.logits.chunks(expected.vocab).zip(found.logits.chunks(found.vocab)) {
        sums.add(expected, found);
    }
    Ok(sums.finish())
}

fn run(model: &Model, tokens: &[u32]) -> Result<Vec<f32>> {
    let mut cache = KvCache::new(model.config(), tokens.len())?;
    model.forward(tokens, &mut cache, LogitsFor::All)
}

/// Tokens of a sequence: enough for attention to matter.
const TOKENS_AT_ONCE: usize = 64;

#[derive(Default)]
struct Sums {
    positions: usize,
    largest: f64,
    squares: f64,
    count: f64,
    sum: f64,
    sum_of_squares: f64,
    divergence: f64,
    same: usize,
}

impl Sums {
    fn add(&mut self, expected: &[f32], found: &[f32]) {
        self.positions += 1;
        for (&a, &b) in expected.iter().zip(found) {
            let (a, difference) = (f64::from(a), (f64::from(b) - f64::from(a)).abs());
            // A NaN is no difference that a maximum would keep.
            let difference = if difference.is_nan() { f64::INFINITY } else { difference };
            self.largest = self.largest.max(difference);
            self.squares += difference * difference;
            self.sum += a;
            self.sum_of_squares += a * a;
            self.count += 1.0;
        }
        let (p, q) = (log_probabilities(expected), log_probabilities(found));
        self.divergence += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        self.same += usize::from(argmax(expected) == argmax(found));
    }

    fn finish(self) -> Agreement {
        let mean = self.sum / self.count;
        let deviation = (self.sum_of_squares / self.count - mean * mean).max(0.0).sqrt();
        let rms = (self.squares / self.count).sqrt();
        Agreement {
            positions: self.positions,
            largest_difference: self.largest,
            relative_rms: if rms == 0.0 { 0.0 } else { rms / deviation },
            // Rounding may leave a sum of nothing a little below nothing.
            divergence: (self.divergence / self.positions as f64).max(0.0),
            same_first: self.same as f64 / self.positions as f64,
        }
    }
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit - largest) - total.ln()).collect()
}
