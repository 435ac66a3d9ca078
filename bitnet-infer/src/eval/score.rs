//! Log-probabilities of single tokens.

use crate::engine::{Error, KvCache, KvType, LogitsFor, Model, Result, check_logits};

/// What turns logits into log-probabilities: `logit - largest - ln(sum of exp(logit - largest))`, summed in f64.
#[derive(Clone, Copy, Debug)]
pub struct Normalizer {
    largest: f32,
    log_total: f64,
}

/// A token and what the model thought of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TokenScore {
    /// The token.
    pub token: u32,
    /// Its natural log-probability.
    pub logprob: f32,
    /// The most probable tokens in its place, most probable first, lower ids first among equals.
    pub top: Vec<(u32, f32)>,
}

impl Normalizer {
    /// That of a row of logits.
    pub fn of(logits: &[f32]) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let log_total = logits.iter().map(|&logit| f64::from((logit - largest).exp())).sum::<f64>().ln();
        Self { largest, log_total }
    }

    /// The log-probability of a token with this logit.
    pub fn logprob(self, logit: f32) -> f32 {
        (f64::from(logit - self.largest) - self.log_total) as f32
    }
}

/// Scores `token` under a row of logits, with the `top` most probable tokens beside it.
///
/// # Panics
/// If `token` is not below `logits.len()`.
pub fn score(logits: &[f32], token: u32, top: usize) -> TokenScore {
    let normalizer = Normalizer::of(logits);
    let logprob = |token: u32| normalizer.logprob(logits[token as usize]);
    let by_rank = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut best: Vec<u32> =
        if top == 1 { vec![crate::engine::argmax(logits)] } else { (0..logits.len() as u32).collect() };
    if 0 < top && top < best.len() {
        best.select_nth_unstable_by(top - 1, by_rank);
    }
    best.truncate(top);
    best.sort_unstable_by(by_rank);
    let top = best.into_iter().map(|token| (token, logprob(token))).collect();
    TokenScore { token, logprob: logprob(token), top }
}

/// Scores every token of `continuation` behind `context`, with the `top` most probable tokens beside each, over keys and values
/// kept as `kv`.
///
/// # Errors
/// If there is no context, both do not fit the model's context together, or the model's numbers are not finite.
pub fn continuation(
    model: &Model,
    context: &[u32],
    continuation: &[u32],
    (top, kv): (usize, KvType),
) -> Result<Vec<TokenScore>> {
    if context.is_empty() {
        return Err(Error::Input("a continuation is scored behind at least one token".into()));
    }
    if continuation.is_empty() {
        return Ok(Vec::new());
    }
    let tokens: Vec<u32> = context.iter().chain(&continuation[..continuation.len() - 1]).copied().collect();
    let mut cache = KvCache::with_type(model.config(), tokens.len(), kv)?;
    let vocab = model.config().vocab_size;
    model.forward(&tokens[..context.len() - 1], &mut cache, LogitsFor::None)?;
    let logits = model.forward(&tokens[context.len() - 1..], &mut cache, LogitsFor::All)?;
    logits
        .chunks(vocab)
        .zip(continuation)
        .map(|(logits, &token)| {
            check_logits(logits).map_err(|error| model.explained(error, &tokens, kv))?;
            Ok(score(logits, token, top))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn scores_are_the_log_softmax(
            // Whole numbers in half the cases: equal logits, which floats drawn at random never are.
            logits in prop_oneof![
                proptest::collection::vec(-20f32..20.0, 1..50),
                proptest::collection::vec((-3i8..3).prop_map(f32::from), 1..50),
            ],
            top in 0usize..8,
            at in 0usize..50,
        ) {
            let token = (at % logits.len()) as u32;
            let found = score(&logits, token, top);
            let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            let expected = |token: u32| f64::from(logits[token as usize]) - total.ln();
            prop_assert!((f64::from(found.logprob) - expected(token)).abs() < 1e-4);
            // By definition: all tokens in order, and the first of them.
            let mut ranked: Vec<u32> = (0..logits.len() as u32).collect();
            ranked.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            ranked.truncate(top);
            prop_assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<u32>>(), ranked);
            for &(token, logprob) in &found.top {
                prop_assert!((f64::from(logprob) - expected(token)).abs() < 1e-4);
            }
            if let Some(best) = found.top.first() {
                prop_assert_eq!(best.0, crate::engine::argmax(&logits));
                // The first choice is recognized by equality.
                prop_assert!(token != best.0 || found.logprob == best.1);
            }
        }
    }
}
