//! `bitnet-train run` and `bitnet-train resume`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use bitnet_infer::tell;
use bitnet_train::config::Run;
use bitnet_train::data::Trust;
use bitnet_train::run::{self, Choices, Outcome};
use clap::Args;

use super::environment;

/// Arguments of `run`.
#[derive(Args)]
#[command(after_help = "Examples:
  bitnet-train run configs/quickstart.toml
  bitnet-train run configs/dickens.toml --set data.source.path=corpus.txt --set train.steps=1000
  bitnet-train run configs/dickens.toml --set quantization.weight=binary --set run.name=dickens-binary")]
pub struct RunArgs {
    /// The config file; see docs/training.md for every key.
    config: PathBuf,
    /// Changes one key of the config, such as `train.steps=200`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// Replaces an earlier run in the same folder.
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    checks: Checks,
}

/// What `run` and `resume` check unless they are told otherwise.
#[derive(Args)]
struct Checks {
    /// Reads the corpus and the token shards again, though their sizes and times are those of the last reading.
    #[arg(long)]
    verify_data: bool,
    /// Trains even if the run is estimated to need more memory than this machine has.
    #[arg(long)]
    force: bool,
}

impl Checks {
    fn choices(&self, overwrite: bool) -> Choices {
        let trust = if self.verify_data { Trust::Nothing } else { Trust::SizeAndTime };
        Choices { overwrite, force: self.force, trust }
    }
}

/// Arguments of `resume`.
#[derive(Args)]
#[command(after_help = "Example:
  bitnet-train resume runs/quickstart")]
pub struct ResumeArgs {
    /// The run folder.
    run: PathBuf,
    #[command(flatten)]
    checks: Checks,
}

impl RunArgs {
    /// Trains.
    ///
    /// # Errors
    /// As [`run::start`].
    pub fn run(self) -> Result<ExitCode> {
        let run = Run::read(&self.config, &self.assignments)?;
        environment::settle(run.config.run.threads)?;
        start_threads(run.config.run.threads)?;
        let outcome = run::start(&run, self.checks.choices(self.overwrite), &*interrupt_flag()?)?;
        Ok(report(&run.folder(), &outcome))
    }
}

impl ResumeArgs {
    /// Trains on.
    ///
    /// # Errors
    /// As [`run::resume`].
    pub fn run(self) -> Result<ExitCode> {
        let config = run::RunFolder::open(&self.run)?.config();
        let threads = Run::of_folder(&config)?.config.run.threads;
        environment::settle(threads)?;
        start_threads(threads)?;
        let outcome = run::resume(&self.run, self.checks.choices(false), &*interrupt_flag()?)?;
        Ok(report(&self.run, &outcome))
    }
}

/// The thread pool of every op, of the matrix products and of the engine that samples.
pub(super) fn start_threads(threads: usize) -> Result<()> {
    ensure!(threads <= MOST_THREADS, "`run.threads` is {threads}, expected at most {MOST_THREADS}");
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start threads")
}

/// A flag that Ctrl-C (or SIGTERM) raises; the second time the process ends at once.
fn interrupt_flag() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let raised = flag.clone();
    ctrlc::set_handler(move || {
        if raised.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
        tell!("\nstopping after this step, or this piece of data (again to stop at once, without saving)");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}

/// More than any machine has cores: starting so many takes a second at most.
const MOST_THREADS: usize = 1024;

/// What a shell expects of a program that was stopped by Ctrl-C.
const INTERRUPTED: i32 = 130;

fn report(folder: &Path, outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::Finished(Some(model)) => {
            tell!("finished; the packed model is {}", model.display());
            tell!("  bitnet-infer generate {} \"Once\"", model.display());
            ExitCode::SUCCESS
        }
        Outcome::Finished(None) => {
            tell!("finished; `bitnet-train export {} --out DIR` packs the model", folder.display());
            ExitCode::SUCCESS
        }
        Outcome::NothingLeft { taken, steps } => {
            let folder = folder.display();
            match taken > steps {
                true => tell!("nothing is left to do: {taken} steps were taken, and train.steps is {steps}"),
                false => tell!("nothing is left to do: the run of {steps} steps is complete"),
            }
            tell!(
                "  a larger train.steps in {folder}/config.toml trains on, `bitnet-train export {folder} --out DIR` packs the model"
            );
            ExitCode::SUCCESS
        }
        Outcome::Interrupted(None) => {
            tell!("stopped before the first step; the same command goes on with the data that is complete");
            ExitCode::from(INTERRUPTED as u8)
        }
        Outcome::Interrupted(Some(checkpoint)) => {
            tell!("stopped; saved {}", checkpoint.display());
            tell!("  bitnet-train resume {}", folder.display());
            ExitCode::from(INTERRUPTED as u8)
        }
    }
}
