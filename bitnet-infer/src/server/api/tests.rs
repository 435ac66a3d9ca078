use serde_json::Value;

use super::info::OPENAPI;

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
    asked.extend(["max_tokens", "max_completion_tokens", "content", "prompt", "logit_bias"].map(str::to_owned));
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

    let routes = include_str!("mod.rs");
    for path in openapi["paths"].as_object().expect("paths").keys().filter(|path| *path != "/health") {
        assert!(routes.contains(&format!("route(\"{path}\"")), "{path} is described and not routed");
    }
    let routed = routes.matches(".route(").count();
    assert_eq!(routed, openapi["paths"].as_object().expect("paths").len());
}
