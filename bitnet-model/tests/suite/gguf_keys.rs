//! Keys of GGUF files that change what a model computes: refused by name, unless they change nothing.

use bitnet_model::files::gguf::{GgufModel, GgufOptions, HeaderWriter, I2sLayout, PlannedTensor, TensorType};
use bitnet_model::files::source::WeightSource;

use crate::data_folder::shared;
use crate::gguf_file::{config, model_bytes_with};

/// Reads a LLaMA of one block of two heads of 128, context 16, with more keys.
fn read(more: impl FnOnce(&mut HeaderWriter)) -> Result<(), String> {
    let kind = TensorType::Tq2_0;
    let bytes = model_bytes_with(&config(kind, false), kind, I2sLayout::Group128, 1, more);
    GgufModel::parse(&bytes, "m.gguf", GgufOptions::default()).map(drop).map_err(|error| error.to_string())
}

fn refused(key: &str, expected: &str, more: impl FnOnce(&mut HeaderWriter)) {
    let message = read(more).expect_err(key);
    assert!(message.contains(&format!("`{key}` is")) && message.contains(expected), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn keys_that_change_arithmetic_are_refused_and_neutral_values_pass() {
    let scale = 1.0 / 128f32.sqrt();
    for (key, neutral, other) in [
        ("attention.sliding_window", 16.0, 8.0),
        ("attention.scale", scale, 0.5),
        ("attention.output_scale", 1.0, 0.3),
        ("attention.clamp_kqv", 0.0, 8.0),
        ("attention.max_alibi_bias", 0.0, 8.0),
        ("logit_scale", 1.0, 0.0625),
        ("residual_scale", 1.0, 0.22),
        ("embedding_scale", 1.0, 12.0),
        ("attn_logit_softcapping", 0.0, 50.0),
        ("final_logit_softcapping", 0.0, 30.0),
        ("rope.scaling.yarn_ext_factor", -1.0, 1.0),
    ] {
        let key = format!("llama.{key}");
        refused(&key, "not supported; expected", |keys| keys.f32(&key, other));
        read(|keys| keys.f32(&key, neutral)).expect(&key);
        read(|keys| keys.f32(&key, 0.0)).expect(&key);
    }
    // llama.cpp multiplies by these wherever they are set: 0 would take the rotated part of every query and key away.
    for key in ["rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"] {
        let key = format!("llama.{key}");
        for other in [0.0, 1.1] {
            refused(&key, "not supported; expected 1", |keys| keys.f32(&key, other));
        }
        read(|keys| keys.f32(&key, 1.0)).expect(&key);
    }
    // A value for each block is neutral if each of them is.
    let key = "llama.attention.sliding_window_pattern";
    read(|keys| keys.integers(key, &[0, 0, 0])).expect(key);
    refused(key, "an array of 3", |keys| keys.integers(key, &[0, 1, 0]));
    read(|keys| keys.floats("llama.residual_scale", &[1.0, 1.0])).expect("neutral");
    refused("llama.residual_scale", "an array of 2", |keys| keys.floats("llama.residual_scale", &[1.0, 0.5]));
    for (key, neutral) in [("attention.causal", true), ("use_parallel_residual", false), ("swin_norm", false)] {
        let key = format!("llama.{key}");
        refused(&key, "not supported", |keys| keys.flag(&key, !neutral));
        read(|keys| keys.flag(&key, neutral)).expect(&key);
    }
    refused("llama.attention.sliding_window", "is 8,", |keys| keys.u32("llama.attention.sliding_window", 8));
}

#[test]
fn unknown_rotary_scaling_and_unknown_vendors_are_refused_and_unknown_harmless_keys_are_not() {
    refused("llama.rope.scaling.longrope_factor", "unknown kind of rotary scaling", |keys| {
        keys.f32("llama.rope.scaling.longrope_factor", 1.0);
    });
    refused("prism.hadamard.version", "keys that begin with `prism` are unknown", |keys| {
        keys.u32("prism.hadamard.version", 1);
    });
    refused("bitnetx.trick", "keys that begin with `bitnetx` are unknown", |keys| keys.u32("bitnetx.trick", 1));
    for key in [
        "general.some_note",
        "tokenizer.ggml.some_note",
        "mradermacher.quantized_by",
        "quantize.imatrix.file",
        "bitnet-b1.58.some_note",
        "llama.tensor_data_layout",
        "llama.some_note",
    ] {
        read(|keys| keys.text(key, "x")).expect(key);
    }
}

/// Two key-value heads for each of some blocks, as an array of `len` values of the kind `number` in the bytes of `words`.
fn key_value_heads(number: u32, len: u64, words: &[i32]) -> Result<usize, String> {
    let (kind, key) = (TensorType::Tq2_0, b"llama.attention.head_count_kv");
    let name = String::from_utf8_lossy(key).into_owned();
    let mut bytes =
        model_bytes_with(&config(kind, false), kind, I2sLayout::Group128, 1, |keys| keys.integers(&name, words));
    // The file has the key already, in front: it gets another name of the same length.
    let first = find(&bytes, key);
    bytes[first + key.len() - 1] = b'x';
    let at = find(&bytes, key) + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    bytes[at + 4..at + 12].copy_from_slice(&len.to_le_bytes());
    let model = GgufModel::parse(&bytes, "m.gguf", GgufOptions::default()).map_err(|error| error.to_string())?;
    Ok(model.config().num_key_value_heads)
}

#[test]
fn key_value_heads_of_each_block_load_where_they_are_equal_as_any_kind_of_integer() {
    for (kind, number, len, words) in [
        ("u8", 0, 4, &[0x0202_0202][..]),
        ("i8", 1, 4, &[0x0202_0202]),
        ("u16", 2, 2, &[0x0002_0002]),
        ("i16", 3, 2, &[0x0002_0002]),
        ("u32", 4, 3, &[2, 2, 2]),
        ("i32", 5, 3, &[2, 2, 2]),
        ("u64", 10, 2, &[2, 0, 2, 0]),
        ("i64", 11, 2, &[2, 0, 2, 0]),
    ] {
        assert_eq!(key_value_heads(number, len, words), Ok(2), "{kind}");
    }
    for (number, len, words) in [(5, 3, &[2, 1, 2][..]), (10, 2, &[2, 0, 2, 1]), (10, 1, &[-1, -1]), (6, 2, &[2, 2])] {
        let message = key_value_heads(number, len, words).expect_err("different, or no integers");
        assert!(message.contains("`llama.attention.head_count_kv` is a list"), "{message}");
    }
}

#[test]
fn numbers_of_each_block_that_are_equal_are_one_number() {
    // The file's own key comes first, so these are of another name that is read the same way.
    let key = "llama.expert_count";
    read(|keys| keys.integers(key, &[0, 0])).expect("equal");
    refused(key, "a list of different numbers", |keys| keys.integers(key, &[0, 1]));
    refused(key, "a list of different numbers", |keys| keys.integers(key, &[]));
}

#[test]
fn an_alignment_is_any_kind_of_integer() {
    let kind = TensorType::Tq2_0;
    let key = "general.alignment";
    let bytes = |value: u32, number_of_kind: u32| {
        let mut bytes =
            model_bytes_with(&config(kind, false), kind, I2sLayout::Group128, 1, |keys| keys.u32(key, value));
        let at = find(&bytes, key.as_bytes()) + key.len();
        bytes[at..at + 4].copy_from_slice(&number_of_kind.to_le_bytes());
        bytes
    };
    let parse = |bytes: Vec<u8>| GgufModel::parse(&bytes, "m", GgufOptions::default()).map(drop);
    for number_of_kind in [4, 5] {
        parse(bytes(32, number_of_kind)).expect("as u32 and as i32");
    }
    for (value, number_of_kind, shown) in [(48, 5, "48"), (u32::MAX, 5, "-1"), (0, 4, "0"), (32, 6, "0.0")] {
        let message = parse(bytes(value, number_of_kind)).expect_err("no alignment").to_string();
        let expected = "expected an integer that is a power of two from 8 to 1048576";
        assert!(message.contains(&format!("`{key}` is {shown}")) && message.contains(expected), "{message}");
    }
}

#[test]
fn a_part_of_a_split_model_is_named_as_one() {
    let message = read(|keys| {
        keys.u32("split.no", 1);
        keys.u32("split.count", 3);
    });
    assert!(message.expect_err("a part").contains("m.gguf: is part 2 of 3 of a split model: join the parts with"));
    read(|keys| keys.u32("split.count", 1)).expect("whole");
    for part in 1..=2 {
        let Some(path) = shared(&format!("reference-qwen3/qwen3.q2_0-0000{part}-of-00002.gguf")) else { return };
        let bytes = std::fs::read(path).expect("readable");
        let message = GgufModel::parse(&bytes, "p.gguf", GgufOptions::default()).map(drop).expect_err("a part");
        assert!(message.to_string().contains(&format!("is part {part} of 2 of a split model")), "{message}");
    }
}

/// The one-block models whose tensors of type 42 have so many weights in so many bytes, and `slack` bytes behind each.
fn of_type_42(block: usize, block_bytes: usize, slack: usize) -> Result<(), String> {
    let kind = TensorType::Tq2_0;
    let config = config(kind, false);
    let plain = model_bytes_with(&config, kind, I2sLayout::Group128, 1, |_| {});
    // TQ2_0 tensors of 256 x 256 become others of type 42: the header has the same length, offsets and bytes change.
    let file = bitnet_model::files::gguf::GgufFile::parse(&plain, "m").expect("valid");
    let mut order: Vec<(&str, usize, usize, bool)> =
        file.tensors().map(|(name, info)| (name, info.offset, info.len, info.kind == kind)).collect();
    order.sort_by_key(|(_, offset, ..)| *offset);
    let start = order[0].1;
    let mut bytes = plain[..start].to_vec();
    for (name, offset, len, changes) in order {
        let at = bytes.len() - start;
        // Behind a name: dimensions, type, offset.
        let place = find(&bytes[..start], name.as_bytes()) + name.len();
        let dims = u32::from_le_bytes(bytes[place..place + 4].try_into().expect("four")) as usize;
        let type_at = place + 4 + 8 * dims;
        bytes[type_at + 4..type_at + 12].copy_from_slice(&(at as u64).to_le_bytes());
        if changes {
            bytes[type_at..type_at + 4].copy_from_slice(&42u32.to_le_bytes());
            bytes.resize(bytes.len() + 256 * 256 / block * block_bytes + slack, 0);
        } else {
            bytes.extend(&plain[offset..offset + len]);
        }
        bytes.resize(start + (bytes.len() - start).next_multiple_of(32), 0);
    }
    GgufModel::parse(&bytes, "m.gguf", GgufOptions::default()).map(drop).map_err(|error| error.to_string())
}

#[test]
fn a_tensor_of_type_42_with_more_weights_than_can_be_counted_is_refused() {
    // Its bytes fit 64 bits, its number of weights does not.
    let shape = vec![1 << 32, 1 << 32];
    let plan = [PlannedTensor { name: "a.weight".into(), kind: TensorType::Q2_0, shape }];
    let mut keys = HeaderWriter::default();
    keys.text("general.architecture", "llama");
    let bytes = keys.finish(&plan).expect("whole blocks");
    let message =
        GgufModel::parse(&bytes, "m.gguf", GgufOptions::default()).map(drop).expect_err("too large").to_string();
    assert!(message.contains("tensor `a.weight` has type 42") && message.lines().count() == 1, "{message}");
}

#[test]
fn types_of_other_programs_are_named() {
    for (id, name) in [(43, "STQ1_0 or FV5"), (44, "FV5B"), (142, "PQ2_0 of PrismML"), (143, "PTQ1_0 of PrismML")] {
        let message = TensorType::by_id(id).expect_err(name);
        assert!(message.contains(&format!("has type {id} ({name})")), "{message}");
    }
}

/// Where a name of a tensor stands in a header: behind its length.
fn find(bytes: &[u8], name: &[u8]) -> usize {
    let whole = [&(name.len() as u64).to_le_bytes()[..], name].concat();
    bytes.windows(whole.len()).position(|window| window == whole).expect("a tensor of this name") + 8
}

#[test]
fn the_distances_between_tensors_tell_what_type_42_is() {
    of_type_42(64, 18, 0).expect("llama.cpp's");
    for (block, bytes, name) in [(128, 34, "Q2_0 of PrismML"), (256, 42, "STQ1_0")] {
        let message = of_type_42(block, bytes, 0).expect_err(name);
        let expected =
            format!("has type 42 in blocks of {block} weights in {bytes} bytes ({name}), which are not read");
        assert!(message.contains(&expected) && message.lines().count() == 1, "{message}");
    }
    // As many bytes as 18 for 64 weights take and more, by slack alone: neither.
    for slack in [64, 256 * 256 / 64 * 18 - 256 * 256 / 128 * 34] {
        let message = of_type_42(128, 34, slack + 32).expect_err("slack");
        assert!(message.contains("fit none of: 64 weights in 18 bytes"), "{message}");
    }
    let Some(path) = shared("reference-qwen3/qwen3.q2_0-g128.gguf") else { return };
    let bytes = std::fs::read(path).expect("readable");
    let message = GgufModel::parse(&bytes, "g128", GgufOptions::default()).map(drop).expect_err("another layout");
    assert!(message.to_string().contains("128 weights in 34 bytes (Q2_0 of PrismML)"), "{message}");
}
