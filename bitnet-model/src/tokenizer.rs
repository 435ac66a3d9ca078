//! Text to token ids and back: the `tokenizers` crate behind one small type.

mod decoding;
mod numbering;
mod stream;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::files;

use decoding::Decoding;
pub use stream::TextStream;

/// A tokenizer loaded from a `tokenizer.json`.
///
/// Its ids are those that the file states, which may leave gaps.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    origin: String,
    decoding: Decoding,
    /// Added tokens by id: they are spelled as the text they stand for.
    added: BTreeMap<u32, AddedToken>,
}

#[derive(Clone)]
struct AddedToken {
    text: String,
    special: bool,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// A token as a text shows it.
struct Shown {
    text: String,
    is_added: bool,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` of at most 64 MB.
    ///
    /// # Errors
    /// If the file cannot be read or is no tokenizer.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_bytes(&files::read_ordinary(path, 64 << 20)?, &path.display().to_string())
    }

    /// Parses the bytes of a `tokenizer.json`; `origin` names them in errors. Added tokens have the ids that it states.
    ///
    /// # Errors
    /// If they are no tokenizer.
    pub fn from_bytes(bytes: &[u8], origin: &str) -> Result<Self> {
        let fail = |e| Error::Tokenizer { origin: origin.into(), reason: format!("does not load: {e}") };
        let refused = |reason| Error::Tokenizer { origin: origin.into(), reason };
        let mut inner = numbering::load(files::text::content(bytes, origin)?).map_err(refused)?;
        // A file may ask for cut or filled-up texts, which would silently lose tokens here.
        inner.with_truncation(None).map_err(fail)?;
        inner.with_padding(None);
        let decoder = inner.get_decoder().map_or(Ok(serde_json::Value::Null), serde_json::to_value);
        let decoding = decoder.map_err(|e| e.to_string()).and_then(|decoder| Decoding::of(&decoder));
        let decoding = decoding.map_err(refused)?;
        let added = inner.get_added_tokens_decoder().into_iter();
        let added = added.map(|(id, token)| (id, AddedToken { text: token.content, special: token.special })).collect();
        Ok(Self { inner, origin: origin.into(), decoding, added })
    }

    /// Entries of the vocabulary, added tokens included: one more than the largest id, for some files leave gaps.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1)
    }

    /// Refuses a tokenizer whose ids do not fit the model's embedding.
    ///
    /// # Errors
    /// The last token, its id, and the rows of the embedding.
    pub fn check_fits(&self, config: &ModelConfig) -> Result<()> {
        let (ids, vocab) = (self.vocab_size(), config.vocab_size);
        if ids <= vocab {
            return Ok(());
        }
        let last = ids - 1;
        let token = u32::try_from(last).ok().and_then(|id| self.text_of(id)).unwrap_or_default();
        let token = token.escape_debug();
        let reason =
            format!("has the token `{token}` with id {last}, which is beyond the model's embedding of {vocab}");
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

    /// The text of `ids`. Special tokens are left out. Bytes that are no UTF-8 become U+FFFD by Unicode's rule, one for each
    /// longest part that a character could begin with.
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
        if let Decoding::Neighbours = self.decoding {
            return self.by_library(ids, skip_special);
        }
        let mut stream = TextStream::begin(self, &[], skip_special)?;
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    fn by_library(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        // Some of its decoders count on a token.
        if ids.iter().all(|&id| self.shown(id, skip_special).is_none()) {
            return Ok(String::new());
        }
        self.inner.decode(ids, skip_special).map_err(|e| self.cannot_decode(&e.to_string()))
    }

    fn cannot_decode(&self, reason: &str) -> Error {
        Error::Tokenizer { origin: self.origin.clone(), reason: format!("cannot decode: {reason}") }
    }

    /// The token behind an id, if a text shows it.
    fn shown(&self, id: u32, skip_special: bool) -> Option<Shown> {
        let added = self.added.get(&id);
        if skip_special && added.is_some_and(|token| token.special) {
            return None;
        }
        let text = match added {
            Some(token) if self.decoding.is_byte_level() => token.text.clone(),
            // Of an added token, what the normalizer makes of it: the steps of a decoder undo that.
            _ => self.inner.id_to_token(id)?,
        };
        Some(Shown { text, is_added: added.is_some() })
    }

    /// The special tokens: what a text from outside must not be able to write.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.added.iter().filter(|(_, token)| token.special).map(|(&id, token)| (id, token.text.as_str()))
    }

    /// The bytes that a token stands for in the middle of a text, which need not be whole characters; none for an id that is
    /// no token.
    pub fn bytes_of(&self, id: u32) -> Vec<u8> {
        let Some(Shown { text, is_added }) = self.shown(id, false) else { return Vec::new() };
        match &self.decoding {
            Decoding::Bytes(steps) => steps.bytes_inside(text, is_added),
            Decoding::Neighbours => text.into_bytes(),
        }
    }

    /// The spelling of a token.
    pub fn text_of(&self, id: u32) -> Option<String> {
        self.added.get(&id).map(|token| token.text.clone()).or_else(|| self.inner.id_to_token(id))
    }

    /// The id of a token by its exact spelling.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }
}
