//! What looks wrong and can be: every command that reads a model says it, in the same words.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bitnet_infer::engine;
use bitnet_infer::eval::inspect::inspect;
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;

use crate::common::write_model;
use crate::conversions::{config, converted, open, options};

/// Replaces the bytes of a tensor of a folder by as many repetitions of `pattern`.
fn fill(folder: &Path, name: &str, pattern: &[u8]) {
    let records = open(folder).with_weights(|weights| Ok::<_, engine::Error>(weights.tensors())).expect("reads");
    let record = records.into_iter().find(|record| record.name == name).expect("there");
    let file = folder.join("model.safetensors");
    let mut bytes = fs::read(&file).expect("weights");
    let place = &mut bytes[record.offset..record.offset + record.bytes];
    place.chunks_exact_mut(pattern.len()).for_each(|number| number.copy_from_slice(pattern));
    fs::write(&file, bytes).expect("written");
}

/// A model with a matrix of zeros, a scale beyond all that are trained, and a norm of zeros.
fn odd_model(folder: &Path) -> [String; 3] {
    let config = ModelConfig { num_hidden_layers: 2, ..config("ternary", true) };
    write_model(folder, &config, 3);
    let [up, down, norm] =
        ["0.mlp.up_proj", "1.mlp.down_proj", "1.input_layernorm"].map(|name| format!("model.layers.{name}.weight"));
    // Four codes of zero.
    fill(folder, &up, &[0b0101_0101]);
    fill(folder, &format!("{down}_scale"), &4096f32.to_le_bytes());
    fill(folder, &norm, &[0; 4]);
    [
        format!("tensor `{up}` is all zeros: its layer adds nothing"),
        format!("tensor `{norm}` is all zeros: its layer adds nothing"),
        format!("tensor `{down}` has a scale of 4.096e3, which no trained model has"),
    ]
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-infer"));
    command.stdin(Stdio::null()).env_remove("BITNET_KERNEL").env_remove("BITNET_TERNARY").arg("--threads=1");
    command.args(arguments).output().expect("the program runs")
}

/// The lines that warn, of both streams.
fn warned(output: &Output) -> Vec<String> {
    let lines = [&output.stdout, &output.stderr].map(|stream| String::from_utf8(stream.clone()).expect("UTF-8"));
    let warning = |line: &str| line.strip_prefix("warning: ").map(str::to_owned);
    lines.iter().flat_map(|text| text.lines().filter_map(warning).collect::<Vec<_>>()).collect()
}

#[test]
fn every_command_says_what_inspect_does() {
    let root = tempfile::tempdir().expect("temp dir");
    let (folder, destination) = (root.path().join("odd"), root.path().join("converted"));
    let expected = odd_model(&folder);
    assert_eq!(inspect(&folder).expect("reads").warnings, expected);
    assert_eq!(engine::open(&folder, kernels::best().expect("a kernel")).expect("runs").warnings, expected);
    let (odd, to) = (folder.to_str().expect("UTF-8"), destination.to_str().expect("UTF-8"));
    let text = root.path().join("text");
    fs::write(&text, "a text to be measured").expect("written");
    let text = text.to_str().expect("UTF-8");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let commands = [
        (&["inspect", odd][..], true),
        (&["convert", odd, to, "--to", "gguf-tq2", "--verify", "0"], true),
        (&["generate", odd, "a", "-n", "2"], true),
        (&["perplexity", odd, text, "--context", "8"], true),
        (&["chat", odd, "--chat-template", "plain"], true),
        // The address is taken, but the model is loaded first.
        (&["serve", odd, "--port", &port], false),
    ];
    for (arguments, succeeds) in commands {
        let output = run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), succeeds, "{arguments:?}: {stderr}");
        // llama.cpp's own troubles with a model are warnings of `convert` alone.
        let found: Vec<String> = warned(&output).into_iter().filter(|line| line.starts_with("tensor `")).collect();
        assert_eq!(found, expected, "{arguments:?}: {stderr}");
    }
}

