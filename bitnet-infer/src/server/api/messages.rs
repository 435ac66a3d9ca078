//! The messages of a conversation, as clients of OpenAI's API write them, and as templates of Hugging Face's libraries read them.

use serde_json::{Map, Value, json};

use super::fields::{Fields, unexpected};
use crate::chat::{Ending, Message, Role};
use crate::server::error::ApiError;

/// The messages of a request, and what follows the last of them.
///
/// # Errors
/// What is wrong with them.
pub fn conversation(fields: &mut Fields) -> Result<(Vec<Message>, Ending), ApiError> {
    let messages = messages(fields)?;
    let ending = match (fields.flag("add_generation_prompt")?, fields.flag("continue_final_message")?) {
        (Some(true), Some(true)) => {
            let message = "cannot be true together with `add_generation_prompt`";
            return Err(ApiError::field("continue_final_message", message));
        }
        (_, Some(true)) => Ending::Continue,
        (Some(false), _) => Ending::Closed,
        _ => Ending::Reply,
    };
    Ok((messages, ending))
}

fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let expected = "a list of messages with `role` and `content`";
    let list = match fields.take("messages") {
        None => return Err(ApiError::field("messages", format!("is missing, expected {expected}"))),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(unexpected("messages", &other, expected)),
    };
    if list.is_empty() || list.len() > MOST_MESSAGES {
        return Err(ApiError::field("messages", format!("has {} messages, expected 1 to {MOST_MESSAGES}", list.len())));
    }
    list.into_iter().enumerate().map(|(index, message)| one_message(index, message)).collect()
}

fn one_message(index: usize, message: Value) -> Result<Message, ApiError> {
    let name = |field: &str| format!("messages[{index}]{field}");
    let Value::Object(mut message) = message else {
        return Err(unexpected(&name(""), &message, "an object with `role` and `content`"));
    };
    let expected = "one of: system, developer, user, assistant, tool";
    let role = match message.shift_remove("role") {
        Some(Value::String(role)) => match role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            // Its older name.
            "tool" | "function" => Role::Tool,
            _ => return Err(unexpected(&name(".role"), &Value::String(role), expected)),
        },
        Some(other) => return Err(unexpected(&name(".role"), &other, expected)),
        None => return Err(ApiError::field(&name(".role"), format!("is missing, expected {expected}"))),
    };
    let mut content = match message.shift_remove("content") {
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate();
            let text = parts.map(|(at, part)| part_text(&name(&format!(".content[{at}]")), part));
            Some(text.collect::<Result<_, _>>()?)
        }
        Some(Value::Null) | None => None,
        Some(other) => return Err(unexpected(&name(".content"), &other, "a string or a list of text parts")),
    };
    // What is null or an empty list says nothing, and a template may ask whether it is there.
    let says = |value: &Value| !value.is_null() && value.as_array().is_none_or(|values| !values.is_empty());
    let mut more: Map<String, Value> = message.into_iter().filter(|(_, value)| says(value)).collect();
    for (field, instead) in UNREAD {
        if more.get(field).is_some_and(|value| *value != Value::Bool(false)) {
            let field = name(&format!(".{field}"));
            return Err(ApiError::field(&field, format!("is not supported: {instead}")).coded("unsupported_parameter"));
        }
    }
    let calls = calls(&name, &mut more)?;
    let has_calls = !calls.is_empty();
    if has_calls && role != Role::Assistant {
        return Err(ApiError::field(&name(".tool_calls"), "belongs to messages of the role `assistant` alone"));
    }
    if has_calls {
        more.insert("tool_calls".into(), Value::Array(calls));
    }
    match (&content, role) {
        (None, Role::Assistant) if has_calls => {}
        (None, Role::Assistant) => {
            let refusal = more.shift_remove("refusal");
            content = Some(refusal.and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default());
        }
        (None, Role::Tool) => content = Some(String::new()),
        (None, _) => return Err(ApiError::field(&name(".content"), "is missing, expected a string")),
        (Some(_), _) => {}
    }
    Ok(Message { role, content, more })
}

/// The calls of a message, with their arguments as objects where they are JSON objects: so templates expect them.
fn calls(name: &impl Fn(&str) -> String, more: &mut Map<String, Value>) -> Result<Vec<Value>, ApiError> {
    let mut calls = match more.shift_remove("tool_calls") {
        None => Vec::new(),
        Some(Value::Array(calls)) => calls,
        Some(other) => return Err(unexpected(&name(".tool_calls"), &other, "a list of calls")),
    };
    // The older form of a single call.
    if let Some(function) = more.shift_remove("function_call") {
        calls.push(json!({"type": "function", "function": function}));
    }
    for (index, call) in calls.iter_mut().enumerate() {
        let name = name(&format!(".tool_calls[{index}]"));
        let function = match call.get_mut("function") {
            Some(Value::Object(function)) => function,
            _ => return Err(unexpected(&name, call, "an object with `function`")),
        };
        if !function.get("name").is_some_and(Value::is_string) {
            return Err(ApiError::field(&format!("{name}.function.name"), "is missing, expected a string"));
        }
        let object = match function.get("arguments") {
            Some(Value::String(text)) => serde_json::from_str(text).ok().filter(Value::is_object),
            _ => None,
        };
        if let Some(object) = object {
            function.insert("arguments".into(), object);
        }
    }
    Ok(calls)
}

fn part_text(name: &str, part: Value) -> Result<String, ApiError> {
    let expected = "an object such as {\"type\": \"text\", \"text\": \"...\"}";
    let Value::Object(mut part) = part else { return Err(unexpected(name, &part, expected)) };
    let field = match part.get("type").and_then(Value::as_str) {
        Some("text") => "text",
        Some("refusal") => "refusal",
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            let message =
                format!("has the type `{}`, expected `text`: this server reads text only", other.escape_debug());
            return Err(ApiError::field(name, message));
        }
        None => return Err(ApiError::field(name, format!("has no `type`, expected {expected}"))),
    };
    match part.shift_remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(unexpected(&format!("{name}.{field}"), &other, "a string")),
        None => Err(ApiError::field(&format!("{name}.{field}"), "is missing, expected a string")),
    }
}

/// Fields of messages that ask for something that this server does not do.
const UNREAD: [(&str, &str); 4] = [
    ("images", "this server reads text only"),
    ("audio", "this server reads text only"),
    ("prefix", "use `continue_final_message`"),
    ("partial", "use `continue_final_message`"),
];

/// More than any conversation has.
const MOST_MESSAGES: usize = 4096;
