//! Text to token ids, in parallel, with the ids that encoding each document whole would give.
//!
//! # Where a document may be cut
//!
//! A cut is made after an ASCII letter or digit, before a newline or before one space that an ASCII letter follows,
//! and only for tokenizers whose pre-tokenizer is known: the byte-level one of GPT-2, the splitting patterns of
//! GPT-2, Llama 3 and Qwen 2, and the characters of [`super::tokenizer`]. In each of these patterns a match
//! that holds a letter or digit ends before whitespace, and the next match starts at that newline or space (whitespace
//! only continues a match that starts with punctuation or whitespace, and a space goes to the letters after it), so
//! both halves split as the whole does. The matches are consecutive and cover the text, hence the model, which
//! works inside a match, gives the same ids. The tokenizer must also have no normalizer, add no prefix space, and
//! have no added token that holds whitespace or eats it.
//! With any other tokenizer a document is encoded in one piece.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use bitnet_model::tokenizer::Tokenizer;
use rayon::prelude::*;
use serde_json::Value;

use super::words::{Memory, words};

/// Encodes documents with one tokenizer.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    cut: Cut,
    /// The ids of single characters, for a tokenizer that knows nothing else.
    characters: Option<HashMap<char, u32>>,
    /// For a byte-level tokenizer the added tokens, which a text must not hold to be split word by word.
    by_words: Option<Vec<String>>,
}

/// Whether and where documents are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Never,
    AfterWords,
}

impl Encoder {
    /// An encoder for the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// Bytes that are no tokenizer.
    pub fn new(json: &[u8]) -> Result<Encoder> {
        let tokenizer = Tokenizer::from_bytes(json, "not a usable tokenizer.json")?;
        let value: Value = serde_json::from_slice(json)?;
        ensure!(
            value["model"]["dropout"].as_f64().unwrap_or(0.0) == 0.0,
            "the tokenizer has a `dropout`, so it would encode the same text differently each time; set it to null"
        );
        let cut = if can_cut(&value) { Cut::AfterWords } else { Cut::Never };
        let byte_level = cut == Cut::AfterWords && value["pre_tokenizer"]["type"] == "ByteLevel";
        let by_words = byte_level.then(|| added_tokens(&value));
        Ok(Encoder { characters: characters(&value), by_words, tokenizer, cut })
    }

    /// The pieces of a document, each at least `target` bytes where a cut is found, that may be encoded apart.
    pub fn pieces<'a>(&self, text: &'a str, target: usize) -> Vec<&'a str> {
        pieces(text, if self.cut == Cut::Never { usize::MAX } else { target })
    }

    /// The ids of each piece, encoded in parallel, no special token added.
    ///
    /// # Errors
    ///
    /// A character that a character tokenizer does not know, with the text around it.
    pub fn encode(&self, pieces: &[&str]) -> Result<Vec<Vec<u32>>> {
        // Neighbouring pieces share a memory of words; a few groups for each thread even out the load.
        let group = pieces.len().div_ceil(4 * rayon::current_num_threads()).max(1);
        let groups: Vec<Vec<Vec<u32>>> = pieces
            .par_chunks(group)
            .map(|group| {
                let mut memory = Memory::default();
                group.iter().map(|piece| self.encode_one(piece, &mut memory)).collect()
            })
            .collect::<Result<_>>()?;
        Ok(groups.into_iter().flatten().collect())
    }

    fn encode_one(&self, text: &str, memory: &mut Memory) -> Result<Vec<u32>> {
        if let Some(characters) = &self.characters
            && !text.contains("<|")
        {
            let known = |(at, letter): (usize, char)| match characters.get(&letter) {
                Some(&id) => Ok(id),
                None => bail!(unknown(text, at, letter)),
            };
            return text.char_indices().map(known).collect();
        }
        let Some(added) = &self.by_words else { return self.by_library(text) };
        let mut out = Vec::with_capacity(text.len() / 3);
        // In short parts, so that one accent does not slow down all the text around it.
        for part in pieces(text, PART) {
            if part.is_ascii() && !added.iter().any(|token| part.contains(token.as_str())) {
                words(part).try_for_each(|word| memory.append(word, &mut out, |word| self.by_library(word)))?;
            } else {
                out.extend(self.by_library(part)?);
            }
        }
        Ok(out)
    }

    fn by_library(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text)?)
    }
}

