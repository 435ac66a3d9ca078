//! One test binary for the crate: what the trainer computes, held against independent truths.

mod agreement;
mod bench;
mod codes;
mod commit;
mod configs;
mod corpus;
mod definitions;
mod end_to_end;
mod gradients;
mod idle;
mod init_from;
mod not_finite;
mod overfit;
mod parity;
mod passes;
mod reference_model;
mod resume;
mod support;
mod tiny;
