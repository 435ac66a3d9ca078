//! The fused pass over whole models against candle's automatic differentiation of the readable ops, and its own promises:
//! computing blocks again, bf16 and int8 gradients, threads, micro-batches.

use std::sync::Arc;

use bitnet_model::ModelConfig;
use bitnet_model::config::Quantization;
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::{Sequences, Transformer};
use bitnet_train::ops::{self, Backward, FusedOps, FusedSettings, Ops, Precision};
use bitnet_train::optim::Gradients;

use crate::support::{quantized_weights, relative};

const SEQ: usize = 70;
const COUNT: usize = 3;

/// Grouped heads, sizes that leave remainders, and with `llama` a block without sub-norms and with a head of its own.
fn config(weight: &str, activation: &str, llama: bool) -> ModelConfig {
    let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 83, "hidden_size": 40, "intermediate_size": 52,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "hidden_act": "relu2",
        "tie_word_embeddings": true}"#;
    let mut config = ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid");
    config.quantization = Quantization::by_name(weight, activation).expect("known");
    if llama {
        config.sub_norms = false;
        config.tie_word_embeddings = false;
        config.hidden_act = bitnet_model::config::HiddenAct::Silu;
    }
    config
}

/// Fresh parameters, but norms far from 1: one that is left out or taken for another shows.
fn parameters(config: &ModelConfig, seed: u64) -> Parameters {
    let fresh = Parameters::initialize(config, seed, 0.15).expect("parameters");
    let values = |name: &str, shape: &[usize]| {
        let mut values = fresh.values(name)?;
        if shape.len() == 1 {
            values.iter_mut().enumerate().for_each(|(i, w)| *w = 1.0 + 0.6 * ((i * 7 + name.len()) as f32).sin());
        }
        Ok(values)
    };
    Parameters::from_values(config, values).expect("all parameters")
}

struct Passed {
    losses: Vec<f64>,
    /// Of the same batches, without gradients.
    measured: Vec<f64>,
    gradients: Vec<(String, Vec<f32>)>,
}

/// Loss and gradients of `micro_batches` different batches.
fn pass(config: &ModelConfig, ops: Arc<dyn Ops>, estimator: &str, micro_batches: u32) -> Passed {
    let parameters = parameters(config, 5);
    let estimator = estimator::by_name(estimator).expect("known");
    let model = Transformer::new(config, &parameters, SEQ, estimator, ops).expect("a network");
    let mut gradients = Gradients::of_parameters(&parameters);
    let (mut losses, mut measured) = (Vec::new(), Vec::new());
    for micro in 0..micro_batches {
        let token = |i: u32| (i.wrapping_mul(2_654_435_761).wrapping_add(micro * 977) >> 9) % 83;
        let inputs: Vec<u32> = (0..(SEQ * COUNT) as u32).map(token).collect();
        let targets: Vec<u32> = (1..=(SEQ * COUNT) as u32).map(token).collect();
        let batch = Sequences { inputs: &inputs, targets: &targets, count: COUNT, index: u64::from(micro) };
        losses.push(model.differentiate(&parameters, batch, &mut gradients).expect("differentiates"));
        measured.push(model.loss(&parameters, batch).expect("a loss"));
    }
    let gradients = gradients.iter().map(|(name, g)| (name.to_owned(), g.to_vec())).collect();
    Passed { losses, measured, gradients }
}

fn fused(settings: FusedSettings) -> Arc<dyn Ops> {
    Arc::new(FusedOps::new(settings))
}

fn default() -> Arc<dyn Ops> {
    fused(FusedSettings::default())
}

/// The largest difference of a parameter's gradient, of its norm.
fn worst(a: &Passed, b: &Passed) -> (f64, String) {
    assert_eq!(a.gradients.len(), b.gradients.len());
    let errors = a.gradients.iter().zip(&b.gradients).map(|((name, a), (of, b))| {
        assert_eq!(name, of);
        (relative(a, b), name.clone())
    });
    errors.max_by(|a, b| a.0.total_cmp(&b.0)).expect("parameters")
}

