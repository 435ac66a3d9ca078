//! Which tokens go into the next pass.

/// How many tokens of each sequence go into the next pass, given how many each has before it, in the order of their arrival.
///
/// A sequence that generates (one token) always gets its place: a long prompt never holds up a stream. What is left of `budget`,
/// or at least [`LEAST_PROMPT`], is shared by the prompts: equal parts, so that a short prompt does not wait for the end of a
/// long one before it, and what one does not need goes to the oldest that do.
pub fn plan(pending: &[usize], budget: usize) -> Vec<usize> {
    let mut chunks: Vec<usize> = pending.iter().map(|&tokens| usize::from(tokens == 1)).collect();
    let prompts: Vec<usize> = (0..pending.len()).filter(|&i| pending[i] > 1).collect();
    let mut left = budget.saturating_sub(pending.len() - prompts.len()).max(LEAST_PROMPT);
    let share = (left / prompts.len().max(1)).max(LEAST_PROMPT);
    for &i in &prompts {
        chunks[i] = pending[i].min(share).min(left);
        left -= chunks[i];
    }
    for i in prompts {
        let more = (pending[i] - chunks[i]).min(left);
        chunks[i] += more;
        left -= more;
    }
    chunks
}

/// Tokens of prompts that a pass takes at least, if there are so many: fewer would not be worth reading the weights for.
pub const LEAST_PROMPT: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn streams_come_first_and_prompts_share_what_is_left() {
        assert_eq!(plan(&[1, 100, 1, 3], 34), [1, 29, 1, 3]);
        assert_eq!(plan(&[100, 100], 40), [20, 20]);
        assert_eq!(plan(&[100, 4, 100], 40), [23, 4, 13]);
        assert_eq!(plan(&[1, 1, 1, 50], 2), [1, 1, 1, 8]);
        assert_eq!(plan(&[5000], usize::MAX), [5000]);
        assert_eq!(plan(&[], 9), [0; 0]);
    }

    proptest! {
        #[test]
        fn no_budget_is_left_over_or_overdrawn(
            pending in proptest::collection::vec(1usize..300, 0..40),
            budget in 0usize..600,
        ) {
            let chunks = plan(&pending, budget);
            prop_assert!(chunks.iter().zip(&pending).all(|(chunk, pending)| chunk <= pending));
            let streams = pending.iter().filter(|&&tokens| tokens == 1).count();
            prop_assert!(chunks.iter().zip(&pending).all(|(&chunk, &pending)| pending > 1 || chunk == 1));
            let prompts: usize = pending.iter().sum::<usize>() - streams;
            let taken: usize = chunks.iter().sum::<usize>() - streams;
            prop_assert_eq!(taken, prompts.min(budget.saturating_sub(streams).max(LEAST_PROMPT)));
        }

        /// Whoever waits gets something within as many passes as there are prompts before it.
        #[test]
        fn nobody_starves(pending in proptest::collection::vec(2usize..300, 1..20), budget in 1usize..100) {
            let mut pending = pending;
            let bound = pending.iter().sum::<usize>().div_ceil(LEAST_PROMPT) + pending.len();
            let mut passes = 0;
            while !pending.is_empty() {
                let chunks = plan(&pending, budget);
                pending = pending.iter().zip(chunks).map(|(pending, chunk)| pending - chunk).filter(|&p| p > 0).collect();
                passes += 1;
                prop_assert!(passes <= bound);
            }
        }
    }
}
