//! One test binary for the crate: what the trainer computes, held against independent truths.

mod agreement;
mod bench;
mod codes;
mod commit;
mod configs;
mod corpus;
#[path = "../../../bitnet-model/tests/suite/data_folder.rs"]
mod data_folder;
mod definitions;
mod end_to_end;
mod gradients;
mod idle;
mod init_from;
mod not_finite;
mod overfit;
mod parity;
mod passes;
#[path = "../../../bitnet-model/tests/suite/pytorch.rs"]
mod pytorch;
mod pytorch_figures;
mod reference_model;
mod resume;
mod slopes;
mod support;
mod tiny;
mod whole;
