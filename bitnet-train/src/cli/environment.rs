//! Settings that libraries read from the environment when a process starts.
//!
//! candle's own loops and mimalloc take theirs from there and nowhere else. The config is read first, so the process
//! replaces itself once, with the variables set. A variable that a person has set stays as it is.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result};

/// Set in the second life of the process.
const DONE: &str = "BITNET_TRAIN_SETTLED";

/// Returns in a process whose environment says `threads` (0: one per core), and never otherwise.
///
/// # Errors
/// If the process cannot be replaced.
pub fn settle(threads: usize) -> Result<()> {
    if std::env::var_os(DONE).is_some() {
        return Ok(());
    }
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let mut command = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
    command.args(std::env::args_os().skip(1)).env(DONE, "1");
    for (name, value) in [
        ("CANDLE_NUM_THREADS", threads.to_string()),
        ("RAYON_NUM_THREADS", threads.to_string()),
        // Freed pages stay in the process: a step frees and takes the same gigabyte, and the kernel clears each page anew.
        ("MIMALLOC_PURGE_DELAY", "-1".to_owned()),
        // candle's loops spin while they wait; briefly, so that a shared machine is not starved.
        ("CANDLE_BARRIER_POOL_SPIN_LIMIT", "1000".to_owned()),
    ] {
        let value: OsString = std::env::var_os(name).unwrap_or(value.into());
        command.env(name, value);
    }
    replace(command)
}

#[cfg(unix)]
fn replace(mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    // `exec` returns only if it failed.
    Err(command.exec()).context("cannot start this program anew")
}

#[cfg(not(unix))]
fn replace(mut command: Command) -> Result<()> {
    let status = command.status().context("cannot start this program anew")?;
    std::process::exit(status.code().unwrap_or(1));
}
