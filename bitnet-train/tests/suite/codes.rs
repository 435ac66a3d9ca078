//! How many codes a step changes, against counts from the latent weights.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use bitnet_model::ModelConfig;
use bitnet_model::config::Quantization;
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::{Sequences, Transformer};
use bitnet_train::ops;
use bitnet_train::optim::{AdamW, Gradients};
use bitnet_train::run::{self, Choices, load_parameters};
use serde_json::Value;

use crate::support::quantized_weights;
use crate::tiny;

/// Of a matrix with `rows` rows.
fn quantized(config: &ModelConfig, parameters: &Parameters, name: &str, rows: usize) -> Vec<i8> {
    let latent = parameters.values(name).expect("a projection");
    let mut codes = vec![0; latent.len()];
    config.quantization.weight.expect("quantized").quantize(&latent, rows, &mut codes);
    codes
}

/// Of each projection, at each step.
fn shares<'a>(lines: &'a [Value], key: &'a str) -> Vec<(u64, Vec<(&'a str, f64)>)> {
    let layers = |line: &'a Value| {
        let each = line["layers"].as_array().expect("a list").iter();
        each.map(|layer| (layer["name"].as_str().expect("a name"), layer[key].as_f64().expect("a share"))).collect()
    };
    lines.iter().map(|line| (line["step"].as_u64().expect("a step"), layers(line))).collect()
}

/// The `codes` lines of a tiny run of six steps.
fn reports(folder: &Path, assignments: &[&str]) -> Vec<Value> {
    let run = tiny::run(folder, 6, assignments);
    run::start(&run, Choices::default(), &AtomicBool::new(false)).expect("runs");
    tiny::metrics(&run.folder(), "codes")
}

#[test]
fn a_report_counts_the_codes_that_its_step_changed() {
    let root = tempfile::tempdir().expect("temp dir");
    let keep = ["checkpoint.every=1", "checkpoint.keep_last=9", "evaluation.windows=1"];
    for ops in ["run.ops=fused", "run.ops=reference"] {
        let every = |every: &'static str, name: &'static str| {
            let own = [ops, every, name].into_iter().chain(keep).collect::<Vec<_>>();
            reports(root.path(), &own)
        };
        let name = if ops.ends_with("fused") { "run.name=f1" } else { "run.name=r1" };
        let each = every("train.log_every=1", name);
        assert_eq!(each.len(), 6);
        let counted = shares(&each, "flipped_in_step");
        assert_eq!(counted, shares(&each, "flipped"), "{ops}: every step is reported, so both are the same");

        let run = tiny::run(root.path(), 6, &[name]);
        let config = run.model_config(300, None).expect("a network");
        let at = |step: u64| {
            let path = run.folder().join(format!("checkpoints/step-{step:08}"));
            load_parameters(&path, &config).expect("a checkpoint")
        };
        let mut changed = 0;
        for (step, layers) in &counted[1..] {
            let (before, after) = (at(step - 1), at(*step));
            for (projection, share) in layers {
                // Of ternary codes the number of rows plays no part.
                let codes = |of: &Parameters| quantized(&config, of, &format!("model.{projection}.weight"), 1);
                let (before, after) = (codes(&before), codes(&after));
                let flips = before.iter().zip(&after).filter(|(a, b)| a != b).count();
                // serde_json reads floats to the last bit but one.
                let counted = share * after.len() as f64;
                assert!((counted - flips as f64).abs() < 1e-9, "{ops}, {step}, {projection}: {counted}, {flips}");
                changed += flips;
            }
        }
        assert!(changed > 100, "{changed} codes in five steps");

        let rare = if ops.ends_with("fused") { "run.name=f4" } else { "run.name=r4" };
        let rare = every("train.log_every=4", rare);
        let expected = [counted[3].clone(), counted[5].clone()];
        assert_eq!(shares(&rare, "flipped_in_step"), expected, "{ops}: reports after steps 4 and 6");
        assert_ne!(shares(&rare, "flipped"), expected, "{ops}");
    }
}

#[test]
fn ops_tell_the_codes_that_their_pass_multiplied_by() {
    let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 83, "hidden_size": 40, "intermediate_size": 52,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10, "hidden_act": "relu2",
        "tie_word_embeddings": true}"#;
    let mut config = ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid");
    for weight in quantized_weights() {
        config.quantization = Quantization::by_name(weight, "int8").expect("known");
        for name in ["fused", "reference"] {
            let parameters = Parameters::initialize(&config, 5, 0.15).expect("parameters");
            let ops = ops::by_name(name).expect("known");
            let ste = estimator::by_name("ste").expect("known");
            let model = Transformer::new(&config, &parameters, 8, ste, ops.clone()).expect("a network");
            let mut expected = ops::Codes::new();
            for layer in 0..2 {
                for (projection, rows, _) in config.projections() {
                    let parameter = format!("model.layers.{layer}.{projection}.weight");
                    let codes = quantized(&config, &parameters, &parameter, rows);
                    expected.insert(parameter, codes);
                }
            }
            assert!(ops.codes(&model, &parameters).expect("codes") == expected, "{weight}, {name}, before a pass");
            let batch = Sequences { inputs: &[1, 2, 3, 4], targets: &[2, 3, 4, 5], count: 1, index: 0 };
            let mut gradients = Gradients::of_parameters(&parameters);
            model.differentiate(&parameters, batch, &mut gradients).expect("differentiates");
            assert!(ops.codes(&model, &parameters).expect("codes") == expected, "{weight}, {name}, after a pass");

            let optimizer = toml::from_str("learning_rate = 0.1").expect("the rest has defaults");
            AdamW::new(optimizer, &parameters).step(&parameters, &gradients, 1, 0.1, 0.0).expect("a step");
            model.loss(&parameters, batch).expect("a loss");
            assert!(ops.codes(&model, &parameters).expect("codes") != expected, "{weight}, {name}, after a step");
        }
    }
    config.quantization = Quantization::by_name("none", "none").expect("known");
    let parameters = Parameters::initialize(&config, 5, 0.15).expect("parameters");
    assert!(ops::codes(&config, &parameters).expect("codes").is_empty());
}
