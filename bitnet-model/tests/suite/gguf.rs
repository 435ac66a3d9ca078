//! GGUF against what other programs made: blocks of the PyPI package gguf, vocabularies of llama.cpp, a model of llama2.c.

use std::collections::BTreeMap;

use bitnet_model::ModelConfig;
use bitnet_model::files::gguf::{
    GgufFile, GgufModel, GgufOptions, I2sLayout, TensorType, TokenLists, Value, decode_codes, decode_row, encode_codes,
    encode_row, pack_i2s, token_lists, unpack_i2s,
};
use bitnet_model::files::llama2c::Llama2c;
use bitnet_model::files::source::WeightSource;
use bitnet_model::rng::{Stream, generator};
use bitnet_model::tokenizer::Tokenizer;
use bitnet_model::weights::LinearWeights;
use proptest::prelude::*;
use rand::Rng;

use crate::data_folder::shared;
use crate::gguf_file::{KINDS, config, model_bytes, random_row};

fn decoded(kind: TensorType, bytes: &[u8], cols: usize) -> Vec<f32> {
    let row_bytes = cols / kind.block() * kind.block_bytes();
    let mut values = vec![0f32; bytes.len() / row_bytes * cols];
    for (row, values) in bytes.chunks(row_bytes).zip(values.chunks_mut(cols)) {
        decode_row(kind, row, values);
    }
    values
}

#[test]
fn blocks_of_the_gguf_package_decode_and_encode_to_the_bit() {
    let Some(path) = shared("tq-fixture/tq.gguf") else { return };
    let bytes = std::fs::read(path).expect("readable");
    let file = GgufFile::parse(&bytes, "tq.gguf").expect("valid");
    let mut compared = 0;
    for (name, info) in file.tensors().filter(|(name, _)| name.ends_with(".dequant")) {
        let packed = file.tensor(name.trim_end_matches(".dequant")).expect("its packed form");
        let cols = packed.shape[1];
        let values = decoded(packed.kind, file.bytes(packed), cols);
        assert_eq!(values, decoded(TensorType::F32, file.bytes(info), cols), "{name}");
        // Codes with one scale are packed to the very same bytes; so are Q8_0 and the floats.
        let row_bytes = packed.len / packed.shape[0];
        for row in file.bytes(packed).chunks(row_bytes) {
            let mut again = Vec::new();
            match packed.kind {
                TensorType::Tq1_0 | TensorType::Tq2_0 => {
                    let (mut codes, mut scales) = (vec![0i8; cols], Vec::new());
                    decode_codes(packed.kind, row, &mut codes, &mut scales);
                    for (codes, scale) in codes.chunks(256).zip(scales) {
                        encode_codes(packed.kind, codes, scale, &mut again).expect("ternary");
                    }
                    assert_eq!(again, row, "{name}");
                }
                TensorType::F16 | TensorType::Bf16 => {
                    let mut values = vec![0f32; cols];
                    decode_row(packed.kind, row, &mut values);
                    encode_row(packed.kind, &values, &mut again);
                    assert_eq!(again, row, "{name}");
                }
                _ => {}
            }
        }
        compared += 1;
    }
    assert_eq!(compared, 18);
    assert!(matches!(file.value("fixture.absmean"), Some(Value::Float(_))));
}

#[test]
fn blocks_of_eight_and_six_bits_are_near_their_values() {
    let mut rng = generator(1, Stream::Bench);
    for (kind, limit) in [(TensorType::Q8_0, 0.006), (TensorType::Q6K, 0.025)] {
        for spread in [1e-3f32, 1.0, 300.0] {
            let values: Vec<f32> =
                (0..2048).map(|_| spread * rng.random_range(-1.0f32..1.0) * rng.random_range(-1.0f32..1.0)).collect();
            let mut bytes = Vec::new();
            encode_row(kind, &values, &mut bytes);
            let again = decoded(kind, &bytes, 2048);
            let square = |x: &[f32]| x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
            let differences: Vec<f32> = again.iter().zip(&values).map(|(a, b)| a - b).collect();
            let error = (square(&differences) / square(&values)).sqrt();
            assert!(error < limit, "{} of spread {spread}: {error}", kind.name());
        }
        let mut zeros = Vec::new();
        encode_row(kind, &[0.0; 256], &mut zeros);
        assert_eq!(decoded(kind, &zeros, 256), [0.0; 256]);
    }
}

