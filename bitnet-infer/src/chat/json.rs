//! JSON as Python writes it, which is what templates were written against.

use minijinja::value::{Value, ValueKind};

/// How `json.dumps` is asked to write.
#[derive(Clone, Debug)]
pub struct Style {
    /// What each level of nesting is indented by, on lines of their own; everything is one line without it.
    pub indent: Option<String>,
    /// What stands between elements, and behind keys.
    pub separators: (String, String),
    /// Whether keys are sorted.
    pub sort_keys: bool,
    /// Whether characters beyond ASCII are spelled as escapes.
    pub ensure_ascii: bool,
}

impl Style {
    /// `json.dumps(value, ensure_ascii=False, indent=indent)`.
    pub fn with_indent(indent: Option<String>) -> Self {
        let between = if indent.is_some() { "," } else { ", " };
        Self { indent, separators: (between.into(), ": ".into()), sort_keys: false, ensure_ascii: false }
    }
}

/// `value` as `json.dumps` writes it.
///
/// # Errors
/// What has no JSON, and what is too deep or too long.
pub fn python(value: &Value, style: &Style) -> Result<String, String> {
    let mut out = String::new();
    write(&mut out, value, style, 0)?;
    Ok(out)
}

/// A float as Python's `repr` spells it.
pub fn python_float(value: f64) -> String {
    if value.is_nan() {
        return "nan".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) || value == 0.0 {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

fn write(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), String> {
    if depth > DEEPEST || out.len() > LONGEST {
        return Err("tojson: the value is too deep or too long".into());
    }
    match value.kind() {
        ValueKind::Undefined => return Err("tojson: the value is undefined".into()),
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_text(out, value.as_str().unwrap_or_default(), style.ensure_ascii),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter().map_err(|e| e.to_string())?.collect();
            write_all(out, ('[', ']'), &items, style, depth, |out, item| write(out, item, style, depth + 1))?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter().map_err(|e| e.to_string())?.collect();
            if style.sort_keys {
                if keys.windows(2).any(|pair| pair[0].kind() != pair[1].kind()) {
                    return Err("tojson: keys of several types cannot be sorted".into());
                }
                keys.sort();
            }
            write_all(out, ('{', '}'), &keys, style, depth, |out, key| {
                write_text(out, &key_text(key)?, style.ensure_ascii);
                out.push_str(&style.separators.1);
                let item = value.get_item(key).map_err(|e| e.to_string())?;
                write(out, &item, style, depth + 1)
            })?;
        }
        other => return Err(format!("tojson: a value of the type {other} has no JSON")),
    }
    Ok(())
}

/// Items between brackets, on lines of their own where the style wants it.
fn write_all(
    out: &mut String,
    (open, close): (char, char),
    items: &[Value],
    style: &Style,
    depth: usize,
    mut write: impl FnMut(&mut String, &Value) -> Result<(), String>,
) -> Result<(), String> {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(&style.separators.0);
        }
        new_line(out, depth + 1);
        write(out, item)?;
    }
    if !items.is_empty() {
        new_line(out, depth);
    }
    out.push(close);
    Ok(())
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => match python_float(float).as_str() {
            "nan" => "NaN".into(),
            "inf" => "Infinity".into(),
            "-inf" => "-Infinity".into(),
            text => text.to_owned(),
        },
        _ => value.to_string(),
    }
}

fn key_text(key: &Value) -> Result<String, String> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
        ValueKind::None => "null".into(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number => number(key),
        other => return Err(format!("tojson: a key of the type {other} has no JSON")),
    })
}

fn write_text(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            letter if letter < ' ' || ensure_ascii && !letter.is_ascii() => {
                letter.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
}

/// A template that asks for more is a joke at our cost.
const DEEPEST: usize = 64;
const LONGEST: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_spelled_as_python_spells_them() {
        for (value, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.25e100, "1.25e+100"),
            (123_456.789, "123456.789"),
            (f64::INFINITY, "inf"),
        ] {
            assert_eq!(python_float(value), expected);
        }
    }

    #[test]
    fn what_grows_without_bound_ends_with_an_error() {
        let mut deep = Value::from(1);
        for _ in 0..100 {
            deep = Value::from(vec![deep]);
        }
        assert!(python(&deep, &Style::with_indent(None)).is_err());
        let mut wide = Value::from("x".repeat(1000));
        for _ in 0..40 {
            wide = Value::from(vec![wide.clone(), wide]);
        }
        assert!(python(&wide, &Style::with_indent(None)).is_err());
    }
}
