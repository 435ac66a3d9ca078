//! A run small enough for a test: built-in stories, two narrow blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bitnet_train::config::Run;
use bitnet_train::data::{self, Prepared, Trust};
use bitnet_train::run::{self, Choices, Outcome};
use serde_json::Value;

/// The config file of a tiny run in `folder`.
pub fn config(folder: &Path, steps: u64) -> String {
    format!(
        r#"
[run]
name = "tiny"
dir = "{dir}"
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
[tokenizer]
type = "bpe"
vocab_size = 300
[data]
cache_dir = "{dir}/cache"
[data.source]
type = "stories"
count = 60
[train]
steps = {steps}
batch_size = 4
sequence_length = 32
gradient_accumulation = 2
log_every = 1
[optimizer]
learning_rate = 5e-3
[schedule]
type = "two-stage"
warmup_steps = 2
[evaluation]
sample_tokens = 0
windows = 20
[checkpoint]
every = 5
"#,
        dir = folder.display()
    )
}

/// A resolved tiny run with changes.
pub fn run(folder: &Path, steps: u64, assignments: &[&str]) -> Run {
    let path = folder.join("tiny.toml");
    fs::write(&path, config(folder, steps)).expect("written");
    let assignments: Vec<String> = assignments.iter().map(|&a| a.to_owned()).collect();
    Run::read(&path, &assignments).expect("valid")
}

/// The data of a tiny run, made or taken from its cache.
pub fn data(run: &Run) -> Prepared {
    let unused = Path::new("unused");
    data::prepare(&run.config.data, &run.config.tokenizer, unused, Trust::SizeAndTime, &|_| Ok(())).expect("prepared")
}

/// Takes the first step of a run, stops it there, and gives its checkpoint.
pub fn first_step(run: &Run) -> PathBuf {
    // With all data in the cache, a flag that was up from the beginning is first seen after a step.
    data(run);
    match run::start(run, Choices::default(), &AtomicBool::new(true)).expect("runs") {
        Outcome::Interrupted(Some(checkpoint)) => checkpoint,
        other => panic!("expected an interrupted run, found {other:?}"),
    }
}

/// The lines of `metrics.jsonl` of one kind, without the rates, which no two runs share.
pub fn metrics(run_folder: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(run_folder.join("metrics.jsonl")).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["kind"] == kind)
        .map(|mut line| {
            line.as_object_mut().expect("an object").remove("tok_per_s");
            line
        })
        .collect()
}
