//! The command line: one file per command.

mod bench;
mod chat;
mod closing;
mod convert;
mod generate;
mod inspect;
mod kernels;
mod output;
mod perplexity;
mod score;
mod serve;

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use bitnet_infer::engine::{self, Arrangement, LoadedModel, ModelFiles};
use bitnet_infer::hub::{self, Location};
use bitnet_infer::kernels::{self as table, Kernel, Ternary};
use bitnet_model::files::gguf::{GgufOptions, I2sLayout, TensorType};
use bitnet_model::files::source::{WARNING, WeightSource};

/// Runs packed 1-bit and 1.58-bit language models.
#[derive(Parser)]
#[command(name = "bitnet-infer", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(clap::Args)]
struct Global {
    /// Threads to compute with [default: one per core this process may use]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Kernel to compute with, from `bitnet-infer kernels` [default: the fastest that this CPU runs]
    #[arg(long, global = true, value_name = "NAME")]
    kernel: Option<String>,
    /// How ternary codes are held in memory: 2bit or base3 (1.6 bits, with kernels that can) [default: what decodes faster]
    #[arg(long, global = true, value_name = "NAME", value_parser = Ternary::by_name)]
    ternary: Option<Ternary>,
    /// How the I2_S codes of a GGUF file lie: 128, 64, rows [default: what a probe of the codes finds]
    #[arg(long, global = true, value_name = "LAYOUT")]
    i2s: Option<I2sLayout>,
    /// Take hub: models from the cache alone, as HF_HUB_OFFLINE=1 does
    #[arg(long, global = true)]
    offline: bool,
}

/// Each is described at its arguments.
#[derive(Subcommand)]
enum Command {
    Generate(generate::Args),
    Chat(chat::Args),
    Perplexity(perplexity::Args),
    Score(score::Args),
    Convert(convert::Args),
    Inspect(inspect::Args),
    Bench(bench::Args),
    Kernels(kernels::Args),
    Serve(Box<serve::Args>),
}

const EXAMPLES: &str = "Examples:
  bitnet-infer generate model \"Once upon a time\" -n 64
  bitnet-infer perplexity model text.txt --context 512
  bitnet-infer inspect model.gguf --tensors
  bitnet-infer convert model model.gguf --to gguf-tq2
  bitnet-infer serve model --port 8080
  bitnet-infer chat model
  bitnet-infer bench --shape 125m
  BITNET_KERNEL=scalar bitnet-infer generate model --temperature 0 < prompt.txt";

/// Parses the command line and runs it. A failure is one line on stderr and exit code 1; a reader that has seen enough
/// (a closed pipe) is no failure.
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let line = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
            // With stderr gone there is nobody left to tell.
            let _ = writeln!(io::stderr(), "error: {line}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Some(threads) = cli.global.threads {
        ensure!(threads.get() <= MOST_THREADS, "--threads is {threads}, expected at most {MOST_THREADS}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
        pool.build_global().with_context(|| format!("cannot start {threads} threads"))?;
    }
    if cli.command.writes_to_stdout() {
        closing::end_with_reader();
    }
    match cli.command {
        Command::Generate(args) => generate::run(&args, cli.global.opening()?),
        Command::Chat(args) => chat::run(&args, cli.global.opening()?),
        Command::Score(args) => score::run(&args, cli.global.opening()?),
        Command::Perplexity(args) => perplexity::run(&args, cli.global.opening()?),
        Command::Convert(args) => convert::run(&args, cli.global.opening()?),
        Command::Inspect(args) => inspect::run(&args, cli.global.opening()?),
        Command::Bench(args) => bench::run(&args, cli.global.opening()?),
        Command::Kernels(args) => kernels::run(&args, cli.global.kernel()?),
        Command::Serve(args) => serve::run(&args, cli.global.opening()?),
    }
}

impl Command {
    /// Whether all that comes of the command goes to stdout, so that without a reader it is of no use.
    fn writes_to_stdout(&self) -> bool {
        match self {
            Self::Generate(_) | Self::Chat(_) | Self::Score(_) | Self::Inspect(_) | Self::Kernels(_) => true,
            Self::Perplexity(args) => !args.writes_a_file(),
            Self::Bench(args) => !args.writes_a_file(),
            Self::Convert(_) | Self::Serve(_) => false,
        }
    }
}

impl Global {
    fn kernel(&self) -> Result<&'static Kernel> {
        let chosen = match &self.kernel {
            Some(name) => table::by_name(name),
            None => table::best(),
        };
        chosen.map_err(anyhow::Error::msg)
    }

    fn opening(&self) -> Result<Opening> {
        let gguf = GgufOptions { i2s: self.i2s };
        Ok(Opening { arrangement: self.arrangement()?, gguf, offline: self.offline })
    }

    fn arrangement(&self) -> Result<Arrangement> {
        Ok(Arrangement { kernel: self.kernel()?, ternary: self.ternary })
    }
}

/// How a command opens a model.
#[derive(Clone, Copy)]
struct Opening {
    arrangement: Arrangement,
    gguf: GgufOptions,
    offline: bool,
}

impl Opening {
    /// The files of a model: a path, or `hub:OWNER/NAME[@REVISION][:FILE]`, which is downloaded where it is not cached.
    fn files(self, model: &Path) -> Result<ModelFiles> {
        let path = match model.to_str() {
            Some(text) => hub::local(text, self.offline)?,
            None => PathBuf::from(model),
        };
        let files = ModelFiles::open(&path, self.gguf)?;
        if self.gguf.i2s.is_some() {
            let has_i2s = |weights: &dyn WeightSource| {
                Ok::<_, engine::Error>(weights.tensors().iter().any(|record| record.kind == TensorType::I2S.name()))
            };
            let name = model.display();
            ensure!(
                files.with_weights(has_i2s)?,
                "--i2s has no effect on {name}, which has no I2_S tensor: leave it out"
            );
        }
        Ok(files)
    }

    /// A model in memory.
    fn open(self, model: &Path) -> Result<LoadedModel> {
        self.load(&self.files(model)?)
    }

    /// The same of files that are open. What looks wrong in them is said on stderr.
    fn load(self, files: &ModelFiles) -> Result<LoadedModel> {
        let loaded = engine::open_files(files, self.arrangement)?;
        for warning in &loaded.warnings {
            // With stderr gone there is nobody left to tell.
            let _ = writeln!(io::stderr(), "{WARNING}{warning}");
        }
        let name = files.path().display();
        let works = self.arrangement.ternary.is_none() || loaded.model.ternary().is_some();
        ensure!(works, "--ternary has no effect on {name}, whose weights are not ternary: leave it out");
        Ok(loaded)
    }
}

/// More than any machine has cores: starting so many takes a second at most.
const MOST_THREADS: usize = 1024;

/// What people call a model: the name of its repository, or that of its folder or file.
fn name_of(path: &Path) -> String {
    if let Some(Location { repo, file, .. }) = path.to_str().and_then(Location::parse) {
        return file.unwrap_or(repo);
    }
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let own = name(&whole).unwrap_or_else(|| "model".into());
    // A run keeps its model in a folder of that name.
    match whole.parent().and_then(name) {
        Some(parent) if own == "model" => parent,
        _ => own,
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    kinds.into_iter().any(|kind| kind == io::ErrorKind::BrokenPipe)
}
