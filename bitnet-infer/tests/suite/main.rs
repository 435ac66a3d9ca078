//! Tests of the whole crate from outside: the engine against PyTorch's numbers and against the scalar reference, every
//! scheme, every kernel, damaged files, and the program itself.

mod bad_input;
mod chat_templates;
mod command_line;
mod common;
mod consistency;
mod conversing;
mod conversions;
#[path = "../../../bitnet-model/tests/suite/data_folder.rs"]
mod data_folder;
mod endings;
#[path = "../../../bitnet-model/tests/suite/gguf_file.rs"]
mod gguf_file;
mod heads;
mod key_values;
mod memory;
mod not_finite;
mod outside;
mod overflow;
#[path = "../../../bitnet-model/tests/suite/pytorch.rs"]
mod pytorch;
mod reference_parity;
mod round_trips;
mod schemes;
mod server;
mod text;
mod travel;
mod warnings;
