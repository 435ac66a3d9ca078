//! Every weight scheme with every activation scheme, written to a folder, loaded, and held against the scalar reference.

use bitnet_infer::engine::{self, KvCache, LogitsFor};
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;
use bitnet_model::config::HiddenAct;
use bitnet_model::quant::{ACTIVATION_SCHEMES, GROUPED_SCHEMES, NONE, WEIGHT_SCHEMES};

use crate::common::{assert_close, compare, reference, tiny_config, write_model};

fn check(name: &str, config: &ModelConfig) {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = root.path().join("model");
    write_model(&folder, config, 5);
    let tokens: Vec<u32> = (0..60).map(|i| i * 37 % 258).collect();
    let expected = reference(&folder).logits(&tokens);
    for kernel in kernels::supported() {
        let model = engine::open(&folder, kernel).expect("loads").model;
        let mut cache = KvCache::new(model.config(), tokens.len()).expect("fits");
        let logits = model.forward(&tokens, &mut cache, LogitsFor::All).expect("runs");
        let exact = config.quantization.activation.is_none();
        assert_close(&format!("{name} on {}", kernel.name), &compare(&logits, &expected, config.vocab_size), exact);
    }
}

#[test]
fn every_pair_of_schemes_runs_as_the_reference_does() {
    let weights = WEIGHT_SCHEMES.iter().chain(GROUPED_SCHEMES).map(|scheme| scheme.name()).chain([NONE]);
    for weight in weights {
        for activation in ACTIVATION_SCHEMES.iter().map(|scheme| scheme.name()).chain([NONE]) {
            check(&format!("{weight} weights, {activation} activations"), &tiny_config(weight, activation));
        }
    }
}

#[test]
fn every_shape_of_architecture_runs_as_the_reference_does() {
    for (hidden_act, sub_norms, tied, kv_heads) in [
        (HiddenAct::Silu, false, false, 4),
        (HiddenAct::Silu, true, true, 1),
        (HiddenAct::Relu2, false, true, 2),
        (HiddenAct::Relu2, true, false, 4),
    ] {
        let mut config = tiny_config("ternary", "int8");
        (config.hidden_act, config.sub_norms) = (hidden_act, sub_norms);
        (config.tie_word_embeddings, config.num_key_value_heads) = (tied, kv_heads);
        check(&format!("{hidden_act:?}, sub norms {sub_norms}, tied {tied}, {kv_heads} key-value heads"), &config);
    }
}
