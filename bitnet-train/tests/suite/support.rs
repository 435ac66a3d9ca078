//! Random numbers, tensors and norms that the tests share.

use std::sync::Arc;

use bitnet_model::config::Quantization;
use bitnet_model::quant;
use bitnet_model::rng::{Stream, generator};
use bitnet_train::nn::estimator;
use bitnet_train::ops::{self, BitLinearSpec, Ops};
use candle_core::{Device, Tensor, Var};
use rand::Rng;

/// Every weight scheme of the table, and none.
pub fn weight_schemes() -> Vec<&'static str> {
    [quant::NONE].into_iter().chain(quantized_weights()).collect()
}

/// Every weight scheme of the table.
pub fn quantized_weights() -> impl Iterator<Item = &'static str> {
    quant::WEIGHT_SCHEMES.iter().map(|scheme| scheme.name())
}

/// Every activation scheme of the table, and none.
pub fn activation_schemes() -> Vec<&'static str> {
    [quant::NONE].into_iter().chain(quant::ACTIVATION_SCHEMES.iter().map(|scheme| scheme.name())).collect()
}

/// Every estimator of the table.
pub fn estimators() -> Vec<&'static str> {
    estimator::ESTIMATORS.iter().map(|estimator| estimator.name()).collect()
}

/// Both implementations.
pub fn every_ops() -> [Arc<dyn Ops>; 2] {
    ["reference", "fused"].map(|name| ops::by_name(name).expect("known"))
}

/// Numbers that look normal (a sum of uniform ones), of standard deviation 1.
pub fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = generator(seed, Stream::Bench);
    (0..count).map(|_| (0..4).map(|_| rng.random_range(-1f32..1.0)).sum::<f32>() * 0.866).collect()
}

pub fn spec(weight: &str, activation: &str, estimator: &str) -> BitLinearSpec {
    BitLinearSpec {
        quantization: Quantization::by_name(weight, activation).expect("known"),
        estimator: estimator::by_name(estimator).expect("known"),
    }
}

pub fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).expect("as many values as the shape holds")
}

pub fn variable(values: &[f32], shape: &[usize]) -> Var {
    Var::from_tensor(&tensor(values, shape)).expect("a variable")
}

/// All numbers, row-major.
pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().expect("flat").to_vec1().expect("f32")
}

/// What an op gives and the gradients of `sum(output * r)` for each input.
pub struct Differentiated {
    pub output: Vec<f32>,
    pub gradients: Vec<Vec<f32>>,
}

/// Runs `compute` on `inputs` and differentiates a random linear functional of what comes out, `r` made from `seed`.
pub fn differentiate(
    inputs: &[(Vec<f32>, Vec<usize>)],
    seed: u64,
    compute: impl Fn(&[Tensor]) -> candle_core::Result<Tensor>,
) -> Differentiated {
    let vars: Vec<Var> = inputs.iter().map(|(values, shape)| variable(values, shape)).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = compute(&tensors).expect("computes");
    let r = tensor(&random(seed, y.elem_count()), y.dims());
    let store = (&y * &r).and_then(|y| y.sum_all()).and_then(|loss| loss.backward()).expect("differentiates");
    let gradients = vars.iter().map(|var| flat(store.get(var).expect("a gradient of every input"))).collect();
    Differentiated { output: flat(&y), gradients }
}

/// `|a - b| / |b|` in the Euclidean norm; 0 where both are all zeros.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    let size: f64 = b.iter().map(|&b| f64::from(b).powi(2)).sum();
    if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
}
