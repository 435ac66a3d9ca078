//! Log-probabilities of the tokens of prompts.

use rayon::prelude::*;

use super::sequence::Sequence;
use crate::engine::{Error, Model, Result, check_logits};
use crate::eval::score::score;

/// Scores the tokens of the prompt that follow the positions from `start` on, whose states are `states_nh`.
///
/// # Errors
/// If a logit is not finite.
pub fn score_prompt(model: &Model, sequence: &mut Sequence, start: usize, states_nh: &[f32]) -> Result<()> {
    let (Some(top), Some(scores)) = (sequence.ticket.options.prompt_logprobs, &mut sequence.scores) else {
        return Ok(());
    };
    let (h, vocab) = (model.config().hidden_size, model.config().vocab_size);
    // After it was put off, a text is read again from the start; what was scored stays.
    let done = scores.len();
    for (n, states) in states_nh.chunks(SCORED_ROWS * h).enumerate() {
        let first = start + n * SCORED_ROWS;
        let targets = &sequence.tokens[(first + 1).min(sequence.prompt_tokens)..sequence.prompt_tokens];
        let skipped = done.saturating_sub(first).min(states.len() / h);
        let targets = &targets[skipped.min(targets.len())..];
        let states = &states[skipped * h..];
        let rows = targets.len().min(states.len() / h);
        let logits = model.logits(&states[..rows * h]);
        let scored = logits
            .par_chunks(vocab)
            .zip(targets)
            .map(|(logits, &token)| check_logits(logits).map(|()| score(logits, token, top)));
        // In order, so that the first of several errors is reported.
        for (place, scored) in (first + skipped..).zip(scored.collect::<Vec<_>>()) {
            scores.push(scored.map_err(|error| {
                Error::Input(format!("behind token {place} of the prompt, counted from 0, {error}"))
            })?);
        }
    }
    Ok(())
}

/// Rows of logits that exist at once for the scores of a prompt.
const SCORED_ROWS: usize = 32;
