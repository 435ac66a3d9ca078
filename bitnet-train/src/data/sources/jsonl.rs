//! JSON Lines: one object a line, the text in one field.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Display, Path};

use anyhow::{Context, Error, Result, anyhow, bail};
use bitnet_model::files::text;
use serde_json::Value;

use crate::data::source::{OnBytes, OnDocument};

/// Calls `on_bytes` with all bytes of the file in pieces, as they are, and `on_document` with the field of each line's object. Blank
/// lines are skipped.
///
/// # Errors
///
/// Names the line: malformed JSON, not an object, a missing field, a field that is not a string, not UTF-8; what is called may
/// return others.
pub fn read(path: &Path, field: &str, on_bytes: &mut OnBytes<'_>, on_document: &mut OnDocument<'_>) -> Result<()> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let mut told = Told { file, on_bytes, refusal: None };
    let reader = BufReader::with_capacity(1 << 20, &mut told);
    let read = text::each_line(reader, &name.to_string(), MAX_LINE, |number, line| {
        document(&name, field, number, line, on_document)
    });
    match told.refusal {
        Some(refusal) => Err(refusal),
        None => read,
    }
}

/// A file that tells of every piece that is read.
struct Told<'a, 'b> {
    file: File,
    on_bytes: &'a mut OnBytes<'b>,
    /// What was returned instead of going on.
    refusal: Option<Error>,
}

impl Read for Told<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        (self.on_bytes)(&buffer[..count]).map_err(|refusal| {
            self.refusal = Some(refusal);
            io::Error::other("refused")
        })?;
        Ok(count)
    }
}

fn document(name: &Display<'_>, field: &str, number: u64, line: &str, on_document: &mut OnDocument<'_>) -> Result<()> {
    if line.trim().is_empty() {
        return Ok(());
    }
    let fault = |error| anyhow!("{name}:{number}: malformed JSON: {}", text::json_fault_in_line(&error));
    let value: Value = serde_json::from_str(line).map_err(fault)?;
    let Value::Object(object) = value else {
        bail!("{name}:{number}: expected an object with the field `{field}`, found {}", kind(&value));
    };
    match object.get(field) {
        Some(Value::String(text)) => on_document(text),
        Some(other) => {
            bail!("{name}:{number}: the field `{field}` is {}, expected a string", kind(other));
        }
        None => {
            let fields = object.keys().take(8).cloned().collect::<Vec<_>>().join(", ");
            bail!("{name}:{number}: no field `{field}`; the line has: {fields}. Set `field` to the one with the text");
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Longer lines are refused, so that a file that is not JSON Lines does not fill the memory.
const MAX_LINE: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::progress::Stopped;

    fn documents(content: &[u8], field: &str) -> Result<Vec<String>> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), content).expect("writes");
        let (mut out, mut bytes) = (Vec::new(), Vec::new());
        let on_bytes = &mut |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        read(file.path(), field, on_bytes, &mut |text| {
            out.push(text.to_string());
            Ok(())
        })?;
        assert_eq!(bytes, content, "ends of lines and marks are bytes of the file, too");
        Ok(out)
    }

    #[test]
    fn reads_the_field_of_each_line() {
        let content = b"{\"text\": \"a\\nb\", \"n\": 1}\n\n{\"n\": 2, \"text\": \"c\"}\r\n{\"text\": \"\"}";
        assert_eq!(documents(content, "text").expect("well-formed"), ["a\nb", "c", ""]);
        let marked = [b"\xef\xbb\xbf", &content[..]].concat();
        assert_eq!(documents(&marked, "text").expect("a mark is no text"), ["a\nb", "c", ""]);
    }

    #[test]
    fn who_hears_of_bytes_may_stop_the_reading() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "{\"text\": \"a\"}\n").expect("writes");
        let stop = &mut |_: &[u8]| -> Result<()> { Err(Stopped.into()) };
        let error = read(file.path(), "text", stop, &mut |_| Ok(())).expect_err("stopped");
        assert!(error.is::<Stopped>(), "{error:#}");
    }

    #[test]
    fn faults_name_their_line() {
        for (content, said) in [
            (&b"{\"text\": \"a\"}\n{\"text\": \"b\""[..], ":2: malformed JSON"),
            (b"[1]", ":1: expected an object"),
            (b"\n{\"body\": \"a\"}", ":2: no field `text`; the line has: body"),
            (b"{\"text\": 3}", ":1: the field `text` is a number, expected a string"),
            (b"{\"text\": null}", ":1: the field `text` is null"),
            (b"{\"text\": \"a\"}\n\xff", ":2: is not UTF-8 text at byte 14"),
            (b"\xef\xbb\xbf{\"text\": \"a\"}\r\n\r\nx", ":3: malformed JSON: expected value at column 1"),
            (b"\xff\xfe{\0", "is UTF-16 text"),
        ] {
            let error = documents(content, "text").expect_err("must be refused").to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
