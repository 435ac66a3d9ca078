//! What the declared decoder of a tokenizer makes of its tokens: bytes, one token after the other.

use serde_json::Value as Json;
use tokenizers::Decoder as _;
use tokenizers::decoders::DecoderWrapper;

/// How tokens become a text.
#[derive(Clone)]
pub(super) enum Decoding {
    /// Each token stands for bytes, whatever comes behind it.
    Bytes(Steps),
    /// The text of a token depends on its neighbours: only the tokenizer's own decoder knows it.
    Neighbours,
}

/// The steps of a decoder: on each token by itself, from its spelling to bytes, and on the text that the bytes are.
#[derive(Clone)]
pub(super) struct Steps {
    words: Vec<Word>,
    spelling: Spelling,
    /// In this order, on the characters of the text.
    pub(super) after: Vec<After>,
}

/// A step on one token.
#[derive(Clone)]
enum Word {
    /// What the library does to it.
    Library(DecoderWrapper),
    /// One text for another.
    Replace { from: String, to: String },
    /// A character is cut off at both ends, so many times at most.
    Strip { content: char, start: usize, stop: usize },
    /// A space before every token but the first: what the library does without a decoder.
    Spaced,
}

/// How the spelling of a token says which bytes it stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// A character for each byte, as GPT-2 has them.
    ByteLevel,
    /// Text, or `<0x0A>` for a byte.
    ByteFallback,
    /// Text.
    Plain,
}

/// A step on the characters of a text.
#[derive(Clone)]
pub(super) enum After {
    /// One character becomes a text.
    Replace { from: char, to: String },
    /// A character is cut off at both ends, so many times at most.
    Strip { content: char, start: usize, stop: usize },
}

impl Decoding {
    /// Whether tokens are spelled in GPT-2's letters for bytes; added tokens never are.
    pub(super) fn is_byte_level(&self) -> bool {
        matches!(self, Self::Bytes(Steps { spelling: Spelling::ByteLevel, .. }))
    }

    /// The meaning of a `decoder` as a `tokenizer.json` has it; null for none.
    ///
    /// # Errors
    /// If its steps are in an order whose meaning is not known here.
    pub(super) fn of(decoder: &Json) -> Result<Self, String> {
        if decoder.is_null() {
            let words = vec![Word::Spaced];
            return Ok(Self::Bytes(Steps { words, spelling: Spelling::Plain, after: Vec::new() }));
        }
        let mut chain = Vec::new();
        flatten(decoder, &mut chain);
        let names: Vec<&str> = chain.iter().map(|step| step["type"].as_str().unwrap_or("unknown")).collect();
        if !names.iter().any(|name| matches!(*name, "ByteLevel" | "ByteFallback" | "Strip"))
            && names.iter().any(|name| matches!(*name, "BPEDecoder" | "CTC"))
        {
            return Ok(Self::Neighbours);
        }
        let mut builder = Builder { words: Vec::new(), spelling: None, fused: false, after: Vec::new() };
        let known = chain.iter().try_for_each(|step| builder.add(step));
        known.map_err(|()| format!("has a decoder of the steps {}: this order is not supported", names.join(", ")))?;
        let spelling = builder.spelling.unwrap_or(Spelling::Plain);
        Ok(Self::Bytes(Steps { words: builder.words, spelling, after: builder.after }))
    }
}

fn flatten<'a>(decoder: &'a Json, chain: &mut Vec<&'a Json>) {
    match decoder["decoders"].as_array().filter(|_| decoder["type"] == "Sequence") {
        Some(steps) => steps.iter().for_each(|step| flatten(step, chain)),
        None => chain.push(decoder),
    }
}

struct Builder {
    words: Vec<Word>,
    /// Known once the step has come that turns tokens into bytes.
    spelling: Option<Spelling>,
    /// Whether all tokens are one text by now.
    fused: bool,
    after: Vec<After>,
}

