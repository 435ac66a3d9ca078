//! What a conversion takes of the memory, in a process of its own.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, Storage};
use bitnet_model::files::stream::{PlannedTensor, safetensors_header};
use bitnet_model::files::tensors::Dtype;

use crate::common::tiny_config;

/// Ternary masters of 160 M parameters.
fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 4096,
        hidden_size: 1024,
        intermediate_size: 3072,
        num_hidden_layers: 12,
        num_attention_heads: 16,
        num_key_value_heads: 4,
        head_dim: 64,
        hidden_act: HiddenAct::Silu,
        storage: Storage::Float,
        bos_token_id: None,
        eos_token_ids: vec![],
        ..tiny_config("ternary", "int8")
    }
}

/// Writes a folder of bf16 masters in shards, tensor by tensor; the bytes of all, and of the largest tensor.
fn write_masters(folder: &Path, config: &ModelConfig) -> (usize, usize) {
    let tensor = |name: String, shape: &[usize]| PlannedTensor { name, dtype: Dtype::BF16, shape: shape.to_vec() };
    let mut shards = vec![vec![
        tensor("model.embed_tokens.weight".into(), &[config.vocab_size, config.hidden_size]),
        tensor("model.norm.weight".into(), &[config.hidden_size]),
    ]];
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let norms = config.norms().into_iter().map(|(part, len)| tensor(name(part), &[len]));
        let projections = config.projections().map(|(part, rows, cols)| tensor(name(part), &[rows, cols]));
        shards.push(norms.chain(projections).collect());
    }
    // Uneven numbers of either sign, over and over: between 2^-7 and 2^-5 in magnitude.
    let pattern: Vec<u8> = (0..=u16::MAX)
        .flat_map(|i| (0x3c00 + (i.wrapping_mul(40503) >> 7) % 256 + (i & 1) * 0x8000).to_le_bytes())
        .collect();
    let (mut map, mut all, mut largest) = (serde_json::Map::new(), 0, 0);
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("part-{i}.safetensors");
        let mut out = BufWriter::new(File::create(folder.join(&file)).expect("created"));
        out.write_all(&safetensors_header(shard).expect("names")).expect("written");
        for tensor in shard {
            map.insert(tensor.name.clone(), file.clone().into());
            let mut left = tensor.byte_count();
            (all, largest) = (all + left, largest.max(left));
            while left > 0 {
                let some = left.min(pattern.len());
                out.write_all(&pattern[..some]).expect("written");
                left -= some;
            }
        }
        out.flush().expect("written");
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).expect("written");
    std::fs::write(folder.join("config.json"), config.to_json()).expect("written");
    (all, largest)
}

#[cfg(target_os = "linux")]
#[test]
fn a_conversion_takes_two_tensors_and_200_mb_at_most() {
    let root = tempfile::tempdir().expect("temp dir");
    let source = root.path().join("masters");
    std::fs::create_dir(&source).expect("made");
    let (all, largest) = write_masters(&source, &config());
    let limit = 2 * largest + 200_000_000;
    assert!(all > limit, "{all} bytes of weights would fit into the memory that is allowed: {limit}");
    for target in ["bitnet", "hf-packed", "gguf-tq2", "universal"] {
        let out = root.path().join(target);
        let output = Command::new(env!("CARGO_BIN_EXE_bitnet-infer"))
            .arg("convert")
            .args([&source, &out])
            .args(["--to", target, "--verify", "0", "--json"])
            .output()
            .expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let peak = json["peak_memory_bytes"].as_u64().expect("Linux tells it") as usize;
        println!("{target}: {all} bytes read, peak memory {peak} of {limit} allowed");
        assert!(peak < limit, "{target}: {peak} of {limit}");
        if out.is_dir() { std::fs::remove_dir_all(&out) } else { std::fs::remove_file(&out) }.expect("removed");
    }
}
