//! How often a corpus is read, counted by the system, and what happens to one that changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use bitnet_train::config::Run;
use bitnet_train::data::{self, Prepared, Trust};
use bitnet_train::run::{self, Choices};

use crate::tiny;

/// Bytes that this thread has read from files, where the system counts them.
fn read_so_far() -> Option<f64> {
    let text = fs::read_to_string("/proc/thread-self/io").ok()?;
    text.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse().ok())
}

/// An hour ago: changes of files that are older than a clock's tick show.
fn make_old(path: &Path) {
    let file = fs::File::options().write(true).open(path).expect("opens");
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("has a time");
}

fn run_on(root: &Path, kind: &str, path: &Path) -> Run {
    let sets = [
        &format!("data.source.type={kind}"),
        &format!("data.source.path={}", path.display()),
        // The sample that the tokenizer is trained on is a small part of the corpus.
        "tokenizer.train_bytes=20000",
    ];
    tiny::run(root, 8, &sets)
}

#[test]
fn a_corpus_is_read_twice_to_begin_with_and_never_again() {
    if read_so_far().is_none() {
        eprintln!("skipped: this system does not count what a thread reads");
        return;
    }
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("corpus.jsonl");
    let line = |i: u32| format!("{{\"text\": \"document {i}: {}\"}}\n", "the cat sat on the mat ".repeat(40));
    let text: String = (0..8000).map(line).collect();
    fs::write(&path, &text).expect("written");
    make_old(&path);
    let passes = |f: &dyn Fn()| {
        let before = read_so_far().expect("counted");
        f();
        (read_so_far().expect("counted") - before) / text.len() as f64
    };
    let run = run_on(root.path(), "jsonl", &path);
    let stop = AtomicBool::new(true);
    let start = |trust| {
        run::start(&run, Choices { overwrite: true, force: false, trust }, &stop).expect("runs");
    };
    let resume = |trust| {
        run::resume(&run.folder(), Choices { overwrite: false, force: false, trust }, &stop).expect("resumes");
    };
    // The flag ends a preparation, too; what it needs is made before.
    let unused = Path::new("unused");
    let prepare = || {
        data::prepare(&run.config.data, &run.config.tokenizer, unused, Trust::SizeAndTime, &|_| Ok(()))
            .expect("prepared");
    };
    // Once to count and to hash, once to tokenize both parts, and a buffer's worth for the tokenizer.
    let first = passes(&prepare);
    assert!((2.0..2.3).contains(&first), "the first start reads the corpus {first} times");
    for (name, count) in [
        ("a second start", passes(&|| start(Trust::SizeAndTime))),
        ("a resume", passes(&|| resume(Trust::SizeAndTime))),
    ] {
        assert!(count < 0.1, "{name} reads the corpus {count} times");
    }
    let run = || {
        let unstopped = AtomicBool::new(false);
        let choices = Choices { trust: Trust::Nothing, ..Choices::default() };
        run::resume(&run.folder(), choices, &unstopped).expect("resumes");
    };
    let verified = passes(&run);
    assert!((1.0..1.2).contains(&verified), "a verifying resume reads the corpus {verified} times");
}

struct Text {
    root: tempfile::TempDir,
    path: PathBuf,
}

impl Text {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("corpus.txt");
        fs::write(&path, "one two three four five six\n".repeat(400)).expect("written");
        make_old(&path);
        Self { root, path }
    }

    fn prepare(&self, trust: Trust) -> Prepared {
        let run = run_on(self.root.path(), "text", &self.path);
        data::prepare(&run.config.data, &run.config.tokenizer, Path::new("unused"), trust, &|_| Ok(()))
            .expect("prepared")
    }
}

/// Writes `bytes` to `path` and gives it the time that it had.
fn replace_unseen(path: &Path, bytes: &[u8]) {
    let time = fs::metadata(path).and_then(|about| about.modified()).expect("has a time");
    // Removed first: the old file may be mapped, and a map must not change.
    fs::remove_file(path).expect("removed");
    fs::write(path, bytes).expect("written");
    fs::File::options().write(true).open(path).expect("opens").set_modified(time).expect("has a time");
}

#[test]
fn a_change_without_a_trace_is_found_where_it_is_looked_for() {
    let text = Text::new();
    let first = text.prepare(Trust::SizeAndTime);
    let changed = fs::read_to_string(&text.path).expect("text").replace("three", "seven");
    replace_unseen(&text.path, changed.as_bytes());
    let trusted = text.prepare(Trust::SizeAndTime);
    assert_eq!((trusted.train.fingerprint(), trusted.warnings.len()), (first.train.fingerprint(), 0));
    let verified = text.prepare(Trust::Nothing);
    assert_ne!(verified.train.fingerprint(), first.train.fingerprint());
    assert!(verified.warnings.iter().any(|warning| warning.contains("is not the one that was read")), "{verified:?}");
    // From then on the new text is what is known.
    let known = text.prepare(Trust::SizeAndTime);
    assert_eq!((known.train.fingerprint(), known.warnings.len()), (verified.train.fingerprint(), 0));
    // With another time it is read by itself.
    fs::write(&text.path, changed.replace("seven", "eight")).expect("written");
    assert_ne!(text.prepare(Trust::SizeAndTime).train.fingerprint(), verified.train.fingerprint());
}

#[test]
fn damage_of_a_shard_is_found_by_its_time_or_where_it_is_looked_for() {
    let text = Text::new();
    let first = text.prepare(Trust::SizeAndTime);
    let tokens = first.train.tokens(0, first.train.len());
    let shard =
        fs::read_dir(text.root.path().join("cache")).expect("a cache").map(|entry| entry.expect("entry").path());
    let shard = shard
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("train-")));
    let shard = shard.expect("a shard of the train split");
    let good = fs::read(&shard).expect("readable");
    let mut bad = good.clone();
    *bad.last_mut().expect("bytes") ^= 1;

    replace_unseen(&shard, &bad);
    assert_eq!(text.prepare(Trust::SizeAndTime).warnings, [""; 0]);
    let verified = text.prepare(Trust::Nothing);
    assert!(verified.warnings.iter().any(|warning| warning.contains("checksum")), "{:?}", verified.warnings);
    assert_eq!(verified.train.tokens(0, verified.train.len()), tokens);

    fs::remove_file(&shard).expect("removed");
    fs::write(&shard, &bad).expect("written");
    make_old(&shard);
    let seen = text.prepare(Trust::SizeAndTime);
    assert!(seen.warnings.iter().any(|warning| warning.contains("checksum")), "{:?}", seen.warnings);
    assert!(fs::read(&shard).expect("readable") == good);
}
