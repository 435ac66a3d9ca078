//! Trains 1-bit and 1.58-bit language models from a config file, with candle.
//!
//! [`config`] says what a run is, [`data`] turns text into batches, [`nn`] is the network and [`ops`] computes it,
//! [`optim`] moves the weights, [`run`] is the loop, [`mod@export`] packs the result for `bitnet-infer`.

pub mod config;
pub mod data;
pub mod export;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod run;
