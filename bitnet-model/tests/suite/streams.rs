//! Tokens to text, whole and piece by piece, against the texts themselves, Unicode's rule and the library's own decoders.

use bitnet_model::files::gguf::{GgufFile, tokenizer_json};
use bitnet_model::tokenizer::{TextStream, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::data_folder::shared;

/// Texts of many scripts: each character takes one to four bytes, and several code points make one sign.
const TEXTS: [&str; 10] = [
    "안녕하세요 ",
    "Привет, как дела? ",
    "السلام عليكم ",
    "नमस्ते दुनिया ",
    "東京は夜の七時。",
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪",
    "ภาษาไทย",
    "naïve café ",
    "𓀀𝔘\u{10ffff}\u{0}",
    "plain words,\n\n  and 1234\t",
];

/// Calls `with` with the name and bytes of every tokenizer of the shared data, if this machine has it.
fn each_shared(mut with: impl FnMut(&str, Vec<u8>)) {
    let Some(folder) = shared("") else { return };
    for name in ["dickens-4096", "gpt2", "llama2", "llama3"] {
        with(name, std::fs::read(folder.join("tokenizers").join(name).join("tokenizer.json")).expect("readable"));
    }
    for name in [
        "gguf-vocab/ggml-vocab-gpt-2.gguf",
        "gguf-vocab/ggml-vocab-llama-bpe.gguf",
        "gguf-vocab/ggml-vocab-llama-spm.gguf",
        "gguf-vocab/ggml-vocab-qwen2.gguf",
        "stories260k/stories260K.Q8_0.gguf",
    ] {
        let bytes = std::fs::read(folder.join(name)).expect("readable");
        let file = GgufFile::parse(&bytes, name).expect("valid");
        with(name, tokenizer_json(&file).expect("lists").expect("a tokenizer"));
    }
    // The file ends where the tensors begin: enough zeros stand for them.
    let name = "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf.head";
    let mut bytes = std::fs::read(folder.join(name)).expect("readable");
    bytes.resize(110 << 20, 0);
    let file = GgufFile::parse(&bytes, name).expect("valid");
    with(name, tokenizer_json(&file).expect("lists").expect("a tokenizer"));
}

/// What is read off a `tokenizer.json` by the rules of the formats, without the code under test.
struct Spelled {
    tokens: Vec<Option<Vec<u8>>>,
    special: Vec<bool>,
    strips: bool,
}

impl Spelled {
    fn of(bytes: &[u8]) -> Self {
        let json: Value = serde_json::from_slice(bytes).expect("JSON");
        let chain = json["decoder"].to_string();
        let byte_level = chain.contains("ByteLevel");
        // GPT-2's own loop, in Python: bytes that can be seen stand for themselves, the others for 256 and on.
        let seen: Vec<u32> = (33..=126).chain(161..=172).chain(174..=255).collect();
        let unseen = (0..256u32).filter(|byte| !seen.contains(byte));
        let letters: Vec<(char, u8)> = seen
            .iter()
            .map(|&byte| (byte, byte))
            .chain(unseen.zip(256..).map(|(byte, letter)| (letter, byte)))
            .map(|(letter, byte)| (char::from_u32(letter).expect("a letter"), u8::try_from(byte).expect("a byte")))
            .collect();
        let spelled = |token: &str| -> Vec<u8> {
            if byte_level {
                let byte = |letter: char| letters.iter().find(|(other, _)| *other == letter).map(|(_, byte)| *byte);
                token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.into())
            } else if token.len() == 6 && token.starts_with("<0x") {
                vec![u8::from_str_radix(&token[3..5], 16).expect("a byte")]
            } else {
                token.replace('\u{2581}', " ").into()
            }
        };
        let mut tokens = Vec::new();
        let mut special = Vec::new();
        let mut put = |id: &Value, token: Vec<u8>, is_special: bool| {
            let id = usize::try_from(id.as_u64().expect("an id")).expect("small");
            if tokens.len() <= id {
                tokens.resize(id + 1, None);
                special.resize(id + 1, false);
            }
            (tokens[id], special[id]) = (Some(token), is_special);
        };
        for (token, id) in json["model"]["vocab"].as_object().expect("a vocabulary") {
            put(id, spelled(token), false);
        }
        for added in json["added_tokens"].as_array().expect("a list") {
            let token = added["content"].as_str().expect("a text");
            put(&added["id"], if byte_level { token.into() } else { spelled(token) }, added["special"] == true);
        }
        Self { tokens, special, strips: chain.contains("Strip") }
    }

    /// The bytes behind each number of ids.
    fn growth(&self, ids: &[u32]) -> Vec<Vec<u8>> {
        let mut all = vec![Vec::new()];
        for &id in ids {
            let token = self.tokens.get(id as usize).cloned().flatten().unwrap_or_default();
            let mut bytes = all.last().cloned().unwrap_or_default();
            bytes.extend(if self.special.get(id as usize) == Some(&true) { Vec::new() } else { token });
            all.push(bytes);
        }
        if self.strips {
            all.iter_mut().for_each(|bytes| *bytes = bytes.strip_prefix(b" ").unwrap_or(bytes).to_vec());
        }
        all
    }
}

