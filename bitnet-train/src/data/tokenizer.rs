//! The tokenizer of a run: trained on the corpus, read from a file, or one token a character.
//!
//! Whatever the kind, the result is the bytes of an ordinary `tokenizer.json` that the `tokenizers`
//! library loads in any language. The same corpus gives the same bytes.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitnet_model::files::text;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{
    AddedToken, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, TokenizerBuilder, Trainer,
};

use super::encode::{ANY_CHARACTER, PART, pieces};
use super::source::OnDocument;
use super::words::words;

/// Which tokenizer a run uses; the key `type` says which kind (`bpe`, `file`, `char`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenizerConfig {
    /// Byte-level byte-pair encoding with the splitting pattern of GPT-2, trained on the train split.
    Bpe {
        /// Entries at most, the 256 bytes and the end-of-text token included. Default 4096.
        #[serde(default = "default_vocab_size")]
        vocab_size: usize,
        /// A pair must occur this often to be merged. Default 2.
        #[serde(default = "default_min_frequency")]
        min_frequency: u64,
        /// It is trained on so many bytes from the start of the train split. Default 32 MB.
        #[serde(default = "default_train_bytes")]
        train_bytes: usize,
    },
    /// An existing `tokenizer.json`.
    File {
        /// Its path.
        path: PathBuf,
    },
    /// One token for each character of the train split.
    Char {},
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        TokenizerConfig::Bpe {
            vocab_size: default_vocab_size(),
            min_frequency: default_min_frequency(),
            train_bytes: default_train_bytes(),
        }
    }
}

/// A tokenizer that is ready to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltTokenizer {
    /// The bytes of its `tokenizer.json`.
    pub json: Vec<u8>,
    /// One more than the largest id.
    pub vocab_size: usize,
    /// The id of the token between documents, where it has one.
    pub eos: Option<u32>,
}

/// The end-of-text token of the tokenizers made here; its id is 0.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Streams the train split's documents: calls its argument with each.
pub type Documents<'a> = dyn Fn(&mut OnDocument<'_>) -> Result<()> + 'a;

/// Makes the tokenizer; `documents` streams the train split and is not called for a file.
///
/// # Errors
///
/// A vocabulary too small for the bytes, a file that does not load, whatever the documents return.
pub fn build(config: &TokenizerConfig, documents: &Documents<'_>) -> Result<BuiltTokenizer> {
    let json = match config {
        TokenizerConfig::Bpe { vocab_size, min_frequency, train_bytes } => {
            train_bpe(*vocab_size, *min_frequency, *train_bytes, documents)?
        }
        TokenizerConfig::File { path } => {
            text::read(path, LARGEST_TOKENIZER).map_err(|error| anyhow!("tokenizer: {error}"))?.into_bytes()
        }
        TokenizerConfig::Char {} => characters(documents)?,
    };
    BuiltTokenizer::from_json(json).with_context(|| match config {
        TokenizerConfig::File { path } => format!("tokenizer: {}", path.display()),
        _ => "tokenizer".to_string(),
    })
}

impl BuiltTokenizer {
    /// Reads what a run needs to know off a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// Bytes that are no tokenizer, or one without a vocabulary.
    pub fn from_json(json: Vec<u8>) -> Result<BuiltTokenizer> {
        let tokenizer = bitnet_model::tokenizer::Tokenizer::from_bytes(&json, "not a usable tokenizer.json")?;
        let vocab_size = tokenizer.vocab_size();
        ensure!(vocab_size > 0, "the vocabulary is empty");
        let eos = ENDS_OF_TEXT.iter().find_map(|token| tokenizer.id_of(token));
        Ok(BuiltTokenizer { json, vocab_size, eos })
    }
}

fn train_bpe(vocab_size: usize, min_frequency: u64, train_bytes: usize, documents: &Documents<'_>) -> Result<Vec<u8>> {
    ensure!(
        vocab_size >= SMALLEST_BPE,
        "tokenizer: `vocab_size` is {vocab_size}, but the 256 bytes and {END_OF_TEXT} need at least {SMALLEST_BPE}"
    );
    ensure!(train_bytes > 0, "tokenizer: `train_bytes` must be at least 1");
    let sample = first_bytes(train_bytes, documents)?;
    let byte_level = ByteLevel::new(false, true, true);
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size)
        .min_frequency(min_frequency)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect::<HashSet<char>>())
        .build();
    let mut model = BPE::default();
    let failed = |error: tokenizers::Error| anyhow!("tokenizer: training failed: {error}");
    // Fed by hand rather than through a tokenizer, whose splitting takes several times the training itself.
    trainer.feed(sample.iter(), byte_level_words).map_err(failed)?;
    let special = trainer.train(&mut model).map_err(failed)?;
    let mut tokenizer = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
        .with_model(model)
        .with_normalizer(None)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(None)
        .with_decoder(Some(byte_level))
        .build()
        .map_err(|error| anyhow!("tokenizer: {error}"))?;
    tokenizer.add_special_tokens(special).map_err(|error| anyhow!("tokenizer: {error}"))?;
    let json = tokenizer.to_string(true).map_err(|error| anyhow!("tokenizer: {error}"))?;
    Ok(json.into_bytes())
}

