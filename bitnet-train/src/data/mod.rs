//! From text to batches: sources, tokenizer, token shards, deterministic windows.
//!
//! ```text
//! DataConfig -> Source -> documents -> Corpus (train, validation)
//!     -> TokenizerConfig -> tokenizer.json -> Shard (memory-mapped tokens) -> Batches, windows
//! ```
//!
//! [`prepare()`] goes the whole way once and caches the results under the hash of what they were made from.

pub mod batches;
#[cfg(test)]
#[path = "../../../bitnet-model/tests/suite/data_folder.rs"]
mod data_folder;
pub mod encode;
pub mod prepare;
pub mod progress;
pub mod receipts;
pub mod shards;
pub mod source;
pub mod sources;
pub mod split;
pub mod stories;
pub mod tokenizer;
mod words;

#[cfg(test)]
pub(crate) use data_folder::shared;

pub use batches::{Batch, Batches, Windows, windows};
pub use prepare::{DataConfig, Prepared, prepare};
pub use progress::{Progress, Stopped, bar};
pub use receipts::Trust;
pub use shards::Shard;
pub use source::{Paths, SourceConfig};
pub use split::ValidationConfig;
pub use tokenizer::TokenizerConfig;
