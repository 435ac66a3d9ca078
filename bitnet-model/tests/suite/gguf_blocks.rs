//! Blocks of every type of GGUF against two programs that own the format: what their bytes stand for, and what is written.
//!
//! `scripts/gguf_blocks.py` makes the file; each case names its source.

use bitnet_model::files::gguf::{TensorType, decode_row, encode_row};
use serde_json::Value;

use crate::gguf_file::KINDS;

const BLOCKS: &str = include_str!("../fixtures/gguf_blocks.json");

fn bytes(case: &Value, key: &str) -> Vec<u8> {
    let text = case[key].as_str().unwrap_or_else(|| panic!("{key} of {}", case["type"]));
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn floats(case: &Value, key: &str) -> Vec<f32> {
    bytes(case, key).as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect()
}

#[test]
fn blocks_stand_for_what_they_do_elsewhere() {
    let cases: Vec<Value> = serde_json::from_str(BLOCKS).expect("JSON");
    let mut seen = Vec::new();
    for case in &cases {
        let kind = KINDS.into_iter().find(|kind| kind.name() == case["type"]).expect("a type");
        let raw = bytes(case, "bytes");
        if case["encodes"].is_string() {
            let mut written = Vec::new();
            encode_row(kind, &floats(case, "encodes"), &mut written);
            assert!(written == raw, "{}: other bytes than {}", kind.name(), case["source"]);
            continue;
        }
        let expected = floats(case, "values");
        let mut values = vec![0f32; expected.len()];
        decode_row(kind, &raw, &mut values);
        let differs =
            values.iter().zip(&expected).position(|(a, b)| a.to_bits() != b.to_bits() && (*a, *b) != (0.0, 0.0));
        assert_eq!(differs, None, "{}: other numbers than {}", kind.name(), case["source"]);
        seen.push(kind);
    }
    for kind in KINDS {
        let plain = [TensorType::F32, TensorType::F16, TensorType::I2S].contains(&kind);
        assert!(plain || seen.contains(&kind), "{} has no case", kind.name());
    }
}
