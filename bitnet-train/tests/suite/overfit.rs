//! A tiny network learns one batch by heart, under every weight scheme: forward, backward and optimizer work together.

use bitnet_model::ModelConfig;
use bitnet_model::config::Quantization;
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::{Sequences, Transformer};
use bitnet_train::ops;
use bitnet_train::optim::{AdamW, AdamWConfig, Gradients};

use crate::support::weight_schemes;

const SEQ: usize = 24;
const BATCH: usize = 3;
const STEPS: usize = 80;

#[test]
fn two_layers_learn_a_batch_by_heart() {
    let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 32, "hidden_size": 48, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "relu2",
        "tie_word_embeddings": true}"#;
    // No rule to find: the next token can only be remembered. The chance level is ln(32) = 3.47 nats.
    let tokens: Vec<u32> = (0..BATCH * (SEQ + 1)).map(|i| (i as u32).wrapping_mul(2_654_435_761) >> 27).collect();
    let rows = || tokens.chunks(SEQ + 1);
    let inputs: Vec<u32> = rows().flat_map(|row| row[..SEQ].to_vec()).collect();
    let targets: Vec<u32> = rows().flat_map(|row| row[1..].to_vec()).collect();
    for weight in weight_schemes() {
        let mut config = ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid");
        let activation = if weight == "none" { "none" } else { "int8" };
        config.quantization = Quantization::by_name(weight, activation).expect("known");
        let losses = train(&config, &inputs, &targets);
        let (first, last) = (losses[0], losses[STEPS - 1]);
        println!("{weight}: loss {first:.2} to {last:.4} in {STEPS} steps");
        assert!(first > 3.0, "{weight}: {first} nats before training");
        assert!(last < 0.1, "{weight}: {last} nats after {STEPS} steps");
    }
}

fn train(config: &ModelConfig, inputs: &[u32], targets: &[u32]) -> Vec<f32> {
    let parameters = Parameters::initialize(config, 3, 0.05).expect("parameters");
    let ops = ops::by_name("fused").expect("known");
    let ste = estimator::by_name("ste").expect("known");
    let model = Transformer::new(config, &parameters, SEQ, ste, ops).expect("a network");
    let optimizer_config = AdamWConfig {
        learning_rate: 1e-2,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.0,
        weight_decay_until: 1.0,
        clip_norm: 1.0,
    };
    let mut optimizer = AdamW::new(optimizer_config, &parameters);
    let mut losses = Vec::new();
    let mut gradients = Gradients::of_parameters(&parameters);
    for step in 0..STEPS {
        gradients.clear();
        let sequences = Sequences { inputs, targets, count: BATCH, index: 0 };
        losses.push(model.differentiate(&parameters, sequences, &mut gradients).expect("every gradient") as f32);
        let rate = 1e-2 * (1.0 - step as f64 / STEPS as f64);
        optimizer.step(&parameters, &gradients, 1, rate, 0.0).expect("a step");
    }
    losses
}
