//! The program itself: exit codes, one-line errors, and what it prints.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::{byte_tokenizer, tiny_config, write_model};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-infer"));
    command.stdin(Stdio::null()).env_remove("BITNET_KERNEL").env_remove("BITNET_TERNARY").arg("--threads=1");
    command
}

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program runs")
}

fn success(arguments: &[&str]) -> (String, String) {
    let output = run(arguments);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    (String::from_utf8(output.stdout).expect("UTF-8"), stderr)
}

fn refused(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{arguments:?}: {stderr}");
    assert!(!stderr.contains('\u{1b}'), "no colours in a pipe: {stderr}");
    stderr
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn model(root: &Path) -> std::path::PathBuf {
    let folder = root.join("model");
    write_model(&folder, &tiny_config("ternary", "int8"), 1);
    folder
}

#[test]
fn wrong_input_is_one_line_and_exit_code_one() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let folder = text(&folder);
    let file = |name: &str, bytes: &[u8]| {
        let path = root.path().join(name);
        fs::write(&path, bytes).expect("written");
        text(&path).to_owned()
    };
    let (empty, binary, short) = (file("empty", b""), file("binary", b"ab\xff\xfe"), file("short", b"abc"));
    let wide = file("wide", b"\xff\xfea\0b\0");
    let mark = file("mark", b"\xef\xbb\xbf");
    let lines = file("lines", b"\xef\xbb\xbf{\"context\": [1], \"continuation\": [2]}\r\nx");
    let missing = text(&root.path().join("missing")).to_owned();
    for (arguments, expected) in [
        (&["generate", &missing, "hi"][..], "missing: no such model folder"),
        (&["generate", folder], "stdin: the prompt is empty"),
        (&["generate", folder, "hi", "--temperature=-1"], "temperature is -1, expected 0 to 100"),
        (
            &["generate", folder, "hi", "--context", "999"],
            "a context of 999 tokens is not possible: this model's is 1 to 300",
        ),
        (&["generate", folder, "hi", "--kernel", "abacus"], "there is no kernel `abacus`, expected one of: scalar"),
        (&["perplexity", folder, &missing], "missing: cannot open: No such file"),
        (&["perplexity", folder, &empty], "empty: is empty"),
        (&["perplexity", folder, &binary], "binary: is not UTF-8 text at byte 2 (0xff)"),
        (&["perplexity", folder, &wide], "wide: is UTF-16 text: convert it to UTF-8"),
        (&["score", folder, &lines], "lines:2: expected value at column 1"),
        (&["perplexity", folder, &short, "--strict"], "short: the text has 3 tokens"),
        (&["perplexity", folder, &short, "--convention=llama"], "short: the text has 3 tokens"),
        (
            &["perplexity", folder, &short, "--strict", "--convention=llama"],
            "--strict belongs to the convention `windows`",
        ),
        (&["serve", folder, "--port=0", "--api-key-file", &mark], "mark: is empty"),
        (&["inspect", &empty], "is a file, expected a folder"),
        (&["bench", "--shape", "huge"], "shape is `huge`, expected one of: 2b-4t"),
        (&["bench", "--shape", "tiny", "--weights", "int5"], "weight scheme is `int5`, expected one of: none, ternary"),
        (&["bench", "--shape", "tiny", "--heads", "7"], "7 heads do not divide a hidden size of 64"),
        (&["bench", "--shape", "tiny", "--layers", "0"], "`num_hidden_layers` is 0"),
    ] {
        let message = refused(arguments);
        assert!(message.contains(expected), "{message} lacks {expected}");
    }
    fs::write(Path::new(folder).join("tokenizer.json"), byte_tokenizer(&["<more>"])).expect("written");
    let too_many = "tokenizer has the token `<more>` with id 258, which is beyond the model's embedding of 258";
    assert!(refused(&["generate", folder, "hi"]).contains(too_many));
    let (words, _) = success(&["inspect", folder]);
    assert!(words.lines().any(|line| line.starts_with("warning: ") && line.contains(too_many)), "{words}");
    let unknown = program().args(["bench", "--shape", "tiny"]).env("BITNET_TERNARY", "3bit").output().expect("runs");
    let expected = "error: BITNET_TERNARY: there is no way `3bit` to hold ternary codes, expected one of: 2bit, base3";
    assert!(String::from_utf8_lossy(&unknown.stderr).contains(expected));
    let many = Command::new(env!("CARGO_BIN_EXE_bitnet-infer")).args(["kernels", "--threads=100000"]).output();
    let many = many.expect("runs");
    assert_eq!(String::from_utf8_lossy(&many.stderr), "error: --threads is 100000, expected at most 1024\n");
    let unknown = program().arg("kernels").env("BITNET_KERNEL", "abacus").output().expect("runs");
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("error: BITNET_KERNEL: there is no kernel `abacus`"));
}

