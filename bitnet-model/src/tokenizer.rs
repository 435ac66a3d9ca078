//! Text to token ids and back: the `tokenizers` crate behind one small type.

use std::path::Path;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::files;

/// A tokenizer loaded from a `tokenizer.json`.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    origin: String,
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
        Ok(Self { inner, origin: origin.into() })
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
            reason: format!("cannot encode the text: {e}"),
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`. Special tokens are left out; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|e| Error::Tokenizer { origin: self.origin.clone(), reason: format!("cannot decode: {e}") })
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
