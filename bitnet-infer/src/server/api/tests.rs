use serde_json::Value;

use super::info::OPENAPI;
use super::known::{HARMLESS, REFUSED};
use super::{is_open, table};

fn openapi() -> Value {
    serde_json::from_str(OPENAPI).expect("JSON")
}

/// What the sources ask for by name must be described, and nothing else.
#[test]
fn the_description_has_every_field_and_every_route() {
    let sources = [
        include_str!("request.rs"),
        include_str!("completions.rs"),
        include_str!("chat.rs"),
        include_str!("tokens.rs"),
        include_str!("messages.rs"),
    ];
    // `fields.METHOD("name"`, over all requests; fields that are only refused are not described.
    let mut asked: Vec<String> = Vec::new();
    for source in sources {
        for method in ["flag", "number", "integer", "text", "object", "take"] {
            let call = format!("fields.{method}(\"");
            let calls = source.match_indices(&call).map(|(at, _)| &source[at + call.len()..]);
            asked.extend(calls.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
        }
    }
    // Names that stand in lists or constants.
    asked.extend(
        ["max_tokens", "max_completion_tokens", "content", "prompt", "logit_bias", "response_format"]
            .map(str::to_owned),
    );
    asked.sort();
    asked.dedup();
    let openapi = openapi();
    let schemas = openapi["components"]["schemas"].as_object().expect("schemas");
    let requests = schemas.iter().filter(|(name, _)| name.ends_with("Request"));
    let mut described: Vec<String> =
        requests.flat_map(|(_, schema)| schema["properties"].as_object().expect("fields").keys().cloned()).collect();
    described.sort();
    described.dedup();
    assert_eq!(asked, described);

    let routed: Vec<String> = table().iter().map(|(path, _)| path.replace("{*", "{")).collect();
    let paths = openapi["paths"].as_object().expect("paths");
    assert_eq!(routed.iter().filter(|path| !paths.contains_key(*path)).count(), 0, "{routed:?}");
    assert_eq!(paths.keys().filter(|path| !routed.contains(path)).count(), 0);
}

/// A field is read, refused, or known to be harmless: never two of these for the same kind of completions.
#[test]
fn no_field_that_is_read_counts_as_unread() {
    let openapi = openapi();
    let read =
        |schema: &str| openapi["components"]["schemas"][schema]["properties"].as_object().expect("fields").clone();
    let (completions, chats) = (read("CompletionRequest"), read("ChatRequest"));
    for name in HARMLESS {
        assert!(!completions.contains_key(*name) && !chats.contains_key(*name), "{name}");
    }
    for field in REFUSED {
        assert!(!completions.contains_key(field.name) || !chats.contains_key(field.name), "{}", field.name);
    }
}

#[test]
fn paths_without_their_prefix_are_the_same() {
    for path in ["/health", "/health/", "/v1/health", "/v1/health/"] {
        assert!(is_open(path), "{path}");
    }
    for path in ["/v1health", "/v2/health", "/health/x", "/v1/v1/health", "/", "/v1", "/props"] {
        assert!(!is_open(path), "{path}");
    }
}
