//! Gradients, AdamW and schedules against their formulas, number by number.

use anyhow::anyhow;
use bitnet_model::ModelConfig;
use candle_core::{Tensor, Var};

use super::*;
use crate::nn::parameters::Parameters;
use crate::ops::kernels::product::Output;

/// Three matrices and norms of a few numbers.
fn parameters() -> Parameters {
    let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 5, "hidden_size": 4, "intermediate_size": 3,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "relu2",
        "tie_word_embeddings": true}"#;
    let config = ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid");
    Parameters::initialize(&config, 3, 0.5).expect("fits")
}

fn config(more: &str) -> AdamWConfig {
    toml::from_str(&format!("learning_rate = 0.5\n{more}")).expect("valid")
}

/// The gradient of a number of a parameter; small ones, so that what is added to a norm shows.
fn gradient(parameter: usize, i: usize, size: f32) -> f32 {
    size * ((parameter * 13 + i * 5) as f32 * 0.37).cos()
}

/// Gradients of so many micro-batches, the second of them half the first, and so on.
fn gradients(parameters: &Parameters, micro_batches: u32, size: f32) -> Gradients {
    let mut gradients = Gradients::of_parameters(parameters);
    for micro in 0..micro_batches {
        for (parameter, (name, _)) in parameters.iter().enumerate() {
            let (slot, output) = gradients.slot(name);
            assert_eq!(output == Output::Replace, micro == 0, "{name}");
            for (i, g) in slot.iter_mut().enumerate() {
                let fresh = gradient(parameter, i, size) / (1 << micro) as f32;
                *g = if micro == 0 { fresh } else { *g + fresh };
            }
        }
        gradients.finish();
    }
    gradients
}

fn values(parameters: &Parameters) -> Vec<Vec<f32>> {
    parameters.iter().map(|(name, _)| parameters.values(name).expect("its own name")).collect()
}

#[test]
fn an_optimizer_has_the_defaults_of_the_papers() {
    let expected = AdamWConfig {
        learning_rate: 0.5,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.1,
        weight_decay_until: 1.0,
        clip_norm: 1.0,
    };
    assert_eq!(config(""), expected);
}

/// What one step does to every number, with eps so large and gradients so small that each term of the formula shows.
#[test]
fn the_first_step_is_that_of_the_formula() {
    for (micro_batches, clip) in [(1, 0.0), (1, 1e-7), (2, 1e-7), (3, 5e-6), (3, 1.0)] {
        let parameters = parameters();
        let before = values(&parameters);
        let settings = format!("clip_norm = {clip:?}\nbetas = [0.8, 0.75]\neps = 1e-6");
        let mut optimizer = AdamW::new(config(&settings), &parameters);
        let gradients = gradients(&parameters, micro_batches, 1e-6);
        let mean = |p: usize, i: usize| {
            let sum: f64 =
                (0..micro_batches).map(|micro| f64::from(gradient(p, i, 1e-6)) / f64::from(1 << micro)).sum();
            sum / f64::from(micro_batches)
        };
        let squares = before.iter().enumerate().flat_map(|(p, w)| (0..w.len()).map(move |i| mean(p, i).powi(2)));
        let norm = squares.sum::<f64>().sqrt();
        let found = optimizer.step(&parameters, &gradients, micro_batches, 0.5, 0.2).expect("a step");
        let what = format!("{micro_batches} micro-batches, clipped to {clip}");
        assert!((found / norm - 1.0).abs() < 1e-6, "{what}: norm {found}, expected {norm}");
        // PyTorch adds 1e-6 to the norm that it divides by; without a limit nothing is divided.
        let factor = if clip == 0.0 { 1.0 } else { (clip / (norm + 1e-6)).min(1.0) };
        let after = values(&parameters);
        for (p, (name, moments)) in optimizer.moments().enumerate() {
            assert_eq!((moments.first.len(), moments.second.len()), (before[p].len(), before[p].len()), "{name}");
            for i in 0..before[p].len() {
                let g = mean(p, i) * factor;
                let near = |found: f32, expected: f64, size: f64| (f64::from(found) - expected).abs() <= 1e-5 * size;
                assert!(near(moments.first[i], 0.2 * g, g.abs()), "{what}, {name}[{i}]: {} of {g}", moments.first[i]);
                assert!(near(moments.second[i], 0.25 * g * g, g * g), "{what}, {name}[{i}]: {}", moments.second[i]);
                let decay = if name.contains("norm") { 0.0 } else { 0.2 };
                // Both moments, corrected for their start at zero, are the gradient and its square.
                let step = 0.5 * (decay * f64::from(before[p][i]) + g / (g.abs() + 1e-6));
                let moved = f64::from(before[p][i]) - f64::from(after[p][i]);
                assert!((moved - step).abs() < 1e-6, "{what}, {name}[{i}]: moved by {moved}, expected {step}");
            }
        }
    }
}