#[test]
fn whole_models_have_the_gradients_of_the_readable_ops() {
    let quantized: Vec<&str> = quantized_weights().collect();
    let mut cases = vec![("none", "none"), ("ternary", "none"), ("none", "int8")];
    cases.extend(quantized.iter().map(|&weight| (weight, "int8")));
    for (weight, activation) in cases {
        for (llama, estimator) in [(false, "ste"), (true, "clipped-ste")] {
            let config = config(weight, activation, llama);
            let reference = pass(&config, ops::by_name("reference").expect("known"), estimator, 2);
            let found = pass(&config, default(), estimator, 2);
            let what = format!("{weight}/{activation}, llama {llama}");
            // An activation that crosses a rounding boundary by one rounding of f32 moves a whole step.
            let (loss_limit, limit) = if activation == "none" { (1e-5, 1e-4) } else { (2e-3, 2e-2) };
            for (a, b) in found.losses.iter().zip(&reference.losses) {
                assert!((a - b).abs() < loss_limit, "{what}: losses {a} and {b}");
            }
            for (a, b) in found.losses.iter().zip(&found.measured) {
                assert!((a - b).abs() < 1e-6, "{what}: losses {a} with gradients, {b} without");
            }
            let worst = worst(&found, &reference);
            println!("{what}: worst gradient {:.1e} of its norm ({})", worst.0, worst.1);
            assert!(worst.0 < limit, "{what}: {worst:?}");
        }
    }
}

/// Codes are kept from one micro-batch to the next; others' must not be taken for them, nor those of an earlier step.
#[test]
fn models_that_share_ops_keep_their_own_codes() {
    let config = config("ternary", "int8", false);
    let ops = default();
    let estimator = estimator::by_name("ste").expect("known");
    let both = [5, 6].map(|seed| parameters(&config, seed));
    let model =
        |ops: Arc<dyn Ops>, of: usize| Transformer::new(&config, &both[of], SEQ, estimator, ops).expect("a network");
    let tokens: Vec<u32> = (0..SEQ as u32).map(|i| (i * 7) % 83).collect();
    let batch = |index| Sequences { inputs: &tokens, targets: &tokens, count: 1, index };
    let losses = |models: [Transformer; 2]| -> Vec<f64> {
        let mut gradients = [0, 1].map(|of| Gradients::of_parameters(&both[of]));
        let step = |gradients: &mut [Gradients; 2]| -> Vec<f64> {
            // In turns, so that each finds the other's codes.
            let turns = [0, 1, 1, 0, 0].into_iter().enumerate();
            let loss = |(i, of): (usize, usize)| {
                models[of].differentiate(&both[of], batch(i as u64), &mut gradients[of]).expect("differentiates")
            };
            turns.map(loss).collect()
        };
        let mut losses = step(&mut gradients);
        gradients.iter_mut().for_each(Gradients::clear);
        // A step as an optimizer takes it: the same parameters with other numbers. Halves come back to the bit.
        for (_, var) in both[0].iter() {
            let moved = (var.as_tensor() * -0.5).and_then(|moved| var.set(&moved));
            moved.expect("the same shape");
        }
        losses.extend(step(&mut gradients));
        for (_, var) in both[0].iter() {
            (var.as_tensor() / -0.5).and_then(|back| var.set(&back)).expect("the same shape");
        }
        losses
    };
    let alone = losses([model(default(), 0), model(default(), 1)]);
    let shared = losses([model(ops.clone(), 0), model(ops, 1)]);
    assert!(alone[0] != alone[1] && alone[0] != alone[5], "{alone:?}");
    assert_eq!(alone, shared);
}

#[test]
fn blocks_computed_again_give_the_same_bits() {
    for weight in ["ternary", "none"] {
        let activation = if weight == "none" { "none" } else { "int8" };
        let config = config(weight, activation, false);
        let kept = pass(&config, default(), "ste", 2);
        let again = pass(&config, fused(FusedSettings { recompute: true, ..FusedSettings::default() }), "ste", 2);
        assert_eq!(kept.losses, again.losses, "{weight}");
        assert!(kept.gradients == again.gradients, "{weight}");
    }
}