/// The words of a text in the byte-level alphabet, as the library's pre-tokenizer makes them.
fn byte_level_words(text: &str) -> tokenizers::Result<Vec<String>> {
    let mut out = Vec::with_capacity(text.len() / 4);
    // In short parts, so that one accent does not send all the text around it the long way.
    for part in pieces(text, PART) {
        if part.is_ascii() {
            out.extend(words(part).map(|word| word.bytes().map(byte_level_char).collect::<String>()));
            continue;
        }
        let mut split = PreTokenizedString::from(part);
        ByteLevel::new(false, true, true).pre_tokenize(&mut split)?;
        let parts = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        out.extend(parts.into_iter().map(|(word, _, _)| word.to_string()));
    }
    Ok(out)
}

/// The character that stands for an ASCII byte in the byte-level alphabet: itself if it can be seen.
fn byte_level_char(byte: u8) -> char {
    match byte {
        b'!'..=b'~' => char::from(byte),
        0..=b' ' => char::from_u32(256 + u32::from(byte)).unwrap_or(' '),
        // Delete is the next of the bytes that cannot be seen.
        _ => '\u{121}',
    }
}

/// The first `limit` bytes of the documents, in pieces that may be split apart (see [`super::encode`]).
fn first_bytes(limit: usize, documents: &Documents<'_>) -> Result<Vec<String>> {
    let mut sample: Vec<String> = Vec::new();
    let mut left = limit;
    let read = documents(&mut |text| {
        let text = &text[..text.floor_char_boundary(left.min(text.len()))];
        left -= text.len();
        sample.extend(pieces(text, PIECE).into_iter().map(str::to_string));
        // Nothing more is needed; an error is how a stream is stopped.
        if left < MAX_CHAR { bail!(Enough) } else { Ok(()) }
    });
    match read {
        Err(error) if !error.is::<Enough>() => Err(error),
        _ => Ok(sample),
    }
}

/// Stops the stream of documents early.
#[derive(Debug, thiserror::Error)]
#[error("enough text has been read")]
pub(super) struct Enough;

/// A tokenizer with a token for each character that occurs, in the order of their code points, after [`END_OF_TEXT`].
fn characters(documents: &Documents<'_>) -> Result<Vec<u8>> {
    let mut seen = BTreeSet::new();
    documents(&mut |text| {
        seen.extend(text.chars());
        Ok(())
    })?;
    let mut vocab = Map::new();
    vocab.insert(END_OF_TEXT.to_string(), json!(0));
    for (place, letter) in seen.iter().enumerate() {
        vocab.insert(letter.to_string(), json!(place + 1));
    }
    // `unk_token` is not in the vocabulary: an unknown character is an error, not a silent loss.
    let value: Value = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [{
            "id": 0, "content": END_OF_TEXT, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": ANY_CHARACTER}, "behavior": "Isolated", "invert": false},
        "post_processor": null,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<|unknown|>"}
    });
    Ok(serde_json::to_vec_pretty(&value)?)
}

fn default_vocab_size() -> usize {
    4096
}

fn default_min_frequency() -> u64 {
    2
}

fn default_train_bytes() -> usize {
    32 << 20
}

/// As much as `bitnet_model`'s tokenizer reads.
const LARGEST_TOKENIZER: u64 = 64 << 20;

const SMALLEST_BPE: usize = 257;

/// Documents longer than this are fed to the trainer in pieces, so that its threads share them.
const PIECE: usize = 64 << 10;

/// The longest UTF-8 character, in bytes: with less left than this the next one might not fit.
const MAX_CHAR: usize = 4;