proptest! {
    #[test]
    fn codes_survive_every_type(seed in any::<u64>(), kind in prop::sample::select(
        [TensorType::Tq1_0, TensorType::Tq2_0, TensorType::Q2_0, TensorType::Q1_0].as_slice()), blocks in 1usize..4) {
        let mut rng = generator(seed, Stream::Bench);
        let binary = kind == TensorType::Q1_0;
        let code = |_| if binary { if rng.random() { 1 } else { -1 } } else { rng.random_range(-1..=1) };
        let codes: Vec<i8> = (0..blocks * kind.block()).map(code).collect();
        let scale = half::f16::from_f32(0.37).to_f32();
        let mut bytes = Vec::new();
        encode_codes(kind, &codes, scale, &mut bytes).expect("codes of the type");
        let (mut again, mut scales) = (vec![0i8; codes.len()], Vec::new());
        decode_codes(kind, &bytes, &mut again, &mut scales);
        prop_assert_eq!(&again, &codes);
        prop_assert_eq!(scales, vec![scale; blocks]);
        let mut values = vec![0f32; codes.len()];
        decode_row(kind, &bytes, &mut values);
        prop_assert!(values.iter().zip(&codes).all(|(v, c)| *v == f32::from(*c) * scale));
    }

    #[test]
    fn i2s_layouts_round_trip_and_differ(seed in any::<u64>(), rows in 1usize..4, blocks in 1usize..3) {
        let (rows, cols) = (4 * rows, 128 * blocks);
        let mut rng = generator(seed, Stream::Bench);
        let codes: Vec<i8> = (0..rows * cols).map(|_| rng.random_range(-1..=1)).collect();
        let packed = I2sLayout::ALL.map(|layout| pack_i2s(layout, rows, cols, &codes, 0.5).expect("fits"));
        for (layout, bytes) in I2sLayout::ALL.into_iter().zip(&packed) {
            prop_assert_eq!(unpack_i2s(layout, rows, cols, bytes).expect("own output"), (codes.clone(), 0.5));
        }
        prop_assert!(packed[0] != packed[1] && packed[1] != packed[2] && packed[0] != packed[2]);
    }
}

#[test]
fn i2s_is_the_layout_of_the_description() {
    // byte = w[j] << 6 | w[j + 32] << 4 | w[j + 64] << 2 | w[j + 96], codes plus one.
    let mut codes = vec![0i8; 128];
    (codes[5], codes[37], codes[69], codes[101]) = (1, -1, 0, 1);
    let bytes = pack_i2s(I2sLayout::Group128, 1, 128, &codes, 2.0).expect("fits");
    assert_eq!((bytes[5], bytes[6]), (0b10_00_01_10, 0b01_01_01_01));
    assert_eq!(bytes[32..36], 2f32.to_le_bytes());
    assert_eq!(bytes.len(), 64);
    let bytes = pack_i2s(I2sLayout::Group64, 1, 128, &codes, 2.0).expect("fits");
    assert_eq!(bytes[5], 0b10_01_00_01, "weights 5, 21, 37, 53");
    let mut broken = bytes;
    broken[0] |= 0b1100_0000;
    assert!(unpack_i2s(I2sLayout::Group128, 1, 128, &broken).unwrap_err().contains("code 3 at row 0, column 0"));
}

