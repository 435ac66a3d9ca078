//! JSON Lines: one object a line, the text in one field.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use bitnet_model::files::text;
use serde_json::Value;

use crate::data::source::OnDocument;

/// Calls `on_document` with the field of each line's object. Blank lines are skipped.
///
/// # Errors
///
/// Names the line: malformed JSON, not an object, a missing field, a field that is not a string, not UTF-8.
pub fn read(path: &Path, field: &str, on_document: &mut OnDocument<'_>) -> Result<()> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let reader = BufReader::with_capacity(1 << 20, file);
    text::each_line(reader, &name.to_string(), MAX_LINE, |number, line| {
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
                bail!(
                    "{name}:{number}: no field `{field}`; the line has: {fields}. Set `field` to the one with the text"
                );
            }
        }
    })
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

    fn documents(content: &[u8], field: &str) -> Result<Vec<String>> {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), content).expect("writes");
        let mut out = Vec::new();
        read(file.path(), field, &mut |text| {
            out.push(text.to_string());
            Ok(())
        })?;
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
