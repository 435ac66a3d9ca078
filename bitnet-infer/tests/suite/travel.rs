//! What travels with the weights of a conversion: heads of codes, and the tokens around a text.

use std::fs;
use std::path::Path;

use bitnet_infer::convert::{ConvertOptions, HeadType, convert, verify};
use bitnet_infer::engine::{self, Error, HeadFormat};
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;
use bitnet_model::files::added_tokens::AddedTokens;
use bitnet_model::files::source::WeightSource;
use bitnet_model::quant::weight_scheme;
use serde_json::{Value, json};

use crate::common::{BOS, EOS, reference, write_model};
use crate::conversions::{config, converted, open, options};

/// All numbers of the head, or of the embedding where they are one, and their type.
fn head(path: &Path) -> (Vec<f32>, &'static str) {
    let read = |weights: &dyn WeightSource| {
        let view = weights.head_table()?.map_or_else(|| weights.embedding_table(), Ok)?;
        Ok::<_, Error>((view.to_matrix().to_f32(), view.kind()))
    };
    open(path).with_weights(read).expect("reads")
}

#[test]
fn a_head_of_codes_is_written_read_and_run() {
    let kernel = kernels::best().expect("a kernel");
    for tied in [true, false] {
        let root = tempfile::tempdir().expect("temp dir");
        let (original, coded) = (root.path().join("original"), root.path().join("coded"));
        write_model(&original, &ModelConfig { tie_word_embeddings: tied, ..config("ternary", true) }, 20);
        let with_codes = ConvertOptions { head: Some(HeadType::Int8), ..options("bitnet") };
        converted(&original, &coded, &with_codes);
        let found = verify(&open(&original), &open(&coded), &with_codes, 40, kernel.into()).expect("close");
        println!("tied {tied}: {:?}", found.agreement);
        assert!(found.agreement.largest_difference > 0.0, "rounded");

        let (values, kind) = head(&coded);
        assert_eq!(kind, "I8");
        let scheme = weight_scheme("int8").expect("known").expect("a scheme");
        for (row, values) in head(&original).0.chunks(256).zip(values.chunks(256)) {
            let mut codes = vec![0; row.len()];
            let scale = scheme.quantize(row, 1, &mut codes)[0];
            assert!(codes.iter().map(|&code| f32::from(code) * scale).eq(values.iter().copied()));
        }
        // The codes are what runs, whatever is asked for, and what is written again.
        let loaded = engine::open(&coded, kernel).expect("loads").with_head(HeadFormat::Exact);
        assert_eq!(loaded.model.head_format(), HeadFormat::Int8);
        let scalar = reference(&coded).logits(&[1, 2, 3]);
        let mut cache = engine::KvCache::new(loaded.model.config(), 3).expect("fits");
        let logits = loaded.model.forward(&[1, 2, 3], &mut cache, engine::LogitsFor::All).expect("runs");
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 2e-2 * scalar.iter().fold(1.0, |m: f32, x| m.max(x.abs()));
        assert!(logits.iter().zip(&scalar).all(close), "tied {tied}");
        for (target, exact) in [("bitnet", true), ("gguf-q2", false), ("hf", false)] {
            let next = root.path().join(target);
            converted(&coded, &next, &options(target));
            let found = verify(&open(&coded), &open(&next), &options(target), 40, kernel.into()).expect(target);
            assert_eq!(found.agreement.largest_difference == 0.0, exact, "{target}: {found:?}");
        }

        // -128 is no code of the scheme.
        let file = coded.join("model.safetensors");
        let place = open(&coded).with_weights(|weights| Ok::<_, Error>(weights.tensors())).expect("reads");
        let place = place.iter().find(|tensor| tensor.kind == "I8").expect("there").offset;
        let mut bytes = fs::read(&file).expect("readable");
        bytes[place + 300] = 0x80;
        fs::write(&file, bytes).expect("written");
        let message = engine::open(&coded, kernel).err().expect("refused").to_string();
        assert!(message.contains("has the impossible code -128 at row 1, column 44"), "{message}");

        for (target, expected) in [("gguf-tq2", "GGUF has q8_0"), ("hf-packed", "`hf-packed` holds a head in f16")] {
            let wrong = ConvertOptions { head: Some(HeadType::Int8), ..options(target) };
            let message =
                convert(&open(&original), &root.path().join("x"), &wrong, &mut |_, _| {}).expect_err(expected);
            assert!(message.to_string().contains(expected), "{message}");
        }
    }
}

