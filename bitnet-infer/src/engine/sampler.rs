//! From logits to the next token.

use std::cmp::Ordering;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use bitnet_model::error::readable;
use bitnet_model::rng::{Stream, generator};

use super::error::{Error, Result};
use super::finite::check_logits;

/// How tokens are drawn. The filters apply in this order, which is llama.cpp's: penalties and biases, top-k, top-p, min-p,
/// temperature; top-p and min-p look at the distribution before the temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 takes the most probable token, and the lowest id among equals.
    pub temperature: f32,
    /// Keeps the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most probable tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least `min_p` times as probable as the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive logits, and multiplies negative ones, of tokens seen lately (arXiv:1909.05858); 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many of the latest tokens count as seen lately.
    pub repeat_window: usize,
    /// Subtracted from the logits of tokens that were generated already.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token for each time it was generated.
    pub frequency_penalty: f32,
    /// Added to the logits of some tokens; tokens beyond the vocabulary are passed over.
    pub logit_bias: Vec<(u32, f32)>,
    /// Same seed, same tokens.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_window: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplerConfig {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    fn validate(&self) -> Result<()> {
        let within = |name: &str, value: f32, low: f32, high: f32| {
            if (low..=high).contains(&value) {
                return Ok(());
            }
            let value = readable(value);
            Err(Error::Input(format!("{name} is {value}, expected {low} to {high}")))
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top-p", self.top_p, 0.0, 1.0)?;
        within("min-p", self.min_p, 0.0, 1.0)?;
        within("repeat-penalty", self.repeat_penalty, 0.01, 100.0)?;
        within("presence-penalty", self.presence_penalty, -100.0, 100.0)?;
        within("frequency-penalty", self.frequency_penalty, -100.0, 100.0)?;
        self.logit_bias
            .iter()
            .try_for_each(|(token, bias)| within(&format!("the bias of token {token}"), *bias, -1000.0, 1000.0))
    }
}

/// The logits that a draw depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them.
    All,
    /// The `count` largest, with all that equal the smallest of these, and those of some tokens whatever they are.
    Largest {
        /// How many.
        count: usize,
        /// Tokens besides.
        also: Vec<u32>,
    },
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub token: u32,
    /// Its logit, after penalties and biases.
    pub logit: f32,
    /// Its probability among the candidates.
    pub probability: f64,
}

/// Draws tokens, one after the other, from its own stream of random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha8Rng,
    prompt_tokens: usize,
    forbidden: Vec<u32>,
}

