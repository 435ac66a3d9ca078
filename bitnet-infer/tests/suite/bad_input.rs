//! Damaged, lying and missing files: one clear error each, and never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_infer::engine::{self, KvCache, LogitsFor};
use bitnet_infer::eval::inspect;
use bitnet_infer::kernels;
use bitnet_model::files::gguf;
use proptest::prelude::*;

use crate::common::{byte_tokenizer, tiny_config, write_model};

struct Folder {
    _root: tempfile::TempDir,
    path: PathBuf,
}

fn valid(weight: &str) -> Folder {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("model");
    write_model(&path, &tiny_config(weight, "int8"), 3);
    Folder { _root: root, path }
}

fn error(folder: &Path) -> String {
    let kernel = kernels::best().expect("a kernel");
    let message = engine::open(folder, kernel).err().expect("refused").to_string();
    assert!(!message.contains('\n'), "{message}");
    assert_eq!(inspect::inspect(folder).expect_err("refused as well").to_string(), message);
    message
}

fn change_config(folder: &Path, from: &str, to: &str) {
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).expect("config");
    assert!(text.contains(from), "{text} lacks {from}");
    fs::write(&path, text.replacen(from, to, 1)).expect("written");
}

#[test]
fn a_configuration_that_lies_is_found_out() {
    for (from, to, expected) in [
        (
            r#""hidden_size": 60"#,
            r#""hidden_size": 64"#,
            "tensor `model.embed_tokens.weight` has shape [258, 60], expected [258, 64]",
        ),
        (r#""intermediate_size": 101"#, r#""intermediate_size": 102"#, "expected ["),
        (
            r#""num_hidden_layers": 2"#,
            r#""num_hidden_layers": 3"#,
            "tensor `model.layers.2.input_layernorm.weight` is missing",
        ),
        (r#""num_key_value_heads": 2"#, r#""num_key_value_heads": 4"#, "k_proj.weight` has shape"),
        (r#""head_dim": 22"#, r#""head_dim": 20"#, "has shape"),
        (r#""vocab_size": 258"#, r#""vocab_size": 16000000"#, "has shape [258, 60], expected [16000000, 60]"),
        (r#""tie_word_embeddings": true"#, r#""tie_word_embeddings": false"#, "tensor `lm_head.weight` is missing"),
        (r#""weight_scheme": "ternary""#, r#""weight_scheme": "int8""#, "expected ["),
        (r#""weight_scheme": "ternary""#, r#""weight_scheme": "trits""#, "is `trits`, expected one of: none, ternary"),
        (r#""offline""#, r#""online""#, "has shape"),
        (r#""num_hidden_layers": 2"#, r#""num_hidden_layers": -2"#, "`num_hidden_layers` is -2"),
        (r#""head_dim": 22"#, r#""head_dim": 1e400"#, "is not valid JSON"),
    ] {
        let folder = valid("ternary");
        change_config(&folder.path, from, to);
        let message = error(&folder.path);
        assert!(message.contains(expected), "{message} lacks {expected}");
        assert!(message.contains("config.json") || message.contains("model.safetensors"), "{message} names no file");
    }
}

#[test]
fn missing_files_are_named() {
    for (file, expected) in [
        ("config.json", "is not a model folder: it has no config.json"),
        ("model.safetensors", "is not a model folder: it has no model.safetensors"),
    ] {
        let folder = valid("ternary");
        fs::remove_file(folder.path.join(file)).expect("removed");
        let message = error(&folder.path);
        assert!(message.contains(expected), "{message}");
    }
    let folder = valid("ternary");
    assert!(error(&folder.path.join("nowhere")).contains("no such model folder"));
    assert!(error(&folder.path.join("config.json")).contains("is a file, expected a folder"));
    fs::remove_file(folder.path.join("model.safetensors")).expect("removed");
    fs::create_dir(folder.path.join("model.safetensors")).expect("created");
    assert!(error(&folder.path).contains("model.safetensors: is not an ordinary file"));
}

#[test]
fn folders_of_parts_and_downloads_that_went_wrong_are_named() {
    let root = tempfile::tempdir().expect("temp dir");
    let part = |number: u32, parts: u32| {
        let mut keys = gguf::HeaderWriter::default();
        keys.u32("split.no", number);
        keys.u32("split.count", parts);
        keys.finish(&[]).expect("no tensors")
    };
    for number in 0..2 {
        fs::write(root.path().join(format!("m-{number}.gguf")), part(number, 3)).expect("written");
    }
    let message = error(root.path());
    assert!(message.contains("holds parts of a split model (2 of 3 files in GGUF): join them"), "{message}");
    assert!(error(&root.path().join("m-1.gguf")).contains("is part 2 of 3 of a split model"));
    fs::write(root.path().join("m-0.gguf"), part(0, 1)).expect("written");
    assert!(error(root.path()).contains("holds 2 files in GGUF, name one of them: m-0.gguf, m-1.gguf"));
    fs::write(root.path().join("m-1.gguf"), "<!doctype html><p>Sign in").expect("written");
    assert!(error(&root.path().join("m-1.gguf")).contains("is a web page"));
    let folder = valid("ternary");
    fs::write(folder.path.join("model.safetensors"), "version https://git-lfs.github.com/spec/v1\noid")
        .expect("written");
    assert!(error(&folder.path).contains("model.safetensors: is a Git LFS pointer"));
}

#[test]
fn a_tokenizer_must_fit_and_may_be_missing() {
    let folder = valid("ternary");
    let path = folder.path.join("tokenizer.json");
    fs::write(&path, byte_tokenizer(&["<one>", "<two>"])).expect("written");
    let message = engine::open(&folder.path, kernels::best().expect("a kernel")).err().expect("refused").to_string();
    assert!(inspect::inspect(&folder.path).expect("all the same").warnings.concat().contains(&message));
    assert!(message.contains("with id 259, which is beyond the model's embedding of 258"), "{message}");
    fs::write(&path, b"{\"model\": 1}").expect("written");
    assert!(error(&folder.path).contains("tokenizer.json: tokenizer does not load"));
    fs::remove_file(&path).expect("removed");
    let loaded = engine::open(&folder.path, kernels::best().expect("a kernel")).expect("loads without");
    let message = loaded.require_tokenizer().expect_err("none").to_string();
    assert!(message.contains("has no tokenizer.json"), "{message}");
}

#[test]
fn damaged_weight_files_are_refused_by_name() {
    let path = |folder: &Folder| folder.path.join("model.safetensors");
    for (bytes, expected) in [
        (Vec::new(), "is not a valid safetensors file of 0 bytes"),
        (vec![0; 7], "is not a valid safetensors file of 7 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "is not a valid safetensors file"),
        ([&(1u64 << 40).to_le_bytes()[..], b"{}"].concat(), "is not a valid safetensors file"),
        ([&2u64.to_le_bytes()[..], b"{}"].concat(), "tensor `model.embed_tokens.weight` is missing"),
        ([&2u64.to_le_bytes()[..], b"\xff\xff"].concat(), "is not a valid safetensors file"),
    ] {
        let folder = valid("ternary");
        fs::write(path(&folder), &bytes).expect("written");
        let message = error(&folder.path);
        assert!(message.contains(expected) && message.contains("model.safetensors"), "{message} lacks {expected}");
    }
    let folder = valid("ternary");
    let bytes = fs::read(path(&folder)).expect("weights");
    fs::write(path(&folder), &bytes[..bytes.len() - 1]).expect("written");
    assert!(error(&folder.path).contains("is not a valid safetensors file"));
}

/// A code that cannot be keeps a model from running, and from nothing else.
#[test]
fn impossible_codes_are_shown_by_inspect() {
    let folder = valid("ternary");
    let path = folder.path.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("weights");
    let whole = inspect::inspect(&folder.path).expect("valid");
    let place = whole.file_tensors.iter().find(|tensor| tensor.name == "model.layers.1.mlp.up_proj.weight");
    bytes[place.expect("there").offset] = 0xff;
    fs::write(&path, bytes).expect("written");
    let message = engine::open(&folder.path, kernels::best().expect("a kernel")).err().expect("refused").to_string();
    assert!(
        message.contains("tensor `model.layers.1.mlp.up_proj.weight` has the impossible ternary code 3"),
        "{message}"
    );
    let found = inspect::inspect(&folder.path).expect("shown");
    assert_eq!(found.warnings, [format!("{message}: the model does not run")]);
    assert_eq!(found.tensors.len(), whole.tensors.len() - 1);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_at_once() {
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let folder = valid("ternary");
        let path = folder.path.join(name);
        fs::remove_file(&path).expect("removed");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
        assert!(made.success());
        // Nobody writes to it: whoever opens it waits without end.
        let message = error(&folder.path);
        assert!(message.ends_with(&format!("{name}: is not an ordinary file")), "{message}");
        let message = error(&path);
        assert!(message.contains("is not an ordinary file"), "{message}");
    }
}

/// Loads what may be anything; if it loads, it must also run.
fn try_out(folder: &Path) -> bool {
    let kernel = kernels::best().expect("a kernel");
    match engine::open(folder, kernel) {
        Ok(loaded) => {
            let mut cache = KvCache::new(loaded.model.config(), 4).expect("fits");
            let logits = loaded.model.forward(&[1, 2, 3, 4], &mut cache, LogitsFor::All).expect("runs");
            assert_eq!(logits.len(), 4 * loaded.model.config().vocab_size);
            true
        }
        Err(error) => {
            let message = error.to_string();
            assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
            false
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_damage_gives_an_error_or_a_model_that_runs(
        // Half of the blows hit the header, where most of the meaning is.
        blows in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        weight in prop::sample::select(vec!["ternary", "binary", "int4", "none"]),
    ) {
        let folder = valid(weight);
        let path = folder.path.join("model.safetensors");
        let mut bytes = fs::read(&path).expect("weights");
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight")) as usize;
        for (in_header, at, value) in blows {
            let range = if in_header { header } else { bytes.len() };
            bytes[at.index(range)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let whole = cut.is_none();
        fs::write(&path, &bytes).expect("written");
        let loaded = try_out(&folder.path);
        prop_assert!(whole || !loaded, "a truncated file must not load");
    }

    #[test]
    fn a_damaged_configuration_gives_an_error_or_a_model_that_runs(
        blows in proptest::collection::vec((any::<prop::sample::Index>(), prop::sample::select(b"0123456789{}[],:\" eE-.az".to_vec())), 1..4),
    ) {
        let folder = valid("ternary");
        let path = folder.path.join("config.json");
        let mut bytes = fs::read(&path).expect("config");
        for (at, value) in blows {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        fs::write(&path, &bytes).expect("written");
        // A changed context may be shorter than the four tokens tried.
        let short = bitnet_model::ModelConfig::read(&path).is_ok_and(|config| config.max_position_embeddings < 4);
        prop_assume!(!short);
        try_out(&folder.path);
    }
}
