//! Tells the crate which commit it is built from, and whether its sources differ from that commit.

mod checkout;

use std::path::Path;
use std::process::Command;

/// Everything in the workspace that decides what the program computes, from its top folder.
const SOURCES: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "bitnet-model/Cargo.toml",
    "bitnet-model/src",
    "bitnet-infer/Cargo.toml",
    "bitnet-infer/src",
    "bitnet-train/Cargo.toml",
    "bitnet-train/build",
    "bitnet-train/src",
];

fn main() {
    let root = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    let head = checkout::head(&root);
    let changed = head.commit.as_ref().and_then(|_| changed(&root));
    println!("cargo::rustc-env=BITNET_COMMIT={}", head.commit.unwrap_or_default());
    println!(
        "cargo::rustc-env=BITNET_UNCOMMITTED={}",
        changed.map_or("", |changed| if changed { "yes" } else { "no" })
    );
    // A path that does not exist would make every build run this again.
    let sources = SOURCES.iter().map(|source| root.join(source)).filter(|path| path.exists());
    for path in head.decided_by.into_iter().chain(sources) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// Whether the sources differ from the commit, if git can tell.
fn changed(root: &Path) -> Option<bool> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["--no-optional-locks", "status", "--porcelain", "--"]).args(SOURCES);
    let output = git.output().ok().filter(|output| output.status.success())?;
    Some(!output.stdout.is_empty())
}
