//! Messages of a conversation, as templates see them.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::shield;

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// What the model is to be.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// A program that the model has called.
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
    pub content: Option<String>,
    /// What templates may read besides: `tool_calls`, `tool_call_id`, `name` and the like.
    #[serde(flatten)]
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
                *arguments = Value::String(super::json::python(arguments, None).ok()?);
                changed = true;
            }
        }
        changed.then_some(message)
    }
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

/// Messages whose calls have their arguments as JSON texts, if any has them otherwise.
pub(super) fn with_written_arguments(messages: &[Message]) -> Option<Vec<Message>> {
    let written: Vec<Cow<'_, Message>> = messages
        .iter()
        .map(|message| message.with_written_arguments().map_or(Cow::Borrowed(message), Cow::Owned))
        .collect();
    let changed = written.iter().any(|message| matches!(message, Cow::Owned(_)));
    changed.then(|| written.into_iter().map(Cow::into_owned).collect())
}