#[test]
fn what_is_put_around_a_text_travels() {
    for (flags, add_bos, add_eos) in [
        (json!({}), None, None),
        (json!({ "add_bos_token": false }), Some(false), None),
        (json!({ "add_bos_token": true, "add_eos_token": true }), Some(true), Some(true)),
        (json!({ "add_bos_token": false, "add_eos_token": false }), Some(false), Some(false)),
    ] {
        let root = tempfile::tempdir().expect("temp dir");
        let [original, gguf, back] = ["original", "m.gguf", "back"].map(|name| root.path().join(name));
        write_model(&original, &config("ternary", false), 21);
        fs::write(original.join("tokenizer_config.json"), flags.to_string()).expect("written");
        // Without a word, the configuration's token is taken.
        let front = if add_bos == Some(false) { None } else { Some(BOS) };
        let runs_with = |path: &Path| {
            let bos = open(path).with_weights(|weights| Ok::<_, Error>(weights.config().bos_token_id));
            bos.expect("reads")
        };
        assert_eq!(runs_with(&original), front, "{flags}");
        converted(&original, &gguf, &options("gguf-tq2"));
        assert_eq!(runs_with(&gguf), front, "{flags}");
        let added = open(&gguf).added_tokens().expect("reads");
        assert_eq!(added, AddedTokens { bos: Some(BOS), add_bos: Some(front.is_some()), add_eos }, "{flags}");
        converted(&gguf, &back, &options("hf-packed"));
        assert_eq!(runs_with(&back), front, "{flags}");
        let read =
            |name: &str| -> Value { serde_json::from_slice(&fs::read(back.join(name)).expect("there")).expect("JSON") };
        assert_eq!(read("config.json")["bos_token_id"], BOS, "{flags}");
        let written = read("tokenizer_config.json");
        assert_eq!((&written["add_bos_token"], &written["bos_token"]), (&json!(front.is_some()), &json!("<s>")));
        assert_eq!(written.get("add_eos_token"), add_eos.map(Value::from).as_ref(), "{flags}");
    }
}

#[test]
fn every_end_token_travels() {
    let root = tempfile::tempdir().expect("temp dir");
    let [original, gguf, back] = ["original", "m.gguf", "back"].map(|name| root.path().join(name));
    let ends = vec![EOS, 7, 9, 3, 11];
    write_model(&original, &ModelConfig { eos_token_ids: ends.clone(), ..config("ternary", true) }, 22);
    // As chat models have it: the file of generation knows one more.
    fs::write(original.join("generation_config.json"), json!({ "eos_token_id": [7, 12] }).to_string())
        .expect("written");
    let all = [ends, vec![12]].concat();
    let said = converted(&original, &gguf, &options("gguf-q2"));
    assert!(said.notes.iter().any(|note| note.contains("it will not stop at the last 3 of this model's")), "{said:?}");
    converted(&gguf, &back, &options("hf"));
    for path in [&original, &gguf, &back] {
        let found = open(path).with_weights(|weights| Ok::<_, Error>(weights.config().eos_token_ids.clone()));
        assert_eq!(found.expect("reads"), all, "{}", path.display());
    }
    fs::write(original.join("generation_config.json"), json!({ "eos_token_id": 258 }).to_string()).expect("written");
    let message =
        bitnet_infer::engine::ModelFiles::open(&original, Default::default()).err().expect("refused").to_string();
    assert!(message.contains("generation_config.json: `eos_token_id` is 258, expected a token below"), "{message}");
}
