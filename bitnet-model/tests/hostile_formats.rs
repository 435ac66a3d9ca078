//! Damaged and lying files of every format that is read from bytes alone: one line, no panic, and no more memory than a small
//! multiple of the file. A binary of its own, since the memory of everything in the process is counted.

#[path = "suite/gguf_file.rs"]
mod gguf_file;

use bitnet_model::files::gguf::{GgufFile, GgufModel, GgufOptions, I2sLayout, TensorType, tokenizer_json};
use bitnet_model::files::hugging_face::shard_names;
use bitnet_model::files::llama2c::{self, Llama2c};
use bitnet_model::files::source::WeightSource;
use bitnet_model::rng::{Stream, generator};
use bitnet_model::{Error, Result};
use peak_alloc::PeakAlloc;
use rand::Rng;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// What reading a weight may take, for each byte of the file: ternary codes at 1.69 bits become a byte each, their packed form,
/// or four bytes where they are read as floats.
const MULTIPLE: usize = 64;
/// What the reader may take for itself, whatever the file.
const ALLOWANCE: usize = 1 << 20;

/// Damage of each kind: bytes anywhere, bytes of the header, a cut, a hole, more bytes, an extreme number in the header, a stretch
/// of the file somewhere else.
fn damaged(bytes: &[u8], header: usize, rng: &mut impl Rng) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let at = |rng: &mut dyn rand::RngCore, len: usize| rng.random_range(0..len.max(1));
    match rng.random_range(0..8) {
        0 => (0..rng.random_range(1..5)).for_each(|_| out[at(rng, bytes.len())] = rng.random()),
        1 | 2 => (0..rng.random_range(1..4)).for_each(|_| out[at(rng, header)] = rng.random()),
        3 => out.truncate(at(rng, bytes.len())),
        4 => {
            let start = at(rng, header);
            out.drain(start..(start + rng.random_range(1..40)).min(bytes.len()));
        }
        5 => out.extend((0..rng.random_range(1..40)).map(|_| rng.random::<u8>())),
        6 => {
            let extremes =
                [0, 1, 2, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, i64::MAX as u64, u64::MAX, u64::MAX - 7];
            let number = extremes[rng.random_range(0..extremes.len())].to_le_bytes();
            let start = at(rng, header.min(bytes.len() - 8));
            let width = if rng.random() { 8 } else { 4 };
            out[start..start + width].copy_from_slice(&number[..width]);
        }
        _ => {
            let (from, to, len) = (at(rng, header), at(rng, header), rng.random_range(1..64));
            let stretch = bytes[from..(from + len).min(bytes.len())].to_vec();
            let end = (to + stretch.len()).min(out.len());
            out[to..end].copy_from_slice(&stretch[..end - to]);
        }
    }
    out
}

/// Reads `bytes` of each damaged file and counts what it gave.
fn attack(name: &str, bytes: &[u8], header: usize, cases: usize, read: impl Fn(&[u8]) -> Result<()>) {
    read(bytes).unwrap_or_else(|e| panic!("{name}: the file itself: {e}"));
    let mut rng = generator(name.bytes().map(u64::from).sum(), Stream::Bench);
    let (mut refused, mut harmless, mut most) = (0, 0, 0usize);
    for _ in 0..cases {
        let broken = damaged(bytes, header, &mut rng);
        let before = MEMORY.current_usage();
        MEMORY.reset_peak_usage();
        let outcome = read(&broken);
        let taken = MEMORY.peak_usage().saturating_sub(before);
        most = most.max(taken);
        assert!(taken <= MULTIPLE * broken.len() + ALLOWANCE, "{name}: {taken} bytes for a file of {}", broken.len());
        match outcome {
            Ok(()) => harmless += 1,
            Err(e) => {
                let message = e.to_string();
                assert!(message.starts_with("hostile: "), "{name}: {message}");
                assert!(!message.contains(char::is_control) && message.len() < 600, "{name}: {message:?}");
                refused += 1;
            }
        }
    }
    println!(
        "{name}: {cases} damaged files: {refused} refused with one line, {harmless} read as models, at most {most} bytes taken"
    );
    assert!(refused > cases / 4, "{name}: the damage is too gentle");
}

