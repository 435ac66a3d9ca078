//! What a training step computes against PyTorch's figures in double precision (`tests/fixtures/make_pytorch.py` of
//! `bitnet-model`): logits, loss, the gradient of each parameter and steps of AdamW, of every scheme, by both ops.

use bitnet_model::ModelConfig;
use bitnet_model::files::tensors::{Dtype, TensorFile};
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::{Sequences, Transformer};
use bitnet_train::optim::{AdamW, Gradients};

use crate::pytorch::{self, CASES, Figures, LENGTH, distance};
use crate::support::{every_ops, flat};

fn parameters(config: &ModelConfig, folder: &str) -> Parameters {
    let bytes = pytorch::weights(folder);
    let file = TensorFile::parse(&bytes, folder).expect("valid");
    Parameters::from_values(config, |name, shape| {
        let bytes = file.bytes(name, Dtype::F32, shape)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect())
    })
    .expect("all parameters")
}

/// Inputs and targets of two sequences.
fn batch(figures: &Figures) -> [Vec<u32>; 2] {
    let tokens = figures.tokens();
    let part = |from: usize, to: usize| tokens.chunks(LENGTH).flat_map(|row| row[from..to].to_vec()).collect();
    [part(0, LENGTH - 1), part(1, LENGTH)]
}

#[test]
fn logits_loss_and_every_gradient_are_pytorchs() {
    let figures = Figures::read();
    let [inputs, targets] = batch(&figures);
    let sequences = Sequences { inputs: &inputs, targets: &targets, count: 2, index: 0 };
    let ste = estimator::by_name("ste").expect("known");
    for (case, folder, weight, activation) in CASES {
        let config = pytorch::config(folder, weight, activation);
        let parameters = parameters(&config, folder);
        for ops in every_ops() {
            let what = format!("{case}, {}", ops.name());
            let model = Transformer::new(&config, &parameters, LENGTH, ste, ops).expect("a network");
            let logits = flat(&model.logits(&figures.tokens(), 2).expect("logits"));
            let error = distance(&logits, &figures.floats(&format!("{case}.logits")));
            assert!(error < LIMIT, "{what}: logits differ by {error:.1e}");
            let mut gradients = Gradients::of_parameters(&parameters);
            let loss = model.differentiate(&parameters, sequences, &mut gradients).expect("every gradient");
            let truth = f64::from(figures.floats(&format!("{case}.loss"))[0]);
            assert!((loss - truth).abs() < 1e-6 * truth, "{what}: loss {loss}, expected {truth}");
            let mut worst = (0.0, "");
            for (name, gradient) in gradients.iter() {
                let error = distance(gradient, &figures.floats(&format!("{case}.grad.{name}")));
                worst = if error > worst.0 { (error, name) } else { worst };
                assert!(error < LIMIT, "{what}: the gradient of {name} differs by {error:.1e}");
            }
            println!("{what}: worst gradient {:.1e} ({})", worst.0, worst.1);
            assert_eq!(gradients.iter().count(), parameters.iter().count(), "{what}");
        }
    }
}

#[test]
fn steps_of_adamw_are_pytorchs() {
    let figures = Figures::read();
    let [inputs, targets] = batch(&figures);
    let sequences = Sequences { inputs: &inputs, targets: &targets, count: 2, index: 0 };
    let ste = estimator::by_name("ste").expect("known");
    for (case, folder, weight, activation) in CASES.into_iter().filter(|case| ["bitnet", "plain"].contains(&case.0)) {
        let config = pytorch::config(folder, weight, activation);
        let [losses, norms] = ["losses", "norms"].map(|name| figures.floats(&format!("{case}.{name}")));
        for ops in every_ops() {
            let what = format!("{case}, {}", ops.name());
            let parameters = parameters(&config, folder);
            let model = Transformer::new(&config, &parameters, LENGTH, ste, ops).expect("a network");
            let optimizer = toml::from_str("learning_rate = 1e-3\nclip_norm = 0.5").expect("the rest has defaults");
            let mut optimizer = AdamW::new(optimizer, &parameters);
            let mut gradients = Gradients::of_parameters(&parameters);
            for (step, (&loss, &norm)) in losses.iter().zip(&norms).enumerate() {
                gradients.clear();
                let found = model.differentiate(&parameters, sequences, &mut gradients).expect("every gradient");
                assert!((found / f64::from(loss) - 1.0).abs() < 1e-5, "{what}, step {step}: loss {found} for {loss}");
                let found = optimizer.step(&parameters, &gradients, 1, 1e-3, 0.1).expect("a step");
                assert!((found / f64::from(norm) - 1.0).abs() < 1e-5, "{what}, step {step}: norm {found} for {norm}");
            }
        }
    }
}

/// Of a tensor's root mean square: dozens of roundings of f32.
const LIMIT: f64 = 2e-5;
