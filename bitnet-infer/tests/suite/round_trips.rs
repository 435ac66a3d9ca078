//! Every other reader against every writer: files that this program reads and does not write. (What it writes, it reads:
//! `conversions.rs` has that table.)

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_infer::convert::convert;
use bitnet_infer::engine::{Error, ModelFiles};
use bitnet_model::ModelConfig;
use bitnet_model::config::Storage;
use bitnet_model::files::gguf::{GgufFile, GgufOptions, I2sLayout, TensorType, encode_row, pack_i2s};
use bitnet_model::files::source::{WeightSource, dequantized};
use bitnet_model::files::tensors::{self, OwnedTensor, TensorFile};
use bitnet_model::weights::LinearWeights;

use crate::common::{largest_of, write_model};
use crate::conversions::{config, converted, open, options};
use crate::gguf_file::{KINDS, model_bytes};

/// A projection as it is read: codes and a scale for each row, or numbers.
#[derive(PartialEq)]
enum Part {
    Codes(Vec<i8>, Vec<f32>),
    Numbers(Vec<f32>),
}

fn parts(files: &ModelFiles) -> Vec<Part> {
    let read = |weights: &dyn WeightSource| {
        let mut parts = Vec::new();
        for layer in 0..weights.config().num_hidden_layers {
            for index in 0..7 {
                parts.push(match weights.projection(layer, index)? {
                    LinearWeights::Packed(matrix) => {
                        let scales = (0..matrix.rows()).flat_map(|row| matrix.scales_of(row).to_vec()).collect();
                        Part::Codes(matrix.unpack(), scales)
                    }
                    floats => Part::Numbers(dequantized(&floats)),
                });
            }
        }
        Ok::<_, Error>(parts)
    };
    files.with_weights(read).expect("reads")
}

/// The largest relative difference (NaN, if there is one): of scales, where both are codes (which must be equal), else of numbers.
fn difference(found: &[Part], expected: &[Part]) -> f64 {
    let relative = |a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len());
        let largest = b.iter().fold(0f32, |largest, b| largest.max(b.abs()));
        largest_of(a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs() / largest)))
    };
    let of = |(found, expected): (&Part, &Part)| match (found, expected) {
        (Part::Codes(a, scales), Part::Codes(b, expected)) => {
            assert!(a == b, "other codes");
            assert_eq!(scales.len(), expected.len());
            largest_of(scales.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs() / b)))
        }
        (Part::Numbers(a), Part::Numbers(b)) => relative(a, b),
        _ => panic!("codes on one side, numbers on the other"),
    };
    assert_eq!(found.len(), expected.len());
    largest_of(found.iter().zip(expected).map(of))
}

/// Converts `source` to every target and prints a line of the table.
fn line(name: &str, source: &ModelFiles, targets: &[(&str, f64)], root: &Path) {
    let expected = parts(source);
    let mut line = format!("{name:>18}");
    for (target, limit) in targets {
        let out = root.join(format!("{}-{target}", name.replace(' ', "-")));
        convert(source, &out, &options(target), &mut |_, _| {}).unwrap_or_else(|e| panic!("{name} to {target}: {e}"));
        let error = difference(&parts(&open(&out)), &expected);
        assert!(error <= *limit, "{name} to {target}: {error:e}");
        line += &format!("  {target} {error:.1e}");
    }
    println!("{line}");
}

/// A scale in f16; one that masters in f32 give back.
const HALF: f64 = 5e-4;
const MEAN: f64 = 1e-6;
const TERNARY: [(&str, f64); 8] = [
    ("hf", MEAN),
    ("hf-packed", 0.0),
    ("bitnet", 0.0),
    ("gguf-tq1", HALF),
    ("gguf-tq2", HALF),
    ("gguf-q2", HALF),
    ("gguf-i2s", 0.0),
    ("gguf-f16", HALF),
];
/// Of numbers, over the largest: f32, bf16, f16.
const FLOATS: [(&str, f64); 4] = [("hf", 0.0), ("bitnet", 0.0), ("universal", 4e-3), ("gguf-f16", 5e-4)];

