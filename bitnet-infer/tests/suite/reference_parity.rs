//! The engine against logits and greedy tokens that transformers and PyTorch computed.

use std::path::Path;

use bitnet_infer::engine::{self, KvCache, LogitsFor, Model, argmax};
use bitnet_infer::kernels;
use bitnet_model::files::hugging_face::{ModelParts, WeightReader};
use bitnet_model::files::tensors::{Dtype, TensorFile};

use crate::common::{assert_close, compare, reference};
use crate::data_folder::shared;
use crate::pytorch::{self, CASES, Figures, distance};

const MODELS: [&str; 4] = ["master", "packed", "packed-llama", "float-llama"];
const SEQUENCES: usize = 2;
const LENGTH: usize = 33;
const VOCAB: usize = 512;

struct Expected {
    bytes: Vec<u8>,
}

impl Expected {
    fn read(folder: &Path) -> Self {
        Self { bytes: std::fs::read(folder.join("expected.safetensors")).expect("expected numbers") }
    }

    fn logits(&self, name: &str) -> Vec<f32> {
        let file = TensorFile::parse(&self.bytes, "expected").expect("valid");
        let logits = file.bytes(&format!("{name}.logits"), Dtype::F32, &[SEQUENCES, LENGTH, VOCAB]).expect("logits");
        logits.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    fn tokens(&self, name: &str, shape: &[usize]) -> Vec<u32> {
        let file = TensorFile::parse(&self.bytes, "expected").expect("valid");
        let tokens = file.bytes(name, Dtype::I32, shape).expect("tokens");
        tokens.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}

/// Read at once and token by token: no value of these models is rounded another way for a float that differs in its last bit.
fn check_figures(what: &str, model: &Model, figures: &Figures, case: &str) {
    let expected = figures.floats(&format!("{case}.logits"));
    let (mut at_once, mut one_by_one) = (Vec::new(), Vec::new());
    for tokens in figures.tokens().chunks(pytorch::LENGTH) {
        let mut cache = KvCache::new(model.config(), pytorch::LENGTH).expect("fits");
        at_once.extend(model.forward(tokens, &mut cache, LogitsFor::All).expect("runs"));
        let mut cache = KvCache::new(model.config(), pytorch::LENGTH).expect("fits");
        for token in tokens {
            one_by_one.extend(model.forward(&[*token], &mut cache, LogitsFor::Last).expect("runs"));
        }
    }
    let errors = [distance(&at_once, &expected), distance(&one_by_one, &expected)];
    println!("{what}: {errors:?}");
    assert!(errors.iter().all(|&error| error < 1e-5), "{what}: {errors:?}");
}

#[test]
fn logits_of_models_in_the_repository_are_those_of_pytorch() {
    let figures = Figures::read();
    for kernel in kernels::supported() {
        for (case, folder, weight, activation) in CASES {
            let config = pytorch::config(folder, weight, activation);
            let bytes = pytorch::weights(folder);
            let file = TensorFile::parse(&bytes, folder).expect("valid");
            let reader = WeightReader::new(&config, &file);
            let parts = ModelParts {
                config: &config,
                embedding: reader.embedding().expect("there"),
                head: reader.head().expect("there"),
                final_norm: reader.final_norm().expect("there"),
                layers: (0..config.num_hidden_layers).map(|layer| reader.layer(layer).expect("there")).collect(),
                tokenizer_json: None,
            };
            check_figures(&format!("{case} on {}", kernel.name), &Model::from_parts(parts, kernel), &figures, case);
        }
        for name in ["bitnet", "llama"] {
            let model = engine::open(&pytorch::folder().join(name), kernel).expect("loads").model;
            check_figures(&format!("the folder {name} on {}", kernel.name), &model, &figures, name);
        }
    }
}

#[test]
fn logits_are_those_of_pytorch_and_of_the_reference() {
    let Some(folder) = shared("reference-model") else { return };
    let expected = Expected::read(&folder);
    let tokens = expected.tokens("tokens", &[SEQUENCES, LENGTH]);
    for name in MODELS {
        let reference = reference(&folder.join(name));
        let scalar: Vec<f32> = tokens.chunks(LENGTH).flat_map(|tokens| reference.logits(tokens)).collect();
        for kernel in kernels::supported() {
            let model = engine::open(&folder.join(name), kernel).expect("loads").model;
            let mut logits = Vec::new();
            for tokens in tokens.chunks(LENGTH) {
                let mut cache = KvCache::new(model.config(), LENGTH).expect("fits");
                logits.extend(model.forward(tokens, &mut cache, LogitsFor::All).expect("runs"));
            }
            let exact = name == "float-llama";
            let label = |other: &str| format!("{name} on {}, against {other}", kernel.name);
            assert_close(&label("PyTorch"), &compare(&logits, &expected.logits(name), VOCAB), exact);
            assert_close(&label("the reference"), &compare(&logits, &scalar, VOCAB), exact);
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_pytorch() {
    let Some(folder) = shared("reference-model") else { return };
    let expected = Expected::read(&folder);
    for name in MODELS {
        let greedy = expected.tokens(&format!("{name}.greedy"), &[32]);
        for kernel in kernels::supported() {
            let model = engine::open(&folder.join(name), kernel).expect("loads").model;
            let mut cache = KvCache::new(model.config(), greedy.len()).expect("fits");
            let mut tokens = greedy[..8].to_vec();
            let mut logits = model.forward(&tokens, &mut cache, LogitsFor::Last).expect("runs");
            while tokens.len() < greedy.len() {
                tokens.push(argmax(&logits));
                logits = model.forward(&tokens[tokens.len() - 1..], &mut cache, LogitsFor::Last).expect("runs");
            }
            assert_eq!(tokens, greedy, "{name} on {}", kernel.name);
        }
    }
}
