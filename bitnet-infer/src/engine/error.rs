//! What can go wrong while a model is loaded or run.

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
    /// An argument that cannot be.
    #[error("{0}")]
    Input(String),
}
