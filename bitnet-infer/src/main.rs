//! The `bitnet-infer` program.

mod cli;

use std::process::ExitCode;

/// Answers many small allocations from freed memory instead of asking the system again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main()
}
