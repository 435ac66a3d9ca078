//! Runs packed 1-bit and 1.58-bit language models: bit-level kernels, engine, generation, perplexity.
//!
//! [`engine::open`] turns a model folder into an [`engine::Model`], whose one forward pass serves prefill and decode;
//! [`generate`] puts text around it, [`eval`] measures it. Weights stay packed: [`kernels`] multiply codes by codes.

pub mod chat;
pub mod convert;
pub mod engine;
pub mod eval;
pub mod generate;
pub mod hub;
pub mod kernels;
pub mod linear;
pub mod server;
