//! Text that came from outside: corpora, configurations, prompts, templates. One place for what editors put in front of a text,
//! for what is no UTF-8, and for the numbers of lines.

use std::io::{BufRead, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The bytes of a text in UTF-8, without the byte-order mark that some editors put in front; `origin` names them in errors.
///
/// # Errors
/// If the mark says that the text is in UTF-16 or UTF-32.
pub fn content<'a>(bytes: &'a [u8], origin: &str) -> Result<&'a [u8]> {
    let encoding = match bytes {
        [0xef, 0xbb, 0xbf, text @ ..] => return Ok(text),
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => "UTF-32",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        text => return Ok(text),
    };
    let reason = format!("is {encoding} text: convert it to UTF-8, for example with `iconv -f {encoding} -t UTF-8`");
    Err(Error::format(origin, reason))
}

/// As [`content`], checked to be UTF-8.
///
/// # Errors
/// As [`content`], or the offset of the first byte that is no UTF-8.
pub fn utf8<'a>(bytes: &'a [u8], origin: &str) -> Result<&'a str> {
    let text = content(bytes, origin)?;
    checked(text, (bytes.len() - text.len()) as u64, origin)
}

/// The bytes as text; `offset` is where in the file they start.
fn checked<'a>(bytes: &'a [u8], offset: u64, origin: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let wrong = error.valid_up_to();
        let guess = match bytes[..bytes.len().min(SNIFFED)].contains(&0) {
            true => "it looks like a binary file",
            false => "convert it to UTF-8 first, for example with `iconv -t UTF-8`",
        };
        let at = offset + wrong as u64;
        Error::format(origin, format!("is not UTF-8 text at byte {at} (0x{:02x}); {guess}", bytes[wrong]))
    })
}

/// As [`utf8`], of bytes that nobody needs besides.
///
/// # Errors
/// As [`utf8`].
pub fn owned(mut bytes: Vec<u8>, origin: &str) -> Result<String> {
    let mark = bytes.len() - utf8(&bytes, origin)?.len();
    bytes.drain(..mark);
    String::from_utf8(bytes).map_err(|e| Error::format(origin, format!("is not UTF-8 text: {e}")))
}

/// Reads a text of at most `limit_bytes` from an ordinary file.
///
/// # Errors
/// As [`super::read_ordinary`] and [`utf8`].
pub fn read(path: &Path, limit_bytes: u64) -> Result<String> {
    owned(super::read_ordinary(path, limit_bytes)?, &path.display().to_string())
}

/// The value of a JSON text; `origin` names it in errors.
///
/// # Errors
/// As [`content`], or where it is no JSON, or not what was expected.
pub fn json<T: DeserializeOwned>(bytes: &[u8], origin: &str) -> Result<T> {
    serde_json::from_slice(content(bytes, origin)?)
        .map_err(|e| Error::format(origin, format!("is not valid JSON: {e}")))
}

/// Reads a JSON text of at most `limit_bytes` from an ordinary file.
///
/// # Errors
/// As [`super::read_ordinary`] and [`json`].
pub fn read_json<T: DeserializeOwned>(path: &Path, limit_bytes: u64) -> Result<T> {
    json(&super::read_ordinary(path, limit_bytes)?, &path.display().to_string())
}

/// Calls `on_line` with the number and the text of every line of `source`, as editors count and show them: from 1 on, ended by LF
/// or CR LF; what stands behind the last end is a line too, if there is anything.
///
/// # Errors
/// If the source cannot be read, a line is longer than `longest` bytes or no UTF-8, or that of `on_line`.
pub fn each_line<E: From<Error>>(
    mut source: impl BufRead,
    origin: &str,
    longest: u64,
    mut on_line: impl FnMut(u64, &str) -> Result<(), E>,
) -> Result<(), E> {
    let mut bytes = Vec::new();
    let mut offset = 0;
    for number in 1_u64.. {
        bytes.clear();
        let read = (&mut source).take(longest.saturating_add(1)).read_until(b'\n', &mut bytes);
        let read = read.map_err(|e| Error::format(origin, format!("cannot be read: {e}")))? as u64;
        if read == 0 {
            break;
        }
        let place = format!("{origin}:{number}");
        if read > longest {
            return Err(Error::format(&place, format!("the line is longer than {longest} bytes")).into());
        }
        let text = if number == 1 { content(&bytes, origin)? } else { &bytes };
        // A mark alone is no line.
        if text.is_empty() {
            break;
        }
        let text = checked(text, offset + (bytes.len() - text.len()) as u64, &place)?;
        let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
        on_line(number, text)?;
        offset += read;
    }
    Ok(())
}

