//! A run that is killed and resumed takes the same steps as one that is left alone, bit for bit.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use bitnet_train::config::Run;
use bitnet_train::run::{self, Outcome};

use crate::tiny;

const STEPS: u64 = 300;

fn spawn(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().expect("starts")
}

fn finish(child: Child) {
    let output = child.wait_with_output().expect("ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn config_in(folder: &Path) -> String {
    let path = folder.join("tiny.toml");
    fs::write(&path, tiny::config(folder, STEPS)).expect("written");
    path.display().to_string()
}

#[test]
fn a_killed_run_resumes_exactly() {
    let (alone, killed) = (tempfile::tempdir().expect("temp dir"), tempfile::tempdir().expect("temp dir"));
    finish(spawn(&["run", &config_in(alone.path())]));

    let folder = killed.path().join("tiny");
    let mut child = spawn(&["run", &config_in(killed.path())]);
    let started = Instant::now();
    while tiny::metrics(&folder, "train").len() < 12 {
        assert!(started.elapsed() < Duration::from_secs(120), "no twelve steps in two minutes");
        assert!(child.try_wait().expect("a child").is_none(), "ended before it could be killed");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("SIGKILL");
    child.wait().expect("ends");
    let before = tiny::metrics(&folder, "train").len() as u64;
    assert!(before < STEPS, "killed too late to show anything");

    finish(spawn(&["resume", &folder.display().to_string()]));
    for kind in ["train", "codes", "validation"] {
        let (expected, found) = (tiny::metrics(&alone.path().join("tiny"), kind), tiny::metrics(&folder, kind));
        assert!(!expected.is_empty());
        assert_eq!(expected, found, "{kind} differs between the uninterrupted and the resumed run");
    }
    let weights = |root: &Path| fs::read(root.join("tiny/model/model.safetensors")).expect("exported");
    assert!(weights(alone.path()) == weights(killed.path()), "the exported weights differ");
}

/// Random numbers of int8 gradients are a function of seed, step and place; blocks are computed again; products are bf16.
#[test]
fn a_resumed_run_draws_the_same_random_numbers() {
    const CHANGES: [&str; 5] = [
        "train.backward=int8",
        "train.precision=bf16",
        "train.gradient_checkpointing=true",
        "run.seed=5",
        // The stop lies between two reports, so codes are compared across it.
        "train.log_every=2",
    ];
    let (alone, stopped) = (tempfile::tempdir().expect("temp dir"), tempfile::tempdir().expect("temp dir"));
    let [whole, halves] = [&alone, &stopped].map(|root| tiny::run(root.path(), 6, &CHANGES));
    tiny::data(&whole);
    let finished = |outcome| assert!(matches!(outcome, Outcome::Finished(Some(_))), "{outcome:?}");
    finished(run::start(&whole, false, &AtomicBool::new(false)).expect("runs"));
    tiny::first_step(&halves);
    finished(run::resume(&halves.folder(), &AtomicBool::new(false)).expect("resumes"));
    for kind in ["train", "codes", "validation"] {
        let (expected, found) = (tiny::metrics(&whole.folder(), kind), tiny::metrics(&halves.folder(), kind));
        assert!(!expected.is_empty());
        assert_eq!(expected, found, "{kind} differs between the whole and the resumed run");
    }
    let weights = |run: &Run| fs::read(run.folder().join("model/model.safetensors")).expect("exported");
    assert!(weights(&whole) == weights(&halves), "the exported weights differ");
}

#[test]
fn an_interrupt_saves_after_the_step_and_says_where() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = tiny::run(root.path(), 8, &[]);
    let path = tiny::first_step(&run);
    assert!(path.ends_with("checkpoints/step-00000001"), "{}", path.display());
    let Outcome::Finished(Some(model)) = run::resume(&run.folder(), &AtomicBool::new(false)).expect("resumes") else {
        panic!("expected a finished run");
    };
    assert!(model.join("config.json").exists());
    assert_eq!(tiny::metrics(&run.folder(), "train").len(), 8);
}

#[test]
fn other_data_and_missing_checkpoints_are_refused() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = tiny::run(root.path(), 8, &[]);
    tiny::first_step(&run);
    let leftover = run.folder().join("checkpoints/.step-00000009.1.tmp");
    fs::create_dir(&leftover).expect("made");
    let config = run.folder().join("config.toml");
    let text = fs::read_to_string(&config).expect("config");
    fs::write(&config, text.replace("count = 60", "count = 61")).expect("written");
    let message = run::resume(&run.folder(), &AtomicBool::new(false)).expect_err("other data").to_string();
    assert!(message.contains("the training data has changed since this checkpoint"), "{message}");
    assert!(!leftover.exists(), "what a killed process left is removed");

    fs::write(&config, text).expect("written");
    fs::remove_dir_all(run.folder().join("checkpoints/step-00000001")).expect("removed");
    let message = run::resume(&run.folder(), &AtomicBool::new(false)).expect_err("no checkpoint").to_string();
    assert!(message.contains("holds no checkpoint yet"), "{message}");
    let message = run::start(&run, false, &AtomicBool::new(false)).expect_err("a run is there").to_string();
    assert!(message.contains("already holds a run") && message.contains("--overwrite"), "{message}");
}

