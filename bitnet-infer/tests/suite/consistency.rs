//! One forward pass for everything: however tokens are cut into calls, batches and blocks, the numbers are the same.

use bitnet_infer::engine::{Arrangement, Error, KvCache, LogitsFor, Model, Profile, RandomModel, Sequence};
use bitnet_infer::kernels::{self, Ternary};
use bitnet_model::config::Quantization;
use bitnet_model::quant::{GROUPED_SCHEMES, NONE, WEIGHT_SCHEMES};
use proptest::prelude::*;

fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 31 + seed * 17 + i * i) % 256) as u32).collect()
}

fn model(kernel: &'static kernels::Kernel) -> Model {
    let mut random = RandomModel::named("tiny").expect("known");
    random.config.max_position_embeddings = 2048;
    random.build(kernel).expect("possible")
}

fn prefill(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut cache = KvCache::new(model.config(), tokens.len()).expect("fits");
    model.forward(tokens, &mut cache, LogitsFor::All).expect("runs")
}

#[test]
fn decoding_token_by_token_is_prefill_to_the_bit() {
    for kernel in kernels::supported() {
        let model = model(kernel);
        // More than one block of the cache.
        let tokens = tokens(300, 1);
        let mut cache = KvCache::new(model.config(), tokens.len()).expect("fits");
        let decode = |token: &u32| model.forward(&[*token], &mut cache, LogitsFor::Last).expect("runs");
        let one_by_one: Vec<f32> = tokens.iter().flat_map(decode).collect();
        assert!(one_by_one == prefill(&model, &tokens), "kernel {}", kernel.name);
    }
}

#[test]
fn a_prompt_longer_than_a_step_is_the_same_in_pieces() {
    let model = model(kernels::best().expect("a kernel"));
    let tokens = tokens(1100, 2);
    let mut cache = KvCache::new(model.config(), tokens.len()).expect("fits");
    let pieces = [&tokens[..7], &tokens[7..600], &tokens[600..]];
    let in_pieces: Vec<f32> =
        pieces.iter().flat_map(|piece| model.forward(piece, &mut cache, LogitsFor::All).expect("runs")).collect();
    let whole = prefill(&model, &tokens);
    assert!(in_pieces == whole);
    let mut cache = KvCache::new(model.config(), tokens.len()).expect("fits");
    let last = model.forward(&tokens, &mut cache, LogitsFor::Last).expect("runs");
    assert_eq!(last, whole[whole.len() - 256..]);
    assert!(model.forward(&[], &mut cache, LogitsFor::Last).expect("nothing to do").is_empty());
}

#[test]
fn a_model_from_parts_in_memory_is_the_same_model() {
    fn shared_between_threads<T: Send + Sync>(_: &T) {}
    for weight in WEIGHT_SCHEMES.iter().chain(GROUPED_SCHEMES).map(|scheme| scheme.name()).chain([NONE]) {
        let mut random = RandomModel::named("tiny").expect("known");
        random.config.quantization = Quantization::by_name(weight, "int8").expect("known");
        let kernel = kernels::best().expect("a kernel");
        let built = random.build(kernel).expect("possible");
        shared_between_threads(&built);
        let parts = Model::from_parts(random.parts().expect("possible"), kernel);
        let logits = prefill(&built, &tokens(20, 10));
        assert!(logits.iter().all(|logit| logit.is_finite()) && logits.iter().any(|logit| *logit != logits[0]));
        assert!(logits == prefill(&parts, &tokens(20, 10)), "{weight}");
    }
}

#[test]
fn the_way_to_hold_ternary_codes_changes_nothing() {
    let mut random = RandomModel::named("tiny").expect("known");
    // Neither 20 nor 64 divides the widths.
    (random.config.hidden_size, random.config.intermediate_size) = (72, 130);
    random.config.head_dim = 18;
    let tokens = tokens(30, 12);
    let build = |kernel, ternary| random.build(Arrangement { kernel, ternary: Some(ternary) }).expect("possible");
    for kernel in kernels::supported().filter(|kernel| kernel.has_base3()) {
        let [two_bit, base3] = [Ternary::TwoBit, Ternary::Base3].map(|ternary| build(kernel, ternary));
        assert_eq!(base3.ternary().map(|choice| choice.ternary), Some(Ternary::Base3));
        assert!(base3.projection_bytes() < two_bit.projection_bytes());
        assert!(prefill(&two_bit, &tokens) == prefill(&base3, &tokens), "kernel {}", kernel.name);
    }
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let model = model(kernels::best().expect("a kernel"));
    let tokens = tokens(100, 3);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| prefill(&model, &tokens))
    };
    assert!(with(1) == with(3));
}