#[test]
fn wrong_usage_is_told_by_exit_code_two() {
    for arguments in [
        &["generate"][..],
        &["no-such-command"],
        &["perplexity", "a", "b", "--convention", "mine"],
        &["bench", "--kv", "f8"],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    for command in ["generate", "perplexity", "inspect", "bench", "kernels"] {
        let (help, _) = success(&[command, "--help"]);
        assert!(help.contains("Usage: bitnet-infer"), "{help}");
    }
}

/// The largest number of 64 bits, and the least that overflows where it is multiplied, for every option that is a number:
/// refused in a line that names the option, or harmless. A wrapped number would be a small one, and would be taken.
#[test]
fn numbers_are_checked_and_not_wrapped() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let folder = text(&folder);
    let largest = u64::MAX.to_string();
    for (option, wraps) in [
        ("--queue", largest.clone()),
        ("--parallel", largest.clone()),
        ("--kv-memory", (1u64 << 44).to_string()),
        ("--kv-memory", ((1u64 << 44) + 64).to_string()),
        ("--body-limit", ((1u64 << 54) + 1).to_string()),
        ("--connections", largest.clone()),
        ("--head-time", largest.clone()),
        ("--patience", largest.clone()),
        ("--grace", largest.clone()),
        ("--head-time", "0".to_owned()),
        ("--patience", "0".to_owned()),
        ("--body-limit", "0".to_owned()),
        ("--kv-memory", "0".to_owned()),
        ("--port", "65536".to_owned()),
        ("--prefill", "4294967296ms".to_owned()),
    ] {
        let output = run(&["serve", folder, option, &wraps]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{option} {wraps}: {stderr}");
        let line = stderr.lines().next().unwrap_or_default();
        assert!(line.contains(option) && line.contains(&wraps), "{option} {wraps}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
    let context = refused(&["serve", folder, "--context", &largest]);
    assert!(context.contains("1 to 300"), "{context}");
    // As many as there are.
    let plain = ["generate", folder, "Once", "-n", "5", "--top-k", "0", "--repeat-penalty", "1.3"];
    let (all, _) = success(&plain);
    let (most, _) = success(&["generate", folder, "Once", "-n", "5", "--top-k", &largest, "--repeat-penalty", "1.3"]);
    assert_eq!(most, all);
    let penalized = ["--repeat-penalty", "1.1", "--repeat-window", &largest];
    success(&[&["generate", folder, "Once", "-n", &largest, "--seed", &largest], &penalized[..]].concat());
    for option in
        ["--prompt", "--generate", "--batch", "--repeats", "--hidden", "--layers", "--ffn", "--heads", "--vocab"]
    {
        let message = refused(&["bench", "--shape", "tiny", option, &largest]);
        assert!(message.contains(&largest) || message.contains(option), "{option}: {message}");
        assert!(!message.contains("panicked"), "{message}");
    }
    let message = refused(&["bench", "--shape", "tiny", "--kv-heads", &largest]);
    assert!(message.contains("num_key_value_heads"), "{message}");
}

/// `do_sample: false` is no randomness, in whatever the file says besides; a temperature that was asked for counts.
#[test]
fn a_model_that_asks_for_no_sampling_is_not_sampled() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let says = |json: &str| fs::write(folder.join("generation_config.json"), json).expect("written");
    let generate = |more: &[&str]| success(&[&["generate", text(&folder), "Once", "-n", "40"], more].concat()).0;
    let greedy = generate(&["--temperature", "0"]);
    let hot = |seed: &str| generate(&["--temperature", "1.5", "--seed", seed]);
    assert_ne!(hot("1"), hot("2"));
    says(r#"{"do_sample": false, "temperature": 1.5}"#);
    for seed in ["1", "2", "3"] {
        assert_eq!(generate(&["--seed", seed]), greedy);
    }
    let with_own = hot("1");
    says(r#"{"do_sample": true, "temperature": 1.5}"#);
    assert_eq!(generate(&["--seed", "1"]), with_own);
    assert_ne!(generate(&["--seed", "2"]), with_own);
    // A chat of piped lines: what it answers does not depend on the seed.
    says(r#"{"do_sample": false, "temperature": 1.5}"#);
    let chat = |seed: &str| {
        let mut child = program()
            .args(["chat", text(&folder), "--chat-template", "plain", "--no-history", "-n", "20", "--seed", seed])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("runs");
        child.stdin.take().expect("a pipe").write_all(b"Hello\n").expect("written");
        child.wait_with_output().expect("ends").stdout
    };
    assert_eq!(chat("1"), chat("2"));
}

#[test]
fn generate_streams_text_and_tells_the_speed() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let generate =
        |more: &[&str]| success(&[&["generate", text(&folder), "Once", "-n", "20", "--seed", "4"], more].concat());
    let (first, stats) = generate(&[]);
    assert!(stats.contains("prompt 5 tok at ") && stats.contains("threads 1 |"), "{stats}");
    assert_eq!(generate(&[]).0, first, "same seed, same text");
    let json: serde_json::Value = serde_json::from_str(&generate(&["--json"]).0).expect("JSON");
    assert_eq!(json["text"].as_str().expect("text").to_owned() + "\n", first);
    assert_eq!(json["prompt_tokens"], 5);
    assert_eq!(json["kv"], "f32");
    let cache = root.path().join("prompt");
    let options = ["--kv", "f16", "--prompt-cache", text(&cache)];
    let (words, stats) = generate(&options);
    assert!(stats.contains("keys and values f16, ") && !stats.contains("prompt cache"), "{stats}");
    let (again, stats) = generate(&options);
    assert!(words == again && stats.contains("prompt 5 tok (4 from the prompt cache) at "), "{stats}");

    let mut child = program()
        .args(["generate", text(&folder), "-", "-n", "20", "--seed", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("runs");
    child.stdin.take().expect("a pipe").write_all(b"Once\n").expect("written");
    let piped = child.wait_with_output().expect("ends");
    assert_eq!(String::from_utf8_lossy(&piped.stdout), first, "the prompt from stdin is the same prompt");
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    for arguments in [&["generate", text(&folder), "a", "-n", "290"][..], &["inspect", text(&folder)], &["kernels"]] {
        let mut command = program();
        let mut child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ends");
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn perplexity_and_inspect_report_in_words_and_in_json() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let file = root.path().join("text");
    fs::write(&file, "the quick brown fox jumps over the lazy dog ".repeat(20)).expect("written");
    let (words, _) = success(&["perplexity", text(&folder), text(&file), "--context", "64"]);
    assert!(words.contains("keys, values    f32, "), "{words}");
    assert!(
        words.contains("nats per token") && words.contains("879 tokens in 14 windows of 64, convention windows"),
        "{words}"
    );
    let (words, _) = success(&["perplexity", text(&folder), text(&file), "--context", "64", "--strict"]);
    assert!(words.contains("832 tokens in 13 windows of 64, convention windows"), "{words}");
    // A text shorter than a window is one shorter window.
    let (words, _) = success(&["perplexity", text(&folder), text(&file), "--context", "300"]);
    assert!(words.contains("879 tokens in 3 windows of 300"), "{words}");
    let (json, _) =
        success(&["perplexity", text(&folder), text(&file), "--context", "64", "--convention", "llama", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((json["tokens_scored"].as_u64(), json["convention"].as_str()), (Some(13 * 31), Some("llama")));

    let (words, _) = success(&["inspect", text(&folder), "--tensors"]);
    assert!(
        words.contains("ternary weights, int8 activations") && words.contains("model.layers.1.mlp.down_proj"),
        "{words}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&success(&["inspect", text(&folder), "--json"]).0).expect("JSON");
    assert_eq!(json["tensors"].as_array().map(Vec::len), Some(14));
    let shares: f64 = json["code_shares"].as_array().expect("shares").iter().filter_map(|v| v.as_f64()).sum();
    assert!((shares - 1.0).abs() < 1e-9);
}

#[test]
fn bench_and_kernels_report() {
    let arguments = "bench --shape tiny --prompt 8 --generate 4 --batch 1,3 --repeats 1 --kv f16 --json";
    let arguments: Vec<_> = arguments.split(' ').collect();
    let json: serde_json::Value = serde_json::from_str(&success(&arguments).0).expect("JSON");
    let tests: Vec<_> = json["rows"].as_array().expect("rows").iter().map(|row| row["test"].as_str()).collect();
    assert_eq!((json["machine"]["threads"].as_u64(), tests), (Some(1), vec![Some("pp8"), Some("tg4"), Some("tg4 x3")]));
    assert_eq!(json["kv"], "f16");
    for row in json["rows"].as_array().expect("rows") {
        assert!(row["tok_per_s"].as_f64().expect("a number") > 0.0);
        let shares =
            row["shares"].as_array().expect("shares").iter().map(|share| share["percent"].as_f64().expect("a number"));
        assert!((shares.sum::<f64>() - 100.0).abs() < 1e-6);
    }
    assert_eq!(json["ternary"], "2bit", "a model that fits the caches");
    let base3 = [&["--kernel", "scalar", "--ternary", "base3"], &arguments[..]].concat();
    let json: serde_json::Value = serde_json::from_str(&success(&base3).0).expect("JSON");
    assert_eq!(json["ternary"], "base3");
    let (words, _) = success(&["kernels", "--kernel", "scalar"]);
    assert!(words.starts_with("scalar          runs here, chosen\n"), "{words}");
}

#[test]
fn options_that_cannot_take_effect_are_refused_by_name() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let floats = root.path().join("floats");
    success(&["bench", "--shape", "tiny", "--weights", "none", "--write", text(&floats)]);
    let generate = ["generate", text(&folder), "Once", "-n", "1"];
    for (option, value, because) in [
        ("--top-k", "3", "a temperature of 0"),
        ("--top-p", "0.5", "a temperature of 0"),
        ("--min-p", "0.5", "a temperature of 0"),
        ("--seed", "7", "a temperature of 0"),
        ("--repeat-window", "9", "a repetition penalty of 1"),
    ] {
        let idle = [&generate[..], &[option, value, "--temperature", "0"]].concat();
        let message = refused(&idle);
        assert!(message.starts_with(&format!("error: {option} has no effect with {because}")), "{message}");
        success(&[&generate[..], &[option, value, "--repeat-penalty", "1.1"]].concat());
    }
    success(&[&generate[..], &["--temperature", "0"]].concat());
    let message = refused(&["inspect", text(&folder), "--i2s", "rows"]);
    assert!(message.contains("--i2s has no effect on") && message.contains("no I2_S tensor"), "{message}");
    let message = refused(&["bench", "--model", text(&floats), "--ternary", "2bit"]);
    assert!(message.contains("--ternary has no effect on") && message.contains("not ternary"), "{message}");
    assert_eq!(run(&["inspect", text(&folder), "--tensors", "--json"]).status.code(), Some(2));
}