impl Builder {
    /// Adds a step; the error is that its meaning at this place is not known.
    fn add(&mut self, step: &Json) -> Result<(), ()> {
        let count = |key: &str| step[key].as_u64().and_then(|n| usize::try_from(n).ok()).ok_or(());
        let letter = |text: &Json| {
            let mut letters = text.as_str()?.chars();
            letters.next().filter(|_| letters.next().is_none())
        };
        match step["type"].as_str() {
            Some("ByteLevel") if self.spelling.is_none() && !self.fused => {
                (self.spelling, self.fused) = (Some(Spelling::ByteLevel), true);
            }
            Some("ByteFallback") if self.spelling.is_none() && !self.fused => {
                self.spelling = Some(Spelling::ByteFallback);
            }
            Some("Fuse") => self.fused = true,
            Some("Replace") => {
                let to = step["content"].as_str().ok_or(())?.to_owned();
                let pattern = &step["pattern"]["String"];
                match (self.spelling.is_some() || self.fused, pattern.as_str(), letter(pattern)) {
                    (true, _, Some(from)) => self.after.push(After::Replace { from, to }),
                    (false, Some(from), _) if !from.is_empty() => {
                        self.words.push(Word::Replace { from: from.to_owned(), to });
                    }
                    (false, ..) => self.words.push(library(step)?),
                    // A longer pattern may reach over the end of a token.
                    (true, ..) => return Err(()),
                }
            }
            Some("Strip") => {
                let (content, start, stop) = (letter(&step["content"]).ok_or(())?, count("start")?, count("stop")?);
                match (self.spelling.is_some(), self.fused) {
                    (_, true) => self.after.push(After::Strip { content, start, stop }),
                    (false, false) => self.words.push(Word::Strip { content, start, stop }),
                    (true, false) => return Err(()),
                }
            }
            // Behind `ByteFallback` too: it changes no token that is spelled as a byte.
            Some("Metaspace") if !self.fused => self.words.push(library(step)?),
            Some("WordPiece") if !self.fused && self.spelling.is_none() => self.words.push(library(step)?),
            _ => return Err(()),
        }
        Ok(())
    }
}

fn library(step: &Json) -> Result<Word, ()> {
    serde_json::from_value(step.clone()).map(Word::Library).map_err(|_| ())
}

impl Steps {
    /// The bytes of a token. An added token stands for its own text, however the others are spelled.
    ///
    /// # Errors
    /// If a step of the library fails.
    pub(super) fn bytes(&self, token: String, is_added: bool, is_first: bool) -> Result<Vec<u8>, String> {
        let mut text = token;
        for word in &self.words {
            text = word.apply(text, is_first)?;
        }
        Ok(match self.spelling {
            Spelling::ByteLevel if !is_added => {
                let bytes = text.chars().map(byte_of).collect::<Option<Vec<u8>>>();
                bytes.unwrap_or_else(|| text.into_bytes())
            }
            Spelling::ByteFallback => match fallback(&text) {
                Some(byte) => vec![byte],
                None => text.into_bytes(),
            },
            Spelling::ByteLevel | Spelling::Plain => text.into_bytes(),
        })
    }

    /// The bytes of a token in the middle of a text.
    pub(super) fn bytes_inside(&self, token: String, is_added: bool) -> Vec<u8> {
        let bytes = self.bytes(token, is_added, false).unwrap_or_default();
        match String::from_utf8(bytes) {
            Ok(text) => self.after.iter().fold(text, |text, step| step.inside(text)).into_bytes(),
            Err(bytes) => bytes.into_bytes(),
        }
    }
}

impl Word {
    fn apply(&self, token: String, is_first: bool) -> Result<String, String> {
        Ok(match self {
            Self::Library(step) => {
                // The library tells the first token from the others by its place.
                let before = (!is_first).then(String::new);
                let tokens = step.decode_chain(before.into_iter().chain([token]).collect());
                tokens.map_err(|e| e.to_string())?.pop().unwrap_or_default()
            }
            Self::Replace { from, to } => token.replace(from, to),
            Self::Strip { content, start, stop } => strip(&token, *content, *start, *stop).to_owned(),
            Self::Spaced if is_first => token,
            Self::Spaced => format!(" {token}"),
        })
    }
}

impl After {
    /// The step on text that is neither at the beginning nor at the end.
    fn inside(&self, text: String) -> String {
        match self {
            Self::Replace { from, to } => text.replace(*from, to),
            Self::Strip { .. } => text,
        }
    }
}

fn strip(text: &str, content: char, start: usize, stop: usize) -> &str {
    let mut rest = text;
    for _ in 0..start.min(text.len()) {
        rest = rest.strip_prefix(content).unwrap_or(rest);
    }
    for _ in 0..stop.min(text.len()) {
        rest = rest.strip_suffix(content).unwrap_or(rest);
    }
    rest
}

/// The byte that is spelled as `<0x0A>`.
fn fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| is_byte)
}

/// The byte that GPT-2 spells as `letter`: printable ones as themselves, the others in order from U+0100 on.
fn byte_of(letter: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(letter) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|&byte| printable(byte)),
        code => (0..=255u8).filter(|&byte| !printable(byte)).nth(code as usize - 0x100),
    }
}