/// The text of bytes, without the beginning of a character that may still be completed.
fn complete(bytes: &[u8]) -> String {
    let begun = (1..=3.min(bytes.len())).find(|&n| {
        let tail = &bytes[bytes.len() - n..];
        std::str::from_utf8(tail).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    });
    String::from_utf8_lossy(&bytes[..bytes.len() - begun.unwrap_or(0)]).into_owned()
}

/// Checks the streams of ids that begin behind any of them.
fn check(name: &str, tokenizer: &Tokenizer, growth: &[Vec<u8>], ids: &[u32]) {
    let whole = String::from_utf8_lossy(growth.last().expect("one at least")).into_owned();
    assert_eq!(tokenizer.decode(ids).expect("decodes"), whole, "{name}: {ids:?}");
    for cut in 0..=ids.len() {
        let mut stream = TextStream::new(tokenizer, &ids[..cut]).expect("begins");
        let mut text = complete(&growth[cut]);
        for (&id, bytes) in ids[cut..].iter().zip(&growth[cut + 1..]) {
            text += &stream.push(id).expect("decodes");
            assert_eq!(text, complete(bytes), "{name}: no piece comes late or too early, {ids:?} from {cut} on");
        }
        assert_eq!(text + &stream.finish(), whole, "{name}: {ids:?} from {cut} on");
    }
}

#[test]
fn pieces_of_any_script_are_the_text() {
    each_shared(|name, json| {
        let tokenizer = Tokenizer::from_bytes(&json, name).expect("loads");
        let spelled = Spelled::of(&json);
        let all = TEXTS.concat();
        for text in TEXTS.iter().chain([&all.as_str()]) {
            let text = text.repeat(if text.len() > 100 { 1 } else { 3 });
            let ids = tokenizer.encode(&text).expect("encodes");
            let growth = spelled.growth(&ids);
            // The vocabulary of the stories has no byte 0x00 that it would encode to, but all others say the text again.
            if !name.starts_with("stories") {
                assert_eq!(String::from_utf8_lossy(growth.last().expect("some")), text, "{name}");
            }
            check(name, &tokenizer, &growth, &ids);
        }
    });
}

#[test]
fn pieces_of_random_ids_are_their_bytes() {
    let mut all = Vec::new();
    each_shared(|name, json| {
        let library = tokenizers::Tokenizer::from_bytes(&json).expect("loads");
        all.push((name.to_owned(), Tokenizer::from_bytes(&json, name).expect("loads"), Spelled::of(&json), library));
    });
    let cases = ProptestConfig::with_cases(30);
    proptest!(cases, |(ids in proptest::collection::vec(any::<u32>(), 0..24), wide in any::<bool>())| {
        for (name, tokenizer, spelled, library) in &all {
            // Single bytes are among the first tokens of every vocabulary.
            let range = if wide { spelled.tokens.len() } else { 300.min(spelled.tokens.len()) };
            let ids: Vec<u32> = ids.iter().map(|id| id % range as u32).collect();
            check(name, tokenizer, &spelled.growth(&ids), &ids);
            let text = library.decode(&ids, true).expect("decodes");
            // Where bytes are tokens, the library writes a U+FFFD for each byte of a group that is no UTF-8.
            if !spelled.strips || !text.contains('\u{fffd}') {
                prop_assert_eq!(tokenizer.decode(&ids).expect("decodes"), text, "{}", name);
            }
        }
    });
}