#[test]
fn every_type_reads_as_a_model() {
    for kind in KINDS {
        let expected = config(kind, false);
        let bytes = model_bytes(&expected, kind, I2sLayout::Group128, 7);
        let options = GgufOptions { i2s: Some(I2sLayout::Group128) };
        let model = GgufModel::parse(&bytes, "m.gguf", options).unwrap_or_else(|e| panic!("{}: {e}", kind.name()));
        let read = model.config();
        assert_eq!(read.quantization, expected.quantization, "{}", kind.name());
        assert_eq!((read.vocab_size, read.head_dim), (expected.vocab_size, expected.head_dim));
        let block = model.block(0).unwrap_or_else(|e| panic!("{}: {e}", kind.name()));
        let packed = block.projections().iter().filter(|p| matches!(p, LinearWeights::Packed(_))).count();
        assert_eq!(packed, if expected.quantization.weight.is_some() { 7 } else { 0 }, "{}", kind.name());
        assert_eq!(model.embedding_table().expect("there").first_not_finite(), None);
    }
}

/// A model in I2_S whose codes are denser where the norm in front of them is larger, as training makes them.
fn trained_i2s(layout: I2sLayout, correlated: bool) -> Vec<u8> {
    let mut config = config(TensorType::I2S, true);
    (config.hidden_size, config.intermediate_size, config.num_hidden_layers) = (256, 384, 2);
    config.head_dim = 128;
    let mut bytes = model_bytes(&config, TensorType::I2S, layout, 11);
    let mut changes: Vec<(usize, Vec<u8>)> = Vec::new();
    {
        let file = GgufFile::parse(&bytes, "m").expect("valid");
        let mut rng = generator(12, Stream::Bench);
        for layer in 0..2 {
            for (projection, norm) in
                [("attn_q", "attn_norm"), ("attn_k", "attn_norm"), ("ffn_up", "ffn_norm"), ("ffn_down", "ffn_sub_norm")]
            {
                let norm = file.tensor(&format!("blk.{layer}.{norm}.weight")).expect("there");
                let info = file.tensor(&format!("blk.{layer}.{projection}.weight")).expect("there");
                let (rows, cols) = (info.shape[0], info.shape[1]);
                let gains = decoded(TensorType::F32, file.bytes(norm), cols);
                let code = |gain: f32| {
                    let filled = rng.random::<f32>() < 0.6 + if correlated { 0.2 * gain } else { 0.0 };
                    if filled { if rng.random() { 1 } else { -1 } } else { 0 }
                };
                let codes: Vec<i8> = (0..rows).flat_map(|_| gains.clone()).map(code).collect();
                changes.push((info.offset, pack_i2s(layout, rows, cols, &codes, 0.5).expect("fits")));
            }
        }
    }
    for (at, with) in changes {
        bytes[at..at + with.len()].copy_from_slice(&with);
    }
    bytes
}

#[test]
fn the_layout_of_i2s_is_found_where_training_left_its_mark() {
    for layout in I2sLayout::ALL {
        let bytes = trained_i2s(layout, true);
        let model = GgufModel::parse(&bytes, "m", GgufOptions::default()).expect("valid");
        let notes = model.notes().join("\n");
        assert!(notes.contains(&format!("I2_S layout {layout}: its columns go with the norms")), "{notes}");
    }
    let bytes = trained_i2s(I2sLayout::Group64, false);
    let model = GgufModel::parse(&bytes, "m", GgufOptions::default()).expect("valid");
    assert!(model.notes().join("\n").contains("I2_S layout 128: that of the published files"), "{:?}", model.notes());
    let asked = GgufOptions { i2s: Some(I2sLayout::Group64) };
    let model = GgufModel::parse(&bytes, "m", asked).expect("valid");
    assert!(model.notes().join("\n").contains("I2_S layout 64: as asked for"));
}

