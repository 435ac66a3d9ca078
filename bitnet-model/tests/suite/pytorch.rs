//! Tiny models with PyTorch's figures, which are part of the repository: see `tests/fixtures/make_pytorch.py`. Other crates' tests
//! include this file.
//!
//! No value in them lies near a boundary between two codes, so whoever computes rightly has PyTorch's codes, and a quantized
//! model is as near to its figures as one of floats.

use std::fs;
use std::path::{Path, PathBuf};

use bitnet_model::ModelConfig;
use bitnet_model::config::Quantization;
use bitnet_model::files::tensors::{Dtype, TensorFile};

/// The cases, each with its folder and the schemes of weights and activations.
pub const CASES: [(&str, &str, &str, &str); 6] = [
    ("bitnet", "bitnet", "ternary", "int8"),
    ("binary", "bitnet", "binary", "int8"),
    ("int8", "bitnet", "int8", "int8"),
    ("int4", "bitnet", "int4", "int8"),
    ("plain", "bitnet", "none", "none"),
    ("llama", "llama", "none", "none"),
];

/// Tokens of a sequence.
pub const LENGTH: usize = 8;

/// The folder of the models and figures.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../bitnet-model/tests/fixtures/pytorch")
}

/// The configuration in a folder of [`CASES`], under these schemes.
pub fn config(folder_name: &str, weight: &str, activation: &str) -> ModelConfig {
    let mut config = ModelConfig::read(&folder().join(folder_name).join("config.json")).expect("valid");
    config.quantization = Quantization::by_name(weight, activation).expect("known");
    config
}

/// The bytes of the weights in a folder of [`CASES`].
pub fn weights(folder_name: &str) -> Vec<u8> {
    fs::read(folder().join(folder_name).join("model.safetensors")).expect("readable")
}

/// What PyTorch computed.
pub struct Figures(Vec<u8>);

impl Figures {
    /// All figures.
    pub fn read() -> Self {
        Self(fs::read(folder().join("expected.safetensors")).expect("readable"))
    }

    /// The bytes of a figure of this type.
    pub fn bytes(&self, name: &str, dtype: Dtype) -> Vec<u8> {
        let file = TensorFile::parse(&self.0, "expected.safetensors").expect("valid");
        let view = file.view(name).unwrap_or_else(|_| panic!("no figure `{name}`"));
        assert_eq!(view.dtype(), dtype, "{name}");
        view.data().to_vec()
    }

    /// Floats, row-major.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.bytes(name, Dtype::F32).as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    /// Two sequences of [`LENGTH`] tokens.
    pub fn tokens(&self) -> Vec<u32> {
        self.bytes("tokens", Dtype::I32).as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
    }
}

/// The largest difference, over the root mean square of what is expected; infinite if something found is no number.
pub fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    if found.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let square: f64 = expected.iter().map(|&x| f64::from(x).powi(2)).sum();
    let differences = found.iter().zip(expected).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    differences.fold(0.0, f64::max) / (square / expected.len() as f64).sqrt()
}
