//! What training logs is what the engine measures on the exported folder, for every scheme.

use std::fs;
use std::sync::atomic::AtomicBool;

use bitnet_infer::engine::{self, KvType};
use bitnet_infer::eval::perplexity::{Convention, PerplexityOptions, Tail, of_text, of_tokens};
use bitnet_infer::kernels;
use bitnet_train::run::{self, Choices, Outcome};

use crate::tiny;

/// Nats per token: float sums in another order, and the embedding rounded to f16.
const TOLERANCE: f64 = 1e-3;

fn check(changes: &[&str]) {
    let root = tempfile::tempdir().expect("temp dir");
    let mut changes = changes.to_vec();
    changes.push("evaluation.windows=0");
    let run = tiny::run(root.path(), 30, &changes);
    let Outcome::Finished(Some(folder)) = run::start(&run, Choices::default(), &AtomicBool::new(false)).expect("runs")
    else {
        panic!("expected a finished run");
    };
    let logged = tiny::metrics(&run.folder(), "validation");
    let logged = logged.last().expect("a validation")["loss_nats"].as_f64().expect("a number");

    let prepared = tiny::data(&run);
    let tokens = prepared.validation.tokens(0, prepared.validation.len());
    for kernel in kernels::supported() {
        let loaded = engine::open(&folder, kernel).expect("loads");
        assert!(loaded.tokenizer.is_some(), "one folder is the model");
        let options =
            PerplexityOptions { convention: Convention::Windows, context: 32, tail: Tail::Dropped, kv: KvType::F32 };
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

/// The text that a run scored is the text that `bitnet-infer perplexity` scores: end-of-text tokens stand for no bytes, and
/// only the windows that were evaluated count.
#[test]
fn bits_per_byte_are_those_of_the_text_that_was_scored() {
    let root = tempfile::tempdir().expect("temp dir");
    let sentences = |count: usize| (0..count).map(|i| format!("On day {i} the caf\u{e9} had {} guests.\n", i * i % 97));
    // A second half of longer tokens, so that the shard's own ratio of bytes to tokens is not that of its first windows.
    let held_out = format!(
        "{}<|endoftext|>{}<|endoftext|>{}",
        sentences(20).collect::<String>(),
        "0123456789 ".repeat(30),
        "the guests had guests ".repeat(60)
    );
    let files = ["train.txt", "valid.txt"].map(|name| root.path().join(name));
    fs::write(&files[0], sentences(300).collect::<String>()).expect("written");
    fs::write(&files[1], &held_out).expect("written");
    let [train, valid] = files.map(|path| path.display().to_string());
    let source = [
        "data.source.type=text".to_owned(),
        format!("data.source.path={train}"),
        "data.validation.source.type=text".to_owned(),
        format!("data.validation.source.path={valid}"),
    ];
    for windows in [0, 5] {
        let mut changes: Vec<&str> = source.iter().map(String::as_str).collect();
        let assignments = [format!("evaluation.windows={windows}"), format!("run.name=windows-{windows}")];
        changes.extend(assignments.iter().map(String::as_str));
        let run = tiny::run(root.path(), 10, &changes);
        let Outcome::Finished(Some(folder)) =
            run::start(&run, Choices::default(), &AtomicBool::new(false)).expect("runs")
        else {
            panic!("expected a finished run");
        };
        let logged = tiny::metrics(&run.folder(), "validation");
        let logged = logged.last().expect("a validation")["bits_per_byte"].as_f64().expect("a number");
        let loaded = engine::open(&folder, kernels::best().expect("a kernel")).expect("loads");
        let tokenizer = loaded.tokenizer.as_ref().expect("one folder is the model");
        let tokens = tokenizer.encode(&held_out).expect("encodes");
        // The text of the tokens that were evaluated, markers of the ends of texts included.
        let scored = match windows {
            0 => held_out.clone(),
            n => {
                let short = (0..held_out.len()).filter(|&end| held_out.is_char_boundary(end));
                let exact = |end: &usize| tokenizer.encode(&held_out[..*end]).expect("encodes") == tokens[..n * 32 + 1];
                held_out[..short.rev().find(|end| exact(end)).expect("a cut between two tokens")].to_owned()
            }
        };
        let options =
            PerplexityOptions { convention: Convention::Windows, context: 32, tail: Tail::Dropped, kv: KvType::F32 };
        let measured = of_text(&loaded.model, tokenizer, &scored, options, |_, _| {}).expect("measures");
        let measured = measured.bits_per_byte.expect("of a text");
        println!("windows {windows}: logged {logged:.6}, measured {measured:.6}");
        assert!((logged - measured).abs() < TOLERANCE, "windows {windows}: {logged} and {measured}");
    }
}
