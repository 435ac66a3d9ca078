//! What is no request, and who may not ask.

use bitnet_infer::server::Access;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::client::{complete, get, post, receive, send};
use super::{Running, Setup};

/// Every refusal has a status that clients expect, and the four fields that they read.
fn check(answer: &super::client::Answer, status: u16, message: &str, param: Option<&str>) {
    assert_eq!(answer.status, status, "{}", answer.body);
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().expect("a message").contains(message), "{} expected {message}", answer.body);
    assert_eq!(error["param"].as_str(), param, "{}", answer.body);
    assert!(error["type"].is_string() && error.get("code").is_some());
}

#[test]
fn what_is_wrong_with_a_request_is_named() {
    let server = Running::start(Setup::default());
    for (body, message, param) in [
        (json!({}), "`prompt` is missing", Some("prompt")),
        (json!({"prompt": 5}), "`prompt` is 5", Some("prompt")),
        (json!({"prompt": []}), "has 0 prompts", Some("prompt")),
        (json!({"prompt": [[]]}), "is empty", Some("prompt")),
        (json!({"prompt": [1, "a"]}), "`prompt[1]` is `a`", Some("prompt[1]")),
        (json!({"prompt": [258]}), "from 0 to 257", Some("prompt[0]")),
        (json!({"prompt": [-1]}), "from 0 to 257", Some("prompt[0]")),
        (json!({"prompt": [[1], {"a": 1}]}), "is an object", Some("prompt[1]")),
        (json!({"prompt": "a", "max_tokens": -2}), "0 or more", Some("max_tokens")),
        (json!({"prompt": "a", "max_tokens": "many"}), "`max_tokens` is `many`", Some("max_tokens")),
        (json!({"prompt": "a", "temperature": 3}), "a number from 0 to 2", Some("temperature")),
        (json!({"prompt": "a", "temperature": "hot"}), "a number from 0 to 2", Some("temperature")),
        (json!({"prompt": "a", "n": 0}), "from 1 to 8", Some("n")),
        (json!({"prompt": "a", "n": 100_000}), "from 1 to 8", Some("n")),
        (json!({"prompt": vec!["a"; 20], "n": 8}), "is 160, expected at most 72", Some("n")),
        (json!({"prompt": "a", "min_tokens": 9, "max_tokens": 8}), "is more than `max_tokens`", Some("min_tokens")),
        (json!({"prompt": "a", "best_of": 3}), "is not supported", Some("best_of")),
        (json!({"prompt": "a", "stop": ["a", 1]}), "`stop[1]` is 1", Some("stop[1]")),
        (json!({"prompt": "a", "stop": ""}), "1 to 1024 bytes", Some("stop")),
        (json!({"prompt": "a", "stop": vec!["x"; 17]}), "has 17 strings", Some("stop")),
        (json!({"prompt": "a", "logit_bias": {"x": 1}}), "has the token `x`", Some("logit_bias")),
        (json!({"prompt": "a", "logit_bias": {"1": 1000}}), "from -100 to 100", Some("logit_bias.1")),
        (json!({"prompt": "a", "logprobs": 21}), "from 0 to 20", Some("logprobs")),
        (json!({"prompt": "a", "stream_options": {"include_usage": true}}), "needs `stream`", Some("stream_options")),
        (json!({"prompt": "a", "suffix": "z"}), "is not supported", Some("suffix")),
        (json!({"prompt": "a", "response_format": {"type": "xml"}}), "asks for `xml`", Some("response_format")),
        (
            json!({"prompt": "a", "response_format": {"type": "json_schema"}}),
            "has no `json_schema`",
            Some("response_format"),
        ),
        (
            json!({"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}}),
            "cannot enforce",
            Some("response_format"),
        ),
        (
            json!({"prompt": "a", "min_tokens": 3, "response_format": {"type": "json_object"}}),
            "used together with `response_format`",
            Some("min_tokens"),
        ),
        (json!({"prompt": "a".repeat(1100)}), "context is 1024 tokens", None),
        (json!({"prompt": "a", "max_tokens": 1023}), "context is 1024 tokens", None),
        (json!({"prompt": "a", "max_tokens": u32::MAX}), "context is 1024 tokens", None),
    ] {
        check(&post(server.address, "/v1/completions", &body), 400, message, param);
    }
    for (body, message, param) in [
        (json!({}), "`messages` is missing", "messages"),
        (json!({"messages": []}), "has 0 messages", "messages"),
        (json!({"messages": ["hi"]}), "`messages[0]` is `hi`", "messages[0]"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), "is `wizard`", "messages[0].role"),
        (json!({"messages": [{"content": "x"}]}), "is missing", "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "is missing", "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": 1}]}), "is 1", "messages[0].content"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "`image_url`",
            "messages[0].content[0]",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}], "top_logprobs": 2}),
            "needs `logprobs`",
            "top_logprobs",
        ),
        (json!({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}), "is not supported", "tools"),
        (
            json!({"messages": [{"role": "user", "content": "x"}], "chat_template": "{{ 1 }}"}),
            "is not supported",
            "chat_template",
        ),
    ] {
        check(&post(server.address, "/v1/chat/completions", &body), 400, message, Some(param));
    }
    check(
        &post(server.address, "/v1/completions", &json!({"model": "gpt-9", "prompt": "a"})),
        404,
        "this server has only `tiny`",
        Some("model"),
    );
    check(&post(server.address, "/v2/completions", &json!({})), 404, "unknown path `/v2/completions`", None);
    check(&get(server.address, "/v1/completions"), 405, "does not accept GET", None);
    let raw = |body: &[u8]| receive(send(server.address, "POST", "/v1/completions", &[], body));
    check(&raw(b"{\"prompt\": \"a\""), 400, "not valid JSON", None);
    check(&raw(b"{\"prompt\": \"\xff\xfe\"}"), 400, "not valid JSON", None);
    check(&raw(b""), 400, "is empty", None);
    check(&raw(&[b'['; 10_000]), 400, "not valid JSON", None);
    check(&raw(&vec![b' '; 100_000]), 413, "larger than 65536 bytes", None);
    assert_eq!(server.metric("bitnet_requests_rejected_total{reason=\"body_too_large\"}"), 1.0);
    // Nothing of all that has reached the engine.
    assert_eq!(server.metric("bitnet_passes_total"), 0.0);
    complete(server.address, &json!({"prompt": "a", "max_tokens": 1}));
}