fn tokenizer(model: &Value, decoder: &Value) -> Tokenizer {
    let json = json!({"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder}).to_string();
    Tokenizer::from_bytes(json.as_bytes(), "made here").expect("loads")
}

fn bpe(tokens: impl Iterator<Item = String>) -> Value {
    let vocab: serde_json::Map<_, _> = tokens.enumerate().map(|(id, token)| (token, id.into())).collect();
    json!({"type": "BPE", "vocab": vocab, "merges": []})
}

/// Two tokenizers whose tokens are the 256 bytes.
fn of_bytes() -> [Tokenizer; 2] {
    let mut letters: Vec<u32> = (0..256).filter(|b| !matches!(b, 33..=126 | 161..=172 | 174..=255)).collect();
    letters =
        (0..256u32).map(|byte| letters.iter().position(|&b| b == byte).map_or(byte, |at| 256 + at as u32)).collect();
    let level = letters.into_iter().map(|letter| char::from_u32(letter).expect("a letter").to_string());
    let fallback = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    [
        tokenizer(
            &bpe(level),
            &json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
        ),
        tokenizer(&bpe((0..256).map(|byte| format!("<0x{byte:02X}>"))), &fallback),
    ]
}

/// The examples of the Unicode standard (chapter 3, tables 3-8 to 3-11), and texts that end too early.
#[test]
fn bytes_that_are_no_utf8_follow_unicodes_rule() {
    let bad = |n: usize| "\u{fffd}".repeat(n);
    for (bytes, expected) in [
        (&[0xf0, 0x9f][..], bad(1)),
        (&[0x80; 20], bad(20)),
        (&[0xed, 0xa0, 0x80], bad(3)),
        (&[0xf0, 0x80, 0x80, 0x41], bad(3) + "A"),
        (&[0xe1, 0x80, 0xe2, 0xf0, 0x91, 0x92, 0xf1, 0xbf, 0x41], bad(4) + "A"),
        (&[0xc0, 0xaf, 0xe0, 0x80, 0xbf, 0xf0, 0x81, 0x82, 0x41], bad(8) + "A"),
        (&[0xf4, 0x91, 0x92, 0x93, 0xff, 0x41, 0x80, 0xbf, 0x42], bad(5) + "A" + &bad(2) + "B"),
        (&[0xf0, 0x9f, 0x98, 0x80, 0xe2, 0x82], "😀".to_owned() + &bad(1)),
    ] {
        let ids: Vec<u32> = bytes.iter().copied().map(u32::from).collect();
        let growth: Vec<Vec<u8>> = (0..=bytes.len()).map(|n| bytes[..n].to_vec()).collect();
        for tokenizer in of_bytes() {
            assert_eq!(tokenizer.decode(&ids).expect("decodes"), expected, "{bytes:x?}");
            check("bytes", &tokenizer, &growth, &ids);
        }
    }
}

#[test]
fn a_character_that_the_context_begins_is_finished() {
    for tokenizer in of_bytes() {
        let mut stream = TextStream::new(&tokenizer, &[0x41, 0xf0, 0x9f]).expect("begins");
        assert_eq!(stream.push(0x98).expect("decodes"), "");
        assert_eq!(stream.push(0x80).expect("decodes"), "😀");
        assert_eq!(stream.finish(), "");
    }
}

/// Decoders of other kinds: whole texts are the library's, and pieces are the whole.
#[test]
fn every_kind_of_decoder_streams_what_it_decodes() {
    let words = ["\u{2581}", "\u{2581}the", "##s", "cat", ".", "n't", " ", "do</w>", "</w>", "x  ", "<pad>", "|"];
    let vocab = bpe(words.iter().map(ToString::to_string));
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let sequence = |steps: &[Value]| json!({"type": "Sequence", "decoders": steps});
    let metaspace =
        |scheme: &str| json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": true});
    let strip = |start: usize, stop: usize| json!({"type": "Strip", "content": " ", "start": start, "stop": stop});
    let fuse = json!({"type": "Fuse"});
    let decoders = [
        Value::Null,
        fuse.clone(),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "BPEDecoder", "suffix": "</w>"}),
        json!({"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true}),
        metaspace("always"),
        metaspace("never"),
        sequence(&[json!({"type": "ByteFallback"}), metaspace("first")]),
        sequence(&[fuse.clone(), replace("\u{2581}", " "), strip(2, 0)]),
        sequence(&[json!({"type": "ByteFallback"}), fuse.clone(), replace("\u{2581}", " "), strip(1, 2)]),
        sequence(&[sequence(&[replace("##", "")]), sequence(&[fuse])]),
        sequence(&[json!({"type": "Replace", "pattern": {"Regex": "[.x]"}, "content": "!"})]),
    ];
    for decoder in decoders {
        let json = json!({"version": "1.0", "added_tokens": [], "model": vocab, "decoder": decoder}).to_string();
        let library = tokenizers::Tokenizer::from_bytes(json.as_bytes()).expect("loads");
        let ours = Tokenizer::from_bytes(json.as_bytes(), "made here").expect("loads");
        proptest!(ProptestConfig::with_cases(60), |(ids in proptest::collection::vec(0..12u32, 1..90), cut in 0..90usize)| {
            // The library cuts more off an end than there is of a text of nothing but spaces.
            let ids = [&[3][..], &ids[..]].concat();
            let whole = library.decode(&ids, true).expect("decodes");
            prop_assert_eq!(&ours.decode(&ids).expect("decodes"), &whole, "{}", decoder);
            let mut first = TextStream::new(&ours, &[]).expect("begins");
            let (context, new) = ids.split_at(cut.min(ids.len()));
            let mut text = String::new();
            for &id in context {
                text += &first.push(id).expect("decodes");
            }
            let mut second = TextStream::new(&ours, context).expect("begins");
            for &id in new {
                let piece = first.push(id).expect("decodes");
                prop_assert_eq!(&second.push(id).expect("decodes"), &piece, "{}", decoder);
                text += &piece;
            }
            prop_assert_eq!(text + &first.finish(), whole, "{}", decoder);
        });
    }
}

#[test]
fn a_decoder_whose_order_is_not_known_is_refused_by_name() {
    let steps = json!({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]});
    let json =
        json!({"version": "1.0", "added_tokens": [], "model": bpe(["a".to_owned()].into_iter()), "decoder": steps});
    let error = Tokenizer::from_bytes(json.to_string().as_bytes(), "t.json").expect_err("refused").to_string();
    assert!(error.contains("t.json") && error.contains("Fuse, ByteFallback"), "{error}");
}
