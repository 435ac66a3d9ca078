//! One test binary for what crosses a module: model folders on a disk, and whole models against PyTorch's numbers.

mod data_folder;
mod folder;
mod gguf;
mod gguf_blocks;
mod gguf_file;
mod hostile_files;
mod pytorch;
mod reference_model;
mod round_trips;
mod writes;
