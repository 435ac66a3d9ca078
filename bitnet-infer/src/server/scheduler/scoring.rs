//! Log-probabilities of the tokens of prompts.

use rayon::prelude::*;

use super::sequence::Sequence;
use crate::engine::Model;
use crate::eval::score::score;

/// Scores the tokens of the prompt that follow the positions from `start` on, whose states are `states_nh`.
pub fn score_prompt(model: &Model, sequence: &mut Sequence, start: usize, states_nh: &[f32], vocab: usize) {
    let (Some(top), Some(scores)) = (sequence.ticket.options.prompt_logprobs, &mut sequence.scores) else { return };
    let h = model.config().hidden_size;
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
        let scored = logits.par_chunks(vocab).zip(targets).map(|(logits, &token)| score(logits, token, top));
        scores.extend(scored.collect::<Vec<_>>());
    }
}

/// Rows of logits that exist at once for the scores of a prompt.
const SCORED_ROWS: usize = 32;
