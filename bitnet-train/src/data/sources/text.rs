//! Plain text: the whole file is one document.

use std::path::Path;

use anyhow::{Result, bail};
use bitnet_infer::engine::MappedFile;

use crate::data::source::{OnBytes, OnDocument};

/// Calls `on_bytes` with all bytes of the file in pieces, then `on_document` with its text, mapped rather than read.
///
/// # Errors
///
/// A file that is not UTF-8, with the offset of the first wrong byte; what is called may return others.
pub fn read(path: &Path, on_bytes: &mut OnBytes<'_>, on_document: &mut OnDocument<'_>) -> Result<()> {
    let file = MappedFile::open(path)?;
    file.bytes().chunks(PIECE).try_for_each(on_bytes)?;
    on_document(utf8(path, file.bytes(), 0)?)
}

/// The bytes as text; `offset` is where in the file they start.
///
/// # Errors
///
/// Says whether it looks like a binary file, and the offset of the first wrong byte.
pub(super) fn utf8<'a>(path: &Path, bytes: &'a [u8], offset: u64) -> Result<&'a str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let wrong = error.valid_up_to();
            let at = offset + wrong as u64;
            let start = &bytes[..bytes.len().min(SNIFFED)];
            let guess = if start.contains(&0) {
                "it looks like a binary file"
            } else {
                "convert it to UTF-8 first, for example with `iconv -t UTF-8`"
            };
            bail!("{}: not UTF-8 text at byte {at} (0x{:02x}); {guess}", path.display(), bytes[wrong]);
        }
    }
}

/// Bytes that are told of together.
const PIECE: usize = 1 << 20;

/// So many bytes of a file are looked at for a zero byte, the mark of a binary file.
const SNIFFED: usize = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_bytes(bytes: &[u8]) -> Result<String> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), bytes).expect("writes");
        let mut out = String::new();
        read(file.path(), &mut |_| Ok(()), &mut |text| {
            out.push_str(text);
            Ok(())
        })?;
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
    }

    proptest! {
        #[test]
        fn random_bytes_are_read_exactly_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            match std::str::from_utf8(&bytes) {
                Ok(text) => prop_assert_eq!(read_bytes(&bytes).expect("is UTF-8"), text),
                Err(error) => {
                    let said = read_bytes(&bytes).expect_err("is not UTF-8").to_string();
                    let expected = format!("at byte {} ", error.valid_up_to());
                    prop_assert!(said.contains(&expected), "{}", said);
                }
            }
        }
    }
}
