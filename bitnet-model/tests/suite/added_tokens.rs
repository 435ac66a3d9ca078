//! Added tokens whose ids leave gaps: everything that holds a tokenizer gives them the ids that its `tokenizer.json` states.

use bitnet_model::files::gguf::TokenLists;
use bitnet_model::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// 26 letters, then added tokens behind gaps.
const ADDED: [(u32, &str, bool); 4] =
    [(30, "<one>", true), (34, "<two>", false), (36, "\u{e9}", false), (38, "<end>", true)];

fn added(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
}

fn letters() -> serde_json::Map<String, Value> {
    ('a'..='z').zip(0..).map(|(letter, id)| (letter.to_string(), id.into())).collect()
}

fn tokenizer_json(model: &Value, added: &[Value]) -> Vec<u8> {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({"version": "1.0", "added_tokens": added, "model": model, "pre_tokenizer": byte_level, "decoder": byte_level});
    json.to_string().into_bytes()
}

fn bpe() -> Value {
    json!({"type": "BPE", "vocab": letters(), "merges": []})
}

fn with_gaps(model: &Value) -> Vec<u8> {
    tokenizer_json(model, &ADDED.map(|(id, content, special)| added(id, content, special)))
}

/// `a<two>bé<end><one>` in the ids that the file states.
fn check(json: &[u8], name: &str) {
    let tokenizer = Tokenizer::from_bytes(json, name).expect("loads");
    let ids = tokenizer.encode("a<two>b\u{e9}<end><one>").expect("encodes");
    assert_eq!(ids, [0, 34, 1, 36, 38, 30], "{name}");
    assert_eq!(tokenizer.decode(&ids).expect("decodes"), "a<two>b\u{e9}", "{name}");
    assert_eq!(tokenizer.decode_with_special(&ids).expect("decodes"), "a<two>b\u{e9}<end><one>", "{name}");
    for (id, content, _) in ADDED {
        assert_eq!((tokenizer.text_of(id).as_deref(), tokenizer.id_of(content)), (Some(content), Some(id)), "{name}");
        assert_eq!(tokenizer.bytes_of(id), content.as_bytes(), "{name}");
    }
    assert_eq!(tokenizer.vocab_size(), 39, "{name}");
    let special: Vec<u32> = tokenizer.special_tokens().map(|(id, _)| id).collect();
    assert_eq!(special, [30, 38], "{name}");
}

#[test]
fn every_form_has_the_ids_of_the_file() {
    let json = with_gaps(&bpe());
    check(&json, "tokenizer.json");
    let marked = [b"\xef\xbb\xbf", json.as_slice()].concat();
    check(&marked, "with a byte-order mark");
    let lists = TokenLists::from_json(&json, 40, "lists").expect("lists");
    for (id, content, _) in ADDED {
        assert_eq!(lists.tokens[id as usize], content);
    }
    // The lists name what fills the gaps, so that their last token is the last of the model.
    let again = lists.to_json("lists").expect("a tokenizer");
    let (again, first) =
        (Tokenizer::from_bytes(&again, "lists").expect("loads"), Tokenizer::from_bytes(&json, "json").expect("loads"));
    let text = "a<two>b\u{e9}<end><one>zz";
    assert_eq!(again.encode(text).expect("encodes"), first.encode(text).expect("encodes"));
    // The other kinds of vocabularies that name their ids.
    check(&with_gaps(&json!({"type": "WordLevel", "vocab": letters(), "unk_token": "a"})), "WordLevel");
    let word_piece = json!({"type": "WordPiece", "vocab": letters(), "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100});
    check(&with_gaps(&word_piece), "WordPiece");
}

/// What tokenizers in use look like: the library's own numbers are those of the file.
#[test]
fn ids_that_follow_the_vocabulary_need_nothing() {
    let json = tokenizer_json(&bpe(), &[added(26, "<one>", true), added(27, "<two>", false), added(3, "d", false)]);
    let tokenizer = Tokenizer::from_bytes(&json, "t").expect("loads");
    assert_eq!(tokenizer.encode("<two>d<one>").expect("encodes"), [27, 3, 26]);
}

/// A byte-level normalizer spells added tokens in letters for bytes, but they still stand for themselves.
#[test]
fn a_normalizer_does_not_change_what_an_added_token_is() {
    for normalized in [false, true] {
        let mut token = added(40, "\u{e9}\u{4e2d}", false);
        token["normalized"] = normalized.into();
        let mut json: Value = serde_json::from_slice(&tokenizer_json(&bpe(), &[token])).expect("JSON");
        json["normalizer"] = json!({"type": "ByteLevel"});
        json["pre_tokenizer"] = Value::Null;
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), "t").expect("loads");
        assert_eq!(tokenizer.encode("a\u{e9}\u{4e2d}b").expect("encodes"), [0, 40, 1]);
        assert_eq!(tokenizer.decode(&[0, 40, 1]).expect("decodes"), "a\u{e9}\u{4e2d}b");
        assert_eq!(tokenizer.text_of(40).as_deref(), Some("\u{e9}\u{4e2d}"));
    }
}

#[test]
fn ids_that_contradict_each_other_are_named() {
    let unigram = json!({"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0]], "unk_id": 0});
    for (model, tokens, expected) in [
        (
            bpe(),
            vec![added(30, "<x>", false), added(30, "<y>", false)],
            "the added token `<y>` with id 30, which is the id of `<x>` too",
        ),
        (bpe(), vec![added(4, "<x>", false)], "the added token `<x>` with id 4, which is the id of `e` too"),
        (
            bpe(),
            vec![added(30, "<x>", false), added(32, "<x>", false)],
            "the added token `<x>` with the ids 30 and 32, expected one",
        ),
        (bpe(), vec![added(30, "e", false)], "the added token `e` with the ids 4 and 30, expected one"),
        (unigram, vec![added(7, "<x>", true)], "the added token `<x>` with id 7, which does not follow its vocabulary"),
    ] {
        let json = tokenizer_json(&model, &tokens);
        let error = Tokenizer::from_bytes(&json, "t.json").expect_err("refused").to_string();
        assert!(error.starts_with("t.json: tokenizer has ") && error.contains(expected), "{error}");
    }
    let json = tokenizer_json(&bpe(), &[added(4, "<x>", false)]);
    let error = TokenLists::from_json(&json, 40, "t.json").expect_err("refused").to_string();
    assert!(error.contains("the tokens `e` and `<x>` with the same id"), "{error}");
}
