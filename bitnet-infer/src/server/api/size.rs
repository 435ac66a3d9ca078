//! How large an answer can become: known, and bounded, before anything of it is computed.

use crate::server::error::ApiError;

/// What an answer holds at most, in all its dimensions.
#[derive(Clone, Debug, Default)]
pub struct AnswerSize {
    /// Prompts.
    pub prompts: usize,
    /// Texts for each prompt.
    pub choices: usize,
    /// Tokens of all prompts that each text repeats.
    pub echoed_tokens: usize,
    /// Bytes of all prompts that each text repeats.
    pub echoed_bytes: usize,
    /// New tokens of each text that are held until all are there: none in a stream, which gives them out one by one.
    pub held_tokens: usize,
    /// Alternatives of each token, if tokens are scored.
    pub logprobs: Option<usize>,
}

impl AnswerSize {
    /// Refuses an answer that would be too large.
    ///
    /// # Errors
    /// Its size, what it is made of, and the limit.
    pub fn check(&self) -> Result<(), ApiError> {
        let texts = self.prompts.saturating_mul(self.choices);
        let echoed = self.choices.saturating_mul(self.echoed_tokens);
        let tokens = texts.saturating_mul(self.held_tokens).saturating_add(echoed);
        let made_of = || {
            format!(
                "{} prompts with {} tokens to repeat, `n` {}, {} new tokens each",
                self.prompts, self.echoed_tokens, self.choices, self.held_tokens
            )
        };
        if let Some(top) = self.logprobs {
            // The token itself counts beside its alternatives.
            let each = top.saturating_add(1);
            let scores = tokens.saturating_mul(each);
            if scores > MOST_SCORES {
                let message = format!(
                    "asks for up to {scores} log-probabilities ({}, {each} for each token), expected at most {MOST_SCORES}: \
                     send fewer prompts at a time, or ask for fewer choices, tokens or alternatives",
                    made_of()
                );
                return Err(ApiError::field("logprobs", message).coded("answer_too_large"));
            }
        }
        if tokens > MOST_TOKENS {
            let message = format!(
                "the answer may have {tokens} tokens ({}), expected at most {MOST_TOKENS}: \
                 send fewer prompts at a time, or ask for fewer choices or tokens, or for a stream",
                made_of()
            );
            return Err(ApiError::invalid(message).coded("answer_too_large"));
        }
        let bytes = self.choices.saturating_mul(self.echoed_bytes);
        if bytes > MOST_ECHOED_BYTES {
            let message = format!(
                "repeats {bytes} bytes of prompts ({} bytes, `n` {}), expected at most {MOST_ECHOED_BYTES}: \
                 send fewer prompts at a time, or ask for fewer choices",
                self.echoed_bytes, self.choices
            );
            return Err(ApiError::field("echo", message).coded("answer_too_large"));
        }
        Ok(())
    }

    /// The most new tokens of each text that an answer has room for.
    pub fn room(&self) -> usize {
        let each = self.logprobs.map_or(1, |top| top.saturating_add(1));
        let most = self.logprobs.map_or(MOST_TOKENS, |_| MOST_SCORES / each);
        let left = most.saturating_sub(self.choices.saturating_mul(self.echoed_tokens));
        left / self.prompts.saturating_mul(self.choices).max(1)
    }
}

/// Log-probabilities that one answer holds, alternatives included.
pub const MOST_SCORES: usize = 1 << 20;

/// Tokens that one answer holds.
pub const MOST_TOKENS: usize = 1 << 22;

/// Bytes of prompts that one answer repeats.
pub const MOST_ECHOED_BYTES: usize = 32 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 17 prompts of 4,096 tokens, sixteen times with fourteen alternatives: the numbers are those of a calculator.
    #[test]
    fn every_dimension_is_multiplied_and_named() {
        let size = AnswerSize {
            prompts: 17,
            choices: 16,
            echoed_tokens: 17 * 4096,
            echoed_bytes: 17 * 4096 * 4,
            held_tokens: 0,
            logprobs: Some(14),
        };
        let error = size.check().expect_err("16.7 million");
        for part in ["16711680", "17 prompts with 69632 tokens", "`n` 16", "15 for each token", "1048576"] {
            assert!(error.message.contains(part), "{} lacks {part}", error.message);
        }
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some("logprobs")));
        let with = |change: fn(&mut AnswerSize)| {
            let mut size = size.clone();
            change(&mut size);
            size.check()
        };
        assert!(with(|size| (size.choices, size.echoed_tokens) = (1, 4096)).is_ok());
        assert!(with(|size| size.logprobs = None).is_ok());
        let error = with(|size| (size.logprobs, size.held_tokens) = (None, 20_000)).expect_err("tokens");
        assert!(error.message.contains("6554112 tokens") && error.message.contains("4194304"), "{}", error.message);
        let error = with(|size| (size.logprobs, size.echoed_bytes) = (None, 4 << 20)).expect_err("bytes");
        assert!(error.message.contains("67108864 bytes") && error.message.contains("33554432"), "{}", error.message);
    }

    proptest! {
        /// Against the same sums in whole numbers that do not overflow; whatever is asked for.
        #[test]
        fn an_answer_is_refused_exactly_if_it_is_too_large(
            prompts in 1usize..300,
            choices in prop_oneof![1usize..200, Just(usize::MAX)],
            echoed_tokens in prop_oneof![Just(0usize), 0usize..1_000_000, Just(usize::MAX)],
            echoed_bytes in prop_oneof![0usize..10_000_000, Just(usize::MAX)],
            held_tokens in prop_oneof![0usize..5000, Just(usize::MAX)],
            logprobs in proptest::option::of(prop_oneof![0usize..21, Just(usize::MAX)]),
        ) {
            let size = AnswerSize { prompts, choices, echoed_tokens, echoed_bytes, held_tokens, logprobs };
            let wide = |n: usize| n as u128;
            let tokens = (wide(prompts).saturating_mul(wide(held_tokens)).saturating_add(wide(echoed_tokens))).saturating_mul(wide(choices));
            let scores = logprobs.map_or(0, |top| tokens.saturating_mul(wide(top) + 1));
            let bytes = wide(choices).saturating_mul(wide(echoed_bytes));
            let fits = scores <= wide(MOST_SCORES) && tokens <= wide(MOST_TOKENS) && bytes <= wide(MOST_ECHOED_BYTES);
            prop_assert_eq!(size.check().is_ok(), fits);
            // The room for new tokens is used up to the last.
            let empty = AnswerSize { held_tokens: 0, echoed_bytes: 0, ..size };
            if empty.check().is_ok() {
                let with = |held_tokens: usize| AnswerSize { held_tokens, ..empty.clone() }.check().is_ok();
                prop_assert!(with(empty.room()) && !with(empty.room() + 1));
            }
        }
    }
}