/// Large enough that products, and packing for them, are shared out.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let settings = [
        FusedSettings::default(),
        FusedSettings { precision: Precision::Bf16, recompute: true, ..FusedSettings::default() },
        FusedSettings { backward: Backward::Int8, ..FusedSettings::default() },
    ];
    let mut weights: Vec<&str> = quantized_weights().collect();
    weights.push("none");
    for weight in weights {
        let activation = if weight == "none" { "none" } else { "int8" };
        let mut config = config(weight, activation, weight == "binary");
        (config.hidden_size, config.intermediate_size, config.vocab_size) = (64, 144, 300);
        (config.head_dim, config.num_hidden_layers) = (16, 2);
        let parameters = parameters(&config, 5);
        let inputs: Vec<u32> = (0..600u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) % 300).collect();
        let targets: Vec<u32> = inputs.iter().rev().copied().collect();
        for settings in settings {
            if settings.backward == Backward::Int8 && weight == "none" {
                continue;
            }
            let on = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                pool.install(|| {
                    let estimator = estimator::by_name("ste").expect("known");
                    let model =
                        Transformer::new(&config, &parameters, 150, estimator, fused(settings)).expect("a network");
                    let mut gradients = Gradients::of_parameters(&parameters);
                    let batch = Sequences { inputs: &inputs, targets: &targets, count: 4, index: 0 };
                    let losses = vec![model.differentiate(&parameters, batch, &mut gradients).expect("differentiates")];
                    let gradients = gradients.iter().map(|(name, g)| (name.to_owned(), g.to_vec())).collect();
                    Passed { losses, measured: Vec::new(), gradients }
                })
            };
            let (one, three) = (on(1), on(3));
            assert_eq!(one.losses, three.losses, "{weight}, {settings:?}");
            for ((name, one), (_, three)) in one.gradients.iter().zip(&three.gradients) {
                assert!(one == three, "{weight}, {settings:?}: {name}");
            }
        }
    }
}

#[test]
fn bf16_changes_a_step_by_its_rounding_and_a_measured_loss_not_at_all() {
    for weight in ["ternary", "none"] {
        let activation = if weight == "none" { "none" } else { "int8" };
        let config = config(weight, activation, false);
        let exact = pass(&config, default(), "ste", 1);
        let settings = FusedSettings { precision: Precision::Bf16, ..FusedSettings::default() };
        let rounded = pass(&config, fused(settings), "ste", 1);
        let worst = worst(&rounded, &exact);
        assert_eq!(rounded.measured, exact.measured, "{weight}");
        let (loss, exact) = (rounded.losses[0], exact.losses[0]);
        println!("{weight}, bf16: worst gradient {:.1e} of its norm ({}), loss {loss} for {exact}", worst.0, worst.1);
        // A rounding is 2^-9 of a number at most; blocks pass it on forward and back, and where activations are quantized
        // one that crosses a rounding boundary moves by a whole step.
        assert!(worst.0 > 1e-5 && worst.0 < 1e-1, "{weight}: {worst:?}");
        assert!(loss != exact && (loss - exact).abs() < 2e-3 * exact, "{weight}: {loss} for {exact}");
    }
}

#[test]
fn int8_gradients_are_near_and_the_same_each_time() {
    let config = config("ternary", "int8", false);
    let exact = pass(&config, default(), "ste", 1);
    let int8 = |seed| {
        let settings = FusedSettings { backward: Backward::Int8, seed, ..FusedSettings::default() };
        pass(&config, fused(settings), "ste", 1)
    };
    let (first, again, other) = (int8(1), int8(1), int8(2));
    assert_eq!(exact.losses, first.losses);
    assert!(first.gradients == again.gradients, "the same seed");
    assert!(first.gradients != other.gradients, "another seed");
    let worst = worst(&first, &exact);
    println!("int8: worst gradient {:.1e} of its norm ({})", worst.0, worst.1);
    assert!(worst.0 < 0.1, "{worst:?}");
}

#[test]
fn sequences_that_do_not_fit_are_refused() {
    let config = config("ternary", "int8", false);
    let parameters = parameters(&config, 5);
    let estimator = estimator::by_name("ste").expect("known");
    let model = Transformer::new(&config, &parameters, SEQ, estimator, default()).expect("a network");
    let refused = |inputs: &[u32], targets: &[u32], count, expected: &str| {
        let batch = Sequences { inputs, targets, count, index: 0 };
        let message = model.loss(&parameters, batch).expect_err("refused").to_string();
        assert!(message.contains(expected), "{message}");
    };
    refused(&[1, 2, 3], &[1, 2], 1, "3 inputs and 2 targets");
    refused(&[1, 2, 3], &[1, 2, 3], 2, "3 tokens in 2 sequences");
    refused(&[], &[], 1, "0 tokens in 1 sequences");
    refused(&[1, 83], &[1, 2], 1, "token 83 is not below the vocabulary of 83");
    refused(&[1, 2], &[1, 99], 1, "token 99 is not below the vocabulary of 83");
    refused(&[1; SEQ + 1], &[1; SEQ + 1], 1, "longer than the network was made for");
}