#[test]
fn a_truncated_cache_continues_as_if_nothing_had_been() {
    let model = model(kernels::best().expect("a kernel"));
    let (kept, dropped, then) = (tokens(40, 4), tokens(30, 5), tokens(20, 6));
    let mut cache = KvCache::new(model.config(), 100).expect("fits");
    model.forward(&kept, &mut cache, LogitsFor::None).expect("runs");
    model.forward(&dropped, &mut cache, LogitsFor::None).expect("runs");
    cache.truncate(kept.len());
    let found = model.forward(&then, &mut cache, LogitsFor::All).expect("runs");
    let whole = prefill(&model, &[kept, then].concat());
    assert!(found == whole[40 * 256..]);
    cache.reset();
    assert!(cache.is_empty());
}

#[test]
fn what_cannot_run_is_an_error_and_leaves_the_cache_alone() {
    let model = model(kernels::best().expect("a kernel"));
    let mut cache = KvCache::new(model.config(), 10).expect("fits");
    model.forward(&tokens(4, 7), &mut cache, LogitsFor::None).expect("runs");
    let message = model.forward(&[1, 2, 256], &mut cache, LogitsFor::Last).expect_err("no such token").to_string();
    assert_eq!(message, "token 256 at index 2 is not below the vocabulary size 256");
    let full = model.forward(&tokens(7, 8), &mut cache, LogitsFor::Last).expect_err("full");
    assert!(matches!(full, Error::ContextFull { used: 4, capacity: 10, more: 7 }), "{full}");
    assert_eq!(cache.len(), 4);
    for capacity in [0, 2049, usize::MAX] {
        assert!(KvCache::new(model.config(), capacity).is_err(), "{capacity}");
    }
    let mut other = RandomModel::named("tiny").expect("known").config;
    other.num_hidden_layers = 1;
    let mut cache = KvCache::new(&other, 10).expect("fits");
    assert!(model.forward(&[1], &mut cache, LogitsFor::Last).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_sequence_does_not_notice_its_company(lengths in proptest::collection::vec((0usize..40, 0usize..300), 1..5)) {
        let model = model(kernels::best().expect("a kernel"));
        let sequences: Vec<(Vec<u32>, Vec<u32>)> =
            lengths.iter().enumerate().map(|(i, &(before, now))| (tokens(before, i), tokens(now, i + 9))).collect();
        let mut caches: Vec<KvCache> =
            sequences.iter().map(|_| KvCache::new(model.config(), 400).expect("fits")).collect();
        for (cache, (before, _)) in caches.iter_mut().zip(&sequences) {
            model.forward(before, cache, LogitsFor::None).expect("runs");
        }
        let mut batch: Vec<Sequence> =
            caches.iter_mut().zip(&sequences).map(|(cache, (_, now))| Sequence { tokens: now, cache }).collect();
        let together = model.logits(&model.hidden_states(&mut batch).expect("runs"));
        let alone: Vec<f32> = sequences
            .iter()
            .flat_map(|(before, now)| prefill(&model, &[before.clone(), now.clone()].concat()).split_off(before.len() * 256))
            .collect();
        prop_assert!(together == alone);

        // The last states alone, behind the same caches: and what follows does not notice.
        for (cache, (before, _)) in caches.iter_mut().zip(&sequences) {
            cache.truncate(before.len());
        }
        let mut batch: Vec<Sequence> =
            caches.iter_mut().zip(&sequences).map(|(cache, (_, now))| Sequence { tokens: now, cache }).collect();
        let last = model.logits(&model.last_states(&mut batch, &mut Profile::default()).expect("runs"));
        let mut end = 0;
        let ends = sequences.iter().filter(|(_, now)| !now.is_empty()).flat_map(|(_, now)| {
            end += now.len() * 256;
            &alone[end - 256..end]
        });
        prop_assert!(last.iter().eq(ends));
        for (cache, (before, now)) in caches.iter_mut().zip(&sequences) {
            let next = model.forward(&[7], cache, LogitsFor::Last).expect("runs");
            let whole = [&before[..], now, &[7]].concat();
            prop_assert!(next == prefill(&model, &whole)[(whole.len() - 1) * 256..]);
        }
    }
}
