//! What can go wrong between a file and a model, each as one line that says where and what was expected.

use std::path::{Path, PathBuf};

/// The result of anything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure a caller may act on or show to a person.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: cannot {action}: {cause}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operation, as a verb phrase ("read", "write", "rename").
        action: &'static str,
        /// The system's own error. Not named `source`: the sentence says it already, and a chain would say it twice.
        cause: std::io::Error,
    },
    /// A configuration value is missing, of the wrong type or impossible.
    #[error("{origin}: `{key}` {reason}")]
    Config {
        /// The file, or another name for where the value came from.
        origin: String,
        /// The key, with dots for nesting.
        key: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A file is not what its format demands.
    #[error("{origin}: {reason}")]
    Format {
        /// The file, or another name for where the bytes came from.
        origin: String,
        /// What is wrong, where (offset), and what was expected.
        reason: String,
    },
    /// A tensor is missing, of the wrong shape or type, or holds impossible values.
    #[error("{origin}: tensor `{name}` {reason}")]
    Tensor {
        /// The file the tensor should be in.
        origin: String,
        /// The tensor's name.
        name: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A tensor of the right shape and type holds codes or scales that no model can have.
    #[error("{origin}: tensor `{name}` {reason}")]
    Codes {
        /// The file the tensor is in.
        origin: String,
        /// The tensor's name.
        name: String,
        /// Which code or scale, where, and what was expected.
        reason: String,
    },
    /// A tokenizer file does not load, or does not fit the model.
    #[error("{origin}: tokenizer {reason}")]
    Tokenizer {
        /// The file.
        origin: String,
        /// What is wrong and what was expected.
        reason: String,
    },
}

impl Error {
    pub(crate) fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |cause| Self::Io { path, action, cause }
    }

    pub(crate) fn config(origin: &str, key: &str, reason: impl Into<String>) -> Self {
        Self::Config { origin: origin.into(), key: key.into(), reason: reason.into() }
    }

    pub(crate) fn format(origin: &str, reason: impl Into<String>) -> Self {
        Self::Format { origin: origin.into(), reason: reason.into() }
    }

    pub(crate) fn codes(origin: &str, name: &str, reason: impl Into<String>) -> Self {
        Self::Codes { origin: origin.into(), name: name.into(), reason: reason.into() }
    }

    pub(crate) fn tensor(origin: &str, name: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { origin: origin.into(), name: name.into(), reason: reason.into() }
    }
}
