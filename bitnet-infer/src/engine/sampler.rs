//! From logits to the next token.

use std::cmp::Ordering;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use bitnet_model::rng::{Stream, generator};

use super::error::{Error, Result};

/// How tokens are drawn. The filters apply in this order, which is llama.cpp's: repetition penalty, top-k, top-p, min-p,
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
    /// Same seed, same tokens.
    pub seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, repeat_penalty: 1.0, repeat_window: 64, seed: 0 }
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
            Err(Error::Input(format!("{name} is {value}, expected {low} to {high}")))
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top-p", self.top_p, 0.0, 1.0)?;
        within("min-p", self.min_p, 0.0, 1.0)?;
        within("repeat-penalty", self.repeat_penalty, 0.01, 100.0)
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
    /// Its logit, after the repetition penalty.
    pub logit: f32,
    /// Its probability among the candidates.
    pub probability: f64,
}

/// Draws tokens, one after the other, from its own stream of random numbers.
#[derive(Clone, Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler at the beginning of its stream.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn new(config: SamplerConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { rng: generator(config.seed, Stream::Sampling), config })
    }

    /// The logits that the draw after `history` depends on: with minus infinity in place of all others, it is the same. Without
    /// a top-k the probability of every token counts, at any temperature but 0.
    pub fn wanted(&self, history: &[u32]) -> Wanted {
        let kept = if self.config.temperature == 0.0 { 1 } else { self.config.top_k };
        if kept == 0 {
            return Wanted::All;
        }
        // Tokens under the penalty may leave the largest, each for one of the others.
        let also = if self.config.repeat_penalty == 1.0 { Vec::new() } else { self.recent(history) };
        Wanted::Largest { count: kept + also.len(), also }
    }

    /// The tokens seen lately, each once.
    fn recent(&self, history: &[u32]) -> Vec<u32> {
        let mut recent = history[history.len().saturating_sub(self.config.repeat_window)..].to_vec();
        recent.sort_unstable();
        recent.dedup();
        recent
    }

    /// Draws the token that follows `history`. A logit that is not a number is taken as impossible.
    ///
    /// # Panics
    /// If `logits` is empty.
    pub fn sample(&mut self, logits: &[f32], history: &[u32]) -> u32 {
        assert!(!logits.is_empty(), "a vocabulary");
        if self.config.temperature == 0.0 {
            return argmax(&self.penalized(logits, history));
        }
        let candidates = self.candidates(logits, history);
        let mut left: f64 = self.rng.random();
        for candidate in &candidates {
            left -= candidate.probability;
            if left < 0.0 {
                return candidate.token;
            }
        }
        // The probabilities sum to 1 but for rounding.
        candidates.last().map_or(0, |candidate| candidate.token)
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
        // NaN is impossible, and infinities would make NaN in the softmax.
        let clean = |&logit: &f32| if logit.is_nan() { f32::MIN } else { logit.clamp(f32::MIN, f32::MAX) };
        let mut logits: Vec<f32> = logits.iter().map(clean).collect();
        let penalty = self.config.repeat_penalty;
        if penalty != 1.0 {
            for token in self.recent(history) {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { (*logit * penalty).max(f32::MIN) };
                }
            }
        }
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
    let mut all: Vec<Candidate> = (0..)
        .zip(logits)
        // Zeros of both signs are equal.
        .map(|(token, &logit)| Candidate { token, logit: logit + 0.0, probability: 0.0 })
        .collect();
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: SamplerConfig = SamplerConfig {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_window: 64,
        seed: 7,
    };

    fn candidates(config: SamplerConfig, logits: &[f32]) -> Vec<Candidate> {
        Sampler::new(config).expect("valid").candidates(logits, &[])
    }

    fn some_logits() -> impl Strategy<Value = Vec<f32>> {
        // Few distinct values, so that ties happen.
        proptest::collection::vec((-8i32..8).prop_map(|v| v as f32 / 2.0), 1..60)
    }

    proptest! {
        #[test]
        fn top_k_keeps_the_k_largest(logits in some_logits(), k in 1usize..70) {
            let kept = candidates(SamplerConfig { top_k: k, ..ALL }, &logits);
            let mut expected: Vec<u32> = (0..logits.len() as u32).collect();
            expected.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
            expected.truncate(k);
            prop_assert_eq!(kept.iter().map(|c| c.token).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn top_p_keeps_the_smallest_set_that_reaches_p(logits in some_logits(), p in 0f32..1.0) {
            let all = candidates(ALL, &logits);
            let kept = candidates(SamplerConfig { top_p: p, ..ALL }, &logits).len();
            let mass = |n: usize| all[..n].iter().map(|c| c.probability).sum::<f64>();
            prop_assert!(mass(kept) >= f64::from(p) - 1e-12);
            prop_assert!(kept == 1 || mass(kept - 1) < f64::from(p));
        }

        #[test]
        fn min_p_keeps_what_is_probable_enough(logits in some_logits(), p in 0f32..1.0) {
            let all = candidates(ALL, &logits);
            let floor = all[0].probability * f64::from(p);
            let expected = all.iter().filter(|c| c.probability >= floor).count();
            prop_assert_eq!(candidates(SamplerConfig { min_p: p, ..ALL }, &logits).len(), expected);
        }

        #[test]
        fn probabilities_sum_to_one_and_any_logits_are_survived(
            logits in proptest::collection::vec(prop_oneof![any::<f32>(), Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)], 1..40),
            temperature in 0.01f32..3.0,
            history in proptest::collection::vec(0u32..60, 0..9),
        ) {
            let config = SamplerConfig { temperature, top_k: 20, top_p: 0.9, min_p: 0.01, repeat_penalty: 1.3, ..ALL };
            let mut sampler = Sampler::new(config.clone()).expect("valid");
            let sum: f64 = sampler.candidates(&logits, &history).iter().map(|c| c.probability).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9, "sum {}", sum);
            prop_assert!((sampler.sample(&logits, &history) as usize) < logits.len());
            let mut greedy = Sampler::new(SamplerConfig::greedy()).expect("valid");
            prop_assert!((greedy.sample(&logits, &history) as usize) < logits.len());
        }

        #[test]
        fn greedy_is_the_first_largest(logits in some_logits()) {
            let token = Sampler::new(SamplerConfig::greedy()).expect("valid").sample(&logits, &[]) as usize;
            prop_assert!(logits.iter().enumerate().all(|(i, &l)| l < logits[token] || (l == logits[token] && i >= token)));
        }
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [1.0, 0.0, -1.0, 2.0, f32::NAN];
        let temperature = 0.7;
        let mut sampler = Sampler::new(SamplerConfig { temperature, ..ALL }).expect("valid");
        let mut counts = [0f64; 5];
        const DRAWS: usize = 100_000;
        for _ in 0..DRAWS {
            counts[sampler.sample(&logits, &[]) as usize] += 1.0 / DRAWS as f64;
        }
        let weights = logits.map(|l: f32| if l.is_nan() { 0.0 } else { f64::from(l / temperature).exp() });
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts.iter().zip(weights) {
            // Five standard deviations of a share of 100,000 draws.
            assert!((count - weight / total).abs() < 0.008, "{counts:?}");
        }
    }

    #[test]
    fn a_seed_decides_all_draws() {
        let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(SamplerConfig { seed, ..ALL }).expect("valid");
            (0..20).map(|_| sampler.sample(&logits, &[])).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn the_penalty_sees_its_window_only() {
        let config = SamplerConfig { repeat_penalty: 2.0, repeat_window: 2, ..ALL };
        let sampler = Sampler::new(config).expect("valid");
        let logits = [3.0, -1.0, 2.0];
        assert_eq!(sampler.penalized(&logits, &[0, 1, 1]), [3.0, -2.0, 2.0]);
        assert_eq!(sampler.penalized(&logits, &[1, 0, 2]), [1.5, -1.0, 1.0]);
    }

    #[test]
    fn impossible_settings_are_refused() {
        for (config, expected) in [
            (SamplerConfig { temperature: -1.0, ..ALL }, "temperature is -1, expected 0 to 100"),
            (SamplerConfig { temperature: f32::NAN, ..ALL }, "temperature is NaN"),
            (SamplerConfig { top_p: 1.5, ..ALL }, "top-p is 1.5, expected 0 to 1"),
            (SamplerConfig { repeat_penalty: 0.0, ..ALL }, "repeat-penalty is 0"),
        ] {
            let message = Sampler::new(config).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
