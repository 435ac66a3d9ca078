//! A run says which commit its program was built from, wherever it is started.

#[path = "../../build/checkout.rs"]
mod checkout;

use std::fs;
use std::path::Path;
use std::process::Command;

use bitnet_train::ops::kernels::product::{BF16, F32, best};
use checkout::{Head, head};
use serde_json::{Value, json};

use crate::tiny;

const HASHES: [&str; 2] = ["0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"];

fn write(root: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("below the root")).expect("made");
        fs::write(path, text).expect("written");
    }
}

/// The commit that these files mean, and the files below the root that decide it.
fn found(files: &[(&str, &str)]) -> (Option<String>, Vec<String>) {
    let root = tempfile::tempdir().expect("temp dir");
    write(root.path(), files);
    let Head { commit, decided_by } = head(root.path());
    let name = |path: &Path| path.strip_prefix(root.path()).expect("below").display().to_string();
    (commit, decided_by.iter().map(|path| name(path)).collect())
}

#[test]
fn every_kind_of_checkout_is_read() {
    let [first, second] = HASHES;
    let packed = format!("# pack-refs with: peeled\n{first} refs/heads/other\n{second} refs/heads/main\n^{first}\n");
    let check = |files: &[(&str, &str)], commit: Option<&str>, decided_by: &[&str]| {
        assert_eq!(
            found(files),
            (commit.map(str::to_owned), decided_by.iter().map(|p| p.to_string()).collect()),
            "{files:?}"
        );
    };
    check(&[], None, &[]);
    check(&[(".git/HEAD", &format!("{first}\n"))], Some(first), &[".git/HEAD"]);
    check(
        &[
            (".git/HEAD", "ref: refs/heads/a/b\n"),
            (".git/refs/heads/a/b", &format!("{second}\n")),
            (".git/packed-refs", ""),
        ],
        Some(second),
        &[".git/HEAD", ".git/refs/heads/a/b"],
    );
    check(
        &[(".git/HEAD", "ref: refs/heads/main\n"), (".git/packed-refs", &packed), (".git/refs/heads/other", first)],
        Some(second),
        &[".git/HEAD", ".git/packed-refs", ".git/refs/heads"],
    );
    check(
        &[
            (".git", "gitdir: main/.git/worktrees/w\n"),
            ("main/.git/worktrees/w/HEAD", "ref: refs/heads/w\n"),
            ("main/.git/worktrees/w/commondir", "../..\n"),
            ("main/.git/refs/heads/w", first),
        ],
        Some(first),
        &["main/.git/worktrees/w/HEAD", "main/.git/worktrees/w/../../refs/heads/w"],
    );
    check(&[(".git/HEAD", "ref: refs/heads/main\n"), (".git/refs/x", "")], None, &[".git/HEAD"]);
    check(&[(".git/HEAD", "rubbish")], None, &[".git/HEAD"]);
    check(&[(".git", "rubbish")], None, &[]);
}

#[test]
fn the_environment_names_the_commit_of_the_build_from_any_folder() {
    let root = tempfile::tempdir().expect("temp dir");
    // Another checkout in the current folder must not be taken for the program's own.
    write(root.path(), &[(".git/HEAD", HASHES[0]), ("tiny.toml", &tiny::config(root.path(), 3))]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
    let output = command
        .args(["run", "tiny.toml", "--set", "train.precision=bf16"])
        .current_dir(root.path())
        .output()
        .expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read_to_string(root.path().join("tiny/environment.json")).expect("written");
    let environment: Value = serde_json::from_str(&text).expect("JSON");
    let commit = head(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).commit;
    assert_eq!(environment["commit"].as_str(), commit.as_deref());
    assert!(matches!(environment["uncommitted_changes"], Value::Bool(_) | Value::Null), "{environment}");
    let tiles = [F32, BF16].map(|table| best(table).name);
    assert_eq!(environment["tiles"], json!(tiles));
    assert_eq!((&environment["precision"], &environment["backward"]), (&json!("bf16"), &json!("float")));
}
