//! One test binary for what crosses a module: model folders on a disk, and whole models against PyTorch's numbers.

mod added_tokens;
mod data_folder;
mod downloads;
mod folder;
mod gguf;
mod gguf_blocks;
mod gguf_file;
mod gguf_keys;
mod hostile_files;
mod published;
mod pytorch;
mod reference_model;
mod round_trips;
mod streams;
mod tied_heads;
mod writes;
