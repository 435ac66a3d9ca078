//! A run: prepare, train, evaluate, save, resume.
//!
//! `session.rs` is the loop, top to bottom; the other files are what it uses.

mod checkpoint;
mod diagnostics;
mod environment;
mod evaluate;
mod events;
mod folder;
mod history;
mod init;
mod metrics;
mod plan;
mod session;

pub use bitnet_infer::eval::memory::peak_memory;

pub use checkpoint::{Latest, load_parameters};
pub use environment::cpu_model;
pub use folder::RunFolder;
pub use init::parameters_of;
pub use session::{Choices, Outcome, export_run, resume, start};
