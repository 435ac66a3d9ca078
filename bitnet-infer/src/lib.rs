//! Runs packed 1-bit and 1.58-bit language models: bit-level kernels, engine, generation, perplexity.
//!
//! [`engine::open`] turns a model folder into an [`engine::Model`], whose one forward pass serves prefill and decode;
//! [`generate`] puts text around it, [`eval`] measures it. Weights stay packed: [`kernels`] multiply codes by codes.

/// A line on stderr. Unlike `eprintln!` it does not panic when the reader is gone: then there is nobody left to tell.
#[macro_export]
macro_rules! tell {
    ($($words:tt)*) => {{
        let _ = ::std::io::Write::write_fmt(&mut ::std::io::stderr(), ::std::format_args!("{}\n", ::std::format_args!($($words)*)));
    }};
}

pub mod chat;
pub mod convert;
pub mod engine;
pub mod eval;
pub mod generate;
pub mod hub;
pub mod kernels;
pub mod linear;
pub mod server;
