//! Readers of the kinds of file a corpus can be in, and how files are found.

pub mod files;
pub mod hub;
pub mod jsonl;
pub mod parquet;
pub mod text;
