//! What training logs is what the engine measures on the exported folder, for every scheme.

use std::sync::atomic::AtomicBool;

use bitnet_infer::engine::{self, KvType};
use bitnet_infer::eval::perplexity::{Convention, PerplexityOptions, of_tokens};
use bitnet_infer::kernels;
use bitnet_train::data;
use bitnet_train::run::{self, Outcome};

use crate::tiny;

/// Nats per token: float sums in another order, and the embedding rounded to f16.
const TOLERANCE: f64 = 1e-3;

fn check(changes: &[&str]) {
    let root = tempfile::tempdir().expect("temp dir");
    let mut changes = changes.to_vec();
    changes.push("evaluation.windows=0");
    let run = tiny::run(root.path(), 30, &changes);
    let Outcome::Finished(Some(folder)) = run::start(&run, false, &AtomicBool::new(false)).expect("runs") else {
        panic!("expected a finished run");
    };
    let logged = tiny::metrics(&run.folder(), "validation");
    let logged = logged.last().expect("a validation")["loss_nats"].as_f64().expect("a number");

    let cache = root.path().join("cache");
    let prepared = data::prepare(&run.config.data, &run.config.tokenizer, &cache, &|_| {}).expect("prepared");
    let tokens = prepared.validation.tokens(0, prepared.validation.len());
    for kernel in kernels::supported() {
        let loaded = engine::open(&folder, kernel).expect("loads");
        assert!(loaded.tokenizer.is_some(), "one folder is the model");
        let options = PerplexityOptions { convention: Convention::Windows, context: 32, kv: KvType::F32 };
        let measured = of_tokens(&loaded.model, &tokens, options, |_, _| {}).expect("measures").loss_nats;
        println!("{changes:?}, {}: logged {logged:.6}, measured {measured:.6}", kernel.name);
        assert!((logged - measured).abs() < TOLERANCE, "{changes:?}, {}: {logged} and {measured}", kernel.name);
    }
}

#[test]
fn every_weight_scheme_measures_what_it_logged() {
    for weight in ["none", "ternary", "binary", "int8", "int4"] {
        check(&[&format!("quantization.weight={weight}")]);
    }
}

#[test]
fn mixed_schemes_and_llama_shapes_measure_what_they_logged() {
    check(&["quantization.weight=ternary", "quantization.activation=none"]);
    check(&["quantization.weight=none", "quantization.activation=int8"]);
    check(&["model.hidden_act=silu", "model.sub_norms=false", "model.tie_word_embeddings=false"]);
    check(&["quantization.estimator=clipped-ste", "run.ops=reference", "export.float_type=f32"]);
}
