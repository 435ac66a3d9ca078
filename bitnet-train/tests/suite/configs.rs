//! Every shipped config loads, and every lie in one is refused with the file, the key and the reason.

use std::fs;
use std::path::Path;
use std::process::Command;

use bitnet_train::config::{Run, RunConfig};

use crate::tiny;

#[test]
fn every_shipped_config_resolves_and_round_trips() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let mut found = 0;
    for entry in fs::read_dir(&folder).expect("configs") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "toml") {
            continue;
        }
        let run = Run::read(&path, &[]).unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(path.file_stem().and_then(|s| s.to_str()), Some(run.config.run.name.as_str()), "name of {path:?}");
        let text = toml::to_string_pretty(&run.config).expect("prints");
        assert_eq!(toml::from_str::<RunConfig>(&text).expect("own output"), run.config);
        found += 1;
    }
    assert!(found >= 4, "only {found} configs");
}

#[test]
fn lies_in_a_config_are_refused_before_any_work() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("tiny.toml");
    fs::write(&path, tiny::config(root.path(), 10)).expect("written");
    for (assignment, expected) in [
        ("train.stpes=3", "unknown field `stpes`"),
        ("train.steps=ten", "tiny.toml with --set, `train.steps`: invalid type: string \"ten\""),
        ("data.source.count=[1]", "`data.source`: invalid type: sequence"),
        ("optimizer.betas=[0.9, true]", "`optimizer.betas`: invalid type: boolean `true`"),
        ("train.steps=0", "`train.steps` is 0, expected at least 1"),
        ("model.num_attention_heads=3", "`model.num_attention_heads` is 3, which does not divide hidden_size = 32"),
        ("model.num_key_value_heads=3", "`num_key_value_heads` is 3, which does not divide num_attention_heads = 4"),
        ("model.hidden_act=gelu", "unknown variant `gelu`"),
        ("quantization.weight=trinary", "is `trinary`, expected one of: none, ternary"),
        (
            "quantization.weight=int4-g32",
            "a scheme of post-training quantizers, expected one of: none, ternary, binary",
        ),
        ("quantization.estimator=magic", "`quantization.estimator` is `magic`, expected one of: ste, clipped-ste"),
        ("run.ops=fast", "`run.ops` is `fast`, expected `fused` or `reference`"),
        ("run.name=../x", "`run.name` is `../x`, expected a plain folder name"),
        ("optimizer.learning_rate=-1", "`optimizer.learning_rate` is -1, expected 0 to 10"),
        ("schedule.warmup_steps=10", "`schedule.warmup_steps` is 10, expected fewer than train.steps = 10"),
        ("schedule.type=magic", "unknown variant `magic`"),
        ("train.sequence_length=1000000", "a sequence of 1000000 tokens needs 1000001 tokens of data"),
        ("train.sequence_length=1000000", "tiny.toml: training data: `train.sequence_length`: a sequence of 1000000"),
        ("data.source.type=text", "missing field `path`"),
        ("tokenizer.vocab_size=3", "vocab"),
        ("train.backward=int8 && quantization.weight=none", "which needs quantized weights and activations"),
        ("train.backward=int8 && model.intermediate_size=40000", "at most 65536 rows of stacked projections"),
        ("train.backward=int8 && model.num_hidden_layers=1024", "fewer than 1024 layers; the model has 96 and 1024"),
        ("train.backward=int8 && train.batch_size=70000", "takes at most 65536 tokens in a batch"),
        ("steps", "expected KEY=VALUE"),
    ] {
        let sets = assignment.split(" && ").flat_map(|assignment| ["--set", assignment]);
        let output = Command::new(env!("CARGO_BIN_EXE_bitnet-train"))
            .args(["run", &path.display().to_string()])
            .args(sets)
            .output()
            .expect("starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{assignment}: {message}");
        assert!(message.contains(expected), "{assignment}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{assignment}: {message}");
        assert!(message.starts_with("error: "), "{assignment}: {message}");
        assert!(!root.path().join("tiny/config.toml").exists(), "{assignment} left a run folder behind");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_named_by_line_and_key() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("tiny.toml");
    let good = tiny::config(root.path(), 10);
    for (from, to, key) in [
        ("batch_size = 4", "batch_size = \"four\"", "`train.batch_size`: invalid type: string \"four\""),
        ("hidden_size = 32", "hidden_size = 32.5", "`model.hidden_size`: invalid type: floating point `32.5`"),
        ("warmup_steps = 2", "warmup_steps = []", "`schedule`: "),
        ("log_every = 1", "log_evry = 1", "`train`: unknown field `log_evry`"),
        ("every = 5", "every 5", "`every 5`: "),
    ] {
        assert!(good.contains(from), "{from}");
        let text = good.replace(from, to);
        fs::write(&path, &text).expect("written");
        let message = format!("{:#}", Run::read(&path, &[]).err().expect("refused"));
        let line = text.lines().position(|line| line == to).expect("there") + 1;
        let numbered = format!("{}, line {line}, {key}", path.display());
        // Of a section whose kind is looked up first, only the section is known.
        let section = to.starts_with("warmup") && message.contains(key);
        assert!(message.starts_with(&numbered) || section, "{message}, expected {numbered}");
        assert!(!message.contains('\n'), "{message}");
        // The same file as other editors write it.
        fs::write(&path, format!("\u{feff}{}", text.replace('\n', "\r\n"))).expect("written");
        assert_eq!(format!("{:#}", Run::read(&path, &[]).err().expect("refused")), message);
    }
    fs::write(&path, format!("\u{feff}{}", good.replace('\n', "\r\n"))).expect("written");
    Run::read(&path, &[]).expect("a mark and other line ends change nothing");
    let wide: Vec<u8> = [0xfeff].into_iter().chain(good.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    fs::write(&path, wide).expect("written");
    let message = format!("{:#}", Run::read(&path, &[]).err().expect("refused"));
    assert!(message.contains("tiny.toml: is UTF-16 text: convert it to UTF-8"), "{message}");
}

#[test]
fn lies_in_data_are_refused_with_one_line() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("tiny.toml");
    fs::write(&path, tiny::config(root.path(), 10)).expect("written");
    let file = |name: &str, bytes: &[u8]| {
        let path = root.path().join(name);
        fs::write(&path, bytes).expect("written");
        path.display().to_string()
    };
    let (empty, binary) = (file("empty.txt", b""), file("binary.txt", &[b'a', 0xff, 0xfe, 0]));
    let (lines, tokenizer) = (file("bad.jsonl", b"{\"text\": \"a\"}\n{\"text\": 3}\n"), file("tokenizer.json", b"{}"));
    for (kind, key, value, expected) in [
        ("text", "data.source.path", empty.as_str(), "empty"),
        ("text", "data.source.path", binary.as_str(), "binary.txt"),
        ("text", "data.source.path", "no-such-file.txt", "no-such-file.txt"),
        ("jsonl", "data.source.path", lines.as_str(), "bad.jsonl"),
        ("", "tokenizer.path", tokenizer.as_str(), "tokenizer.json"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
        command.args(["run", &path.display().to_string()]);
        let kind = if kind.is_empty() { "tokenizer.type=file".to_owned() } else { format!("data.source.type={kind}") };
        command.args(["--set", &kind, "--set", &format!("{key}={value}")]);
        let output = command.output().expect("starts");
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{value}: {message}");
        assert!(message.contains(expected), "{value}: {message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{value}: {message}");
    }
}
