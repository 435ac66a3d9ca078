//! A resume takes no more memory than the run that it continues. A binary of its own, since the memory of everything in the
//! process is counted.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use bitnet_train::config::Run;
use bitnet_train::data::{self, Trust};
use bitnet_train::run::{self, Choices, Latest, Outcome, RunFolder};
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What a reader may take for itself, whatever the size of the file: a piece of it, names, and a header.
const ALLOWANCE: usize = 2 << 20;

/// A model whose moments (21 MB) are far larger than everything that a step works in.
fn config(folder: &Path) -> Run {
    let text = format!(
        r#"
[run]
name = "run"
dir = "{dir}"
[model]
hidden_size = 256
intermediate_size = 512
num_hidden_layers = 4
num_attention_heads = 4
[tokenizer]
type = "bpe"
vocab_size = 300
[data]
cache_dir = "{dir}/cache"
[data.source]
type = "stories"
count = 20
[train]
steps = 4
batch_size = 1
sequence_length = 8
[optimizer]
learning_rate = 1e-3
[schedule]
type = "linear"
warmup_steps = 1
[evaluation]
sample_tokens = 0
windows = 1
[export]
at_end = false
"#,
        dir = folder.display()
    );
    Run::parse(&text, "test".into(), &[]).expect("valid")
}

/// What `f` gives, and the most memory that the process had meanwhile beyond what it has now.
fn most<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let out = f();
    (out, MEMORY.peak_usage().saturating_sub(before))
}

#[test]
fn a_resume_takes_no_more_memory_than_the_run() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = config(root.path());
    let unused = Path::new("unused");
    data::prepare(&run.config.data, &run.config.tokenizer, unused, Trust::SizeAndTime, &|_| Ok(())).expect("prepared");
    // With all data in the cache, a flag that was up from the beginning is first seen after a step.
    let stop = AtomicBool::new(true);
    let stopped = |outcome| assert!(matches!(outcome, Outcome::Interrupted(Some(_))), "{outcome:?}");
    let (outcome, started) = most(|| run::start(&run, Choices::default(), &stop).expect("runs"));
    stopped(outcome);
    let (outcome, resumed) = most(|| run::resume(&run.folder(), Choices::default(), &stop).expect("resumes"));
    stopped(outcome);

    let latest = Latest::find(&RunFolder::open(&run.folder()).expect("a run")).expect("a checkpoint");
    assert_eq!(latest.state.step, 2);
    let model = run.model_config(300, None).expect("valid");
    let (parameters, taken) = most(|| run::load_parameters(&latest.path, &model).expect("there"));
    let numbers = model.parameters() as usize;
    println!("start {started}, resume {resumed}, {numbers} parameters, read with {taken}");
    assert!(taken <= 4 * numbers + ALLOWANCE, "{taken} bytes to read {numbers} parameters of 4");
    let (optimizer, taken) = most(|| latest.optimizer(run.config.optimizer.clone(), &parameters).expect("there"));
    println!("moments read with {taken}");
    assert!(taken <= 8 * numbers + ALLOWANCE, "{taken} bytes to read two moments of 4 for {numbers} parameters");
    drop(optimizer);
    assert!(resumed <= started + ALLOWANCE, "{resumed} bytes to resume a run that began with {started}");
}
