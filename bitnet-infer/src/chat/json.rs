//! JSON as Python writes it, which is what templates were written against.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// `value` as `json.dumps(value, ensure_ascii=False, indent=indent)` writes it.
pub fn python(value: &impl Serialize, indent: Option<usize>) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    match indent {
        Some(indent) => {
            let spaces = " ".repeat(indent.min(LARGEST_INDENT));
            value.serialize(&mut Serializer::with_formatter(
                &mut bytes,
                PrettyFormatter::with_indent(spaces.as_bytes()),
            ))?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut bytes, OneLine))?,
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A template that asks for more is a joke at our cost.
const LARGEST_INDENT: usize = 16;

/// `", "` between elements and `": "` behind keys.
struct OneLine;

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_python_writes() {
        let value: serde_json::Value =
            serde_json::from_str(r#"{"a": [1, 2.5, "é<&'", null, true], "b": {}, "c": []}"#).expect("JSON");
        // python3 -c 'import json; print(json.dumps(json.loads(...), ensure_ascii=False))', then with indent=2
        assert_eq!(python(&value, None).expect("writes"), r#"{"a": [1, 2.5, "é<&'", null, true], "b": {}, "c": []}"#);
        let expected =
            "{\n  \"a\": [\n    1,\n    2.5,\n    \"é<&'\",\n    null,\n    true\n  ],\n  \"b\": {},\n  \"c\": []\n}";
        assert_eq!(python(&value, Some(2)).expect("writes"), expected);
    }
}