fn read_all(weights: &dyn WeightSource) -> Result<()> {
    let _ = (weights.notes(), weights.tensors());
    weights.final_norm()?;
    for view in [Some(weights.embedding_table()?), weights.head_table()?].into_iter().flatten() {
        let _ = view.first_not_finite();
    }
    (0..weights.config().num_hidden_layers).try_for_each(|layer| weights.block(layer).map(|_| ()))
}

fn read_gguf(bytes: &[u8]) -> Result<()> {
    let model = GgufModel::parse(bytes, "hostile", GgufOptions::default())?;
    read_all(&model)?;
    tokenizer_json(&GgufFile::parse(bytes, "hostile")?).map(|_| ())
}

fn llama2c_bytes() -> Vec<u8> {
    let mut bytes: Vec<u8> = [8i32, 12, 2, 2, 1, 5, 6].iter().flat_map(|n| n.to_le_bytes()).collect();
    let floats = 5 * 8 + 2 * (8 + 64 + 32 + 32 + 64 + 8 + 96 * 3) + 8 + 6 * 4;
    bytes.extend((0..floats).flat_map(|i| ((i % 7) as f32 / 7.0).to_le_bytes()));
    bytes
}

fn vocabulary_bytes() -> Vec<u8> {
    let mut bytes = 4u32.to_le_bytes().to_vec();
    for id in 0..300u32 {
        let text = format!("t{id}");
        bytes.extend((-(id as f32)).to_le_bytes());
        bytes.extend((text.len() as i32).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

#[test]
fn damaged_files_of_every_format_give_one_line_and_no_panic() {
    let cases = std::env::var("BITNET_HOSTILE_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(2000);
    for kind in gguf_file::KINDS {
        let config = gguf_file::config(kind, kind.is_ternary());
        let bytes = gguf_file::model_bytes(&config, kind, I2sLayout::Group128, 5);
        let header = GgufFile::parse(&bytes, "x").expect("valid").tensors().map(|(_, info)| info.offset).min();
        let name = format!("GGUF {}", kind.name());
        let cases = if kind.block() < 256 && kind != TensorType::I2S { cases } else { cases / 2 };
        attack(&name, &bytes, header.expect("tensors"), cases, read_gguf);
    }
    let bytes = llama2c_bytes();
    attack("llama2.c", &bytes, 28, cases, |bytes| read_all(&Llama2c::parse(bytes, "hostile")?));
    let bytes = vocabulary_bytes();
    attack("llama2.c vocabulary", &bytes, bytes.len(), cases, |bytes| {
        let lists = llama2c::token_lists(bytes, 300);
        let lists =
            lists.ok_or_else(|| Error::Format { origin: "hostile".into(), reason: "is no vocabulary".into() })?;
        lists.to_json("hostile").map(|_| ())
    });
    let index = br#"{"metadata": {"total_size": 12}, "weight_map": {"a.weight": "model-00001-of-00002.safetensors",
        "b.weight": "model-00002-of-00002.safetensors"}}"#;
    attack("safetensors index", index, index.len(), cases, |bytes| shard_names(bytes, "hostile").map(|_| ()));
}

/// A header with nothing in it but what is given.
fn header(version: u32, tensors: u64, keys: u64, rest: &[u8]) -> Vec<u8> {
    let counts = [tensors.to_le_bytes(), keys.to_le_bytes()].concat();
    [b"GGUF".as_slice(), &version.to_le_bytes(), &counts, rest].concat()
}

fn string(text: &str) -> Vec<u8> {
    [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [string(name).as_slice(), &kind.to_le_bytes(), value].concat()
}

fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims: Vec<u8> =
        [(dims.len() as u32).to_le_bytes().to_vec(), dims.iter().flat_map(|d| d.to_le_bytes()).collect()].concat();
    [string(name), dims, kind.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat()
}

#[test]
fn headers_that_cannot_be_are_refused_with_their_reason() {
    let array = |kind: u32, len: u64, bytes: &[u8]| [&kind.to_le_bytes(), len.to_le_bytes().as_slice(), bytes].concat();
    let padded = |mut bytes: Vec<u8>, data: usize| {
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        bytes
    };
    let two = |a: Vec<u8>, b: Vec<u8>| padded(header(3, 2, 0, &[a, b].concat()), 256);
    let one = |a: Vec<u8>| padded(header(3, 1, 0, &a), 256);
    for (bytes, expected) in [
        (b"GG".to_vec(), "ends within the magic number"),
        (b"GGML\0\0\0\0".to_vec(), "does not begin with `GGUF`"),
        (header(1, 0, 0, &[]), "has GGUF version 1, expected 2 or 3"),
        (header(3u32.swap_bytes(), 0, 0, &[]), "(it is big-endian), expected 2 or 3"),
        (header(3, u64::MAX, 0, &[]), "the number of tensors 18446744073709551615"),
        (header(3, 0, 1 << 40, &[]), "the number of keys 1099511627776"),
        (header(3, 60_000, 60_000, &[]), "claims 60000 keys and 60000 tensors"),
        (header(3, 0, 1, &key("", 4, &[0; 8])), "that is no name of 1 to 256 bytes"),
        (header(3, 0, 1, &key("a\nb", 4, &[0; 4])), "without control characters"),
        (header(3, 0, 1, &[&u64::MAX.to_le_bytes()[..], &[0; 20]].concat()), "length of a key 18446744073709551615"),
        (header(3, 0, 1, &key("key", 13, &[0; 8])), "`key` has a value of kind 13"),
        (header(3, 0, 1, &key("key", 7, &[2; 8])), "`key` is a truth value of 2"),
        (header(3, 0, 1, &key("key", 8, &[255; 16])), "length of a text"),
        (header(3, 0, 1, &key("key", 9, &array(9, 1, &[0; 8]))), "`key` is an array of arrays"),
        (header(3, 0, 1, &key("key", 9, &array(4, 1 << 62, &[0; 8]))), "the length of the array `key`"),
        (header(3, 0, 1, &key("key", 9, &array(8, 9, &[0; 8]))), "the length of the array `key` 9"),
        (header(3, 0, 2, &[key("key", 4, &[0; 4]), key("key", 4, &[0; 4])].concat()), "`key` is there twice"),
        (
            header(3, 0, 1, &key("general.alignment", 4, &24u32.to_le_bytes())),
            "expected an integer that is a power of two from 8",
        ),
        (
            header(3, 0, 1, &key("general.alignment", 4, &0u32.to_le_bytes())),
            "expected an integer that is a power of two from 8",
        ),
        (one(tensor("t", &[1, 1, 1, 1, 1], 0, 0)), "tensor `t` has 5 dimensions"),
        (one(tensor("t", &[0, 4], 0, 0)), "tensor `t` has a dimension of 0"),
        (
            one(tensor("t", &[1 << 40, 1 << 40], 0, 0)),
            "tensor `t` has dimensions [1099511627776, 1099511627776], which are no whole",
        ),
        (one(tensor("t", &[33], 8, 0)), "no whole number of Q8_0 blocks of 32"),
        (one(tensor("t", &[4], 77, 0)), "tensor `t` has type 77 (unknown)"),
        (one(tensor("t", &[4], 0, 4)), "begins at 4, expected a multiple of the alignment 32"),
        (one(tensor("t", &[4], 0, u64::MAX - 31)), "but the file has"),
        (one(tensor("t", &[64], 0, 32)), "tensor `t` needs 256 bytes at 32"),
        (two(tensor("t", &[4], 0, 0), tensor("t", &[4], 0, 32)), "tensor `t` is there twice"),
        (two(tensor("a", &[16], 0, 0), tensor("b", &[4], 0, 32)), "tensor `b` overlaps tensor `a`"),
    ] {
        let message = GgufFile::parse(&bytes, "hostile").map(|_| ()).expect_err(expected).to_string();
        assert!(message.starts_with("hostile: ") && message.contains(expected), "{message} lacks {expected}");
    }
}

#[test]
fn models_that_cannot_be_are_refused_with_their_reason() {
    let config = gguf_file::config(TensorType::F32, false);
    let good = gguf_file::model_bytes(&config, TensorType::F32, I2sLayout::Group128, 5);
    let find = |needle: &[u8]| good.windows(needle.len()).position(|window| window == needle).expect("there");
    let number_of = |key: &str| find(key.as_bytes()) + key.len() + 4;
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    for (bytes, expected) in [
        (with(number_of("llama.block_count"), &1000u32.to_le_bytes()), "tensor `blk.1.attn_norm.weight` is missing"),
        (with(number_of("llama.block_count"), &0u32.to_le_bytes()), "`num_hidden_layers` is 0"),
        (
            with(number_of("llama.block_count"), &9999u32.to_le_bytes()),
            "`llama.block_count` is 9999, expected at most 1024",
        ),
        (with(number_of("llama.attention.head_count"), &0u32.to_le_bytes()), "`num_attention_heads` is 0"),
        (with(number_of("llama.attention.head_count_kv"), &0u32.to_le_bytes()), "`num_key_value_heads` is 0"),
        (with(number_of("llama.embedding_length"), &64u32.to_le_bytes()), "but the embedding has 32 columns"),
        (with(number_of("llama.feed_forward_length"), &64u32.to_le_bytes()), "has shape [32, 32], expected [64, 32]"),
        (with(number_of("llama.attention.layer_norm_rms_epsilon"), &0f32.to_le_bytes()), "`rms_norm_eps` is 0"),
        (with(number_of("llama.rope.freq_base"), &f32::NAN.to_le_bytes()), "`rope_theta` is NaN"),
        (
            with(number_of("tokenizer.ggml.bos_token_id"), &9u32.to_le_bytes()),
            "`bos_token_id` is 9, expected a token below",
        ),
        (with(find(b"blk.0.attn_q.weight"), b"blk.0.attn_q.w_ight"), "is missing"),
        (with(find(b"rope.freq_base"), b"rope.freq_bas_"), ""),
        (
            with(find(b"tokenizer.ggml.scores") + 21 + 4, &5u32.to_le_bytes()),
            "`tokenizer.ggml.scores` is no array of f32",
        ),
        (
            with(find(b"tokenizer.ggml.token_type") + 25 + 4, &6u32.to_le_bytes()),
            "`tokenizer.ggml.token_type` is no array of 32-bit",
        ),
    ] {
        match read_gguf(&bytes) {
            Ok(()) => assert_eq!(expected, "", "an unknown key is no harm"),
            Err(e) => {
                let message = e.to_string();
                assert!(message.starts_with("hostile: ") && message.contains(expected), "{message} lacks {expected}");
            }
        }
    }
}

#[test]
fn a_vocabulary_that_explodes_is_refused() {
    // Every token is made of others in as many ways as it has letters.
    let tokens: Vec<String> = (1..=500).map(|n| "a".repeat(n)).collect();
    let strings: Vec<u8> = tokens.iter().flat_map(|token| string(token)).collect();
    let array = |kind: u32, bytes: &[u8]| [&kind.to_le_bytes(), 500u64.to_le_bytes().as_slice(), bytes].concat();
    let keys = [
        key("general.architecture", 8, &string("llama")),
        key("tokenizer.ggml.model", 8, &string("llama")),
        key("tokenizer.ggml.tokens", 9, &array(8, &strings)),
        key("tokenizer.ggml.scores", 9, &array(6, &[0; 2000])),
    ];
    let bytes = header(3, 0, 4, &keys.concat());
    let message =
        tokenizer_json(&GgufFile::parse(&bytes, "hostile").expect("a header")).expect_err("explodes").to_string();
    assert!(message.contains("made of others in too many ways"), "{message}");
}
