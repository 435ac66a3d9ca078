//! Trains 1-bit and 1.58-bit language models from a config file, with candle.

pub mod nn;
pub mod ops;
pub mod optim;
