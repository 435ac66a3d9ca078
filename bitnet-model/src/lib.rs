//! What a BitNet is, down to the bit.
//!
//! This crate is the contract between training and inference: the model's configuration, the quantization
//! arithmetic on plain slices, packed matrices, the files they are stored in, the tokenizer, and a slow scalar
//! forward pass that *is* the definition of the model. It has no unsafe code, no threads, no SIMD and no
//! automatic differentiation, and it reads or writes files only inside [`files`].
//!
//! Data flows one way: [`config::ModelConfig`] says what the matrices are, [`quant`] turns latent weights into
//! codes and scales, [`packed`] stores codes as bits, [`files`] carries them, [`mod@reference`] runs them.
#![forbid(unsafe_code)]

pub mod config;
pub mod error;
pub mod files;
pub mod finite;
pub mod oddities;
pub mod packed;
pub mod quant;
pub mod reference;
pub mod rng;
pub mod tokenizer;
pub mod weights;

pub use config::ModelConfig;
pub use error::{Error, Result};
