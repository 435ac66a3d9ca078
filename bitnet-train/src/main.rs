//! `bitnet-train`: trains a 1-bit or 1.58-bit language model from one config file.

mod cli;

use std::process::ExitCode;

use bitnet_infer::tell;
use clap::Parser;

/// glibc gives memory back to the kernel after every tensor and takes it again for the next: a third of a step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            // One line, with the whole chain of causes; candle's errors may carry a backtrace on further lines.
            let message = format!("{error:#}");
            tell!("error: {}", message.lines().next().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}