/// Going on from stored moments and a number of steps is as if nothing had been stored.
#[test]
fn a_resumed_optimizer_goes_on() {
    let (alone, stored) = (parameters(), parameters());
    let step = |optimizer: &mut AdamW, parameters: &Parameters, size: f32| {
        optimizer.step(parameters, &gradients(parameters, 1, size), 1, 0.01, 0.1).expect("a step");
    };
    let mut whole = AdamW::new(config(""), &alone);
    let mut half = AdamW::new(config(""), &stored);
    for size in [0.3, 0.1, 0.2] {
        step(&mut whole, &alone, size);
        step(&mut half, &stored, size);
    }
    let own = |m: Moments<&[f32]>| Moments { first: m.first.to_vec(), second: m.second.to_vec() };
    let kept: Vec<(String, Moments)> = half.moments().map(|(name, m)| (name.to_owned(), own(m))).collect();
    let find = |name: &str| kept.iter().find(|(of, _)| of == name).map(|(_, m)| m.clone()).expect("kept");
    let fill = |name: &str, _: &[usize], to: Moments<&mut [f32]>| {
        let from = find(name);
        to.first.copy_from_slice(&from.first);
        to.second.copy_from_slice(&from.second);
        Ok(())
    };
    let mut half = AdamW::resume(config(""), &stored, fill, 3).expect("the moments of its parameters");
    step(&mut whole, &alone, 0.4);
    step(&mut half, &stored, 0.4);
    assert!(values(&alone) == values(&stored));
    for ((name, a), (of, b)) in whole.moments().zip(half.moments()) {
        assert!(name == of && a == b, "{name}");
    }

    let unreadable = |_: &str, _: &[usize], _: Moments<&mut [f32]>| Err(anyhow!("unreadable"));
    let message = AdamW::resume(config(""), &stored, unreadable, 3).err().expect("refused").to_string();
    assert_eq!(message, "unreadable");
}

#[test]
fn gradients_that_are_not_all_there_stop_a_step() {
    let parameters = parameters();
    let before = values(&parameters);
    let mut optimizer = AdamW::new(config(""), &parameters);
    let mut refused = |gradients: &Gradients, expected: &str| {
        let message = optimizer.step(&parameters, gradients, 1, 0.1, 0.1).expect_err(expected).to_string();
        assert_eq!((message.as_str(), values(&parameters) == before), (expected, true));
    };
    let mut partial = gradients(&parameters, 1, 1.0);
    refused(&Gradients::of_parameters(&parameters), "no gradient of `model.embed_tokens.weight`");
    // A second micro-batch that lacks one parameter.
    for (name, _) in parameters.iter().filter(|(name, _)| !name.ends_with("up_proj.weight")) {
        partial.slot(name);
    }
    partial.finish();
    refused(&partial, "no gradient of `model.layers.0.mlp.up_proj.weight`");
    partial.clear();
    refused(&partial, "no gradient of `model.embed_tokens.weight`");
    for bad in [f32::NAN, f32::INFINITY] {
        let mut broken = gradients(&parameters, 1, 1.0);
        broken.clear();
        for (name, _) in parameters.iter() {
            broken.slot(name).0.fill(bad);
        }
        broken.finish();
        refused(&broken, &format!("the gradient norm is {bad}"));
    }
}

#[test]
fn gradients_are_added_up_by_name_and_forgotten() {
    let parameters = parameters();
    let mut gradients = Gradients::of_parameters(&parameters);
    assert_eq!((gradients.micro_batches(), gradients.iter().count()), (0, 0));
    let names = ["model.norm.weight", "model.embed_tokens.weight"];
    // Slots come in the order of the names that were asked for, not in that of the buffer.
    let sizes = |slots: Vec<(&mut [f32], Output)>| -> Vec<(usize, bool)> {
        slots.into_iter().map(|(slot, output)| (slot.len(), output == Output::Replace)).collect()
    };
    assert_eq!(sizes(gradients.slots(&names)), [(4, true), (20, true)]);
    // A tied embedding comes twice in a micro-batch, and is added the second time.
    assert_eq!(sizes(gradients.slots(&names[1..])), [(20, false)]);
    gradients.slot(names[0]).0.copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
    gradients.finish();
    assert_eq!(gradients.micro_batches(), 1);
    assert_eq!(sizes(gradients.slots(&names)), [(4, false), (20, false)]);
    let there: Vec<(&str, usize)> = gradients.iter().map(|(name, g)| (name, g.len())).collect();
    assert_eq!(there, [(names[1], 20), (names[0], 4)], "in name order");
    assert_eq!(gradients.iter().last().expect("the norm's").1, [1.0, 2.0, 3.0, 4.0]);
    gradients.clear();
    assert_eq!((gradients.micro_batches(), gradients.iter().count()), (0, 0));
    assert_eq!(sizes(gradients.slots(&names[..1])), [(4, true)]);
}