/// The same tensors in two files and an index.
fn sharded(whole: &Path, parts: &Path) {
    fs::create_dir(parts).expect("made");
    fs::copy(whole.join("config.json"), parts.join("config.json")).expect("copied");
    let bytes = fs::read(whole.join("model.safetensors")).expect("readable");
    let file = TensorFile::parse(&bytes, "whole").expect("valid");
    let mut groups: [Vec<(String, OwnedTensor)>; 2] = Default::default();
    let mut map = serde_json::Map::new();
    for (i, name) in file.names().into_iter().enumerate() {
        let view = file.view(name).expect("listed");
        let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        groups[i % 2].push((name.to_owned(), OwnedTensor { dtype, shape, bytes }));
        map.insert(name.to_owned(), format!("part-{}.safetensors", i % 2).into());
    }
    for (i, group) in groups.iter().enumerate() {
        tensors::write(&parts.join(format!("part-{i}.safetensors")), group, ("format", "pt".into())).expect("written");
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(parts.join("model.safetensors.index.json"), index).expect("written");
}

#[test]
fn folders_of_others_keep_their_codes() {
    let root = tempfile::tempdir().expect("temp dir");
    let [plain, divided, masters, shards] =
        ["plain", "divided", "masters", "shards"].map(|name| root.path().join(name));
    write_model(&plain, &config("ternary", true), 30);
    // The same file, whose scales now divide.
    write_model(&divided, &config("ternary", true), 30);
    let path = divided.join("config.json");
    let text = fs::read_to_string(&path).expect("config").replace("autobitlinear", "bitlinear");
    fs::write(&path, text).expect("written");
    assert_eq!(ModelConfig::read(&path).expect("valid").storage, Storage::PackedInverseScale);
    let inverse = |part: Part| match part {
        Part::Codes(codes, scales) => Part::Codes(codes, scales.into_iter().map(|scale| 1.0 / scale).collect()),
        numbers => numbers,
    };
    let expected: Vec<Part> = parts(&open(&plain)).into_iter().map(inverse).collect();
    assert!(parts(&open(&divided)) == expected, "scales divide");
    line("bitlinear", &open(&divided), &TERNARY, root.path());

    converted(&plain, &masters, &options("hf"));
    sharded(&masters, &shards);
    assert!(parts(&open(&shards)) == parts(&open(&masters)));
    line("shards of masters", &open(&shards), &TERNARY, root.path());

    for scheme in ["int8-g32", "int8-g128", "int4-g32", "int4-g64"] {
        let grouped = root.path().join(scheme);
        write_model(&grouped, &config(scheme, false), 31);
        line(scheme, &open(&grouped), &[("hf", MEAN), ("bitnet", 0.0)], root.path());
    }
}

/// The same model with its I2_S codes in another arrangement.
fn rearranged(file: &Path, layout: I2sLayout) -> PathBuf {
    let mut bytes = fs::read(file).expect("readable");
    let changes: Vec<(usize, Vec<u8>)> = {
        let parsed = GgufFile::parse(&bytes, "m").expect("valid");
        let of = |info: &bitnet_model::files::gguf::TensorInfo| {
            let (rows, cols) = (info.shape[0], info.shape[1]);
            let from = parsed.bytes(info);
            let (codes, scale) =
                bitnet_model::files::gguf::unpack_i2s(I2sLayout::Group128, rows, cols, from).expect("valid");
            (info.offset, pack_i2s(layout, rows, cols, &codes, scale).expect("fits"))
        };
        parsed.tensors().filter(|(_, info)| info.kind == TensorType::I2S).map(|(_, info)| of(info)).collect()
    };
    assert_eq!(changes.len(), 14);
    for (at, with) in changes {
        bytes[at..at + with.len()].copy_from_slice(&with);
    }
    let path = file.with_file_name(format!("i2s-{layout}.gguf"));
    fs::write(&path, bytes).expect("written");
    path
}

#[test]
fn every_arrangement_of_i2s_keeps_its_codes() {
    let root = tempfile::tempdir().expect("temp dir");
    let (plain, file) = (root.path().join("plain"), root.path().join("m.gguf"));
    write_model(&plain, &config("ternary", true), 32);
    converted(&plain, &file, &options("gguf-i2s"));
    for layout in [I2sLayout::Group64, I2sLayout::Rows4] {
        let path = rearranged(&file, layout);
        let files = ModelFiles::open(&path, GgufOptions { i2s: Some(layout) }).expect("opens");
        assert!(parts(&files) == parts(&open(&plain)), "{layout}");
        line(&format!("I2_S {layout}"), &files, &TERNARY, root.path());
    }
}

#[test]
fn blocks_of_numbers_stay_what_they_stand_for() {
    let root = tempfile::tempdir().expect("temp dir");
    for kind in KINDS.into_iter().filter(|kind| !kind.is_ternary() && *kind != TensorType::Q1_0) {
        let path = root.path().join(format!("{}.gguf", kind.name()));
        let config = crate::gguf_file::config(kind, false);
        fs::write(&path, model_bytes(&config, kind, I2sLayout::Group128, 33)).expect("written");
        line(kind.name(), &open(&path), &FLOATS, root.path());
    }
}

/// A llama2.c file of random numbers: seven sizes, then the parts in their order.
fn llama2c(path: &Path) {
    let (dim, hidden, layers, heads, kv_heads, vocab, seq) = (64, 96, 2, 4, 2, 50, 32);
    let mut bytes = Vec::new();
    for number in [dim, hidden, layers, heads, kv_heads, vocab, seq] {
        bytes.extend((number as i32).to_le_bytes());
    }
    let kv = dim / heads * kv_heads;
    let block = dim + dim * dim + 2 * kv * dim + dim * dim + dim + 3 * hidden * dim;
    let angles = seq * (dim / heads);
    let count = vocab * dim + layers * block + dim + angles;
    let value = |i: usize| ((i * 2654435761 % 1000) as f32 / 1000.0 - 0.5) * 0.2;
    let values: Vec<f32> = (0..count).map(value).collect();
    encode_row(TensorType::F32, &values, &mut bytes);
    fs::write(path, bytes).expect("written");
}

#[test]
fn llama2c_files_stay_what_they_stand_for() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("model.bin");
    llama2c(&path);
    assert_eq!(open(&path).format(), "llama2.c");
    line("llama2.c", &open(&path), &FLOATS, root.path());
}
