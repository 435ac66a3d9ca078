//! Writes that fail: nothing half-written stays, and what was there before is still whole.

use std::fs;
use std::path::Path;
use std::process::Command;

use bitnet_model::files::hugging_face::WEIGHTS_FILE;
use bitnet_model::files::tensors::{self, OwnedTensor};
use bitnet_model::weights::FloatType;

use crate::folder::{self, Weights};

/// Every file under `folder` with its bytes, hidden ones included.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.push((path.display().to_string(), Vec::new()));
            found.extend(contents(&path));
        } else {
            found.push((path.display().to_string(), fs::read(&path).expect("readable")));
        }
    }
    found.sort();
    found
}

#[test]
fn a_path_under_a_file_is_an_error_that_changes_nothing() {
    let root = tempfile::tempdir().expect("temp dir");
    fs::write(root.path().join("file"), "here first").expect("written");
    let before = contents(root.path());
    let config = folder::config("ternary");
    let path = root.path().join("file/model");
    let error = Weights::random(&config, FloatType::F32, 1).write(&path, &config).expect_err("a file is no folder");
    let message = error.to_string();
    assert!(message.contains("file: cannot create: ") && !message.contains('\n'), "{message}");
    assert_eq!(contents(root.path()), before);
}

#[test]
fn a_file_in_the_place_of_the_folder_is_an_error_that_changes_nothing() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("model");
    fs::write(&path, "here first").expect("written");
    let before = contents(root.path());
    let config = folder::config("ternary");
    let error = Weights::random(&config, FloatType::F32, 1).write(&path, &config).expect_err("a file is in the way");
    assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{error}");
    assert_eq!(contents(root.path()), before, "{error}");
}

#[test]
fn tensors_that_share_a_name_are_refused() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("x.safetensors");
    let twice = [1.0, 2.0].map(|v| ("a".to_owned(), OwnedTensor::f32(&[1], &[v])));
    let error = tensors::write(&path, &twice, ("format", "pt".into())).expect_err("two of one name");
    assert!(error.to_string().ends_with("tensor `a` would be written twice"), "{error}");
    assert_eq!(contents(root.path()), []);
}

/// Runs [`the_child_writes_a_model`] in a process that may not write files beyond 1 KiB: writing then fails half-way, as
/// it does on a full disk.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_loses_nothing_that_existed() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("model");
    let config = folder::config("ternary");
    Weights::random(&config, FloatType::F32, 3).write(&path, &config).expect("there is room");
    let before = contents(root.path());
    assert!(fs::metadata(path.join(WEIGHTS_FILE)).expect("written").len() > 2048, "larger than the limit below");

    let test_binary = std::env::current_exe().expect("a test has a path");
    // The limit counts in blocks of 512 or 1024 bytes; a process that ignores the signal gets an error instead.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 1 || exit 77; exec \"$0\" --exact writes::the_child_writes_a_model"])
        .arg(&test_binary)
        .env(CHILD_PATH, &path)
        .stdout(std::process::Stdio::piped())
        .output()
        .expect("a shell");
    if output.status.code() == Some(77) {
        eprintln!("skipped: this shell cannot limit the size of files");
        return;
    }
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(contents(root.path()), before, "{said}");
}

/// Does nothing by itself; with [`CHILD_PATH`] set, tries to replace the model there and must fail with one line.
#[cfg(unix)]
#[test]
fn the_child_writes_a_model() {
    let Some(path) = std::env::var_os(CHILD_PATH) else { return };
    let config = folder::config("ternary");
    let error = Weights::random(&config, FloatType::F32, 4).write(Path::new(&path), &config).expect_err("no room");
    let message = error.to_string();
    assert!(message.contains(WEIGHTS_FILE) && message.contains(": cannot write: "), "{message}");
    assert!(!message.contains('\n'), "{message}");
}

const CHILD_PATH: &str = "BITNET_TEST_CHILD_PATH";

#[test]
fn a_folder_with_other_files_is_not_replaced() {
    let root = tempfile::tempdir().expect("temp dir");
    let (path, config) = (root.path().join("model"), folder::config("ternary"));
    let weights = Weights::random(&config, FloatType::F32, 1);
    weights.write(&path, &config).expect("into nothing");
    weights.write(&path, &config).expect("over a model");
    fs::write(path.join("notes.txt"), "mine").expect("written");
    let before = contents(root.path());
    let message = weights.write(&path, &config).expect_err("notes would be lost").to_string();
    assert!(message.contains("holds `notes.txt`, which is no part of a model"), "{message}");
    assert_eq!(contents(root.path()), before);
}
