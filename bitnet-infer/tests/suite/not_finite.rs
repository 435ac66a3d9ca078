//! NaN and infinity in files: whatever tensor of whatever format holds one, nothing runs it, and everything names it.

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_infer::convert::{HeadType, convert};
use bitnet_infer::engine::{self, ModelFiles};
use bitnet_infer::eval::inspect::inspect;
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;
use bitnet_model::files::gguf::GgufOptions;
use bitnet_model::files::source::TensorRecord;
use half::{bf16, f16};

use crate::common::write_model;
use crate::conversions::{config, converted, open, options};

/// Where numbers stand in the last block of a tensor, how far from its end, and what to put there; nothing for codes.
fn poison(record: &TensorRecord) -> Option<(usize, Vec<u8>)> {
    let half = |from_end: usize| Some((from_end, f16::NAN.to_le_bytes().to_vec()));
    match &*record.kind {
        "F32" => Some((4, f32::NAN.to_le_bytes().to_vec())),
        "F16" => half(2),
        "BF16" => Some((2, bf16::NEG_INFINITY.to_le_bytes().to_vec())),
        // The scale of a block: before the codes, or behind them.
        "TQ1_0" | "TQ2_0" | "Q6_K" => half(2),
        "Q8_0" => half(34),
        "Q1_0" => half(18),
        "Q2_0" => half(18),
        // One scale, and 28 bytes of nothing.
        "I2_S" => Some((32, f32::INFINITY.to_le_bytes().to_vec())),
        "U8" | "I8" => None,
        other => panic!("{}: no number of {other} is known here", record.name),
    }
}

fn weights_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("model.safetensors") } else { path.to_path_buf() }
}

/// Damages each tensor of a model in turn, and counts how many can be damaged.
fn check(path: &Path) -> usize {
    let file = weights_file(path);
    let whole = fs::read(&file).expect("a model");
    let records = open(path).with_weights(|weights| Ok::<_, engine::Error>(weights.tensors())).expect("reads");
    // A safetensors file counts from its beginning here, as a GGUF file does.
    let mut damaged = 0;
    for record in records.iter().filter(|record| record.name != "freq_cis") {
        let Some((from_end, number)) = poison(record) else { continue };
        let mut bytes = whole.clone();
        let at = record.offset + record.bytes - from_end;
        bytes[at..at + number.len()].copy_from_slice(&number);
        fs::write(&file, &bytes).expect("written");
        let about = format!("{}: {} ({})", path.display(), record.name, record.kind);
        // A scale of its own in a folder is named together with its codes, or by itself.
        let name = record.name.trim_end_matches("_scale");
        let named = |message: &str| {
            assert!(message.contains(&format!("tensor `{name}")), "{about}: {message}");
            assert!(message.contains("NaN") || message.contains("inf"), "{about}: {message}");
            assert_eq!(message.lines().count(), 1, "{about}");
        };
        let kernel = kernels::best().expect("a kernel");
        named(&engine::open(path, kernel).err().unwrap_or_else(|| panic!("{about} was loaded")).to_string());
        match inspect(path) {
            Err(error) => named(&error.to_string()),
            Ok(found) => named(found.warnings.first().unwrap_or_else(|| panic!("{about} looks well"))),
        }
        for target in ["bitnet", "universal"] {
            let destination = path.with_file_name("converted");
            let source = ModelFiles::open(path, GgufOptions::default()).expect("opens");
            let refused = convert(&source, &destination, &options(target), &mut |_, _| {});
            named(&refused.err().unwrap_or_else(|| panic!("{about} became {target}")).to_string());
            assert!(!destination.exists(), "{about}");
        }
        damaged += 1;
    }
    fs::write(&file, whole).expect("written");
    engine::open(path, kernels::best().expect("a kernel")).expect("whole again");
    damaged
}

#[test]
fn a_number_that_is_not_finite_is_refused_by_the_name_of_its_tensor_in_every_format() {
    let root = tempfile::tempdir().expect("temp dir");
    let place = |name: &str| root.path().join(name);
    for weight in ["ternary", "binary", "int8", "int4-g32", "none"] {
        let config = ModelConfig { tie_word_embeddings: false, num_hidden_layers: 1, ..config(weight, true) };
        let source = place(weight);
        write_model(&source, &config, 5);
        // Embedding, head, final norm, four norms, and scales or floats of seven projections.
        assert_eq!(check(&source), 14, "{weight}");
        let head = |target, head: Option<HeadType>| (target, head);
        let plain = |target| head(target, None);
        let targets = match weight {
            "ternary" => vec![
                plain("hf"),
                head("bitnet", Some(HeadType::Int8)),
                head("gguf-tq1", Some(HeadType::Q6K)),
                head("gguf-tq2", Some(HeadType::Q8_0)),
                plain("gguf-q2"),
                plain("gguf-i2s"),
                plain("gguf-f16"),
            ],
            "binary" => vec![plain("hf"), plain("gguf-q1")],
            "int8" => vec![plain("hf")],
            "none" => vec![plain("hf"), plain("universal"), plain("gguf-f16")],
            _ => vec![],
        };
        for (target, head) in targets {
            let name = format!("{weight}-{target}{}", if target.starts_with("gguf") { ".gguf" } else { "" });
            let mut options = options(target);
            options.head = head;
            converted(&source, &place(&name), &options);
            assert_eq!(check(&place(&name)), 14, "{name}");
        }
    }
}

/// Seven numbers, and the weights of one block: embedding, norms, projections, final norm, angles.
#[test]
fn llama2c_names_the_part_and_the_block() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("model.bin");
    let (h, ffn, layers, heads, vocab, seq) = (8usize, 12usize, 2usize, 2usize, 5usize, 4usize);
    let mut bytes: Vec<u8> =
        [h, ffn, layers, heads, heads, vocab, seq].iter().flat_map(|&n| (n as i32).to_le_bytes()).collect();
    let of_block = 4 * h * h + 3 * h * ffn + 2 * h;
    let count = vocab * h + layers * of_block + h + seq * (h / heads);
    bytes.extend((0..count).flat_map(|i| ((i as f32 * 0.7).sin()).to_le_bytes()));
    fs::write(&path, bytes).expect("written");
    // Embedding, two norms, seven projections, final norm; the angles are not read.
    assert_eq!(check(&path), 11);
    let whole = fs::read(&path).expect("written");
    // The second number of `wq` of the second block.
    let at = 28 + 4 * (vocab * h + layers * h + h * h + 1);
    let mut bytes = whole;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).expect("written");
    let message = engine::open(&path, kernels::best().expect("a kernel")).err().expect("refused").to_string();
    assert!(message.ends_with("tensor `wq` holds NaN or infinity at element 1 of block 1"), "{message}");
}
