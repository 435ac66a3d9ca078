//! The forms of the head on models that are read from files, where tables stay mapped.

use std::path::Path;

use bitnet_infer::engine::{self, HeadFormat, KvCache, LoadedModel, LogitsFor, Sampler, SamplerConfig, Sequence};
use bitnet_infer::kernels;

use crate::common::{compare, tiny_config, write_model};
use crate::data_folder::shared;

const TOKENS: usize = 120;

fn open(folder: &Path, format: HeadFormat) -> LoadedModel {
    engine::open(folder, kernels::best().expect("a kernel")).expect("loads").with_head(format)
}

/// What a sampler draws from wanted logits, and how many rows were rescored.
fn draw(loaded: &LoadedModel, sampler: &SamplerConfig) -> (Vec<u32>, Option<usize>) {
    let model = &loaded.model;
    let (mut sampler, mut history) = (Sampler::new(sampler.clone()).expect("valid"), vec![1u32, 2, 3]);
    let mut cache = KvCache::new(model.config(), TOKENS).expect("fits");
    let mut rescored = None;
    while history.len() < TOKENS {
        let tokens = &history[cache.len()..];
        let hidden_th = model.hidden_states(&mut [Sequence { tokens, cache: &mut cache }]).expect("runs");
        let last = &hidden_th[hidden_th.len() - model.config().hidden_size..];
        let next = model.next_logits(last, &sampler.wanted(&history));
        rescored = next.rescored.map(|rows| rescored.unwrap_or(0) + rows);
        history.push(sampler.sample(&next.logits, &history).expect("finite logits"));
    }
    (history, rescored)
}

fn check(folder: &Path) {
    let [stored, exact] = [HeadFormat::Stored, HeadFormat::Exact].map(|format| open(folder, format));
    assert_eq!((stored.model.head_format(), exact.model.head_format()), (HeadFormat::Stored, HeadFormat::Exact));
    let sampled = SamplerConfig { top_k: 5, repeat_penalty: 1.2, temperature: 1.0, ..SamplerConfig::default() };
    for sampler in [SamplerConfig::greedy(), sampled] {
        let ((expected, none), (found, rescored)) = (draw(&stored, &sampler), draw(&exact, &sampler));
        assert_eq!(found, expected, "{}: {sampler:?}", folder.display());
        assert!(none.is_none() && rescored.is_some());
        println!("{}: {:.1} rows rescored a token", folder.display(), rescored.unwrap_or(0) as f64 / TOKENS as f64);
    }
    let logits = |loaded: &LoadedModel| {
        let mut cache = KvCache::new(loaded.model.config(), TOKENS).expect("fits");
        let tokens: Vec<u32> = (0..30).collect();
        loaded.model.forward(&tokens, &mut cache, LogitsFor::All).expect("runs")
    };
    let (expected, vocab) = (logits(&stored), stored.model.config().vocab_size);
    assert!(logits(&exact) == expected, "all logits of the screened head are the stored head's");
    // A weight is off by up to half a step, some 0.3 % and 5 % of the deviation of these weights.
    for (format, tolerance) in [(HeadFormat::Int8, 0.01), (HeadFormat::Int4, 0.15)] {
        let difference = compare(&logits(&open(folder, format)), &expected, vocab);
        assert!(difference.rms < tolerance, "{} {format}: {difference:?}", folder.display());
    }
}

#[test]
fn a_screened_head_draws_what_the_stored_head_draws() {
    for tied in [true, false] {
        let folder = tempfile::tempdir().expect("temp dir");
        let mut config = tiny_config("ternary", "int8");
        config.tie_word_embeddings = tied;
        write_model(&folder.path().join("model"), &config, 11);
        check(&folder.path().join("model"));
    }
    let Some(folder) = shared("reference-model") else { return };
    ["master", "packed", "packed-llama", "float-llama"].iter().for_each(|name| check(&folder.join(name)));
}
