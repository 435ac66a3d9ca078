//! Messages of a conversation, as templates see them.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::{json, shield};

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What the model is to be.
    #[serde(alias = "developer")]
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A program that the model has called.
    #[serde(alias = "function")]
    Tool,
}

impl Role {
    /// The name that templates know.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One turn.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said; `None` in a turn that calls tools and says nothing.
    #[serde(default, deserialize_with = "text")]
    pub content: Option<String>,
    /// What templates may read besides: `tool_calls`, `tool_call_id`, `name` and the like.
    #[serde(flatten, deserialize_with = "said")]
    pub more: Map<String, Value>,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: Some(content.into()), more: Map::new() }
    }

    /// What is said; nothing if there is no content.
    pub fn text(&self) -> &str {
        self.content.as_deref().unwrap_or_default()
    }

    /// Bytes of all that it holds, or a few more.
    pub fn bytes(&self) -> usize {
        let more = if self.more.is_empty() { 0 } else { Value::Object(self.more.clone()).to_string().len() };
        self.text().len() + more
    }

    /// The same with every special token that is spelled out in it made plain text.
    pub(super) fn shielded(&self, specials: &[&str]) -> Self {
        let content = self.content.as_ref().map(|text| shield::cut(text, specials));
        if self.more.is_empty() {
            return Self { role: self.role, content, more: Map::new() };
        }
        // A template may write one text directly behind another.
        let content = content.map(|text| shield::cut_end(text, specials));
        let more = self.more.iter().map(|(key, value)| (key.clone(), shielded(value, specials))).collect();
        Self { role: self.role, content, more }
    }

    /// The same with the arguments of its calls as JSON texts, if it has any as objects: some templates write them as they are.
    pub(super) fn with_written_arguments(&self) -> Option<Self> {
        let mut message = self.clone();
        let calls = message.more.get_mut("tool_calls")?.as_array_mut()?;
        let mut changed = false;
        for arguments in calls.iter_mut().filter_map(|call| call.get_mut("function")?.get_mut("arguments")) {
            if arguments.is_object() {
                let value = minijinja::value::Value::from(minijinja::value::Serde(&*arguments));
                *arguments = Value::String(json::python(&value, &json::Style::with_indent(None)).ok()?);
                changed = true;
            }
        }
        changed.then_some(message)
    }
}

/// A text, or the parts of one.
#[derive(serde::Deserialize)]
#[serde(untagged, expecting = "expected `content` to be a text, a list of text parts, or null")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(serde::Deserialize)]
struct Part {
    text: String,
}

fn text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Content>::deserialize(from)?.map(|content| match content {
        Content::Text(text) => text,
        Content::Parts(parts) => parts.into_iter().map(|part| part.text).collect(),
    }))
}

/// The other fields, without those that say nothing, and with the arguments of calls as objects where they are JSON objects.
fn said<'de, D: Deserializer<'de>>(from: D) -> Result<Map<String, Value>, D::Error> {
    let says = |value: &Value| !value.is_null() && value.as_array().is_none_or(|values| !values.is_empty());
    let mut more: Map<String, Value> = Map::deserialize(from)?.into_iter().filter(|(_, value)| says(value)).collect();
    let calls = more.get_mut("tool_calls").and_then(Value::as_array_mut);
    for arguments in calls.into_iter().flatten().filter_map(|call| call.get_mut("function")?.get_mut("arguments")) {
        let object: Option<Value> = arguments.as_str().and_then(|text| serde_json::from_str(text).ok());
        if let Some(object) = object.filter(Value::is_object) {
            *arguments = object;
        }
    }
    Ok(more)
}

fn shielded(value: &Value, specials: &[&str]) -> Value {
    let text = |text: &str| shield::cut_end(shield::cut(text, specials), specials);
    match value {
        Value::String(value) => Value::String(text(value)),
        Value::Array(values) => values.iter().map(|value| shielded(value, specials)).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (text(key), shielded(value, specials))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// Other ways of saying the same, for templates that refuse the first: the arguments of calls as JSON texts, and an empty text
/// where a message has none.
pub(super) fn spellings(messages: &[Message]) -> Vec<Vec<Message>> {
    let written = |messages: &[Message]| -> Vec<Message> {
        messages.iter().map(|message| message.with_written_arguments().unwrap_or_else(|| message.clone())).collect()
    };
    let filled = |messages: &[Message]| -> Vec<Message> {
        messages.iter().map(|message| Message { content: Some(message.text().to_owned()), ..message.clone() }).collect()
    };
    let mut all: Vec<Vec<Message>> = Vec::new();
    for messages in [written(messages), filled(messages), written(&filled(messages))] {
        if !all.contains(&messages) {
            all.push(messages);
        }
    }
    all.retain(|spelling| spelling != messages);
    all
}
