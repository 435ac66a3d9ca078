//! Damaged and lying weight files: an error of one line, never a panic and never a model that is not the configuration's.

use bitnet_model::ModelConfig;
use bitnet_model::config::Storage;
use bitnet_model::files::tensors::{self, Dtype, OwnedTensor, TensorFile};
use bitnet_model::reference::Reference;
use proptest::prelude::*;

use crate::folder::{self, WEIGHT_SCHEMES, Weights};

/// What is done to the bytes of a file.
#[derive(Clone, Debug)]
enum Damage {
    /// Bytes at these places (modulo the length) are replaced.
    Overwrite(Vec<(usize, u8)>),
    /// As `Overwrite`, but inside the header only, where a byte changes the most.
    OverwriteHeader(Vec<(usize, u8)>),
    /// The file ends here.
    Truncate(usize),
    /// More bytes follow.
    Append(Vec<u8>),
    /// The length of the header says this.
    HeaderLength(u64),
    /// A stretch is missing in the middle.
    Remove(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let bytes = || prop::collection::vec((any::<usize>(), any::<u8>()), 1..5);
    // Digits and brackets keep the header parsable, so that the lies get further.
    let likely = prop::sample::select(b"0123456789[]{},:\"FUI".as_slice());
    let header_bytes = prop::collection::vec((any::<usize>(), likely), 1..3);
    prop_oneof![
        3 => bytes().prop_map(Damage::Overwrite),
        2 => bytes().prop_map(Damage::OverwriteHeader),
        4 => header_bytes.prop_map(Damage::OverwriteHeader),
        2 => any::<usize>().prop_map(Damage::Truncate),
        1 => prop::collection::vec(any::<u8>(), 1..20).prop_map(Damage::Append),
        1 => prop_oneof![any::<u64>(), 0u64..5000].prop_map(Damage::HeaderLength),
        2 => (any::<usize>(), 1usize..64).prop_map(|(at, len)| Damage::Remove(at, len)),
    ]
}

fn header_len(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize
}

fn apply(damage: &Damage, bytes: &mut Vec<u8>) {
    let (len, header) = (bytes.len(), header_len(bytes));
    match damage {
        Damage::Overwrite(places) => places.iter().for_each(|&(at, byte)| bytes[at % len] = byte),
        Damage::OverwriteHeader(places) => places.iter().for_each(|&(at, byte)| bytes[8 + at % header] = byte),
        Damage::Truncate(at) => bytes.truncate(at % len),
        Damage::Append(more) => bytes.extend(more),
        Damage::HeaderLength(n) => bytes[..8].copy_from_slice(&n.to_le_bytes()),
        Damage::Remove(at, count) => {
            let start = at % len;
            bytes.drain(start..len.min(start + count));
        }
    }
}

/// A model of each scheme, and one with ternary weights in base three.
fn config(kind: usize) -> ModelConfig {
    match WEIGHT_SCHEMES.get(kind) {
        Some(scheme) => folder::config(scheme),
        None => ModelConfig { storage: Storage::PackedBase3, ..folder::config("ternary") },
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1200, ..ProptestConfig::default() })]
    #[test]
    fn damaged_files_give_one_line_and_no_panic(kind in 0..=WEIGHT_SCHEMES.len(), damage in damage()) {
        static FILES: std::sync::LazyLock<Vec<Vec<u8>>> = std::sync::LazyLock::new(|| {
            (0..=WEIGHT_SCHEMES.len()).map(|kind| folder::model_bytes(&config(kind), 1)).collect()
        });
        let mut bytes = FILES[kind].clone();
        apply(&damage, &mut bytes);
        for storage in [Storage::Packed, Storage::PackedInverseScale, Storage::PackedBase3, Storage::Float] {
            let config = ModelConfig { storage, ..config(kind) };
            match Weights::read(&config, &bytes) {
                // What reads must also run.
                Ok(_) => {
                    let file = TensorFile::parse(&bytes, "model.safetensors").expect("it did just now");
                    let logits = Reference::load(config, &file).expect("it did just now").logits(&[1, 10, 3]);
                    prop_assert_eq!(logits.len(), 3 * 11);
                }
                Err(e) => {
                    let message = e.to_string();
                    prop_assert!(message.starts_with("model.safetensors: "), "{}", message);
                    prop_assert!(!message.contains('\n') && message.len() < 500, "{}", message);
                }
            }
        }
    }
}

/// The tensors of a file, to be changed and written again.
fn tensors_of(bytes: &[u8]) -> Vec<(String, OwnedTensor)> {
    let file = TensorFile::parse(bytes, "model.safetensors").expect("valid");
    let owned = |name: &&str| {
        let view = file.view(name).expect("listed");
        let tensor = OwnedTensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
        (name.to_string(), tensor)
    };
    file.names().iter().map(owned).collect()
}

