//! What keys and values are kept as, and what of them is kept in a file.

use std::fs;
use std::ops::ControlFlow;

use bitnet_infer::engine::{KvCache, KvType, LoadedModel, LogitsFor, SavedPrompt, open, save_prompt};
use bitnet_infer::generate::{GenerateOptions, Generation, Generator};
use bitnet_infer::kernels;

use crate::common::{compare, tiny_config, write_model};

fn tokens(n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 31 + i * i) % 256) as u32).collect()
}

fn load(root: &tempfile::TempDir, activation: &str) -> LoadedModel {
    let folder = root.path().join("model");
    write_model(&folder, &tiny_config("ternary", activation), 3);
    open(&folder, kernels::best().expect("a kernel")).expect("loads")
}

#[test]
fn narrow_keys_and_values_change_little_and_take_less() {
    let root = tempfile::tempdir().expect("temp dir");
    // Without quantized activations, of which a small change moves a code now and then.
    let model = load(&root, "none").model;
    let tokens = tokens(290);
    let run = |kv_type| {
        let mut cache = KvCache::with_type(model.config(), tokens.len(), kv_type).expect("fits");
        let logits = model.forward(&tokens, &mut cache, LogitsFor::All).expect("runs");
        (logits, cache.byte_count())
    };
    let (exact, bytes) = run(KvType::F32);
    // Five blocks of 64 positions; two heads of 22 numbers, of which values take 32 each; two layers.
    assert_eq!(bytes, 5 * 64 * 2 * (22 + 32) * 2 * 4);
    for (kv_type, rms, expected_bytes) in
        [(KvType::F16, 0.001, bytes / 2), (KvType::Int8, 0.02, bytes / 4 + 5 * 64 * 2 * 2 * 2 * 4)]
    {
        let (logits, bytes) = run(kv_type);
        assert_eq!(bytes, expected_bytes, "{kv_type}");
        let difference = compare(&logits, &exact, 258);
        println!("{kv_type}: {difference:?}");
        assert!(difference.rms < rms, "{kv_type}: {difference:?}");
        // What is kept is what later tokens see: token by token gives the same.
        let mut cache = KvCache::with_type(model.config(), tokens.len(), kv_type).expect("fits");
        let last = tokens.iter().map(|t| model.forward(&[*t], &mut cache, LogitsFor::Last).expect("runs")).last();
        assert!(last.expect("some") == logits[logits.len() - 258..], "{kv_type}");
    }
}

#[test]
fn a_saved_prompt_goes_on_as_if_it_had_just_been_read() {
    let root = tempfile::tempdir().expect("temp dir");
    let model = load(&root, "int8").model;
    let tokens = tokens(200);
    for kv_type in KvType::ALL {
        let path = root.path().join(kv_type.name());
        let new_cache = || KvCache::with_type(model.config(), 250, kv_type).expect("fits");
        let mut cache = new_cache();
        model.forward(&tokens[..150], &mut cache, LogitsFor::None).expect("runs");
        save_prompt(&path, &model, &tokens[..150], &cache).expect("written");
        let saved = SavedPrompt::read(&path, &model, kv_type).expect("reads");
        assert_eq!(saved.tokens(), &tokens[..150]);

        let mut other = tokens.clone();
        other[100] += 1;
        for (prompt, common) in [(&tokens, 150), (&tokens[..150].to_vec(), 149), (&other, 100)] {
            let mut cache = new_cache();
            assert_eq!(saved.restore(prompt, &mut cache), common);
            let found = model.forward(&prompt[common..], &mut cache, LogitsFor::All).expect("runs");
            let whole = model.forward(prompt, &mut new_cache(), LogitsFor::All).expect("runs");
            assert!(found == whole[common * 258..], "{kv_type}: {common}");
        }
    }
}

#[test]
fn generation_uses_and_extends_a_prompt_cache() {
    let root = tempfile::tempdir().expect("temp dir");
    let loaded = load(&root, "int8");
    let generator = Generator::new(&loaded.model, loaded.require_tokenizer().expect("a tokenizer"));
    let path = root.path().join("prompt");
    let run = |prompt: &str, kv, prompt_cache| -> Result<Generation, String> {
        let options = GenerateOptions { max_new_tokens: 10, kv, prompt_cache, ..GenerateOptions::default() };
        generator.run(prompt, &options, |_| ControlFlow::Continue(())).map_err(|error| error.to_string())
    };
    let kv = KvType::F16;
    // The length of each prompt with its BOS, what is taken from the file, and whether the file is then another.
    for (prompt, cached, written) in [
        ("once upon", 0, true),
        ("once upon", 9, false),
        ("once upon a time", 10, true),
        ("once upon a hill", 13, false),
        ("twice", 1, false),
    ] {
        let before = fs::read(&path).ok();
        let found = run(prompt, kv, Some(path.clone())).expect("runs");
        assert_eq!(found.cached_tokens, cached, "{prompt}");
        assert_eq!(fs::read(&path).ok() != before, written, "{prompt}");
        assert_eq!(found.tokens, run(prompt, kv, None).expect("runs").tokens, "{prompt}");
        assert!(found.kv_bytes > 0);
    }
    let message = run("once", KvType::Int8, Some(path.clone())).expect_err("another type");
    assert!(message.contains("holds keys and values in f16, expected int8: remove the file"), "{message}");
    fs::write(&path, b"bitnetkv").expect("written");
    let message = run("once", kv, Some(path.clone())).expect_err("damaged");
    assert!(message.contains("is not a whole prompt cache: it has 8 bytes"), "{message}");
    assert!(
        run("once", kv, Some(root.path().join("no/such/folder"))).expect_err("no folder").contains("cannot create")
    );
}
