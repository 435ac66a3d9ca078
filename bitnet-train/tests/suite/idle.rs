//! Keys that cannot take effect, given the others, are refused by name.

use std::fs;
use std::sync::atomic::AtomicBool;

use bitnet_train::config::{Run, RunConfig};
use bitnet_train::run::{self, Choices, Outcome};

use crate::tiny;

/// A config text with `lines` put into their sections.
fn with(base: &str, lines: &[(&str, &str)]) -> String {
    lines.iter().fold(base.to_owned(), |text, (section, line)| {
        let header = format!("[{section}]\n");
        match text.contains(&header) {
            true => text.replacen(&header, &format!("{header}{line}\n"), 1),
            false => format!("{text}{header}{line}\n"),
        }
    })
}

/// A line and the section that it belongs to.
type Line = (&'static str, &'static str);

/// What turns a thing off, and section and name of the key that then has nothing to do, with values that are and are not its default.
const CASES: &[(&[Line], &str, &str, &[&str])] = &[
    (&[("quantization", "weight = \"none\"")], "quantization", "estimator", &["\"ste\"", "\"clipped-ste\""]),
    (&[("model", "init_from = \"folder\"")], "model", "init_std", &["0.02", "0.1"]),
    (&[("optimizer", "weight_decay = 0.0")], "optimizer", "weight_decay_until", &["1.0", "0.5"]),
    (&[("schedule", "switch = 1.0")], "schedule", "second_peak", &["0.3"]),
    (&[("schedule", "second_peak = 1.0")], "schedule", "switch", &["0.3"]),
    (&[], "evaluation", "prompt", &["\"Once\"", "\"Two\""]),
    (&[], "evaluation", "temperature", &["0.8", "1.0"]),
];

#[test]
fn each_key_without_effect_is_refused_by_name() {
    let root = tempfile::tempdir().expect("temp dir");
    let base = tiny::config(root.path(), 8);
    for (cause, section, key, values) in CASES {
        let turned_off = with(&base, cause);
        Run::parse(&turned_off, "x".into(), &[]).unwrap_or_else(|e| panic!("{cause:?}: {e:#}"));
        for value in *values {
            let text = with(&turned_off, &[(section, &format!("{key} = {value}"))]);
            let message = Run::parse(&text, "x".into(), &[]).err().expect("refused").to_string();
            let expected = format!("x: `{section}.{key}` has no effect with ");
            assert!(message.starts_with(&expected), "{message}");
            // From `--set` too.
            let set = [format!("{section}.{key}={value}")];
            let message = Run::parse(&turned_off, "x".into(), &set).err().expect("refused").to_string();
            assert!(message.starts_with(&expected), "{message}");
        }
    }
    for (schedule, key) in [
        ("type = \"constant-then-decay\"\nwarmup_steps = 2\ndecay_fraction = 0.0\nmin_ratio = 0.1", "min_ratio"),
        ("type = \"constant-then-decay\"\nwarmup_steps = 2\ndecay_fraction = 0.1\nmin_ratio = 1.0", "decay_fraction"),
    ] {
        let text = base.replace("type = \"two-stage\"\nwarmup_steps = 2", schedule);
        let message = Run::parse(&text, "x".into(), &[]).err().expect("refused").to_string();
        assert!(message.starts_with(&format!("x: `schedule.{key}` has no effect with ")), "{message}");
    }
}

#[test]
fn what_set_turns_off_needs_no_second_change() {
    let root = tempfile::tempdir().expect("temp dir");
    let base = tiny::config(root.path(), 8).replace("sample_tokens = 0", "sample_tokens = 4");
    let text = with(&base, &[("evaluation", "prompt = \"Two\""), ("quantization", "estimator = \"clipped-ste\"")]);
    for set in ["quantization.weight=none", "evaluation.sample_tokens=0"] {
        let run = Run::parse(&text, "x".into(), &[set.to_owned()]).expect("dropped");
        let printed = run.written().expect("prints").to_string();
        assert_eq!(printed.contains("estimator"), !set.starts_with("quant"), "{printed}");
        assert_eq!(printed.contains("prompt"), set.starts_with("quant"), "{printed}");
    }
}

/// What a run writes reads back as a config of its own, and means the same.
#[test]
fn a_written_config_is_a_config() {
    let root = tempfile::tempdir().expect("temp dir");
    for (cause, ..) in CASES {
        let run = Run::parse(&with(&tiny::config(root.path(), 8), cause), "x".into(), &[]).expect("valid");
        let text = toml::to_string_pretty(&run.written().expect("prints")).expect("prints");
        let again = Run::parse(&text, "y".into(), &[]).unwrap_or_else(|e| panic!("{text}\n{e:#}"));
        let plain: RunConfig = toml::from_str(&text).expect("a config");
        assert_eq!((&again.config, &plain), (&run.config, &run.config));
    }
}

/// The folder of an earlier program holds every key, those without effect too.
#[test]
fn a_run_folder_with_such_keys_resumes_and_says_which_are_no_defaults() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = tiny::run(root.path(), 3, &["quantization.weight=none"]);
    tiny::first_step(&run);
    let path = run.folder().join("config.toml");
    let text = toml::to_string_pretty(&run.config).expect("prints");
    assert!(text.contains("estimator = \"ste\"") && text.contains("prompt = \"Once\""), "{text}");
    fs::write(&path, &text).expect("written");
    assert_eq!(Run::of_folder(&path).expect("reads").warnings, [""; 0]);
    fs::write(&path, text.replace("\"ste\"", "\"clipped-ste\"")).expect("written");
    let warnings = Run::of_folder(&path).expect("reads").warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("`quantization.estimator` has no effect"), "{warnings:?}");
    let outcome = run::resume(&run.folder(), Choices::default(), &AtomicBool::new(false)).expect("resumes");
    assert!(matches!(outcome, Outcome::Finished(_)), "{outcome:?}");
}
