//! The splitting pattern of GPT-2 on ASCII text by hand, and a memory of the ids of each word.
//!
//! The `tokenizers` library spends most of its time on splitting and on offsets that a corpus does
//! not need. A text has few different words, so each is encoded by the library once, and the rest
//! is looked up. The ids are the library's: words are what its pre-tokenizer makes of the text, its model
//! works inside a word, and tests hold the two together on random text.

use std::collections::HashMap;

use anyhow::Result;

/// The words of an ASCII text, as the pattern
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` splits it. They join to the text.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    debug_assert!(text.is_ascii());
    let bytes = text.as_bytes();
    let mut start = 0;
    std::iter::from_fn(move || {
        let from = start;
        start += word_length(&bytes[from..]);
        (from < bytes.len()).then(|| &text[from..start])
    })
}

/// Bytes of the first word.
fn word_length(bytes: &[u8]) -> usize {
    let Some(&first) = bytes.first() else { return 0 };
    if let Some(ending) = CONTRACTIONS.iter().find(|ending| bytes.starts_with(ending)) {
        return ending.len();
    }
    let space = usize::from(first == b' ');
    if let Some(&after) = bytes.get(space)
        && kind(after) != Kind::Space
    {
        return space + run(&bytes[space..], kind(after));
    }
    // A run of whitespace leaves its last character to the word that follows, unless it is all there is.
    match run(bytes, Kind::Space) {
        all if all == bytes.len() || all == 1 => all,
        some => some - 1,
    }
}

/// How many bytes from the front are of a kind.
fn run(bytes: &[u8], of: Kind) -> usize {
    bytes.iter().position(|&byte| kind(byte) != of).unwrap_or(bytes.len())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Letter,
    Digit,
    Space,
    Other,
}

fn kind(byte: u8) -> Kind {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' => Kind::Letter,
        b'0'..=b'9' => Kind::Digit,
        b'\t'..=b'\r' | b' ' => Kind::Space,
        _ => Kind::Other,
    }
}

const CONTRACTIONS: &[&[u8]] = &[b"'s", b"'t", b"'re", b"'ve", b"'m", b"'ll", b"'d"];

/// The ids of words that were met before.
#[derive(Debug, Default)]
pub(super) struct Memory(HashMap<Box<str>, Box<[u32]>>);

impl Memory {
    /// Appends the ids of a word, which `encode` gives where it is new.
    ///
    /// # Errors
    ///
    /// What `encode` returns.
    pub(super) fn append(
        &mut self,
        word: &str,
        out: &mut Vec<u32>,
        encode: impl FnOnce(&str) -> Result<Vec<u32>>,
    ) -> Result<()> {
        if let Some(ids) = self.0.get(word) {
            out.extend_from_slice(ids);
            return Ok(());
        }
        let ids = encode(word)?;
        out.extend_from_slice(&ids);
        if self.0.len() < MAX_WORDS && word.len() <= MAX_WORD {
            self.0.insert(word.into(), ids.into());
        }
        Ok(())
    }
}

/// Bounds of the memory: words beyond are encoded anew each time.
const MAX_WORDS: usize = 1 << 18;
const MAX_WORD: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    /// The words as the library splits them.
    fn by_library(text: &str) -> Vec<String> {
        let mut split = PreTokenizedString::from(text);
        ByteLevel::new(false, true, true).pre_tokenize(&mut split).expect("splits");
        let parts = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        parts.into_iter().map(|(_, (from, to), _)| text[from..to].to_string()).collect()
    }

    #[test]
    fn splits_as_the_pattern_says() {
        for (text, expected) in [
            ("it's  a 42x test.\n\n Yes!", &["it", "'s", " ", " a", " 42", "x", " test", ".", "\n\n", " Yes", "!"][..]),
            ("we'll 'RE ''d", &["we", "'ll", " '", "RE", " ''", "d"]),
            ("a\n", &["a", "\n"]),
            ("a \n\tb  ", &["a", " \n", "\t", "b", "  "]),
            ("", &[]),
        ] {
            assert_eq!(words(text).collect::<Vec<_>>(), expected);
            assert_eq!(by_library(text), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn splits_as_the_library_does(text in "([ '\n\tstrelvmdRx0-9.,!\u{b}\u{1c}\u{7f}]|[\u{0}-\u{7f}]){0,30}") {
            prop_assert_eq!(words(&text).map(str::to_string).collect::<Vec<_>>(), by_library(&text));
        }
    }
}
