//! The scalar reference and the quantizers against PyTorch: tiny models that are part of the repository, term by term, and larger
//! ones of `transformers` 5.23 in the data folder.

use bitnet_model::ModelConfig;
use bitnet_model::files::tensors::{Dtype, TensorFile};
use bitnet_model::quant::{self, GROUPED_SCHEMES, WEIGHT_SCHEMES};
use bitnet_model::reference::Reference;

use crate::data_folder::shared;
use crate::pytorch::{self, CASES, Figures, LENGTH, distance};

#[test]
fn logits_of_every_scheme_meet_pytorchs() {
    let figures = Figures::read();
    for (case, folder, weight, activation) in CASES {
        let bytes = pytorch::weights(folder);
        let file = TensorFile::parse(&bytes, folder).expect("valid");
        let model = Reference::load(pytorch::config(folder, weight, activation), &file).expect("loads");
        let logits: Vec<f32> = figures.tokens().chunks(LENGTH).flat_map(|tokens| model.logits(tokens)).collect();
        let error = distance(&logits, &figures.floats(&format!("{case}.logits")));
        println!("{case}: logits differ by {error:.1e}");
        assert!(error < 1e-5, "{case}: {error:.1e}");
    }
}

fn codes_of(figures: &Figures, name: &str) -> Vec<i8> {
    figures.bytes(name, Dtype::I8).into_iter().map(|byte| byte as i8).collect()
}

#[test]
fn weight_schemes_have_pytorchs_codes_and_scales() {
    let figures = Figures::read();
    let weights = figures.floats("quant.weights");
    for scheme in WEIGHT_SCHEMES.iter().chain(GROUPED_SCHEMES) {
        let name = scheme.name();
        let mut codes = vec![0; weights.len()];
        let scales = scheme.quantize(&weights, 5, &mut codes);
        assert_eq!(codes, codes_of(&figures, &format!("quant.{name}.codes")), "{name}");
        let expected = figures.floats(&format!("quant.{name}.scales"));
        let near = scales.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 2e-7 * b);
        assert!(scales.len() == expected.len() && near, "{name}: {scales:?}, expected {expected:?}");
    }
}

#[test]
fn activations_have_pytorchs_codes_and_steps() {
    let figures = Figures::read();
    let scheme = quant::activation_scheme("int8").expect("known").expect("not none");
    for site in ["qkv", "o", "gate_up", "down"] {
        let x = figures.floats(&format!("in.{site}"));
        let expected_steps = figures.floats(&format!("step.{site}"));
        let cols = x.len() / expected_steps.len();
        let mut codes = vec![0; x.len()];
        let quantized = x.chunks(cols).zip(codes.chunks_mut(cols)).map(|(x, codes)| scheme.quantize(x, codes));
        let steps: Vec<f32> = quantized.collect();
        assert_eq!(codes, codes_of(&figures, &format!("codes.{site}")), "{site}");
        assert!(steps.iter().zip(&expected_steps).all(|(a, b)| (a - b).abs() <= 2e-7 * b), "{site}: {steps:?}");
    }
}

#[test]
fn logits_meet_those_of_transformers() {
    let Some(root) = shared("reference-model") else { return };
    let expected = std::fs::read(root.join("expected.safetensors")).expect("readable");
    let expected = TensorFile::parse(&expected, "expected.safetensors").expect("valid");
    let tokens = expected.bytes("tokens", Dtype::I32, &[2, 33]).expect("tokens");
    let tokens: Vec<u32> =
        tokens.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes"))).collect();

    for (name, quantized) in [("packed", true), ("packed-llama", true), ("master", true), ("float-llama", false)] {
        let config = ModelConfig::read(&root.join(name).join("config.json")).expect("valid");
        let bytes = std::fs::read(root.join(name).join("model.safetensors")).expect("readable");
        let file = TensorFile::parse(&bytes, name).expect("valid");
        let model = Reference::load(config, &file).expect("loads");
        let logits: Vec<f32> = tokens.chunks(33).flat_map(|sequence| model.logits(sequence)).collect();
        let truth = expected.bytes(&format!("{name}.logits"), Dtype::F32, &[2, 33, 512]).expect("logits");
        let truth: Vec<f32> =
            truth.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();

        let rms = root_mean_square(logits.iter().zip(&truth).map(|(a, b)| a - b)) / deviation(&truth);
        let pairs = logits.chunks(512).zip(truth.chunks(512));
        let equal = pairs.filter(|(a, b)| argmax(a) == argmax(b)).count() as f64 / 66.0;
        println!("{name}: logits rms {rms:.2e} of their deviation, argmax equal {:.1} %", equal * 100.0);
        // Quantized models: a value that crosses a rounding boundary moves a whole step. Floats: f32 against f64 sums.
        assert!(rms < if quantized { 1e-2 } else { 1e-5 }, "{name}: rms {rms}");
        assert!(equal >= 0.98, "{name}: argmax {equal}");
    }
}

fn root_mean_square(values: impl ExactSizeIterator<Item = f32>) -> f64 {
    let count = values.len() as f64;
    (values.map(|v| f64::from(v).powi(2)).sum::<f64>() / count).sqrt()
}

fn deviation(values: &[f32]) -> f64 {
    let mean = (values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64) as f32;
    root_mean_square(values.iter().map(|v| v - mean))
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).max_by(|&i, &j| row[i].total_cmp(&row[j])).expect("not empty")
}