#[test]
fn lies_are_named_with_tensor_and_expectation() {
    type Lie = fn(&mut OwnedTensor);
    let cases: [(&str, &str, Lie, &str); 12] = [
        ("ternary", "model.layers.1.mlp.up_proj.weight", |t| t.shape.reverse(), "has shape [10, 4], expected [4, 10]"),
        ("ternary", "model.layers.0.mlp.down_proj.weight", |t| t.dtype = Dtype::I8, "is I8, expected U8"),
        (
            "ternary",
            "model.layers.0.self_attn.q_proj.weight",
            |t| t.bytes[3] = 0b0000_1100,
            "has the impossible ternary code 3 at row 2, column 3",
        ),
        ("ternary", "model.layers.0.mlp.up_proj.weight_scale", |t| nan(t, 0), "holds NaN or infinity at element 0"),
        ("int8", "model.layers.0.mlp.up_proj.weight_scale", |t| nan(t, 12), "holds NaN or infinity at element 12"),
        (
            "binary",
            "model.layers.0.mlp.up_proj.weight_scale",
            |t| zero(t),
            "has scale 0 at index 0, expected a positive",
        ),
        (
            "int4",
            "model.layers.1.mlp.up_proj.weight_scale",
            |t| negative(t),
            "has scale -1 at index 0, expected a positive",
        ),
        (
            "int4",
            "model.layers.1.mlp.up_proj.weight_scale",
            |t| *t = OwnedTensor::f32(&[1], &[1.0]),
            "has shape [1], expected [13]",
        ),
        (
            "ternary",
            "model.norm.weight",
            |t| *t = OwnedTensor { dtype: Dtype::I32, ..t.clone() },
            "is I32, expected F32, F16 or BF16",
        ),
        ("ternary", "model.norm.weight", |t| nan(t, 4), "holds NaN or infinity at element 4"),
        (
            "ternary",
            "model.embed_tokens.weight",
            |t| *t = OwnedTensor::f32(&[10, 11], &[0.0; 110]),
            "has shape [10, 11], expected [11, 10]",
        ),
        ("ternary", "lm_head.weight", |t| t.bytes[2..4].copy_from_slice(&[0x80, 0x7f]), "NaN or infinity at element 1"),
    ];
    for (scheme, name, lie, expected) in cases {
        let config = folder::config(scheme);
        let mut tensors = tensors_of(&folder::model_bytes(&config, 2));
        let (_, tensor) = tensors.iter_mut().find(|(n, _)| n == name).expect(name);
        lie(tensor);
        let message = Weights::read(&config, &serialized(&tensors)).map(|_| ()).expect_err(expected).to_string();
        assert!(message.starts_with("model.safetensors: tensor `"), "{message}");
        assert!(
            message.contains(name.trim_end_matches("_scale")) && message.contains(expected),
            "{message}: {expected}"
        );
    }
}

#[test]
fn every_missing_tensor_is_named() {
    for scheme in ["none", "ternary"] {
        let config = folder::config(scheme);
        let tensors = tensors_of(&folder::model_bytes(&config, 3));
        for missing in 0..tensors.len() {
            let mut rest = tensors.clone();
            let (name, _) = rest.remove(missing);
            let message = Weights::read(&config, &serialized(&rest)).map(|_| ()).expect_err(&name).to_string();
            assert_eq!(message, format!("model.safetensors: tensor `{name}` is missing"));
        }
    }
}

#[test]
fn headers_that_cannot_be_are_refused() {
    let bytes = folder::model_bytes(&folder::config("ternary"), 4);
    let parse = |bytes: &[u8]| TensorFile::parse(bytes, "x").map(|_| ()).expect_err("a broken header").to_string();
    let with_length = |n: u64| [n.to_le_bytes().as_slice(), &bytes[8..]].concat();
    let with_header = |json: &str| [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    for (bytes, expected) in [
        (vec![], "header too small"),
        (bytes[..7].to_vec(), "header too small"),
        (with_length(200 << 20), "header too large"),
        (with_length(u64::MAX), "header too large"),
        (with_length(bytes.len() as u64), "invalid header length"),
        (with_header("[1]"), "invalid JSON"),
        (with_header(r#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#), "overflow"),
        (with_header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#), "not fully covered"),
        (with_header(r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#), "a"),
    ] {
        let message = parse(&bytes);
        assert!(message.starts_with("x: is not a valid safetensors file of "), "{message}");
        assert!(message.contains(expected) && !message.contains('\n'), "{message}: {expected}");
    }
}

#[test]
fn a_name_from_a_file_cannot_break_the_line() {
    let json = r#"{"a\nb\u001b[2J":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let bytes = [&(json.len() as u64).to_le_bytes(), json.as_bytes(), &[0; 12]].concat();
    let message = TensorFile::parse(&bytes, "x").map(|_| ()).expect_err("a hole before the tensor").to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
}

fn serialized(tensors: &[(String, OwnedTensor)]) -> Vec<u8> {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("x.safetensors");
    tensors::write(&path, tensors, ("format", "pt".into())).expect("written");
    std::fs::read(path).expect("readable")
}

fn nan(tensor: &mut OwnedTensor, at: usize) {
    tensor.bytes[at * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
}

fn zero(tensor: &mut OwnedTensor) {
    tensor.bytes[..4].fill(0);
}

fn negative(tensor: &mut OwnedTensor) {
    tensor.bytes[..4].copy_from_slice(&(-1f32).to_le_bytes());
}