#[test]
fn a_body_in_pieces_is_bounded_too() {
    let server = Running::start(Setup::default());
    let mut stream = std::net::TcpStream::connect(server.address).expect("connects");
    use std::io::Write;
    stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n").expect("writes");
    for _ in 0..200 {
        // The server may have enough before we do.
        if stream.write_all(format!("400\r\n{}\r\n", "x".repeat(0x400)).as_bytes()).is_err() {
            break;
        }
    }
    // As above.
    let _ = stream.write_all(b"0\r\n\r\n");
    check(&receive(stream), 413, "larger than", None);
}

#[test]
fn keys_hosts_and_origins_are_checked() {
    let access =
        Access::new(&["secret".into()], &["model.lan".into()], &["https://chat.example".into()]).expect("valid");
    let server = Running::start(Setup { access, ..Setup::default() });
    let ask =
        |method: &str, path: &str, headers: &[(&str, &str)]| receive(send(server.address, method, path, headers, b""));
    let key = ("authorization", "Bearer secret");
    assert_eq!(ask("GET", "/health", &[]).status, 200);
    for path in ["/v1/models", "/props", "/metrics", "/tokenizer_info", "/openapi.json", "/no/such"] {
        let refused = ask("GET", path, &[]);
        check(&refused, 401, "needs an API key", None);
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        assert!(ask("GET", path, &[("x-api-key", "secret")]).status != 401, "{path}");
    }
    check(&ask("POST", "/v1/completions", &[("authorization", "Bearer secre")]), 401, "needs an API key", None);
    assert_eq!(ask("GET", "/v1/models", &[key]).status, 200);
    check(&ask("GET", "/v1/models", &[key, ("host", "evil.example")]), 403, "--allow-host evil.example", None);
    assert_eq!(ask("GET", "/v1/models", &[key, ("host", "model.lan:8080")]).status, 200);
    check(&ask("POST", "/v1/completions", &[key, ("origin", "https://evil.example")]), 403, "origin", None);
    let allowed = ask("GET", "/v1/models", &[key, ("origin", "https://chat.example")]);
    assert_eq!((allowed.status, allowed.header("access-control-allow-origin")), (200, Some("https://chat.example")));
    let preflight = ask(
        "OPTIONS",
        "/v1/completions",
        &[("origin", "https://chat.example"), ("access-control-request-method", "POST")],
    );
    assert_eq!(
        (preflight.status, preflight.header("access-control-allow-origin")),
        (200, Some("https://chat.example"))
    );
    // Without an origin that is allowed, no page reads anything.
    let server = Running::start(Setup::default());
    let own = format!("http://{}", server.address);
    let answer = receive(send(server.address, "GET", "/v1/models", &[("origin", &own)], b""));
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, None));
}

/// A value of any JSON type.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-10i64..10).prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((".{0,6}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// Whatever a request holds, the answer is one of those that clients know, and the server goes on.
#[test]
fn no_request_is_answered_by_a_failure() {
    let names = [
        "prompt",
        "messages",
        "model",
        "max_tokens",
        "max_completion_tokens",
        "min_tokens",
        "n",
        "best_of",
        "stream",
        "stream_options",
        "stop",
        "seed",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "echo",
        "ignore_eos",
        "response_format",
        "add_generation_prompt",
        "continue_final_message",
        "tokens",
        "content",
        "with_pieces",
        "tools",
        "grammar",
        "tool_choice",
        "samplers",
    ];
    let server = Running::start(Setup::default());
    let paths = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/apply-template"];
    let fields = proptest::collection::vec((proptest::sample::select(names.to_vec()), any_json()), 0..5);
    let base = prop_oneof![
        Just(json!({})),
        Just(json!({"prompt": "ab", "max_tokens": 3})),
        Just(json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3})),
        Just(json!({"tokens": [1, 2, 3]})),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 600,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&(proptest::sample::select(paths.to_vec()), base, fields), |(path, mut body, fields)| {
        body.as_object_mut()
            .expect("an object")
            .extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let answer = post(server.address, path, &body);
        prop_assert!(matches!(answer.status, 200 | 400 | 404), "{} {}: {} {}", path, body, answer.status, answer.body);
        if answer.status != 200 {
            prop_assert!(answer.json()["error"]["message"].is_string());
        }
        Ok(())
    });
    outcome.expect("every answer is one that clients know");
    server.settle();
    assert_eq!(get(server.address, "/health").status, 200);
}
