//! What can go wrong while a model is loaded or run.

use super::finite::Part;

/// The result of anything in the engine that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, each as one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is missing, damaged, or not what the configuration says.
    #[error(transparent)]
    Model(#[from] bitnet_model::Error),
    /// A token is not below the model's vocabulary size.
    #[error("token {token} at index {index} is not below the vocabulary size {vocab_size}")]
    Token {
        /// The token.
        token: u32,
        /// Where it stands in the sequence given.
        index: usize,
        /// The model's vocabulary size.
        vocab_size: usize,
    },
    /// A cache cannot hold what it was asked to.
    #[error(
        "the cache holds {used} of {capacity} tokens, {more} more do not fit: shorten the text or raise the context"
    )]
    ContextFull {
        /// Tokens in the cache.
        used: usize,
        /// Tokens the cache may hold.
        capacity: usize,
        /// Tokens that were to be added.
        more: usize,
    },
    /// A logit by which no token can be chosen.
    #[error("the logit of token {token} is {value}, expected a finite number")]
    Logit {
        /// The token.
        token: usize,
        /// Its logit.
        value: f32,
    },
    /// Every logit is minus infinity.
    #[error("no token is possible: every logit is minus infinity")]
    NoToken,
    /// The numbers of a model leave the range of floats.
    #[error(
        "the model's numbers are not finite: `{part}` gives NaN or infinity at token {index} of {tokens} (id {token}), \
         counted from 0: the weights or scales up to there are too large, take another file of this model"
    )]
    NotFinite {
        /// Where the token stands in the text.
        index: usize,
        /// The token.
        token: u32,
        /// The first part of the model that gives such a number.
        part: Part,
        /// Tokens of the text.
        tokens: usize,
    },
    /// An argument that cannot be.
    #[error("{0}")]
    Input(String),
}