/// Cuts a text after words into pieces of at least `target` bytes.
pub(super) fn pieces(text: &str, target: usize) -> Vec<&str> {
    let bytes = text.as_bytes();
    let ends_word = |at: usize| {
        let before_letter = || bytes.get(at + 1).is_some_and(u8::is_ascii_alphabetic);
        let before_space = bytes[at] == b'\n' || (bytes[at] == b' ' && before_letter());
        before_space && bytes[at - 1].is_ascii_alphanumeric()
    };
    let mut out = Vec::new();
    let mut start = 0;
    while bytes.len() - start > target {
        let from = start + target.max(1);
        let Some(cut) = (from..bytes.len()).find(|&at| ends_word(at)) else { break };
        out.push(&text[start..cut]);
        start = cut;
    }
    out.push(&text[start..]);
    out
}

fn unknown(text: &str, at: usize, letter: char) -> String {
    let before: String = text[..at].chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
    format!(
        "the character {letter:?} (U+{:04X}), after {before:?}, is not in the vocabulary of the character tokenizer, \
         which knows the characters of the train split alone; use `bpe`, or add the character to the train text",
        letter as u32
    )
}

/// Whether every part of the tokenizer is one for which the module's argument holds.
fn can_cut(json: &Value) -> bool {
    let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let plain = |token: &Value| {
        token["lstrip"] != true
            && token["rstrip"] != true
            && token["content"].as_str().is_some_and(|content| !content.contains(char::is_whitespace))
    };
    json["normalizer"].is_null() && added.iter().all(plain) && splits_after_words(&json["pre_tokenizer"])
}

fn added_tokens(json: &Value) -> Vec<String> {
    let added = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    added.iter().filter_map(|token| token["content"].as_str()).map(str::to_string).collect()
}

