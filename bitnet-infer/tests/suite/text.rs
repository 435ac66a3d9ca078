//! Generation and perplexity over text.

use std::ops::ControlFlow;
use std::path::Path;

use bitnet_infer::engine::{self, KvType, LoadedModel, SamplerConfig};
use bitnet_infer::eval::perplexity::{self, Convention, PerplexityOptions};
use bitnet_infer::generate::{GenerateOptions, Generation, Generator, StopReason};
use bitnet_infer::kernels;

use crate::common::{BOS, reference, tiny_config, write_model};

fn load(folder: &Path, change: impl FnOnce(&mut bitnet_model::ModelConfig)) -> LoadedModel {
    let mut config = tiny_config("ternary", "int8");
    change(&mut config);
    write_model(folder, &config, 11);
    engine::open(folder, kernels::best().expect("a kernel")).expect("loads")
}

fn generate(loaded: &LoadedModel, prompt: &str, options: &GenerateOptions) -> (Generation, String) {
    let mut streamed = String::new();
    let generator = Generator::new(&loaded.model, loaded.require_tokenizer().expect("a tokenizer"));
    let on_text = |piece: &str| {
        streamed.push_str(piece);
        ControlFlow::Continue(())
    };
    let generation = generator.run(prompt, options, on_text).expect("runs");
    (generation, streamed)
}

