//! Text to token ids and back: the `tokenizers` crate behind one small type.

use std::collections::BTreeMap;
use std::path::Path;

use tokenizers::PreTokenizer;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::files;

/// A tokenizer loaded from a `tokenizer.json`.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    origin: String,
    spelling: Spelling,
    /// Added tokens by id: they are spelled as the text they stand for.
    added: BTreeMap<u32, AddedToken>,
}

#[derive(Clone)]
struct AddedToken {
    text: String,
    special: bool,
}

/// How the spelling of a token says which bytes it stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// A character for each byte, as GPT-2 has them.
    ByteLevel,
    /// Text with U+2581 for a space, and `<0x0A>` for a byte.
    SentencePiece,
    /// The text itself.
    Plain,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` of at most 64 MB.
    ///
    /// # Errors
    /// If the file cannot be read or is no tokenizer.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_bytes(&files::read_ordinary(path, 64 << 20)?, &path.display().to_string())
    }

    /// Parses the bytes of a `tokenizer.json`; `origin` names them in errors.
    ///
    /// # Errors
    /// If they are no tokenizer.
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self> {
        let fail = |e| Error::Tokenizer { origin: origin.into(), reason: format!("does not load: {e}") };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(fail)?;
        // A file may ask for cut or filled-up texts, which would silently lose tokens here.
        inner.with_truncation(None).map_err(fail)?;
        inner.with_padding(None);
        let decoder = inner.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok()).unwrap_or_default();
        let spelling = match () {
            () if decoder.contains("\"ByteLevel\"") => Spelling::ByteLevel,
            () if decoder.contains("\"ByteFallback\"") || decoder.contains(SPACE) => Spelling::SentencePiece,
            () => Spelling::Plain,
        };
        let added = inner.get_added_tokens_decoder().into_iter();
        let added = added.map(|(id, token)| (id, AddedToken { text: token.content, special: token.special })).collect();
        Ok(Self { inner, origin: origin.into(), spelling, added })
    }

    /// Entries of the vocabulary, added tokens included: one more than the largest id, for some files leave gaps.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// Refuses a tokenizer whose ids do not fit the model's embedding.
    ///
    /// # Errors
    /// Both numbers.
    pub fn check_fits(&self, config: &ModelConfig) -> Result<()> {
        let (tokens, vocab) = (self.vocab_size(), config.vocab_size);
        if tokens <= vocab {
            return Ok(());
        }
        let reason = format!("has {tokens} tokens, which do not fit the model's embedding of {vocab}");
        Err(Error::Tokenizer { origin: self.origin.clone(), reason })
    }

    /// The ids of `text`, without any special token around it.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text (a character it does not know).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false);
        let encoding = encoding.map_err(|e| Error::Tokenizer {
            origin: self.origin.clone(),
            reason: match self.first_unknown(text) {
                Some(unknown) => format!("does not know {unknown} of the text"),
                None => format!("cannot encode the text: {e}"),
            },
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The first part of a text that the tokenizer refuses to encode, in words; none where it encodes each part.
    pub fn first_unknown(&self, text: &str) -> Option<String> {
        first_unknown(&self.inner, text)
    }

    /// The text of `ids`. Special tokens are left out; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.decoded(ids, true)
    }

    /// As [`Tokenizer::decode`], special tokens as they are spelled.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        self.decoded(ids, false)
    }

    fn decoded(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .decode(ids, skip_special)
            .map_err(|e| Error::Tokenizer { origin: self.origin.clone(), reason: format!("cannot decode: {e}") })
    }

    /// The special tokens: what a text from outside must not be able to write.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.added.iter().filter(|(_, token)| token.special).map(|(&id, token)| (id, token.text.as_str()))
    }

    /// The bytes that a token stands for, which need not be whole characters; none for an id that is no token.
    pub fn bytes_of(&self, id: u32) -> Vec<u8> {
        if let Some(token) = self.added.get(&id) {
            return token.text.clone().into_bytes();
        }
        let Some(spelled) = self.text_of(id) else { return Vec::new() };
        match self.spelling {
            Spelling::Plain => spelled.into_bytes(),
            Spelling::SentencePiece => {
                let hex = spelled.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match hex.filter(|hex| hex.len() == 2).and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => spelled.replace(SPACE, " ").into_bytes(),
                }
            }
            Spelling::ByteLevel => {
                let bytes = spelled.chars().map(byte_of).collect::<Option<Vec<u8>>>();
                bytes.unwrap_or_else(|| spelled.into_bytes())
            }
        }
    }

    /// The spelling of a token.
    pub fn text_of(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token by its exact spelling.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}

/// As [`Tokenizer::first_unknown`], for a tokenizer of the library. A part is what the tokenizer splits a text into before its
/// vocabulary is asked: a word, or a character.
pub fn first_unknown(tokenizer: &tokenizers::Tokenizer, text: &str) -> Option<String> {
    let mut split = tokenizers::PreTokenizedString::from(text);
    if let Some(splitter) = tokenizer.get_pre_tokenizer() {
        splitter.pre_tokenize(&mut split).ok()?;
    }
    let parts = split.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
    let mut parts = parts.into_iter().filter_map(|(_, (from, to), _)| text.get(from..to));
    let part = parts.find(|part| tokenizer.encode_fast(*part, false).is_err())?;
    let mut letters = part.chars();
    Some(match (letters.next(), letters.next()) {
        (Some(letter), None) => format!("the character {letter:?} (U+{:04X})", u32::from(letter)),
        _ => format!("the word {part:?}"),
    })
}

/// The byte that GPT-2 spells as `letter`: printable ones as themselves, the others in order from U+0100 on.
fn byte_of(letter: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(letter) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|&byte| printable(byte)),
        code => (0..=255u8).filter(|&byte| !printable(byte)).nth(code as usize - 0x100),
    }
}

/// SentencePiece's space.
const SPACE: char = '\u{2581}';

/// Turns a growing list of ids into text piece by piece, holding back what may still change.
///
/// A token may hold half a character, and a decoder may join neighbours; so the text of a small window is decoded again
/// each time and only what is new and complete is given out.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    ids: Vec<u32>,
    window_start: usize,
    window_printed: usize,
}

impl<'a> TextStream<'a> {
    /// A stream that follows `context` (the prompt's ids), whose text is not repeated.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn new(tokenizer: &'a Tokenizer, context: &[u32]) -> Result<Self> {
        // A few tokens of context suffice: decoders look at their neighbours only.
        let ids = context[context.len().saturating_sub(8)..].to_vec();
        let window_printed = tokenizer.decode(&ids)?.len();
        Ok(Self { tokenizer, ids, window_start: 0, window_printed })
    }

    /// Adds a token and returns the text that became certain (possibly none).
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids[self.window_start..])?;
        if text.ends_with('\u{fffd}') && self.ids.len() - self.window_start < 32 {
            return Ok(String::new());
        }
        let fresh = text.get(self.window_printed..).unwrap_or_default().to_owned();
        self.window_printed = text.len();
        if self.ids.len() - self.window_start >= 32 {
            self.window_start = self.ids.len() - 8;
            self.window_printed = self.tokenizer.decode(&self.ids[self.window_start..])?.len();
        }
        Ok(fresh)
    }
}
