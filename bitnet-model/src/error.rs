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

/// A number (f32 or f64) as a person writes it: without the hundreds of digits that very large and very small ones have.
pub fn readable<F: Into<f64> + std::fmt::Debug>(number: F) -> String {
    // `Debug` changes to powers of ten where digits get many, and marks whole numbers.
    let text = format!("{number:?}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

/// The numbers from `low` to `high`, in words: as `at least LOW` where no number is larger than `high`.
pub fn readable_range(low: f64, high: f64) -> String {
    if high >= f64::MAX {
        return format!("a finite number of at least {}", readable(low));
    }
    format!("{} to {}", readable(low), readable(high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_read_back() {
        for (number, expected) in [
            (0.0, "0"),
            (-1.0, "-1"),
            (0.95, "0.95"),
            (-0.0, "-0"),
            (1e-4, "0.0001"),
            (1e-16, "1e-16"),
            (-2.5e-9, "-2.5e-9"),
            (65_536.0, "65536"),
            (f64::MAX, "1.7976931348623157e308"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(readable(number), expected);
            assert!(number.is_nan() || readable(number).parse() == Ok(number));
        }
        assert_eq!((readable(0.8f32), readable(f32::MAX)), ("0.8".into(), "3.4028235e38".into()));
        assert_eq!(readable_range(1e-16, 1.0), "1e-16 to 1");
        assert_eq!(readable_range(0.0, f64::MAX), "a finite number of at least 0");
    }
}
