//! `bitnet-train export`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use bitnet_infer::tell;
use bitnet_train::run;
use clap::Args;

/// Arguments of `export`.
#[derive(Args)]
#[command(after_help = "Example:
  bitnet-train export runs/dickens --out models/dickens")]
pub struct ExportArgs {
    /// The run folder.
    run: PathBuf,
    /// The model folder to write; an earlier model there is replaced once the new one is complete.
    #[arg(long)]
    out: PathBuf,
    /// The checkpoint after this many steps, instead of the newest.
    #[arg(long)]
    step: Option<u64>,
}

impl ExportArgs {
    /// Exports.
    ///
    /// # Errors
    /// As [`run::export_run`].
    pub fn run(self) -> Result<ExitCode> {
        let odd = run::export_run(&self.run, self.step, &self.out)?;
        odd.iter().for_each(|warning| tell!("warning: {warning}"));
        tell!("wrote {}", self.out.display());
        Ok(ExitCode::SUCCESS)
    }
}