impl Sampler {
    /// A sampler at the beginning of its stream.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn new(config: SamplerConfig) -> Result<Self> {
        config.validate()?;
        let rng = generator(config.seed, Stream::Sampling);
        Ok(Self { config, rng, prompt_tokens: 0, forbidden: Vec::new() })
    }

    /// Counts the first tokens of a history as the prompt, for the penalties of what was generated.
    pub fn after_prompt(self, prompt_tokens: usize) -> Self {
        Self { prompt_tokens, ..self }
    }

    /// From now on never draws these tokens (unless there is no other), but those forbidden before.
    pub fn forbid(&mut self, tokens: &[u32]) {
        self.forbidden = tokens.to_vec();
    }

    /// The logits that the draw after `history` depends on: with minus infinity in place of all others, it is the same. Without
    /// a top-k the probability of every token counts, at any temperature but 0.
    pub fn wanted(&self, history: &[u32]) -> Wanted {
        let kept = if self.config.temperature == 0.0 { 1 } else { self.config.top_k };
        if kept == 0 {
            return Wanted::All;
        }
        // Tokens whose logits change may leave the largest, each for one of the others.
        let mut also = if self.config.repeat_penalty == 1.0 { Vec::new() } else { self.recent(history) };
        if self.counts_generated() {
            also.extend(self.generated(history));
        }
        also.extend(self.config.logit_bias.iter().map(|(token, _)| token));
        also.extend(&self.forbidden);
        also.sort_unstable();
        also.dedup();
        Wanted::Largest { count: kept.saturating_add(also.len()), also }
    }

    /// The tokens seen lately, each once.
    fn recent(&self, history: &[u32]) -> Vec<u32> {
        let mut recent = history[history.len().saturating_sub(self.config.repeat_window)..].to_vec();
        recent.sort_unstable();
        recent.dedup();
        recent
    }

    fn generated<'a>(&self, history: &'a [u32]) -> &'a [u32] {
        history.get(self.prompt_tokens..).unwrap_or_default()
    }

    fn counts_generated(&self) -> bool {
        self.config.presence_penalty != 0.0 || self.config.frequency_penalty != 0.0
    }

    /// Draws the token that follows `history`. Minus infinity marks a token that is impossible.
    ///
    /// # Errors
    /// If a logit is NaN or infinity, or no token is possible: a draw from such logits would mean nothing.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        check_logits(logits)?;
        if self.config.temperature == 0.0 {
            return Ok(argmax(&self.penalized(logits, history)));
        }
        let candidates = self.candidates(logits, history);
        let mut left: f64 = self.rng.random();
        for candidate in &candidates {
            left -= candidate.probability;
            if left < 0.0 {
                return Ok(candidate.token);
            }
        }
        // The probabilities sum to 1 but for rounding.
        Ok(candidates.last().map_or(0, |candidate| candidate.token))
    }

    /// The tokens that [`Sampler::sample`] draws from, most probable first, with probabilities that sum to 1.
    pub fn candidates(&self, logits: &[f32], history: &[u32]) -> Vec<Candidate> {
        let logits = self.penalized(logits, history);
        let mut kept = most_probable(&logits, self.config.top_k);
        softmax(&mut kept, 1.0);
        if self.config.top_p < 1.0 {
            let mut total = 0.0;
            let reach = kept.iter().position(|candidate| {
                total += candidate.probability;
                total >= f64::from(self.config.top_p)
            });
            kept.truncate(reach.map_or(kept.len(), |last| last + 1));
        }
        if let Some(first) = kept.first().copied() {
            let floor = first.probability * f64::from(self.config.min_p);
            let below = kept.iter().position(|candidate| candidate.probability < floor);
            kept.truncate(below.unwrap_or(kept.len()));
        }
        let temperature = if self.config.temperature == 0.0 { 1.0 } else { self.config.temperature };
        softmax(&mut kept, temperature);
        kept
    }

    fn penalized(&self, logits: &[f32], history: &[u32]) -> Vec<f32> {
        // Infinities would make NaN in the softmax.
        let mut logits: Vec<f32> = logits.iter().map(|&logit| logit.clamp(f32::MIN, f32::MAX)).collect();
        let penalty = self.config.repeat_penalty;
        if penalty != 1.0 {
            for token in self.recent(history) {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { (*logit * penalty).max(f32::MIN) };
                }
            }
        }
        let mut change = |token: u32, by: f32| {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = (*logit + by).clamp(f32::MIN, f32::MAX);
            }
        };
        if self.counts_generated() {
            let mut generated = self.generated(history).to_vec();
            generated.sort_unstable();
            for same in generated.chunk_by(|a, b| a == b) {
                let times = same.len() as f32;
                change(same[0], -(self.config.presence_penalty + times * self.config.frequency_penalty));
            }
        }
        self.config.logit_bias.iter().for_each(|&(token, bias)| change(token, bias));
        self.forbidden.iter().for_each(|&token| change(token, f32::NEG_INFINITY));
        logits
    }
}

/// The id of the largest logit, the lowest id among equals; NaN counts as impossible.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (token as u32, logit);
        }
    }
    best.0
}

/// The `k` largest (0: all), largest first, lower ids first among equals.
fn most_probable(logits: &[f32], k: usize) -> Vec<Candidate> {
    let by_rank =
        |a: &Candidate, b: &Candidate| -> Ordering { b.logit.total_cmp(&a.logit).then_with(|| a.token.cmp(&b.token)) };
    // Zeros of both signs are equal.
    let candidate = |(token, &logit): (u32, &f32)| Candidate { token, logit: logit + 0.0, probability: 0.0 };
    let mut all: Vec<Candidate> = Vec::new();
    if k > 0 {
        // Impossible tokens are no candidates beside possible ones; where most logits were not wanted, that is most.
        all.extend((0..).zip(logits).filter(|(_, logit)| **logit > f32::MIN).map(candidate));
    }
    if all.is_empty() {
        all.extend((0..).zip(logits).map(candidate));
    }
    if 0 < k && k < all.len() {
        all.select_nth_unstable_by(k - 1, by_rank);
        all.truncate(k);
    }
    all.sort_unstable_by(by_rank);
    all
}

fn softmax(candidates: &mut [Candidate], temperature: f32) {
    let Some(largest) = candidates.first().map(|first| first.logit) else { return };
    let mut total = 0.0;
    for candidate in candidates.iter_mut() {
        let distance = f64::from(candidate.logit) - f64::from(largest);
        candidate.probability = (distance / f64::from(temperature)).exp();
        total += candidate.probability;
    }
    candidates.iter_mut().for_each(|candidate| candidate.probability /= total);
}

#[cfg(test)]
mod tests;