/// One scale a row is codes with as many scales; scales that differ within a row are floats, which stand for the same.
#[test]
fn scales_of_blocks_are_scales_of_rows_or_floats() {
    let expected = ModelConfig { intermediate_size: 512, ..config(TensorType::Tq2_0, false) };
    let bytes = model_bytes(&expected, TensorType::Tq2_0, I2sLayout::Group128, 3);
    let (at, row_bytes) = {
        let file = GgufFile::parse(&bytes, "m").expect("valid");
        let info = file.tensor("blk.0.ffn_down.weight").expect("there");
        (info.offset, info.len / info.shape[0])
    };
    assert_eq!(row_bytes, 2 * 66, "two blocks a row");
    let down = 6;
    let with_scales = |blocks: &[usize]| {
        let mut changed = bytes.clone();
        for block in blocks {
            let end = at + (block + 1) * 66;
            changed[end - 2..end].copy_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
        }
        let model = GgufModel::parse(&changed, "m", GgufOptions::default()).expect("valid");
        model.projection(0, down).expect("reads")
    };
    let LinearWeights::Packed(plain) = with_scales(&[]) else { panic!("codes") };
    assert_eq!(plain.scales(), [0.25]);
    // Both blocks of the second row.
    let LinearWeights::Packed(matrix) = with_scales(&[2, 3]) else { panic!("codes") };
    assert_eq!((matrix.scales().len(), matrix.scale_of(0), matrix.scale_of(1)), (matrix.rows(), 0.25, 0.5));
    assert_eq!(matrix.unpack(), plain.unpack());
    // One of them.
    let LinearWeights::Float(floats) = with_scales(&[3]) else { panic!("floats") };
    let codes = plain.unpack();
    let expected = codes.iter().enumerate().map(|(i, &c)| f32::from(c) * if i / 256 == 3 { 0.5 } else { 0.25 });
    assert!(floats.to_f32().into_iter().eq(expected));
}

#[test]
fn vocabularies_of_llama_cpp_cut_texts_as_it_does() {
    let Some(folder) = shared("gguf-vocab") else { return };
    for (name, differences) in [("llama-bpe", 0), ("gpt-2", 0), ("qwen2", 0), ("llama-spm", 0)] {
        let path = |ending: &str| folder.join(format!("ggml-vocab-{name}.gguf{ending}"));
        let bytes = std::fs::read(path("")).expect("readable");
        let file = GgufFile::parse(&bytes, name).expect("valid");
        let lists = token_lists(&file).expect("lists").expect("there");
        let tokenizer = Tokenizer::from_bytes(&lists.to_json(name).expect("a tokenizer"), name).expect("loads");
        let texts = std::fs::read_to_string(path(".inp")).expect("readable");
        let expected = std::fs::read_to_string(path(".out")).expect("readable");
        let mut wrong = Vec::new();
        for (text, ids) in texts.split("\n__ggml_vocab_test__\n").zip(expected.lines()) {
            let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().expect("a number")).collect();
            if tokenizer.encode(text).expect("encodes") != ids {
                wrong.push(format!("{text:?}: {:?}, expected {ids:?}", tokenizer.encode(text)));
            }
        }
        assert_eq!(wrong.len(), differences, "{name}: {}", wrong.join("\n"));
    }
}

#[test]
fn kinds_of_tokens_are_checked() {
    let config = config(TensorType::Tq2_0, false);
    let bytes = model_bytes(&config, TensorType::Tq2_0, I2sLayout::Group128, 1);
    let key = b"tokenizer.ggml.token_type";
    // Behind the key: its type, the type and the number of the values, the values.
    let at = bytes.windows(key.len()).position(|window| window == key).expect("there") + key.len() + 4 + 4 + 8;
    let with = |index: usize, kind: i32| {
        let mut bytes = bytes.clone();
        bytes[at + 4 * index..][..4].copy_from_slice(&kind.to_le_bytes());
        bytes
    };
    for (index, kind) in [(0, 7), (3, -1), (6, i32::MAX), (2, i32::MIN)] {
        let bytes = with(index, kind);
        let file = GgufFile::parse(&bytes, "model.gguf").expect("valid");
        let error = token_lists(&file).expect_err("no such kind").to_string();
        let expected = format!("`tokenizer.ggml.token_type` is {kind} at index {index}, expected 1 to 6");
        assert!(error.starts_with("model.gguf: ") && error.contains(&expected), "{error}");
    }
    let bytes = with(4, 0);
    let lists = token_lists(&GgufFile::parse(&bytes, "model.gguf").expect("valid")).expect("lists").expect("there");
    assert_eq!(lists.types, [2, 3, 1, 1, 1, 1, 6], "llama.cpp writes 0 for a token of no kind");
}