#[test]
fn a_loss_that_is_not_a_number_stops_the_run_and_names_the_checkpoint() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = tiny::run(root.path(), 8, &[]);
    tiny::first_step(&run);
    // The file ends with the numbers of its last tensor, a norm; one of them that is as large as a number can be spoils every
    // loss.
    let weights = run.folder().join("checkpoints/step-00000001/model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::MAX.to_le_bytes());
    fs::write(&weights, bytes).expect("written");
    let error = run::resume(&run.folder(), &AtomicBool::new(false)).expect_err("no number");
    let message = format!("{error:#}");
    assert!(message.contains("step 2: the loss is NaN"), "{message}");
    assert!(message.contains("the last good checkpoint is") && message.contains("(step 1)"), "{message}");
}

#[test]
fn an_interrupt_while_the_data_is_prepared_begins_no_run() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = tiny::run(root.path(), 8, &[]);
    let outcome = run::start(&run, false, &AtomicBool::new(true)).expect("stops");
    assert!(matches!(outcome, Outcome::Interrupted(None)), "{outcome:?}");
    assert!(!run.folder().exists(), "no step, no folder");
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_preparation_of_data() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("tiny.toml");
    // Far more text than is tokenized while this waits.
    let text = tiny::config(root.path(), STEPS).replace("count = 60", "count = 2000000");
    fs::write(&path, text.replace("vocab_size = 300", "vocab_size = 300\ntrain_bytes = 50000")).expect("written");
    let mut child = spawn(&["run", &path.display().to_string()]);
    let files = || fs::read_dir(root.path().join("cache")).into_iter().flatten().flatten();
    let half_written = || files().filter(|file| file.file_name().to_string_lossy().ends_with(".tmp")).count();
    let started = Instant::now();
    // The tokenizer is kept; the shard of the train split is begun.
    while half_written() == 0 || files().count() < 2 {
        assert!(started.elapsed() < Duration::from_secs(120), "no shard begun in two minutes");
        assert!(child.try_wait().expect("a child").is_none(), "ended before it could be stopped");
        std::thread::sleep(Duration::from_millis(2));
    }
    let signal = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(signal.expect("a `kill` program").success());
    let output = child.wait_with_output().expect("ends");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(message.contains("stopped before the first step"), "{message}");
    assert_eq!((half_written(), files().count()), (0, 1), "the tokenizer alone is complete");
    assert!(!root.path().join("tiny").exists(), "no step, no folder");
}

#[test]
fn two_processes_do_not_write_one_run() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = tiny::run(root.path(), 4, &[]);
    tiny::first_step(&run);
    // A lock of this process's own counts as much as another's: it belongs to the opened file.
    let lock = fs::File::open(run.folder().join("lock")).expect("every run has one");
    lock.try_lock().expect("nobody writes there now");
    let refused =
        [run::resume(&run.folder(), &AtomicBool::new(false)), run::start(&run, true, &AtomicBool::new(false))];
    for outcome in refused {
        let message = format!("{:#}", outcome.expect_err("locked"));
        let expected = format!("{}: another bitnet-train is writing this run", run.folder().display());
        assert!(message.starts_with(&expected) && !message.contains('\n'), "{message}");
    }
    assert!(run.folder().join("checkpoints/step-00000001").exists(), "nothing was removed");
    drop(lock);
    let outcome = run::resume(&run.folder(), &AtomicBool::new(false)).expect("free again");
    assert!(matches!(outcome, Outcome::Finished(_)), "{outcome:?}");
}
