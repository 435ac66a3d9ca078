//! The fields of a request: each is asked for by name and type, and what does not fit is named.

use std::ops::RangeInclusive;

use bitnet_model::files::text;
use serde_json::{Map, Value};

use crate::server::error::ApiError;

/// The object that a request is.
pub struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Parses a body.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Err(ApiError::invalid("the body is empty, expected a JSON object"));
        }
        // Some clients send a file as an editor wrote it.
        let body = text::content(body, "the body").map_err(|e| ApiError::invalid(e.to_string()))?;
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self { map }),
            Ok(other) => Err(ApiError::invalid(format!("the body is {}, expected a JSON object", kind(&other)))),
            Err(e) => Err(ApiError::invalid(format!("the body is no JSON: {e}")).coded("invalid_json")),
        }
    }

    /// The value of a field; `null` counts as absent.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// The value of the first of several names that is there.
    pub fn take_any<'n>(&mut self, names: &[&'n str]) -> Option<(&'n str, Value)> {
        names.iter().find_map(|name| self.take(name).map(|value| (*name, value)))
    }

    /// A truth value.
    ///
    /// # Errors
    /// If it is another.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| unexpected(name, &value, "true or false"))
    }

    /// A number within `range`.
    ///
    /// # Errors
    /// If it is none, or outside.
    pub fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().map(|number| number as f32).filter(|number| range.contains(number));
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        number.map(Some).ok_or_else(|| unexpected(name, &value, &expected()))
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// If it is none, or outside.
    pub fn integer(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        integer_of(name, &value, range).map(Some)
    }

    /// A text.
    ///
    /// # Errors
    /// If it is none.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(unexpected(name, &other, "a text")),
        }
    }

    /// An object.
    ///
    /// # Errors
    /// If it is none.
    pub fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self { map })),
            Some(other) => Err(unexpected(name, &other, "an object")),
        }
    }

    /// Refuses a field that would ask for something that this server does not do.
    ///
    /// # Errors
    /// If it is there and asks for something.
    pub fn refuse(&mut self, name: &str, instead: &str) -> Result<(), ApiError> {
        let asks = |value: &Value| match value {
            Value::Array(values) => !values.is_empty(),
            Value::Object(map) => !map.is_empty(),
            Value::Bool(flag) => *flag,
            Value::String(text) => !text.is_empty() && text != "none",
            _ => true,
        };
        match self.take(name).filter(asks) {
            None => Ok(()),
            Some(_) => {
                Err(ApiError::field(name, format!("is not supported: {instead}")).coded("unsupported_parameter"))
            }
        }
    }
}

/// A whole number within `range`, as an integer or a float without a fraction.
///
/// # Errors
/// If it is none, or outside.
pub fn integer_of(name: &str, value: &Value, range: RangeInclusive<i64>) -> Result<i64, ApiError> {
    let whole =
        value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e15).map(|number| number as i64);
    let number = value.as_i64().or(whole).filter(|number| range.contains(number));
    let expected = || match (*range.start(), *range.end()) {
        (low, i64::MAX) => format!("a whole number, {low} or more"),
        (low, high) => format!("a whole number from {low} to {high}"),
    };
    number.ok_or_else(|| unexpected(name, value, &expected()))
}

/// What a field is, and what it should be.
pub fn unexpected(name: &str, value: &Value, expected: &str) -> ApiError {
    ApiError::field(name, format!("is {}, expected {expected}", shown(value)))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.len() <= 40 => format!("`{}`", text.escape_debug()),
        other => kind(other).to_owned(),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).expect("an object")
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |result: Result<(), ApiError>| result.expect_err("refused");
        let e = error(fields(r#"{"n": "x"}"#).integer("n", 1..=8).map(drop));
        assert_eq!(
            (e.message.as_str(), e.param.as_deref()),
            ("`n` is `x`, expected a whole number from 1 to 8", Some("n"))
        );
        let e = error(fields(r#"{"n": 2.5}"#).integer("n", 0..=i64::MAX).map(drop));
        assert_eq!(e.message, "`n` is 2.5, expected a whole number, 0 or more");
        let e = error(fields(r#"{"t": -1}"#).number("t", 0.0..=2.0).map(drop));
        assert_eq!(e.message, "`t` is -1, expected a number from 0 to 2");
        let e = error(fields(r#"{"t": [1]}"#).flag("t").map(drop));
        assert_eq!(e.message, "`t` is a list, expected true or false");
        assert!(error(Fields::parse(b"[1]").map(drop)).message.contains("is a list"));
        assert!(error(Fields::parse(b"{").map(drop)).message.contains("is no JSON"));
        assert!(error(Fields::parse(b"").map(drop)).message.contains("is empty"));
        assert!(error(Fields::parse(b"{\"a\": \"\xff\"}").map(drop)).message.contains("is no JSON"));
    }

    #[test]
    fn null_is_absent_and_whole_floats_are_integers() {
        assert_eq!(fields(r#"{"n": null}"#).integer("n", 1..=8), Ok(None));
        assert_eq!(fields(r#"{"n": 3.0}"#).integer("n", 1..=8), Ok(Some(3)));
        assert!(fields(r#"{"n": 1e300}"#).integer("n", 1..=8).is_err());
        assert_eq!(fields("{}").flag("x"), Ok(None));
    }

    #[test]
    fn unsupported_fields_are_refused_only_if_they_ask_for_something() {
        for (text, ok) in [
            ("{}", true),
            (r#"{"x": []}"#, true),
            (r#"{"x": null}"#, true),
            (r#"{"x": "none"}"#, true),
            (r#"{"x": [1]}"#, false),
            (r#"{"x": 0}"#, false),
        ] {
            assert_eq!(fields(text).refuse("x", "leave it out").is_ok(), ok, "{text}");
        }
    }
}
