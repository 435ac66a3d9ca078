//! `bitnet-infer kernels`.

use anyhow::Result;

use bitnet_infer::kernels::{KERNELS, Kernel};

use super::output;

/// List the kernels, slowest first, and whether this CPU runs them.
///
/// The option `--kernel` or the environment variable BITNET_KERNEL chooses one; without either it is the last that runs.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If stdout cannot be written.
pub fn run(args: &Args, chosen: &'static Kernel) -> Result<()> {
    if args.json {
        let row = |kernel: &&Kernel| {
            serde_json::json!({
                "name": kernel.name,
                "supported": kernel.is_supported(),
                "chosen": kernel.name == chosen.name,
            })
        };
        return output::print_json(&KERNELS.iter().map(row).collect::<Vec<_>>());
    }
    let line = |kernel: &&Kernel| {
        let state = match (kernel.is_supported(), kernel.name == chosen.name) {
            (_, true) => "runs here, chosen",
            (true, false) => "runs here",
            (false, false) => "this CPU or system lacks its instructions",
        };
        format!("{:<16}{state}\n", kernel.name)
    };
    Ok(output::print(&KERNELS.iter().map(line).collect::<String>())?)
}
