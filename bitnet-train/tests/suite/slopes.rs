//! The gradient of every parameter of whole models against central differences in f64, for every scheme and estimator and both
//! ops.

use std::sync::Arc;

use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, Quantization};
use bitnet_model::rng::{Stream, generator};
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::{Sequences, Transformer};
use bitnet_train::ops::{Backward, FusedOps, FusedSettings, Ops, Precision};
use bitnet_train::optim::Gradients;
use rand::Rng;

use crate::support::{activation_schemes, estimators, every_ops, random, weight_schemes};
use crate::whole::{Rounding, Term, Values, Whole};

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
    let mut whole = Whole { without: None, config, estimator, inputs: Vec::new(), targets: Vec::new(), count: 2 };
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

/// Holds what each of `computed` gives to the definition: loss and slopes, within these limits.
fn check(what: &str, config: ModelConfig, estimator: &'static str, computed: &[(Arc<dyn Ops>, [f64; 2])]) {
    let (whole, parameters, mut values, mut rounding) = certain(config, estimator);
    let (loss, _) = whole.quantized(&values);
    assert!((whole.smooth(&values, &mut rounding) - loss).abs() < 1e-12, "{what}: the stand-in has another loss");
    let names: Vec<String> = values.keys().cloned().collect();
    let truth: Vec<Vec<Slope>> = names.iter().map(|name| slopes(&whole, &mut values, &mut rounding, name)).collect();
    for (ops, [loss_tolerance, tolerance]) in computed {
        let what = format!("{what}, {}", ops.name());
        let rule = estimator::by_name(estimator).expect("known");
        let model = Transformer::new(&whole.config, &parameters, 5, rule, ops.clone()).expect("a network");
        let (inputs, targets) = (&whole.inputs, &whole.targets);
        let batch = Sequences { inputs, targets, count: whole.count, index: 0 };
        let mut gradients = Gradients::of_parameters(&parameters);
        let found = model.differentiate(&parameters, batch, &mut gradients).expect("every gradient");
        let mut worst = (0.0, String::new());
        for ((name, gradient), slopes) in gradients.iter().zip(&truth) {
            let largest = slopes.iter().map(|slope| slope.value.abs()).fold(f64::MIN_POSITIVE, f64::max);
            for Slope { direction, value } in slopes {
                let along: f64 = direction.iter().map(|&(i, d)| f64::from(gradient[i]) * d).sum();
                let error = (along - value).abs() / largest;
                assert!(error.is_finite(), "{what}: a slope of {name} is {along}");
                if error > worst.0 {
                    worst = (error, format!("{name}: {along}, expected {value}"));
                }
            }
        }
        let off = (found / loss - 1.0).abs();
        println!("{what}: loss differs by {off:.1e}, worst slope by {:.1e} of the largest ({})", worst.0, worst.1);
        assert!(off < *loss_tolerance, "{what}: loss {found}, expected {loss}");
        assert!(worst.0 < *tolerance, "{what}: {worst:?}");
        assert_eq!(gradients.iter().count(), truth.len(), "{what}");
    }
}

#[test]
fn every_parameter_has_the_slope_of_the_definition() {
    let again = fused(FusedSettings { recompute: true, ..FusedSettings::default() });
    let computed: Vec<_> =
        every_ops().into_iter().chain([again]).map(|ops| (ops, [LOSS_TOLERANCE, TOLERANCE])).collect();
    for weight in weight_schemes() {
        for activation in activation_schemes() {
            for estimator in estimators() {
                for llama in [false, true] {
                    let what = format!("{weight}/{activation}, {estimator}, llama {llama}");
                    check(&what, config(weight, activation, llama), estimator, &computed);
                }
            }
        }
    }
}

/// What the limits above are worth: without any one term, of either half, the loss is off by hundreds of them.
#[test]
fn a_program_without_one_term_would_be_caught() {
    for (weight, activation) in [("none", "none"), ("ternary", "int8")] {
        for llama in [false, true] {
            let (mut whole, _, values, _) = certain(config(weight, activation, llama), "ste");
            let (loss, _) = whole.quantized(&values);
            for term in Term::ALL {
                if llama && [Term::AttentionSubNorm, Term::FeedForwardSubNorm].contains(&term) {
                    continue;
                }
                whole.without = Some(term);
                let off = (whole.quantized(&values).0 / loss - 1.0).abs();
                println!("{weight}/{activation}, llama {llama}: without {term:?} the loss is off by {off:.1e}");
                assert!(
                    off > 100.0 * LOSS_TOLERANCE,
                    "{weight}/{activation}, llama {llama}: {term:?} shows by {off:.1e}"
                );
            }
        }
    }
}

/// What is rounded on purpose is off by its rounding. Of gradients in bf16 that is much where a softmax cancels nearly all of
/// them, as in so small a model. The limit of the loss is the sharper one: nearly every term that is left out (see above)
/// exceeds it. Quantized gradients leave the loss as it is.
#[test]
fn rounded_passes_are_near_the_definition() {
    let bf16 = fused(FusedSettings { precision: Precision::Bf16, ..FusedSettings::default() });
    let int8 = fused(FusedSettings { backward: Backward::Int8, ..FusedSettings::default() });
    for llama in [false, true] {
        for weight in weight_schemes() {
            // Activations that are quantized would fall to another code for a rounding of bf16 before them.
            let floats = config(weight, "none", llama);
            check(&format!("bf16, {weight}, llama {llama}"), floats, "ste", &[(bf16.clone(), [2e-3, 0.5])]);
            if weight != "none" {
                let codes = config(weight, "int8", llama);
                let what = format!("int8 gradients, {weight}, llama {llama}");
                check(&what, codes, "ste", &[(int8.clone(), [LOSS_TOLERANCE, 0.2])]);
            }
        }
    }
}

fn fused(settings: FusedSettings) -> Arc<dyn Ops> {
    Arc::new(FusedOps::new(settings))
}

/// Central differences in f64: the truncation error is of the order of `STEP^2`, the rounding error of `1e-16 / STEP`.
const STEP: f64 = 1e-5;

/// Of the loss.
const LOSS_TOLERANCE: f64 = 1e-6;

/// Of a parameter's largest slope: some dozens of roundings of f32.
const TOLERANCE: f64 = 3e-5;
