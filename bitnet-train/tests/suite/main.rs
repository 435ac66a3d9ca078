//! One test binary for the crate: what the trainer computes, held against independent truths.

mod agreement;
mod definitions;
mod gradients;
mod overfit;
mod parity;
mod reference_model;
mod support;