/// What is wrong with a JSON text of one line: the place is a column, for the line's number is that of the file.
pub fn json_fault_in_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(reason) => format!("{reason} at column {}", error.column()),
        None => text,
    }
}

/// So many bytes of a text are looked at for a zero byte, the mark of a binary file.
const SNIFFED: usize = 8192;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MARK: &str = "\u{feff}";

    #[test]
    fn a_mark_is_no_part_of_a_text() {
        for (bytes, expected) in [
            (&b"\xef\xbb\xbfabc"[..], "abc"),
            (b"\xef\xbb\xbf", ""),
            (b"", ""),
            (b"abc", "abc"),
            // Only the first one, and only in front: elsewhere it is a character.
            (b"\xef\xbb\xbf\xef\xbb\xbfa", "\u{feff}a"),
            (b"a\xef\xbb\xbf", "a\u{feff}"),
        ] {
            assert_eq!(utf8(bytes, "t").expect("UTF-8"), expected);
        }
        for (bytes, encoding) in [
            (&b"\xff\xfea\0"[..], "UTF-16"),
            (b"\xfe\xff\0a", "UTF-16"),
            (b"\xff\xfe\0\0a\0\0\0", "UTF-32"),
            (b"\0\0\xfe\xff\0\0\0a", "UTF-32"),
        ] {
            let error = utf8(bytes, "notes.txt").expect_err("another encoding").to_string();
            assert!(error.starts_with(&format!("notes.txt: is {encoding} text: convert it to UTF-8")), "{error}");
        }
        let error = utf8(b"\xef\xbb\xbfab\xff", "t").expect_err("no UTF-8").to_string();
        assert!(error.contains("byte 5 (0xff)"), "the offset is that in the file: {error}");
        assert_eq!(json::<Vec<u8>>(b"\xef\xbb\xbf[1]", "t").expect("JSON"), [1]);
        assert!(
            json::<Vec<u8>>(b"\xef\xbb\xbf[1,]", "t").expect_err("no JSON").to_string().contains("line 1 column 4")
        );
    }

    fn lines(bytes: &[u8], longest: u64) -> Result<Vec<(u64, String)>> {
        let mut out = Vec::new();
        each_line(bytes, "t", longest, |number, line| {
            out.push((number, line.to_owned()));
            Ok::<(), Error>(())
        })?;
        Ok(out)
    }

    #[test]
    fn lines_are_those_of_an_editor() {
        let expected = [(1, "a"), (2, ""), (3, "b\r c"), (4, "d")].map(|(n, line)| (n, line.to_owned()));
        for text in ["a\n\nb\r c\nd\n", "a\r\n\r\nb\r c\r\nd\r\n", "a\n\nb\r c\nd", "\u{feff}a\r\n\nb\r c\nd"] {
            assert_eq!(lines(text.as_bytes(), 9).expect("lines"), expected, "{text:?}");
        }
        assert_eq!(lines(b"", 9).expect("none"), []);
        assert_eq!(lines(b"\n", 9).expect("one"), [(1, String::new())]);
        assert!(lines(b"a\nbcdef", 4).expect_err("long").to_string().contains("t:2: the line is longer than 4 bytes"));
        assert!(
            lines(b"\xef\xbb\xbfa\nb\xff", 9)
                .expect_err("no UTF-8")
                .to_string()
                .contains("t:2: is not UTF-8 text at byte 6")
        );
        assert!(lines(b"\xff\xfea\0\n\0", 9).expect_err("UTF-16").to_string().contains("UTF-16"));
    }

    #[test]
    fn faults_of_a_line_name_a_column() {
        let error = serde_json::from_str::<u8>("x").expect_err("no JSON");
        assert_eq!(json_fault_in_line(&error), "expected value at column 1");
    }

    proptest! {
        #[test]
        fn lines_are_those_of_the_standard_library(text in "(a|b|\u{e9}|\r|\n|\r\n|\u{feff}){0,12}", marked in any::<bool>()) {
            let whole = if marked { format!("{MARK}{text}") } else { text.clone() };
            let shown = whole.strip_prefix(MARK).unwrap_or(&whole);
            let expected: Vec<(u64, String)> = (1..).zip(shown.lines().map(str::to_owned)).collect();
            prop_assert_eq!(lines(whole.as_bytes(), 99).expect("lines"), expected);
        }
    }
}
