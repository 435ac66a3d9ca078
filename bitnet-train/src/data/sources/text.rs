//! Plain text: the whole file is one document.

use std::path::Path;

use anyhow::Result;
use bitnet_infer::engine::MappedFile;
use bitnet_model::files::text;

use crate::data::source::{OnBytes, OnDocument};

/// Calls `on_bytes` with all bytes of the file in pieces, but for a byte-order mark, which is no part of the text; then `on_document` with its text, mapped rather than read.
///
/// # Errors
///
/// A file that is not UTF-8, with the offset of the first wrong byte and whether it looks like a binary file; what is called may
/// return others.
pub fn read(path: &Path, on_bytes: &mut OnBytes<'_>, on_document: &mut OnDocument<'_>) -> Result<()> {
    let file = MappedFile::open(path)?;
    let name = path.display().to_string();
    text::content(file.bytes(), &name)?.chunks(PIECE).try_for_each(on_bytes)?;
    on_document(text::utf8(file.bytes(), &name)?)
}

/// Bytes that are told of together.
const PIECE: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_bytes(bytes: &[u8]) -> Result<String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("writes");
        let (mut out, mut told) = (String::new(), Vec::new());
        let on_bytes = &mut |piece: &[u8]| {
            told.extend_from_slice(piece);
            Ok(())
        };
        read(file.path(), on_bytes, &mut |text| {
            out.push_str(text);
            Ok(())
        })?;
        let content = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        assert_eq!(told, content, "a mark is no part of the text");
        Ok(out)
    }

    #[test]
    fn the_first_wrong_byte_is_named() {
        for (bytes, said) in [
            (&b"hello \xff world"[..], "byte 6 (0xff); convert"),
            (&b"\x00\x01\x02\x80"[..], "byte 3 (0x80); it looks like a binary file"),
            (&b"caf\xe9"[..], "byte 3 (0xe9)"),
        ] {
            let error = read_bytes(bytes).expect_err("not UTF-8");
            assert!(error.to_string().contains(said), "{error}");
        }
        assert_eq!(read_bytes(b"").expect("empty is text"), "");
        assert_eq!(read_bytes(b"\xef\xbb\xbfa\r\nb").expect("a mark is no text"), "a\r\nb");
        assert!(
            read_bytes(b"\xff\xfea\0").expect_err("another encoding").to_string().contains("is UTF-16 text: convert")
        );
    }

    proptest! {
        #[test]
        fn random_bytes_are_read_exactly_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            match std::str::from_utf8(&bytes) {
                Ok(text) => {
                    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
                    prop_assert_eq!(read_bytes(&bytes).expect("is UTF-8"), text);
                }
                Err(_) if matches!(bytes[..], [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, 0, 0xfe, 0xff, ..]) => {
                    prop_assert!(read_bytes(&bytes).is_err());
                }
                Err(error) => {
                    let said = read_bytes(&bytes).expect_err("is not UTF-8").to_string();
                    let expected = format!("at byte {} ", error.valid_up_to());
                    prop_assert!(said.contains(&expected), "{}", said);
                }
            }
        }
    }
}
