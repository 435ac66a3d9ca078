//! `bitnet-train bench`, and what is told before a run: operations and memory.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::tiny;

fn bitnet_train(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bitnet-train")).args(arguments).output().expect("starts")
}

/// The config of a tiny run, changed, as a file in `folder`.
fn config_in(folder: &Path, changes: &[(&str, &str)]) -> String {
    let mut text = tiny::config(folder, 3);
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let path = folder.join("tiny.toml");
    fs::write(&path, text).expect("written");
    path.display().to_string()
}

#[test]
fn bench_measures_every_part_of_a_step() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = config_in(root.path(), &[]);
    for (ops, precision) in [("fused", "f32"), ("fused", "bf16"), ("reference", "f32")] {
        let sets = [format!("run.ops={ops}"), format!("train.precision={precision}"), "run.threads=2".into()];
        let mut arguments = vec!["bench", &path, "--steps", "3", "--json"];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        let output = bitnet_train(&arguments);
        let notes = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{notes}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("`{key}` in {report}"));

        assert_eq!((&report["ops"], &report["precision"]), (&ops.into(), &precision.into()));
        assert_eq!((number("threads"), number("steps"), number("tokens_per_step")), (2.0, 3.0, 256.0));
        let (step, loss) = (number("step_ms"), number("loss"));
        assert!((number("tokens_per_second") - 256e3 / step).abs() < 1e-6 * 256e3 / step);
        // Random tokens of a vocabulary of 300 cannot be guessed.
        assert!((loss - 300f64.ln()).abs() < 0.2, "{loss}");
        assert!(number("peak_f32_gflops") > 0.0 && number("peak_bf16_gflops") > 0.0);
        let used = number("gflop_per_step") / (step / 1e3) / number("peak_f32_gflops");
        assert!((number("utilisation_f32") - used).abs() < 1e-9, "{used}");

        let profile = report["profile"].as_array().expect("a list");
        if ops == "reference" {
            assert!(profile.is_empty() && report["estimated_memory_mb"].is_null() && !notes.contains("MB of memory"));
            continue;
        }
        let estimate = format!("about {:.0} MB of memory", number("estimated_memory_mb"));
        assert!(notes.contains(&estimate), "{estimate}: {notes}");
        let shares: f64 = profile.iter().map(|op| op["share"].as_f64().expect("a share")).sum();
        assert!(shares > 0.3 && shares < 1.1, "shares of {shares} in {profile:?}");
        let names: Vec<&str> = profile.iter().filter_map(|op| op["op"].as_str()).collect();
        for name in ["project", "attention", "head", "input-gradient", "weight-gradient", "attention-gradient"] {
            assert!(names.contains(&name), "{name} in {names:?}");
            let op = &profile[names.iter().position(|of| *of == name).expect("there")];
            assert!(op["gflops"].as_f64() > Some(0.0), "{op}");
        }
    }
}

#[test]
fn bench_refuses_what_it_cannot_measure_in_one_line() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = config_in(root.path(), &[]);
    for (arguments, expected) in [
        (vec!["bench", "--size", "C"], "`--size` is `C`, expected A or B"),
        (vec!["bench", &path, "--steps", "0"], "`--steps` is 0"),
        (vec!["bench", &path, "--set", "tokenizer.type=file", "--set", "tokenizer.path=x"], "give `--vocabulary`"),
    ] {
        let output = bitnet_train(&arguments);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(expected), "{arguments:?}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    }
}

/// Counted one by one, as the network multiplies: every token with every weight, every query with every key it sees.
#[test]
fn operations_of_a_step_are_those_that_counting_gives() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = tiny::run(root.path(), 3, &["model.head_dim=6"]);
    let config = run.model_config(300, None).expect("a network");
    let (sequences, tokens) = (4 * 2, 32);
    let mut multiplications = 0u64;
    for _ in 0..sequences {
        for query in 0..tokens {
            for _ in 0..2 {
                let (hidden, queries, keys, gate) = (32, 4 * 6, 2 * 6, 48);
                let projections = hidden * queries + 2 * hidden * keys + queries * hidden + 3 * hidden * gate;
                // Forward, and for the gradients of both factors.
                multiplications += 3 * projections;
                for _ in 0..4 {
                    // Scores and mixed values forward; gradients of values, of probabilities, of queries and of keys.
                    multiplications += (query + 1) * 6 * (2 + 4);
                }
            }
            multiplications += 3 * 32 * 300;
        }
    }
    assert_eq!(run.operations_per_step(&config), 2.0 * multiplications as f64);
}

/// A run large enough that its buffers, not the program, make up its memory.
#[test]
fn the_peak_memory_of_a_run_is_near_its_estimate() {
    const LARGER: [(&str, &str); 6] = [
        ("hidden_size = 32", "hidden_size = 128"),
        ("intermediate_size = 48", "intermediate_size = 384"),
        ("num_hidden_layers = 2", "num_hidden_layers = 4"),
        ("batch_size = 4", "batch_size = 32"),
        ("sequence_length = 32", "sequence_length = 128"),
        ("every = 5", "every = 1"),
    ];
    let root = tempfile::tempdir().expect("temp dir");
    let path = config_in(root.path(), &LARGER);
    for (name, sets) in [
        ("ternary", vec![]),
        ("int8", vec!["quantization.weight=int8"]),
        ("none", vec!["quantization.weight=none", "train.precision=bf16"]),
        ("again", vec!["train.gradient_checkpointing=true", "train.gradient_accumulation=1"]),
    ] {
        let named = format!("run.name={name}");
        let mut arguments = vec!["run", path.as_str(), "--set", &named];
        sets.iter().for_each(|set| arguments.extend(["--set", set]));
        let output = bitnet_train(&arguments);
        let notes = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{notes}");
        let result = fs::read(root.path().join(name).join("result.json")).expect("a complete run");
        let result: Value = serde_json::from_slice(&result).expect("JSON");
        let estimated = result["estimated_memory"].as_f64().expect("the ops know");
        let Some(peak) = result["peak_memory"].as_f64() else {
            println!("this system does not tell a process its peak memory: not compared");
            return;
        };
        println!("{name}: {:.1} MB, estimated {:.1}", peak / 1e6, estimated / 1e6);
        assert!((peak / estimated - 1.0).abs() < 0.25, "{name}: {peak} bytes, estimated {estimated}");
        let told = format!("peak memory {:.0} MB (estimated {:.0} MB)", peak / 1e6, estimated / 1e6);
        assert!(notes.contains(&told), "{told}: {notes}");
    }
}

/// The config of `bench` is checked like that of a run.
#[test]
fn sizes_of_bench_are_valid_configs() {
    let output = bitnet_train(&["bench", "--size", "A", "--set", "train.stpes=1"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("size A") && message.contains("unknown field `stpes`"), "{message}");
}