fn splits_after_words(pre: &Value) -> bool {
    match pre["type"].as_str() {
        Some("ByteLevel") => pre["add_prefix_space"] == false && pre["use_regex"] != false,
        Some("Split") => {
            let pattern = pre["pattern"]["Regex"].as_str().unwrap_or("");
            pre["behavior"] == "Isolated" && pre["invert"] != true && KNOWN_PATTERNS.contains(&pattern)
        }
        Some("Sequence") => {
            let steps = pre["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice);
            let byte_map = |step: &Value| {
                step["type"] == "ByteLevel" && step["add_prefix_space"] == false && step["use_regex"] == false
            };
            matches!(steps, [first, rest @ ..] if splits_after_words(first) && rest.iter().all(byte_map))
        }
        _ => false,
    }
}

/// The vocabulary of a tokenizer made by this crate's `char` kind, but for its special token.
fn characters(json: &Value) -> Option<HashMap<char, u32>> {
    let by_character =
        json["pre_tokenizer"]["pattern"]["Regex"] == ANY_CHARACTER && json["model"]["type"] == "WordLevel";
    if !by_character || !json["normalizer"].is_null() {
        return None;
    }
    let vocab = json["model"]["vocab"].as_object()?;
    let mut out = HashMap::with_capacity(vocab.len());
    for (word, id) in vocab {
        let mut letters = word.chars();
        if let (Some(letter), None) = (letters.next(), letters.next()) {
            out.insert(letter, u32::try_from(id.as_u64()?).ok()?);
        }
    }
    Some(out)
}

/// Bytes of text that go word by word or through the library together.
pub(super) const PART: usize = 256;

/// Matches one character, newlines included, in the regular expressions of Rust and of the Python library alike.
pub(super) const ANY_CHARACTER: &str = r"[\s\S]";

/// The splitting patterns of GPT-2, Llama 3 and Qwen 2, and the one of the `char` kind.
const KNOWN_PATTERNS: &[&str] = &[
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ANY_CHARACTER,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::shared;
    use proptest::prelude::*;

    /// The tokenizers of the shared folder, each with whether it may be cut.
    const TOKENIZERS: &[(&str, bool)] = &[("dickens-4096", true), ("gpt2", true), ("llama3", true), ("llama2", false)];

    fn shared_encoder(name: &str) -> Option<Encoder> {
        let path = shared(&format!("tokenizers/{name}/tokenizer.json"))?;
        Some(Encoder::new(&std::fs::read(path).expect("reads")).expect("loads"))
    }

    fn in_pieces(encoder: &Encoder, text: &str, target: usize) -> Vec<u32> {
        encoder.encode(&encoder.pieces(text, target)).expect("encodes").concat()
    }

    fn whole(encoder: &Encoder, text: &str) -> Vec<u32> {
        encoder.tokenizer.encode(text).expect("encodes")
    }

    #[test]
    fn pieces_join_to_the_text() {
        let text = "one\ntwo.\nthree\n\nfour, five  six \"7 8";
        assert_eq!(pieces(text, 1), ["one", "\ntwo.\nthree", "\n\nfour, five  six \"7 8"]);
        assert_eq!(pieces(text, 5), ["one\ntwo.\nthree", "\n\nfour, five  six \"7 8"]);
        assert_eq!(pieces("a b c1 d", 3), ["a b", " c1", " d"]);
        assert_eq!(pieces(text, 100), [text]);
        assert_eq!(pieces("", 1), [""]);
    }

    #[test]
    fn pieces_of_real_text_give_the_ids_of_the_whole() {
        let Some(path) = shared("text/dickens-valid.txt") else { return };
        let text = std::fs::read_to_string(path).expect("reads");
        let text = &text[..text.floor_char_boundary(80_000)];
        for &(name, may_be_cut) in TOKENIZERS {
            let Some(encoder) = shared_encoder(name) else { return };
            assert_eq!(encoder.cut == Cut::AfterWords, may_be_cut, "{name}");
            assert_eq!(encoder.pieces(text, 100).len() > 100, may_be_cut, "{name}");
            assert_eq!(in_pieces(&encoder, text, 100), whole(&encoder, text), "{name}");
            assert_eq!(in_pieces(&encoder, text, usize::MAX), whole(&encoder, text), "{name}");
        }
    }

    #[test]
    fn pieces_of_hostile_text_give_the_ids_of_the_whole() {
        let encoders: Vec<Encoder> = TOKENIZERS.iter().filter_map(|(name, _)| shared_encoder(name)).collect();
        let parts = proptest::collection::vec(
            proptest::sample::select(vec![
                "a",
                "B",
                "7",
                "\n",
                "\n\n",
                " ",
                "  ",
                "\t",
                "\r\n",
                ".",
                "'s",
                "'",
                "!",
                "\u{e9}",
                "\u{4e2d}",
                "\u{a0}",
                "\u{2028}",
                "<|endoftext|>",
                "<|",
                "word",
                "123456",
                "\u{301}",
                "\u{1f600}",
            ]),
            0..40,
        );
        proptest!(ProptestConfig::with_cases(200), |(parts in parts)| {
            let text = parts.concat();
            for encoder in &encoders {
                prop_assert_eq!(in_pieces(encoder, &text, 1), whole(encoder, &text));
            }
        });
    }

    #[test]
    fn what_is_not_known_is_not_cut() {
        let json = |pre: &str, normalizer: &str, token: &str| {
            let text = format!(
                r#"{{"added_tokens": [{{"content": "{token}", "lstrip": false, "rstrip": false}}],
                "normalizer": {normalizer}, "pre_tokenizer": {pre}}}"#
            );
            serde_json::from_str::<Value>(&text).expect("well-formed")
        };
        let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}"#;
        assert!(can_cut(&json(byte_level, "null", "<x>")));
        assert!(!can_cut(&json(byte_level, r#"{"type": "NFC"}"#, "<x>")));
        assert!(!can_cut(&json(byte_level, "null", "a\\nb")));
        assert!(!can_cut(&json(r#"{"type": "Metaspace"}"#, "null", "<x>")));
        assert!(!can_cut(&json("null", "null", "<x>")));
        let prefixed = r#"{"type": "ByteLevel", "add_prefix_space": true, "use_regex": true}"#;
        assert!(!can_cut(&json(prefixed, "null", "<x>")));
    }

    /// The ids of added tokens are those of the file, here as where the model runs.
    #[test]
    fn added_tokens_have_the_ids_of_the_file() {
        let added = [(30, "<a>"), (34, "<b>")].map(|(id, content)| {
            serde_json::json!({"id": id, "content": content, "special": false, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false})
        });
        let vocab: serde_json::Map<_, _> = ('a'..='z').zip(0..).map(|(c, id)| (c.to_string(), id.into())).collect();
        let json = serde_json::json!({"version": "1.0", "added_tokens": added, "decoder": {"type": "ByteLevel",
            "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        let json = json.to_string().into_bytes();
        let encoder = Encoder::new(&json).expect("loads");
        assert_eq!(encoder.encode(&["a<b>c<a>"]).expect("encodes").concat(), [0, 34, 2, 30]);
        let built = crate::data::tokenizer::BuiltTokenizer::from_json(json).expect("loads");
        assert_eq!(built.vocab_size, 35, "the embedding has a row for the last id");
    }

    #[test]
    fn no_bytes_are_taken_for_a_tokenizer() {
        for bytes in [&b""[..], b"{}", b"not json", &[0xff; 16]] {
            assert!(Encoder::new(bytes).is_err());
        }
    }
}
