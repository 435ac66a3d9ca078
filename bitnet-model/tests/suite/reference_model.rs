//! Tiny models with the logits that `transformers` 5.23 and PyTorch 2.15 give: the scalar reference must meet them.
//!
//! The data lies outside the project (`../shared/data/reference-model`); where it is absent the test says so and passes.

use std::path::Path;

use bitnet_model::ModelConfig;
use bitnet_model::files::tensors::{Dtype, TensorFile};
use bitnet_model::reference::Reference;

#[test]
fn logits_meet_pytorchs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/reference-model");
    if !root.exists() {
        eprintln!("skipped: no {}", root.display());
        return;
    }
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
