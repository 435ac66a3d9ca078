//! Models whose numbers leave the range of floats: every command says so and names the place; none prints a text or a number.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bitnet_infer::engine::{Error, KvCache, KvType, LogitsFor, Part, Sampler, SamplerConfig, open};
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;

use crate::common::{tiny_config, write_model};

/// Changes the numbers of a tensor of f32.
fn change(folder: &Path, name: &str, change: impl FnOnce(&mut [f32])) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("a model");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).expect("JSON");
    assert_eq!(json[name]["dtype"], "F32", "{name}");
    let place = |i: usize| 8 + header + json[name]["data_offsets"][i].as_u64().expect("a number") as usize;
    let own = &mut bytes[place(0)..place(1)];
    let four = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("four bytes"));
    let mut numbers: Vec<f32> = own.chunks_exact(4).map(four).collect();
    change(&mut numbers);
    own.chunks_exact_mut(4).zip(numbers).for_each(|(bytes, number)| bytes.copy_from_slice(&number.to_le_bytes()));
    fs::write(&path, bytes).expect("written");
}

/// A model that overflows: finite numbers only, but too large ones in one tensor.
fn overflowing(folder: &Path, tensor: &str) {
    write_model(folder, &ModelConfig { tie_word_embeddings: false, ..tiny_config("ternary", "int8") }, 1);
    // A weight of a norm is multiplied by a number of about one: with numbers above it, infinity.
    change(folder, tensor, |numbers| numbers.fill(f32::MAX));
}

fn program(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-infer"));
    command.stdin(Stdio::null()).env_remove("BITNET_KERNEL").env_remove("BITNET_TERNARY").arg("--threads=1");
    command.args(arguments).output().expect("the program runs")
}

#[test]
fn commands_refuse_numbers_that_are_not_finite_by_token_and_part() {
    let root = tempfile::tempdir().expect("temp dir");
    let file = |name: &str, text: String| {
        let path = root.path().join(name);
        fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let text = file("text", "Once upon a time there was a tree. ".repeat(40));
    let lines = file("lines", "{\"context\": \"Once\", \"continuation\": \" upon\"}\n".into());
    for (tensor, part) in [
        ("model.norm.weight", "`model.norm`"),
        ("model.layers.1.input_layernorm.weight", "`model.layers.1."),
        ("model.layers.0.post_attention_layernorm.weight", "`model.layers.0.mlp`"),
    ] {
        let folder = root.path().join(tensor);
        overflowing(&folder, tensor);
        let folder = folder.to_str().expect("UTF-8");
        for head in ["stored", "int8", "exact"] {
            for (command, more) in [
                ("generate", vec!["Once upon", "--temperature", "0", "--head", head]),
                ("generate", vec!["Once upon", "--top-k", "0", "--json", "--head", head]),
                ("perplexity", vec![text.as_str(), "--context", "64", "--head", head]),
                ("perplexity", vec![text.as_str(), "--context", "64", "--convention", "llama", "--json"]),
                ("score", vec![lines.as_str()]),
            ] {
                let output = program(&[&[command, folder], &more[..]].concat());
                let stderr = String::from_utf8(output.stderr).expect("UTF-8");
                let about = format!("{command} {more:?} of {tensor}: {stderr}");
                assert_eq!(output.status.code(), Some(1), "{about}");
                assert!(output.stdout.is_empty(), "{about}");
                let error = stderr.lines().last().unwrap_or_default();
                assert!(error.starts_with("error: ") && error.contains("not finite"), "{about}");
                assert!(error.contains(part) && error.contains("at token "), "{about}");
            }
        }
    }
}

/// The first token, not the last: one feature is zero in every embedding but one token's, and the first norm makes it infinite.
#[test]
fn the_first_token_is_named() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = root.path().join("model");
    let config = ModelConfig { tie_word_embeddings: false, ..tiny_config("none", "none") };
    write_model(&folder, &config, 1);
    change(&folder, "model.embed_tokens.weight", |numbers| {
        let features = numbers.chunks_exact_mut(config.hidden_size).enumerate();
        features.for_each(|(token, row)| row[0] = if token == 200 { 10.0 } else { 0.0 });
    });
    change(&folder, "model.layers.0.input_layernorm.weight", |numbers| numbers[0] = f32::MAX);
    let loaded = open(&folder, kernels::best().expect("a kernel")).expect("finite numbers load");
    let run = |tokens: &[u32]| {
        let mut cache = KvCache::new(loaded.model.config(), 300).expect("fits");
        let logits = loaded.model.forward(tokens, &mut cache, LogitsFor::Last).expect("runs");
        let drawn = Sampler::new(SamplerConfig::greedy()).expect("valid").sample(&logits, tokens);
        drawn.map_err(|error| loaded.model.explained(error, tokens, KvType::F32))
    };
    let mut tokens: Vec<u32> = (0..290).map(|i| i % 190).collect();
    assert!(run(&tokens).is_ok());
    // Beyond the rows that are computed together too.
    for at in [7, 270] {
        tokens[at] = 200;
        match run(&tokens[..at + 9]) {
            Err(Error::NotFinite { index, token, part, .. }) => {
                assert_eq!((index, token, part), (at, 200, Part::Attention(0)));
            }
            other => panic!("{other:?}"),
        }
        tokens[at] = 3;
    }
}
