//! A growing list of tokens as text, piece by piece.

use super::decoding::{After, Decoding, Steps};
use super::{Result, Tokenizer};

/// Turns a growing list of ids into text piece by piece. A piece comes out as soon as its characters are complete; the pieces
/// and what [`TextStream::finish`] returns are together what [`Tokenizer::decode`] makes of all ids at once.
#[derive(Clone)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    state: State<'a>,
}

#[derive(Clone)]
enum State<'a> {
    Bytes { steps: &'a Steps, is_first: bool, characters: Characters, after: Vec<Edges> },
    Neighbours(Window),
}

impl<'a> TextStream<'a> {
    /// A stream that follows `context` (the prompt's ids), whose text is not repeated. A character that the context begins and
    /// does not end is the stream's.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn new(tokenizer: &'a Tokenizer, context: &[u32]) -> Result<Self> {
        Self::begin(tokenizer, context, true)
    }

    pub(super) fn begin(tokenizer: &'a Tokenizer, context: &[u32], skip_special: bool) -> Result<Self> {
        let (state, context) = match &tokenizer.decoding {
            Decoding::Bytes(steps) => {
                let after = vec![Edges::default(); steps.after.len()];
                (State::Bytes { steps, is_first: true, characters: Characters::default(), after }, context)
            }
            // These decoders look at the nearest neighbours only.
            Decoding::Neighbours => {
                (State::Neighbours(Window::default()), &context[context.len().saturating_sub(CONTEXT)..])
            }
        };
        let mut stream = Self { tokenizer, skip_special, state };
        for &id in context {
            stream.push(id)?;
        }
        Ok(stream)
    }

    /// Adds a token and returns the text that became complete (possibly none).
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Some(token) = self.tokenizer.shown(id, self.skip_special) else { return Ok(String::new()) };
        match &mut self.state {
            State::Bytes { steps, is_first, characters, after } => {
                let bytes = steps.bytes(token.text, token.is_added, std::mem::take(is_first));
                let text = characters.push(&bytes.map_err(|e| self.tokenizer.cannot_decode(&e))?);
                let steps = steps.after.iter().zip(after);
                Ok(steps.fold(text, |text, (step, edges)| edges.push(step, &text)))
            }
            State::Neighbours(window) => window.push(id, |ids| self.tokenizer.by_library(ids, self.skip_special)),
        }
    }

    /// What was held back, now that no token follows.
    pub fn finish(&mut self) -> String {
        match &mut self.state {
            State::Bytes { steps, characters, after, .. } => {
                let text = characters.finish();
                let steps = steps.after.iter().zip(after);
                steps.fold(text, |text, (step, edges)| {
                    let text = edges.push(step, &text);
                    edges.finish();
                    text
                })
            }
            State::Neighbours(_) => String::new(),
        }
    }
}

/// Bytes to characters. What is no UTF-8 becomes U+FFFD by Unicode's rule: one for each longest part that a character could
/// begin with, else one for the byte.
#[derive(Clone, Default)]
struct Characters {
    /// The beginning of a character.
    begun: Vec<u8>,
}

impl Characters {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.begun.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.begun);
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            let may_go_on = || std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if chunks.peek().is_none() && may_go_on() {
                self.begun = invalid.to_vec();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }

    fn finish(&mut self) -> String {
        let begun = std::mem::take(&mut self.begun);
        if begun.is_empty() { String::new() } else { char::REPLACEMENT_CHARACTER.into() }
    }
}

/// Where the text stands between its two ends, for a step that cuts there.
#[derive(Clone, Default)]
struct Edges {
    /// Characters that were cut off at the beginning.
    cut: usize,
    /// Whether something else has come.
    has_begun: bool,
    /// Characters of the step that may be the end.
    held: usize,
}

impl Edges {
    fn push(&mut self, step: &After, text: &str) -> String {
        let (content, start, stop) = match step {
            After::Replace { from, to } => return text.replace(*from, to),
            After::Strip { content, start, stop } => (*content, *start, *stop),
        };
        let mut out = String::with_capacity(text.len());
        for letter in text.chars() {
            if !self.has_begun {
                if letter == content && self.cut < start {
                    self.cut += 1;
                    continue;
                }
                self.has_begun = true;
            }
            if letter == content && self.held < stop {
                self.held += 1;
                continue;
            }
            if letter != content {
                out.extend(std::iter::repeat_n(content, std::mem::take(&mut self.held)));
            }
            out.push(letter);
        }
        out
    }

    /// What is held is the end, which is cut off.
    fn finish(&mut self) {
        self.held = 0;
    }
}

/// The last ids, decoded again for each new one.
#[derive(Clone, Default)]
struct Window {
    ids: Vec<u32>,
    /// Bytes of their text that were given out.
    given: usize,
}

impl Window {
    fn push(&mut self, id: u32, decode: impl Fn(&[u32]) -> Result<String>) -> Result<String> {
        self.ids.push(id);
        let text = decode(&self.ids)?;
        let fresh = text.get(self.given..).unwrap_or_default().to_owned();
        self.given = text.len();
        if self.ids.len() >= 4 * CONTEXT {
            self.ids.drain(..self.ids.len() - CONTEXT);
            self.given = decode(&self.ids)?.len();
        }
        Ok(fresh)
    }
}

/// Tokens before a new one that its text may depend on.
const CONTEXT: usize = 8;