/// What the end-of-text token is called, the first that a tokenizer has.
const ENDS_OF_TEXT: &[&str] = &[END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[EOS]", "[SEP]"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::Encoder;
    use crate::data::shared;
    use tokenizers::Tokenizer;

    fn built(config: &TokenizerConfig, texts: &[&str]) -> Result<BuiltTokenizer> {
        build(config, &|on| texts.iter().try_for_each(|text| on(text)))
    }

    fn bpe(vocab_size: usize) -> TokenizerConfig {
        TokenizerConfig::Bpe { vocab_size, min_frequency: 2, train_bytes: 1 << 20 }
    }

    fn stories() -> Vec<String> {
        use crate::data::stories::{Split, story};
        (0..200).map(|index| story(0, Split::Train, index).document()).collect()
    }

    #[test]
    fn bpe_is_lossless_on_any_text_and_has_the_same_bytes_every_time() {
        let texts = stories();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let first = built(&bpe(600), &texts).expect("trains");
        assert_eq!((first.vocab_size, first.eos), (600, Some(0)));
        for _ in 0..3 {
            assert_eq!(built(&bpe(600), &texts).expect("trains"), first);
        }
        let tokenizer = Tokenizer::from_bytes(&first.json).expect("loads");
        for text in [texts[0], " caf\u{e9} \u{1f600}\n\n\t x", "\u{0}\u{7f}", ""] {
            let ids = tokenizer.encode(text, false).expect("encodes");
            assert_eq!(tokenizer.decode(ids.get_ids(), true).expect("decodes"), text);
        }
        let ids = tokenizer.encode("a<|endoftext|>b", false).expect("encodes");
        assert_eq!(ids.get_ids()[1], 0);
    }

    #[test]
    fn words_and_bytes_are_those_of_the_library() {
        // `\u{7f}` and the other control characters too, and text on both sides of an accent.
        let all: String = (0..=127).map(char::from).chain("x 'll caf\u{e9}\u{a0} \u{4e2d}\n\n y".chars()).collect();
        for text in [all, stories().concat()] {
            let mut split = PreTokenizedString::from(text.as_str());
            ByteLevel::new(false, true, true).pre_tokenize(&mut split).expect("splits");
            let expected = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
            let expected: Vec<&str> = expected.into_iter().map(|(word, _, _)| word).collect();
            assert_eq!(byte_level_words(&text).expect("splits"), expected);
        }
    }

    #[test]
    fn only_the_first_bytes_are_trained_on() {
        let config = |train_bytes| TokenizerConfig::Bpe { vocab_size: 300, min_frequency: 2, train_bytes };
        let text = format!("{}{}", "abab ".repeat(100), "xyxy ".repeat(100));
        let short = built(&config(500), &[&text]).expect("trains");
        assert_eq!(short, built(&config(1 << 20), &[&text[..500]]).expect("trains"));
        assert_ne!(short, built(&config(1 << 20), &[&text]).expect("trains"));
    }

    #[test]
    fn characters_are_an_ordinary_tokenizer() {
        let text = "hello \n\"w\u{f6}rld\" \u{1f600}\\";
        let built = built(&TokenizerConfig::Char {}, &[text, "abc"]).expect("builds");
        let letters: BTreeSet<char> = text.chars().chain("abc".chars()).collect();
        assert_eq!((built.vocab_size, built.eos), (letters.len() + 1, Some(0)));
        let tokenizer = Tokenizer::from_bytes(&built.json).expect("loads");
        let ids = tokenizer.encode(text, false).expect("encodes").get_ids().to_vec();
        assert_eq!(ids.len(), text.chars().count());
        assert_eq!(tokenizer.decode(&ids, true).expect("decodes"), text);
        let encoder = Encoder::new(&built.json).expect("loads");
        assert_eq!(encoder.encode(&[text]).expect("encodes")[0], ids);
        let marked = encoder.encode(&["a<|endoftext|>b"]).expect("encodes").concat();
        assert_eq!(marked.len(), 3);
        let error = encoder.encode(&["hello Z"]).expect_err("Z is unknown").to_string();
        assert!(error.contains("'Z' (U+005A), after \"hello \""), "{error}");
        assert!(tokenizer.encode("hello Z", false).is_err(), "unknown characters must not vanish");
    }

    #[test]
    fn user_mistakes_are_named() {
        let error = built(&bpe(256), &["a"]).expect_err("too small").to_string();
        assert!(error.contains("`vocab_size` is 256") && error.contains("257"), "{error}");
        let missing = TokenizerConfig::File { path: "/nowhere/tokenizer.json".into() };
        assert!(built(&missing, &[]).expect_err("missing").to_string().contains("/nowhere/tokenizer.json"));
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "{\"version\": 1").expect("writes");
        let broken = TokenizerConfig::File { path: file.path().to_path_buf() };
        let error = format!("{:#}", built(&broken, &[]).expect_err("broken"));
        assert!(error.contains("not a usable tokenizer.json"), "{error}");
        let failing = build(&bpe(300), &|_| bail!("line 3 is broken"));
        assert!(failing.expect_err("the reader failed").to_string().contains("line 3 is broken"));
    }

    #[test]
    fn shared_tokenizers_load() {
        for (name, vocab_size, eos) in
            [("dickens-4096", 4096, 0), ("gpt2", 50257, 50256), ("llama3", 128_256, 128_001), ("llama2", 32000, 2)]
        {
            let Some(path) = shared(&format!("tokenizers/{name}/tokenizer.json")) else { return };
            let built = built(&TokenizerConfig::File { path }, &[]).expect("loads");
            assert_eq!((built.vocab_size, built.eos), (vocab_size, Some(eos)), "{name}");
        }
    }

    #[test]
    fn configs_round_trip() {
        for (toml, full) in [
            ("type = \"bpe\"", "type = \"bpe\"\nvocab_size = 4096\nmin_frequency = 2\ntrain_bytes = 33554432\n"),
            ("type = \"file\"\npath = \"t.json\"", "type = \"file\"\npath = \"t.json\"\n"),
            ("type = \"char\"", "type = \"char\"\n"),
        ] {
            let config: TokenizerConfig = toml::from_str(toml).expect(toml);
            assert_eq!(toml::to_string(&config).expect("serialises"), full);
        }
        assert!(toml::from_str::<TokenizerConfig>("type = \"char\"\nvocab_size = 3").is_err());
    }
}
