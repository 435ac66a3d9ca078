//! What a run ran on: kept beside its numbers.

use std::process::Command;

use serde_json::{Value, json};

/// Commit, machine and versions, as far as they can be told.
pub fn describe(threads: usize) -> Value {
    json!({
        "commit": git(&["rev-parse", "HEAD"]),
        "uncommitted_changes": git(&["status", "--porcelain"]).map(|s| !s.is_empty()),
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": cpu_model(),
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "threads": threads,
        "kernel": bitnet_infer::kernels::best().map(|k| k.name).ok(),
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
    })
}

/// The processor's own name.
pub fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
    String::from_utf8(output.stdout).ok().map(|s| s.trim().to_owned())
}
