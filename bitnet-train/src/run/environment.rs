//! What a run ran on: kept beside its numbers.

use serde_json::{Value, json};

use crate::config::TrainSection;
use crate::ops::Precision;

/// Commit, machine and versions, as far as they can be told.
///
/// The commit is the one that was checked out when the program was built, and `uncommitted_changes` whether its sources
/// differed from it then; null where there was no checkout, or no git to ask. `kernel` is that of integer products, `tiles`
/// those of float products, forward and backward.
pub fn describe(train: &TrainSection, threads: usize) -> Value {
    let tiles = [Precision::F32, train.precision].map(|precision| precision.tiles().name);
    json!({
        "commit": Some(env!("BITNET_COMMIT")).filter(|commit| !commit.is_empty()),
        "uncommitted_changes": match env!("BITNET_UNCOMMITTED") {
            "" => None,
            answer => Some(answer == "yes"),
        },
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": cpu_model(),
        "cores": std::thread::available_parallelism().map(usize::from).ok(),
        "threads": threads,
        "kernel": bitnet_infer::kernels::best().map(|k| k.name).ok(),
        "tiles": tiles,
        "precision": train.precision,
        "backward": train.backward,
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
    })
}

/// The processor's own name, where the system tells it.
pub fn cpu_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}
