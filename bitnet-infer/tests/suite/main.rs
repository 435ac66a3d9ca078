//! Tests of the whole crate from outside: the engine against PyTorch's numbers and against the scalar reference, every
//! scheme, every kernel, damaged files, and the program itself.

mod bad_input;
mod command_line;
mod common;
mod consistency;
mod conversions;
mod heads;
mod key_values;
mod reference_parity;
mod schemes;
mod server;
mod text;
