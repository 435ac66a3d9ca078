//! `bitnet-train stories`.

use std::io::{BufWriter, ErrorKind, Write, stdout};
use std::process::ExitCode;

use anyhow::Result;
use bitnet_train::data::stories::{Split, story};
use clap::{Args, ValueEnum};

/// Arguments of `stories`.
#[derive(Args)]
#[command(after_help = "Examples:
  bitnet-train stories --count 3
  bitnet-train stories --split validation --count 200 > held-out.txt")]
pub struct StoriesArgs {
    /// How many.
    #[arg(long, default_value_t = 5)]
    count: u64,
    /// Other seeds give other stories; that of a run is its `data.source.seed`.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stories a model is trained on, or held-out ones.
    #[arg(long, value_enum, default_value_t = Part::Train)]
    split: Part,
    /// One JSON object a line, with every question and answer.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Train,
    Validation,
}

impl StoriesArgs {
    /// Prints stories, an end-of-text token between two.
    ///
    /// # Errors
    /// If the output cannot be written.
    pub fn run(self) -> Result<ExitCode> {
        match self.print() {
            // Whoever reads has read enough.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
            other => Ok(other.map(|()| ExitCode::SUCCESS)?),
        }
    }

    fn print(&self) -> std::io::Result<()> {
        let split = match self.split {
            Part::Train => Split::Train,
            Part::Validation => Split::Validation,
        };
        let mut out = BufWriter::new(stdout().lock());
        for index in 0..self.count {
            let story = story(self.seed, split, index);
            if self.json {
                writeln!(out, "{}", serde_json::to_string(&story)?)?;
            } else {
                let separator = if index == 0 { "" } else { "<|endoftext|>" };
                write!(out, "{separator}{}", story.document())?;
            }
        }
        out.flush()
    }
}
