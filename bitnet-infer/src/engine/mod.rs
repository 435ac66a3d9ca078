//! The engine: a loaded model that turns token ids into logits.
//!
//! It knows token ids only; text begins in [`crate::generate`]. Everything goes through one forward pass
//! ([`Model::hidden_states`]): prefill and decode, one sequence or many, differ only in how many rows they bring.
//!
//! Shapes: `t` tokens of all sequences of a batch one after the other, `h` hidden, `q` query width, `k` key/value width,
//! `f` feed-forward width, `d` width of one head.

mod attention;
mod buffers;
mod cache;
mod error;
mod files;
mod fingerprint;
mod forward;
mod head;
mod kernels;
mod load;
mod math;
mod mmap;
mod model;
mod profile;
mod prompt_cache;
mod random;
mod rope;
mod sampler;
mod table;
mod ternary;

pub use cache::{KvCache, KvType, PAGE_TOKENS, Page, PageCount};
pub use error::{Error, Result};
pub use files::ModelFiles;
pub use forward::{LogitsFor, Sequence};
pub use head::{HeadFormat, NextLogits};
pub(crate) use load::model_of;
pub use load::{LoadedModel, open, open_files};
pub use mmap::MappedFile;
pub use model::Model;
pub use profile::{Op, Profile};
pub use prompt_cache::{SavedPrompt, save_prompt};
pub use random::RandomModel;
pub use sampler::{Candidate, Sampler, SamplerConfig, Wanted, argmax};
pub use ternary::{Arrangement, TERNARY_VARIABLE, TernaryChoice};