#[test]
fn differentiated_losses_add_up() {
    let parameters = parameters();
    // Three times the sum of all numbers, and the sum of their squares.
    let total = |of: &dyn Fn(&Var) -> candle_core::Result<Tensor>| {
        let sums = parameters.iter().map(|(_, var)| of(var)?.sum_all()).collect::<candle_core::Result<Vec<_>>>();
        Tensor::stack(&sums.expect("sums"), 0).and_then(|sums| sums.sum_all()).expect("a scalar")
    };
    let linear = total(&|var| var.affine(3.0, 0.0));
    let square = total(&|var| var.sqr());
    let mut gradients = Gradients::of_parameters(&parameters);
    gradients.accumulate(&linear, &parameters).expect("all");
    gradients.accumulate(&square, &parameters).expect("all");
    assert_eq!(gradients.micro_batches(), 2);
    for ((name, g), w) in gradients.iter().zip(values(&parameters)) {
        assert!(g.iter().zip(&w).all(|(g, w)| *g == 3.0 + 2.0 * w), "{name}");
    }
    let one = parameters.iter().next().expect("some").1.sum_all().expect("a scalar");
    let message = gradients.accumulate(&one, &parameters).expect_err("of one parameter alone").to_string();
    assert!(message.starts_with("parameter `model.layers.0.input_layernorm.weight` has no gradient"), "{message}");
}

fn schedule(toml: &str, steps: u64) -> Schedule {
    let config: ScheduleConfig = toml::from_str(toml).expect("valid");
    config.check(steps).expect("possible");
    Schedule::new(&config, &config_of(2.0), steps)
}

fn config_of(learning_rate: f64) -> AdamWConfig {
    AdamWConfig { learning_rate, weight_decay: 0.3, weight_decay_until: 0.25, ..config("") }
}

/// Each schedule at its defaults, at every step, from a formula of its own.
#[test]
fn every_schedule_is_its_formula_at_every_step() {
    type Formula = fn(f64, f64) -> f64;
    // Of the fraction of the steps after warm-up, and of all steps, that lie behind.
    let cases: [(&str, Formula); 6] = [
        ("type = \"two-stage\"", |z, _| if z < 0.5 { 1.0 - z } else { (1.0 - z) * 2.0 / 3.0 }),
        ("type = \"two-stage\"\nswitch = 0.25\nsecond_peak = 0.1", |z, _| (1.0 - z) * if z < 0.25 { 1.0 } else { 0.1 }),
        ("type = \"cosine\"", |z, _| 0.1 + 0.45 * (1.0 + (std::f64::consts::PI * z).cos())),
        ("type = \"linear\"", |z, _| 1.0 - z),
        ("type = \"constant-then-decay\"", |_, all| if all < 0.8 { 1.0 } else { (1.0 - all) / 0.2 }),
        ("type = \"constant-then-decay\"\nmin_ratio = 0.4\ndecay_fraction = 0.5", |_, all| {
            if all < 0.5 { 1.0 } else { 0.4 + 0.6 * (1.0 - all) / 0.5 }
        }),
    ];
    for (toml, formula) in cases {
        for (warmup, steps) in [(8, 40), (0, 40), (1, 7)] {
            let schedule = schedule(&format!("{toml}\nwarmup_steps = {warmup}"), steps);
            for step in 0..steps {
                let expected = if step < warmup {
                    (step + 1) as f64 / warmup as f64
                } else {
                    let z = (step - warmup) as f64 / (steps - warmup) as f64;
                    formula(z, step as f64 / steps as f64)
                };
                let found = schedule.learning_rate(step) / 2.0;
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{toml}, {warmup} of {steps}: step {step}: {found}, expected {expected}"
                );
                let decay = if (step as f64) < 0.25 * steps as f64 { 0.3 } else { 0.0 };
                assert_eq!(schedule.weight_decay(step), decay, "step {step}");
            }
        }
    }
    // A decay of no steps ends at the last, and is no division by zero.
    let sudden = schedule("type = \"constant-then-decay\"\nwarmup_steps = 0\ndecay_fraction = 0.0\nmin_ratio = 0.5", 4);
    assert_eq!([0, 3, 4].map(|step| sudden.learning_rate(step)), [2.0, 2.0, 1.0]);
}

#[test]
fn numbers_of_a_schedule_are_checked_one_by_one() {
    let check = |toml: &str| toml::from_str::<ScheduleConfig>(toml).expect("valid").check(10);
    for (kind, keys) in [
        ("two-stage", &["switch", "second_peak"][..]),
        ("cosine", &["min_ratio"]),
        ("linear", &["min_ratio"]),
        ("constant-then-decay", &["decay_fraction", "min_ratio"]),
    ] {
        let with = |warmup: u64, more: &str| check(&format!("type = \"{kind}\"\nwarmup_steps = {warmup}\n{more}"));
        assert_eq!(with(9, ""), Ok(()));
        assert_eq!(with(10, ""), Err(("schedule.warmup_steps", "is 10, expected fewer than train.steps = 10".into())));
        for key in keys {
            for fine in ["0.0", "1.0"] {
                assert_eq!(with(1, &format!("{key} = {fine}")), Ok(()));
            }
            for bad in ["-0.1", "1.1", "nan"] {
                let (named, reason) = with(1, &format!("{key} = {bad}")).expect_err(bad);
                assert!(
                    named == format!("schedule.{key}") && reason.ends_with(", expected 0 to 1"),
                    "{named} {reason}"
                );
            }
        }
    }
}