/// Q2_0 has room for +2, which is no ternary weight.
#[test]
fn a_code_that_is_not_ternary_is_named() {
    let config = config(TensorType::Q2_0, false);
    let mut bytes = model_bytes(&config, TensorType::Q2_0, I2sLayout::Group128, 1);
    let start = {
        let file = GgufFile::parse(&bytes, "model.gguf").expect("valid");
        let info = file.tensor("blk.0.attn_q.weight").expect("there");
        file.bytes(info).as_ptr() as usize - bytes.as_ptr() as usize
    };
    // The sixth code of the first block: behind the scale, the second byte's second field.
    bytes[start + 3] |= 0b1100;
    let model = GgufModel::parse(&bytes, "model.gguf", GgufOptions::default()).expect("valid");
    let error = model.projection(0, 0).expect_err("not ternary").to_string();
    assert!(
        error.contains("blk.0.attn_q.weight") && error.contains("has code 2 at row 0, column 5, expected -1, 0 or 1"),
        "{error}"
    );
}

#[test]
fn tokenizers_come_back_from_lists() {
    let Some(folder) = shared("tokenizers") else { return };
    let text = "The quick brown fox, don't you know?  It's 2024: 3.14159 \n\n\tcafé naïve 東京 🦙 <|endoftext|>ab  c";
    for (name, vocab, pre) in [
        ("gpt2", 50257, Some("gpt-2")),
        ("llama2", 32000, None),
        ("llama3", 128_256, Some("llama-bpe")),
        ("dickens-4096", 4096, Some("gpt-2")),
    ] {
        let json = std::fs::read(folder.join(name).join("tokenizer.json")).expect("readable");
        let lists = TokenLists::from_json(&json, vocab, name).expect("lists");
        assert_eq!((lists.pre, lists.tokens.len()), (pre, vocab), "{name}");
        let again = Tokenizer::from_bytes(&lists.to_json(name).expect("a tokenizer"), name).expect("loads");
        let original = Tokenizer::from_bytes(&json, name).expect("loads");
        let ids = original.encode(text).expect("encodes");
        assert_eq!(again.encode(text).expect("encodes"), ids, "{name}");
        assert_eq!(again.decode(&ids).expect("decodes"), original.decode(&ids).expect("decodes"), "{name}");
    }
}

#[test]
fn llama2c_and_gguf_hold_the_same_model() {
    let Some(folder) = shared("stories260k") else { return };
    let bin = std::fs::read(folder.join("stories260K.bin")).expect("readable");
    let gguf = std::fs::read(folder.join("stories260K.F32.gguf")).expect("readable");
    let a = Llama2c::parse(&bin, "bin").expect("valid");
    let b = GgufModel::parse(&gguf, "gguf", GgufOptions::default()).expect("valid");
    for layer in 0..a.config().num_hidden_layers {
        assert_eq!(a.block(layer).expect("reads"), b.block(layer).expect("reads"), "block {layer}");
    }
    assert_eq!(a.embedding_table().expect("there").to_matrix(), b.embedding_table().expect("there").to_matrix());
    let kinds: BTreeMap<String, usize> = b.tensors().into_iter().fold(BTreeMap::new(), |mut kinds, record| {
        *kinds.entry(record.kind).or_default() += 1;
        kinds
    });
    assert_eq!(kinds, BTreeMap::from([("F32".to_owned(), 48)]));
}

#[test]
fn rows_of_every_type_have_their_length() {
    let mut rng = generator(2, Stream::Bench);
    for kind in KINDS.into_iter().filter(|kind| *kind != TensorType::I2S) {
        let cols = 2 * kind.block().max(32);
        assert_eq!(Some(random_row(kind, cols, &mut rng).len()), kind.tensor_bytes(1, cols), "{}", kind.name());
        assert_eq!(kind.tensor_bytes(1, cols + 1).is_some(), kind.block() == 1);
        assert_eq!(kind.tensor_bytes(usize::MAX, cols), None);
        assert_eq!(TensorType::by_id(kind.id()), Ok(kind));
    }
    assert!(TensorType::by_id(13).unwrap_err().contains("type 13 (Q5_K), expected one of: F32"));
}
