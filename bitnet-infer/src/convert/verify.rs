//! Whether a converted model computes what its source does.

use bitnet_model::ModelConfig;
use bitnet_model::rng::{Stream, generator};
use rand::Rng;

use super::{ConvertOptions, HeadType, Target};
use crate::engine::{Arrangement, Error, KvCache, LogitsFor, Model, ModelFiles, Result, argmax, open_files};

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

/// A comparison, and what the formats allow.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Verification {
    /// What was found.
    pub agreement: Agreement,
    /// The relative rms that the formats explain; `None` where a model was quantized, and any difference is its price.
    pub allowed_rms: Option<f64>,
}

/// Runs `positions` random tokens through both models, as many at a time as their context holds.
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
    // One after the other: two large models may not fit into memory together.
    let expected = logits_of(source, positions, arrangement)?;
    let allowed_rms = options.quantize.is_none().then(|| allowed(&expected.config, options));
    let mut agreement = Sums::default();
    let found = logits_of(converted, positions, arrangement)?;
    if found.config.vocab_size != expected.config.vocab_size {
        let (a, b) = (expected.config.vocab_size, found.config.vocab_size);
        return Err(Error::Input(format!("the converted model has a vocabulary of {b}, the source one of {a}")));
    }
    let vocab = expected.config.vocab_size;
    for (expected, found) in expected.logits.chunks(vocab).zip(found.logits.chunks(vocab)) {
        agreement.add(expected, found);
    }
    let agreement = agreement.finish();
    let rms = agreement.relative_rms;
    if rms.is_nan() {
        let path = converted.path().display();
        return Err(Error::Input(format!("{path}: its logits, or the source's, are no numbers: do not use it")));
    }
    if let Some(limit) = allowed_rms.filter(|limit| rms > *limit) {
        return Err(Error::Input(format!(
            "{}: its logits differ from the source's by {:.2e} of their deviation (the largest by {:.2e}), and `{}` explains {limit:.1e}: \
             do not use it",
            converted.path().display(),
            agreement.relative_rms,
            agreement.largest_difference,
            options.target
        )));
    }
    Ok(Verification { agreement, allowed_rms })
}

/// Relative rms that may come of a target: what rounding does to a logit, and where activations are quantized, that a float in
/// its last bit may move a code by one.
fn allowed(config: &ModelConfig, options: &ConvertOptions) -> f64 {
    let codes = config.quantization.weight.is_some();
    let activations = config.quantization.activation.is_some();
    let head: f64 = match options.head {
        Some(HeadType::Q6K) => 0.05,
        Some(HeadType::Q8_0) => 0.02,
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
    config: ModelConfig,
    /// `[positions, vocab]`.
    logits: Vec<f32>,
}

fn logits_of(files: &ModelFiles, positions: usize, arrangement: Arrangement) -> Result<Logits> {
    let model = open_files(files, arrangement)?.model;
    files.release();
    let config = model.config().clone();
    let mut rng = generator(0, Stream::Sampling);
    let tokens: Vec<u32> = (0..positions).map(|_| rng.random_range(0..config.vocab_size as u32)).collect();
    let mut logits = Vec::new();
    for tokens in tokens.chunks(config.max_position_embeddings.min(TOKENS_AT_ONCE)) {
        logits.extend(run(&model, tokens)?);
    }
    Ok(Logits { config, logits })
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