#[test]
fn a_head_that_is_said_to_be_tied_and_is_not_is_a_warning_of_every_load() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = root.path().join("model");
    write_model(&folder, &ModelConfig { tie_word_embeddings: false, ..config("ternary", true) }, 3);
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).expect("written");
    let tied = text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    assert_ne!(text, tied);
    fs::write(&path, tied).expect("written");
    let loaded = engine::open(&folder, kernels::best().expect("a kernel")).expect("runs");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].starts_with("the configuration ties the head"), "{:?}", loaded.warnings);
    let found = inspect(&folder).expect("reads");
    assert_eq!((&found.warnings, found.notes), (&loaded.warnings, Vec::new()));

    // Every command says it, and computes with the file's head.
    let untied = root.path().join("untied");
    fs::create_dir(&untied).expect("made");
    for entry in fs::read_dir(&folder).expect("folder") {
        let entry = entry.expect("entry");
        fs::copy(entry.path(), untied.join(entry.file_name())).expect("copied");
    }
    fs::write(untied.join("config.json"), text).expect("written");
    let [tied, untied] = [&folder, &untied].map(|folder| folder.to_str().expect("UTF-8"));
    let measured = root.path().join("text");
    fs::write(&measured, "a text to be measured").expect("written");
    let measured = measured.to_str().expect("UTF-8");
    let item = root.path().join("items.jsonl");
    fs::write(&item, "{\"context\": \"a text\", \"continuation\": \" to be\"}\n").expect("written");
    let item = item.to_str().expect("UTF-8");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let ties = |line: &String| line.starts_with("the configuration ties");
    for rest in [
        &["inspect", "MODEL"][..],
        &["generate", "MODEL", "a", "-n", "4", "--temperature", "0"],
        &["perplexity", "MODEL", measured, "--context", "8"],
        &["score", "MODEL", item],
        &["chat", "MODEL", "--chat-template", "plain"],
        &["serve", "MODEL", "--port", &port],
    ] {
        let of = |model: &str| {
            run(&rest.iter().map(|&argument| if argument == "MODEL" { model } else { argument }).collect::<Vec<_>>())
        };
        let (said, silent) = (of(tied), of(untied));
        let stderr = String::from_utf8_lossy(&said.stderr);
        assert_eq!(said.status.success(), rest[0] != "serve", "{rest:?}: {stderr}");
        assert_eq!(warned(&said).into_iter().filter(ties).collect::<Vec<_>>(), found.warnings, "{rest:?}: {stderr}");
        assert!(!warned(&silent).iter().any(ties), "{rest:?}");
        if matches!(rest[0], "generate" | "score") {
            assert_eq!(said.stdout, silent.stdout, "{rest:?}");
        }
    }
    for target in ["hf", "bitnet", "gguf-tq2", "gguf-f16"] {
        let place = root.path().join(target);
        let done = converted(&folder, &place, &options(target));
        let notes: Vec<_> = done.notes.iter().filter_map(|note| note.strip_prefix("warning: ")).collect();
        assert!(notes.contains(&&*found.warnings[0]), "{target}: {notes:?}");
        // The result says what it is, so it warns no more.
        let written = inspect(&place).expect("reads");
        assert_eq!(
            (written.config["tie_word_embeddings"].as_bool(), written.warnings.len()),
            (Some(false), 0),
            "{target}"
        );
    }
}

#[test]
fn every_target_hands_the_warnings_on() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = root.path().join("odd");
    let expected = odd_model(&folder);
    for target in ["hf", "hf-packed", "universal", "bitnet", "gguf-tq1", "gguf-tq2", "gguf-q2", "gguf-i2s", "gguf-f16"]
    {
        let place = root.path().join(target);
        let done = converted(&folder, &place, &options(target));
        let mut found: Vec<&str> = done.notes.iter().filter_map(|note| note.strip_prefix("warning: tensor ")).collect();
        found.sort_unstable();
        let mut expected: Vec<&str> = expected.iter().filter_map(|text| text.strip_prefix("tensor ")).collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "{target}");
    }
    // Masters, which are copied as they are and would be quantized later.
    let again = converted(&root.path().join("hf"), &root.path().join("again"), &options("hf"));
    assert_eq!(again.notes.iter().filter(|note| note.starts_with("warning: tensor ")).count(), 3);
}

#[test]
fn a_scale_beyond_f16_is_too_large_or_too_small() {
    let root = tempfile::tempdir().expect("temp dir");
    for target in ["gguf-tq1", "gguf-q2", "gguf-f16"] {
        // f16 ends at 65504, and the first number that is rounded beyond is 65520; below, its numbers are 2^-24 apart.
        for (scale, reason) in [
            (1.2e7f32, Some("has a scale of 1.2e7, which is too large for f16 (at most 65504)")),
            (65_520.0, Some("has a scale of 6.552e4, which is too large for f16 (at most 65504)")),
            (65_519.0, None),
            (2f32.powi(-24), None),
            (1e-9, Some("has a scale of 1e-9, which is too small for f16 (in steps of 6.0e-8)")),
        ] {
            let folder = root.path().join("model");
            let config = ModelConfig { num_hidden_layers: 1, ..config("ternary", true) };
            write_model(&folder, &config, 3);
            fill(&folder, "model.layers.0.mlp.up_proj.weight_scale", &scale.to_le_bytes());
            let destination = root.path().join("result.gguf");
            let options = bitnet_infer::convert::ConvertOptions { force: true, ..options(target) };
            let done = bitnet_infer::convert::convert(&open(&folder), &destination, &options, &mut |_, _| {});
            match (done, reason) {
                (Ok(_), None) => {}
                (Err(error), Some(reason)) => assert!(error.to_string().contains(reason), "{target}: {error}"),
                (done, _) => panic!("{target}, {scale:e}: {:?}", done.err().map(|error| error.to_string())),
            }
        }
    }
}