#[test]
fn the_stream_is_the_text_of_the_tokens() {
    let root = tempfile::tempdir().expect("temp dir");
    let loaded = load(&root.path().join("m"), |config| config.eos_token_ids.clear());
    let options = GenerateOptions { max_new_tokens: 50, ..GenerateOptions::default() };
    let (first, streamed) = generate(&loaded, "hello", &options);
    assert_eq!((first.prompt_tokens, first.tokens.len(), first.decode_steps), (6, 50, 49));
    assert_eq!(first.stop_reason, StopReason::MaxTokens);
    assert_eq!(streamed, first.text);
    // Tokens below 256 are bytes, the others are special.
    let said = |tokens: &[u32]| {
        let bytes: Vec<u8> = tokens.iter().filter_map(|&token| u8::try_from(token).ok()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    for seed in 0..20 {
        let sampler = SamplerConfig { seed, temperature: 1.5, ..SamplerConfig::default() };
        let (generation, streamed) = generate(&loaded, "hello", &GenerateOptions { sampler, ..options.clone() });
        assert_eq!((&streamed, &generation.text), (&said(&generation.tokens), &said(&generation.tokens)));
    }
    assert_eq!(generate(&loaded, "hello", &options).0.tokens, first.tokens, "same seed, same tokens");
    let other = GenerateOptions { sampler: SamplerConfig { seed: 1, ..SamplerConfig::default() }, ..options };
    assert_ne!(generate(&loaded, "hello", &other).0.tokens, first.tokens);
}

#[test]
fn a_generation_ends_for_a_reason() {
    let root = tempfile::tempdir().expect("temp dir");
    let loaded = load(&root.path().join("m"), |config| config.eos_token_ids.clear());
    let greedy = GenerateOptions { sampler: SamplerConfig::greedy(), ..GenerateOptions::default() };
    let (free, _) = generate(&loaded, "abc", &greedy);

    let none = generate(&loaded, "abc", &GenerateOptions { max_new_tokens: 0, ..greedy.clone() }).0;
    assert_eq!((none.tokens.len(), none.stop_reason), (0, StopReason::MaxTokens));

    let full = generate(&loaded, "abc", &GenerateOptions { context: Some(10), ..greedy.clone() }).0;
    // Four tokens of prompt, then one after each of the six that still fit, and the one before.
    assert_eq!((full.tokens.len(), full.stop_reason), (7, StopReason::ContextFull));
    assert_eq!(full.tokens, free.tokens[..7]);

    let characters: Vec<char> = free.text.chars().collect();
    assert!(characters.len() > 4, "{characters:?}");
    let stop: String = characters[2..4].iter().collect();
    let stopped = generate(&loaded, "abc", &GenerateOptions { stop: vec![stop.clone()], ..greedy.clone() });
    assert_eq!(stopped.0.stop_reason, StopReason::StopText);
    assert_eq!(stopped.1, free.text[..free.text.find(&stop).expect("it is there")]);

    let root = tempfile::tempdir().expect("temp dir");
    let third = free.tokens[2];
    let ending = load(&root.path().join("m"), |config| config.eos_token_ids = vec![third]);
    let ended = generate(&ending, "abc", &greedy).0;
    let first = free.tokens.iter().position(|token| *token == third).expect("the third at least");
    assert_eq!((ended.tokens.len(), ended.stop_reason), (first + 1, StopReason::EndOfText));

    let generator = Generator::new(&loaded.model, loaded.require_tokenizer().expect("a tokenizer"));
    let cancelled = generator.run("abc", &greedy, |_| ControlFlow::Break(())).expect("runs");
    assert_eq!(cancelled.stop_reason, StopReason::Cancelled);
}

#[test]
fn prompts_begin_with_bos_once_and_must_fit() {
    let root = tempfile::tempdir().expect("temp dir");
    let loaded = load(&root.path().join("m"), |_| {});
    let generator = Generator::new(&loaded.model, loaded.require_tokenizer().expect("a tokenizer"));
    assert_eq!(generator.encode("a").expect("encodes"), [BOS, 97]);
    assert_eq!(generator.encode("<s>a").expect("encodes"), [BOS, 97]);
    assert_eq!(generator.encode("").expect("encodes"), [BOS]);
    let run = |prompt: &str, options: &GenerateOptions| {
        generator.run(prompt, options, |_| ControlFlow::Continue(())).expect_err("refused").to_string()
    };
    let short = GenerateOptions { context: Some(4), ..GenerateOptions::default() };
    assert!(run("abcd", &short).contains("the prompt has 5 tokens, which do not fit the context of 4"));
    let long = GenerateOptions { context: Some(301), ..GenerateOptions::default() };
    assert!(run("abcd", &long).contains("a context of 301 tokens is not possible: this model's is 1 to 300"));

    let root = tempfile::tempdir().expect("temp dir");
    let without = load(&root.path().join("m"), |config| config.bos_token_id = None);
    let generator = Generator::new(&without.model, without.require_tokenizer().expect("a tokenizer"));
    assert!(generator.encode("").expect_err("nothing to begin with").to_string().contains("the prompt is empty"));
}

#[test]
fn perplexity_is_that_of_the_reference() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = root.path().join("m");
    // Float activations: no code can flip, so that the comparison is sharp.
    let loaded = load(&folder, |config| config.quantization.activation = None);
    let reference = reference(&folder);
    let text: String = (0..100u32).map(|i| char::from(b'a' + (i * 7 % 26) as u8)).collect();
    let bytes: Vec<u32> = text.bytes().map(u32::from).collect();
    let nats = |input: &[u32], scored_from: usize, targets: &[u32]| -> Vec<f64> {
        let logits = reference.logits(input);
        let rows = logits.chunks(258).skip(scored_from).zip(targets);
        rows.map(|(row, &target)| {
            let total: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
            total.ln() - f64::from(row[target as usize])
        })
        .collect()
    };
    let measure = |convention, context| {
        let options = PerplexityOptions { convention, context, kv: KvType::F32 };
        let tokenizer = loaded.tokenizer.as_ref().expect("a tokenizer");
        perplexity::of_text(&loaded.model, tokenizer, &text, options, |done, all| assert!(done <= all)).expect("runs")
    };

    let windows = measure(Convention::Windows, 16);
    let expected: Vec<f64> =
        (0..6).flat_map(|i| nats(&bytes[i * 16..i * 16 + 16], 0, &bytes[i * 16 + 1..i * 16 + 17])).collect();
    check(&windows, &expected);
    assert_eq!((windows.windows, windows.bytes_scored), (6, Some(96)), "one byte a token");

    let llama = measure(Convention::Llama, 20);
    let with_bos: Vec<u32> = [vec![BOS], bytes].concat();
    let expected: Vec<f64> = (0..5)
        .flat_map(|i| {
            let mut input = with_bos[i * 20..i * 20 + 19].to_vec();
            input[0] = BOS;
            nats(&input, 10, &with_bos[i * 20 + 11..i * 20 + 20])
        })
        .collect();
    check(&llama, &expected);
    assert_eq!((llama.windows, llama.tokens_scored, llama.bytes_scored), (5, 45, Some(45)));
}

fn check(measured: &perplexity::Perplexity, expected: &[f64]) {
    let mean = expected.iter().sum::<f64>() / expected.len() as f64;
    assert_eq!(measured.tokens_scored, expected.len());
    assert!((measured.loss_nats - mean).abs() < 1e-5, "{} against {mean}", measured.loss_nats);
    assert!((measured.perplexity - mean.exp()).abs() < 1e-3 * mean.exp());
    let bits = expected.iter().sum::<f64>() / std::f64::consts::LN_2 / expected.len() as f64;
    assert!((measured.bits_per_byte.expect("a text") - bits).abs() < 1e-4);
    assert!(measured.standard_error > 0.0);
}

#[test]
fn bytes_are_counted_to_the_character() {
    let root = tempfile::tempdir().expect("temp dir");
    let loaded = load(&root.path().join("m"), |_| {});
    let tokenizer = loaded.tokenizer.as_ref().expect("a tokenizer");
    // Two bytes a character: with windows of three tokens every other window ends inside one.
    let text = "é".repeat(30);
    let options = PerplexityOptions { convention: Convention::Windows, context: 3, kv: KvType::F32 };
    let measured = perplexity::of_text(&loaded.model, tokenizer, &text, options, |_, _| {}).expect("runs");
    let scored = measured.bytes_scored.expect("a text");
    assert_eq!(measured.tokens_scored, 57);
    assert!((56..=58).contains(&scored), "{scored} bytes");
}
