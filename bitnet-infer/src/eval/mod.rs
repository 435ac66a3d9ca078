//! What a model is worth, measured: perplexity under named conventions, and the make-up of a model folder.

pub mod inspect;
pub mod memory;
pub mod perplexity;
pub mod score;
