//! One test binary for the crate: what the trainer computes, held against independent truths.

mod gradients;
mod reference_model;
