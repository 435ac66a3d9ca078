//! The command line: what a person types, turned into calls of the library.

mod bench;
mod environment;
mod export;
mod run;
mod stories;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Trains 1-bit and 1.58-bit language models from a config file.
#[derive(Parser)]
#[command(version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains a model from a config file, and exports it.
    Run(run::RunArgs),
    /// Continues an interrupted run from its newest checkpoint, exactly.
    Resume(run::ResumeArgs),
    /// Packs a checkpoint of a run into a model folder for bitnet-infer.
    Export(export::ExportArgs),
    /// Measures how fast a model trains here, and where the time goes.
    Bench(bench::BenchArgs),
    /// Prints built-in stories.
    Stories(stories::StoriesArgs),
}

impl Cli {
    /// Does what was asked for.
    ///
    /// # Errors
    /// What went wrong, as one line.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Run(args) => args.run(),
            Command::Resume(args) => args.run(),
            Command::Export(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Stories(args) => args.run(),
        }
    }
}
