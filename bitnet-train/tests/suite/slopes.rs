//! The gradient of every parameter of whole models against central differences in f64, for every scheme and estimator and both
//! ops.

use std::sync::Arc;

use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, Quantization};
use bitnet_model::rng::{Stream, generator};
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::{Sequences, Transformer};
use bitnet_train::ops::{FusedOps, FusedSettings, Ops};
use bitnet_train::optim::Gradients;
use rand::Rng;

use crate::support::{activation_schemes, estimators, every_ops, random, weight_schemes};
use crate::whole::{Rounding, Values, Whole};

/// Sizes that leave remainders everywhere, and grouped heads whose width is not `hidden / heads`.
fn config(weight: &str, activation: &str, llama: bool) -> ModelConfig {
    let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 19, "hidden_size": 13, "intermediate_size": 11,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "hidden_act": "relu2",
        "rms_norm_eps": 0.01, "rope_theta": 100.0, "tie_word_embeddings": true}"#;
    let mut config = ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid");
    config.quantization = Quantization::by_name(weight, activation).expect("known");
    if llama {
        config.sub_norms = false;
        config.tie_word_embeddings = false;
        config.hidden_act = HiddenAct::Silu;
    }
    config
}

/// Parameters of a seed, norms far from 1.
fn parameters(config: &ModelConfig, seed: u64) -> Parameters {
    let mut rng = generator(seed, Stream::Bench);
    let draw = |_: &str, shape: &[usize]| {
        let count = shape.iter().product();
        let uniform = (0..count).map(|_| rng.random_range(-1f32..1.0));
        Ok(uniform.map(|x| if shape.len() == 1 { 1.0 + 0.6 * x } else { 0.5 * x }).collect())
    };
    Parameters::from_values(config, draw).expect("all parameters")
}

/// A model, a batch and parameters where f32 and f64 have the same codes.
fn certain(config: ModelConfig, estimator: &'static str) -> (Whole, Parameters, Values, Rounding) {
    let token = |i: u32| (i * i * 7 + 3 * i) % 19;
    let mut whole = Whole { config, estimator, inputs: Vec::new(), targets: Vec::new(), count: 2 };
    (whole.inputs, whole.targets) = ((0..10).map(token).collect(), (1..11).map(token).collect());
    for seed in 0..500 {
        let parameters = parameters(&whole.config, seed);
        let double = |name: &str| parameters.values(name).expect("its own name").into_iter().map(f64::from).collect();
        let values: Values = parameters.iter().map(|(name, _)| (name.to_owned(), double(name))).collect();
        let rounding = whole.quantized(&values).1;
        if !rounding.doubtful {
            return (whole, parameters, values, rounding);
        }
    }
    panic!("no seed of 500 keeps all values away from the boundaries between codes");
}

/// A derivative along a direction through one parameter.
struct Slope {
    direction: Vec<(usize, f64)>,
    value: f64,
}

/// Along a few single numbers of a parameter and two random directions through all of them.
fn slopes(whole: &Whole, values: &mut Values, rounding: &mut Rounding, name: &str) -> Vec<Slope> {
    let len = values[name].len();
    let mut rng = generator(len as u64, Stream::Bench);
    let mut directions: Vec<Vec<(usize, f64)>> = (0..6).map(|_| vec![(rng.random_range(0..len), 1.0)]).collect();
    for seed in 0..2 {
        let unit = 1.0 / (len as f64).sqrt();
        directions.push(random(seed, len).into_iter().map(|d| f64::from(d) * unit).enumerate().collect());
    }
    let mut slope = |direction: Vec<(usize, f64)>| {
        let origin = values[name].clone();
        let mut at = |step: f64| {
            let moved = values.get_mut(name).expect("a parameter");
            moved.copy_from_slice(&origin);
            direction.iter().for_each(|&(i, d)| moved[i] += step * d);
            whole.smooth(values, rounding)
        };
        let value = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        at(0.0);
        Slope { direction, value }
    };
    directions.drain(..).map(&mut slope).collect()
}

fn check(what: &str, config: ModelConfig, estimator: &'static str) {
    let (whole, parameters, mut values, mut rounding) = certain(config, estimator);
    let (loss, _) = whole.quantized(&values);
    assert!((whole.smooth(&values, &mut rounding) - loss).abs() < 1e-12, "{what}: the stand-in has another loss");
    let names: Vec<String> = values.keys().cloned().collect();
    let truth: Vec<Vec<Slope>> = names.iter().map(|name| slopes(&whole, &mut values, &mut rounding, name)).collect();
    let again: Arc<dyn Ops> = Arc::new(FusedOps::new(FusedSettings { recompute: true, ..FusedSettings::default() }));
    for ops in every_ops().into_iter().chain([again]) {
        let what = format!("{what}, {}", ops.name());
        let rule = estimator::by_name(estimator).expect("known");
        let model = Transformer::new(&whole.config, &parameters, 5, rule, ops).expect("a network");
        let (inputs, targets) = (&whole.inputs, &whole.targets);
        let batch = Sequences { inputs, targets, count: whole.count, index: 0 };
        let mut gradients = Gradients::of_parameters(&parameters);
        let found = model.differentiate(&parameters, batch, &mut gradients).expect("every gradient");
        assert!((found / loss - 1.0).abs() < 1e-6, "{what}: loss {found}, expected {loss}");
        let mut worst = (0.0, "");
        for ((name, gradient), slopes) in gradients.iter().zip(&truth) {
            let largest = slopes.iter().map(|slope| slope.value.abs()).fold(f64::MIN_POSITIVE, f64::max);
            for Slope { direction, value } in slopes {
                let along: f64 = direction.iter().map(|&(i, d)| f64::from(gradient[i]) * d).sum();
                let error = (along - value).abs() / largest;
                worst = if error > worst.0 { (error, name) } else { worst };
                assert!(error < TOLERANCE, "{what}: a slope of {name} is {along}, expected {value} ({error:.1e})");
            }
        }
        println!("{what}: worst slope differs by {:.1e} ({})", worst.0, worst.1);
        assert_eq!(gradients.iter().count(), truth.len(), "{what}");
    }
}

#[test]
fn every_parameter_has_the_slope_of_the_definition() {
    for weight in weight_schemes() {
        for activation in activation_schemes() {
            for estimator in estimators() {
                for llama in [false, true] {
                    let what = format!("{weight}/{activation}, {estimator}, llama {llama}");
                    check(&what, config(weight, activation, llama), estimator);
                }
            }
        }
    }
}

/// Central differences in f64: the truncation error is of the order of `STEP^2`, the rounding error of `1e-16 / STEP`.
const STEP: f64 = 1e-5;

/// Of a parameter's largest slope: some dozens of roundings of f32.
const TOLERANCE: f64 = 3e-5;
