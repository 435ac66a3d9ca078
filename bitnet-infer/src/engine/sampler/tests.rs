use super::*;
use proptest::prelude::*;

const ALL: SamplerConfig = SamplerConfig {
    temperature: 1.0,
    top_k: 0,
    top_p: 1.0,
    min_p: 0.0,
    repeat_penalty: 1.0,
    repeat_window: 64,
    presence_penalty: 0.0,
    frequency_penalty: 0.0,
    logit_bias: Vec::new(),
    seed: 7,
};

fn candidates(config: SamplerConfig, logits: &[f32]) -> Vec<Candidate> {
    Sampler::new(config).expect("valid").candidates(logits, &[])
}

fn some_logits() -> impl Strategy<Value = Vec<f32>> {
    // Few distinct values, so that ties happen.
    proptest::collection::vec((-8i32..8).prop_map(|v| v as f32 / 2.0), 1..60)
}

proptest! {
    #[test]
    fn top_k_keeps_the_k_largest(logits in some_logits(), k in 1usize..70) {
        let kept = candidates(SamplerConfig { top_k: k, ..ALL }, &logits);
        let mut expected: Vec<u32> = (0..logits.len() as u32).collect();
        expected.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        expected.truncate(k);
        prop_assert_eq!(kept.iter().map(|c| c.token).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p(logits in some_logits(), p in 0f32..1.0) {
        let all = candidates(ALL, &logits);
        let kept = candidates(SamplerConfig { top_p: p, ..ALL }, &logits).len();
        let mass = |n: usize| all[..n].iter().map(|c| c.probability).sum::<f64>();
        prop_assert!(mass(kept) >= f64::from(p) - 1e-12);
        prop_assert!(kept == 1 || mass(kept - 1) < f64::from(p));
    }

    #[test]
    fn min_p_keeps_what_is_probable_enough(logits in some_logits(), p in 0f32..1.0) {
        let all = candidates(ALL, &logits);
        let floor = all[0].probability * f64::from(p);
        let expected = all.iter().filter(|c| c.probability >= floor).count();
        prop_assert_eq!(candidates(SamplerConfig { min_p: p, ..ALL }, &logits).len(), expected);
    }

    #[test]
    fn probabilities_sum_to_one_and_no_impossible_token_is_drawn(
        logits in proptest::collection::vec(prop_oneof![-1e38f32..1e38, Just(f32::MAX), Just(f32::NEG_INFINITY)], 1..40),
        temperature in 0.01f32..3.0,
        history in proptest::collection::vec(0u32..60, 0..9),
    ) {
        let config = SamplerConfig { temperature, top_k: 20, top_p: 0.9, min_p: 0.01, repeat_penalty: 1.3, ..ALL };
        let mut sampler = Sampler::new(config.clone()).expect("valid");
        let sum: f64 = sampler.candidates(&logits, &history).iter().map(|c| c.probability).sum();
        prop_assert!((sum - 1.0).abs() < 1e-9, "sum {}", sum);
        let possible = logits.iter().any(|logit| logit.is_finite());
        let mut greedy = Sampler::new(SamplerConfig::greedy()).expect("valid");
        for drawn in [sampler.sample(&logits, &history), greedy.sample(&logits, &history)] {
            prop_assert_eq!(drawn.is_ok(), possible);
            prop_assert!(drawn.is_err() || logits[drawn.expect("checked") as usize].is_finite());
        }
    }

    /// However the filters are set, and wherever it stands.
    #[test]
    fn nothing_is_drawn_from_logits_that_are_not_finite(
        logits in proptest::collection::vec(-9f32..9.0, 1..40),
        at in any::<proptest::sample::Index>(),
        value in prop_oneof![Just(f32::NAN), Just(-f32::NAN), Just(f32::INFINITY)],
        temperature in prop_oneof![Just(0f32), 0.1f32..2.0],
        top_k in 0usize..3,
    ) {
        let (mut logits, token) = (logits, at.index(40));
        let token = token % logits.len();
        logits[token] = value;
        let mut sampler = Sampler::new(SamplerConfig { temperature, top_k, ..ALL }).expect("valid");
        let message = sampler.sample(&logits, &[]).expect_err("refused").to_string();
        prop_assert!(message.contains(&format!("the logit of token {token} is ")), "{}", message);
    }

    #[test]
    fn greedy_is_the_first_largest(logits in some_logits()) {
        let token = Sampler::new(SamplerConfig::greedy()).expect("valid").sample(&logits, &[]).expect("finite") as usize;
        prop_assert!(logits.iter().enumerate().all(|(i, &l)| l < logits[token] || (l == logits[token] && i >= token)));
    }
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [1.0, 0.0, -1.0, 2.0, f32::NEG_INFINITY];
    let temperature = 0.7;
    let mut sampler = Sampler::new(SamplerConfig { temperature, ..ALL }).expect("valid");
    let mut counts = [0f64; 5];
    const DRAWS: usize = 100_000;
    for _ in 0..DRAWS {
        counts[sampler.sample(&logits, &[]).expect("finite") as usize] += 1.0 / DRAWS as f64;
    }
    let weights = logits.map(|l: f32| f64::from(l / temperature).exp());
    let total: f64 = weights.iter().sum();
    for (count, weight) in counts.iter().zip(weights) {
        // Five standard deviations of a share of 100,000 draws.
        assert!((count - weight / total).abs() < 0.008, "{counts:?}");
    }
}

#[test]
fn a_seed_decides_all_draws() {
    let logits: Vec<f32> = (0..50).map(|i| (i as f32 * 0.7).sin()).collect();
    let draw = |seed| {
        let mut sampler = Sampler::new(SamplerConfig { seed, ..ALL }).expect("valid");
        (0..20).map(|_| sampler.sample(&logits, &[]).expect("finite")).collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
}

#[test]
fn the_penalty_sees_its_window_only() {
    let config = SamplerConfig { repeat_penalty: 2.0, repeat_window: 2, ..ALL };
    let sampler = Sampler::new(config).expect("valid");
    let logits = [3.0, -1.0, 2.0];
    assert_eq!(sampler.penalized(&logits, &[0, 1, 1]), [3.0, -2.0, 2.0]);
    assert_eq!(sampler.penalized(&logits, &[1, 0, 2]), [1.5, -1.0, 1.0]);
}

#[test]
fn impossible_settings_are_refused() {
    for (config, expected) in [
        (SamplerConfig { temperature: -1.0, ..ALL }, "temperature is -1, expected 0 to 100"),
        (SamplerConfig { temperature: f32::NAN, ..ALL }, "temperature is NaN"),
        (SamplerConfig { top_p: 1.5, ..ALL }, "top-p is 1.5, expected 0 to 1"),
        (SamplerConfig { repeat_penalty: 0.0, ..ALL }, "repeat-penalty is 0"),
    ] {
        let message = Sampler::new(config).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn presence_and_frequency_count_what_was_generated_only() {
    let config = SamplerConfig { presence_penalty: 0.5, frequency_penalty: 0.25, ..ALL };
    let sampler = Sampler::new(config).expect("valid").after_prompt(2);
    // Token 0 stands in the prompt alone, token 1 there and twice after it, token 2 once after it.
    assert_eq!(sampler.penalized(&[1.0, 1.0, 1.0, 1.0], &[0, 1, 1, 2, 1]), [1.0, 0.0, 0.25, 1.0]);
}

#[test]
fn biases_are_added_and_forbidden_tokens_are_never_drawn() {
    let config = SamplerConfig { logit_bias: vec![(1, 2.0), (9, 5.0)], ..ALL };
    let mut sampler = Sampler::new(config).expect("valid");
    assert_eq!(sampler.penalized(&[1.0, 1.0, 4.0], &[]), [1.0, 3.0, 4.0]);
    sampler.forbid(&[2]);
    assert_eq!(sampler.penalized(&[1.0, 1.0, 4.0], &[]), [1.0, 3.0, f32::MIN]);
    assert!((0..1000).all(|_| sampler.sample(&[1.0, 1.0, 4.0], &[]).expect("finite") != 2));
    sampler.forbid(&[]);
    assert_eq!(sampler.penalized(&[1.0, 1.0, 4.0], &[]), [1.0, 3.0, 4.0]);
}

proptest! {
    /// What [`Sampler::wanted`] leaves out changes no draw, whatever changes the logits.
    #[test]
    fn wanted_logits_are_enough(
        logits in proptest::collection::vec(-4f32..4.0, 30..60),
        history in proptest::collection::vec(0u32..30, 0..9),
        biased in proptest::collection::vec((0u32..30, -9f32..9.0), 0..4),
        forbidden in proptest::collection::vec(0u32..30, 0..3),
        top_k in 1usize..5,
        temperature in prop_oneof![Just(0f32), Just(1.0)],
        penalties in (1f32..1.5, -2f32..2.0, -2f32..2.0),
    ) {
        let (repeat_penalty, presence_penalty, frequency_penalty) = penalties;
        let config = SamplerConfig {
            top_k, temperature, repeat_penalty, presence_penalty, frequency_penalty, logit_bias: biased, ..ALL
        };
        let mut sampler = Sampler::new(config).expect("valid").after_prompt(2);
        sampler.forbid(&forbidden);
        let Wanted::Largest { count, also } = sampler.wanted(&history) else { panic!("a top-k wants some only") };
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let mut some = vec![f32::NEG_INFINITY; logits.len()];
        order.iter().take(count).copied().chain(also.iter().map(|&token| token as usize)).for_each(|i| some[i] = logits[i]);
        let drawn = |sampler: &Sampler, logits: &[f32]| sampler.clone().sample(logits, &history).expect("finite");
        prop_assert_eq!(drawn(&sampler, &some), drawn(&sampler, &logits));
    }
}
