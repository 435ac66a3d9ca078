//! Fields of requests: those that would change the answer are read or refused, the others pass.

use serde_json::{Value, json};

use super::client::{complete, get, post, text_of};
use super::{CONTEXT, Running, Setup};

/// Both kinds of completions, with what they need and `name` besides.
fn both(name: &str, value: &Value) -> [(&'static str, Value); 2] {
    let messages = json!([{"role": "user", "content": "hi"}]);
    [
        ("/v1/completions", json!({"prompt": "hi", "max_tokens": 2, name: value})),
        ("/v1/chat/completions", json!({"messages": messages, "max_tokens": 2, name: value})),
    ]
}

/// Names and values as llama.cpp's server, vLLM, Ollama, TGI and OpenAI's reference have them.
#[test]
fn what_would_change_the_answer_is_refused_by_name() {
    let server = Running::start(Setup::default());
    for (name, asks, neutral) in [
        ("grammar", json!("root ::= \"yes\""), json!("")),
        ("json_schema", json!({"type": "object"}), Value::Null),
        ("guided_json", json!({"type": "object"}), Value::Null),
        ("guided_choice", json!(["yes", "no"]), Value::Null),
        ("guided_regex", json!("[a-z]+"), Value::Null),
        ("guided_grammar", json!("?start: \"a\""), Value::Null),
        ("structured_outputs", json!({"choice": ["yes", "no"]}), Value::Null),
        ("format", json!("json"), json!("")),
        ("n_predict", json!(5), json!(-1)),
        ("n_probs", json!(5), json!(0)),
        ("num_predict", json!(5), json!(-1)),
        ("max_new_tokens", json!(5), Value::Null),
        ("repeat_last_n", json!(256), json!(64)),
        ("typical_p", json!(0.5), json!(1.0)),
        ("top_n_sigma", json!(1.0), json!(-1.0)),
        ("xtc_probability", json!(0.5), json!(0.0)),
        ("dry_multiplier", json!(0.8), json!(0)),
        ("dynatemp_range", json!(0.5), json!(0)),
        ("mirostat", json!(2), json!(0)),
        (
            "samplers",
            json!(["temperature"]),
            json!(["penalties", "dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]),
        ),
        ("do_sample", json!(false), json!(true)),
        ("stop_token_ids", json!([5]), json!([])),
        ("bad_words", json!(["a"]), json!([])),
        ("allowed_token_ids", json!([5]), Value::Null),
        ("include_stop_str_in_output", json!(true), json!(false)),
        ("skip_special_tokens", json!(false), json!(true)),
        ("truncate_prompt_tokens", json!(1), Value::Null),
        ("prompt_logprobs", json!(1), Value::Null),
        ("return_token_ids", json!(true), json!(false)),
        ("lora", json!([{"id": 0, "scale": 0.5}]), json!([])),
        ("use_beam_search", json!(true), json!(false)),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}]), json!([])),
        ("functions", json!([{"name": "f"}]), json!([])),
        ("tool_choice", json!("required"), json!("auto")),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}}), json!("none")),
        ("modalities", json!(["text", "audio"]), json!(["text"])),
        ("web_search_options", json!({}), Value::Null),
        ("chat_template", json!("{{ 1 }}"), Value::Null),
        ("chat_template_kwargs", json!({"enable_thinking": false}), json!({})),
        ("suffix", json!("z"), json!("")),
        ("options", json!({"num_predict": 3}), json!({})),
    ] {
        for (path, body) in both(name, &asks) {
            let refused = post(server.address, path, &body);
            assert_eq!(refused.status, 400, "{path} {body}: {}", refused.body);
            let error = &refused.json()["error"];
            assert_eq!(
                (&error["param"], &error["code"]),
                (&json!(name), &json!("unsupported_parameter")),
                "{path} {body}"
            );
            let message = error["message"].as_str().expect("a message");
            assert!(message.starts_with(&format!("`{name}` is not supported")), "{message}");
        }
        for (path, body) in both(name, &neutral) {
            let answer = post(server.address, path, &body);
            assert_eq!(answer.status, 200, "{path} {body}: {}", answer.body);
        }
    }
}

#[test]
fn what_changes_nothing_passes() {
    let server = Running::start(Setup::default());
    let with = |more: Value| {
        let mut body = json!({"prompt": "Once upon", "max_tokens": 20, "seed": 4});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        complete(server.address, &body)
    };
    let plain = with(json!({}));
    // What people's programs send, and names that nobody knows.
    let more = json!({
        "user": "me", "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "parallel_tool_calls": true,
        "tools": [], "tool_choice": "auto", "modalities": ["text"], "logit_bias": {}, "response_format": {"type": "text"},
        "cache_prompt": true, "id_slot": -1, "timings_per_token": true, "xtc_threshold": 0.1, "mirostat_tau": 5.0,
        "mirostat_eta": 0.1, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": -1, "keep_alive": "5m",
        "priority": 0, "wizard": {"hat": "blue"}, "stream_options": null, "tools_of_the_trade": 7,
    });
    let both = with(more);
    assert_eq!(text_of(&both), text_of(&plain));
    let (_, mut body) = both_kinds_of_chat();
    body["tools"] = Value::Null;
    body["tool_choice"] = json!("none");
    assert_eq!(post(server.address, "/v1/chat/completions", &body).status, 200);
}

fn both_kinds_of_chat() -> (&'static str, Value) {
    let [_, chat] = both("user", &json!("me"));
    chat
}

#[test]
fn minus_one_token_is_no_limit() {
    let server = Running::start(Setup::default());
    for name in ["max_tokens", "max_completion_tokens"] {
        let answer = complete(server.address, &json!({"prompt": [1, 2, 3], name: -1, "ignore_eos": true}));
        assert_eq!(answer["usage"]["completion_tokens"], CONTEXT - 3, "{name}");
        let body = json!({"messages": [{"role": "user", "content": "hi"}], name: -1, "ignore_eos": true});
        let answer = post(server.address, "/v1/chat/completions", &body).json();
        assert_eq!(answer["usage"]["total_tokens"], CONTEXT, "{name}");
        let refused = post(server.address, "/v1/completions", &json!({"prompt": "a", name: -2}));
        let message = refused.json()["error"]["message"].as_str().expect("a message").to_owned();
        assert!(message.contains("or -1 for as many as the context leaves"), "{message}");
    }
}

/// Clients differ in what they take for the root of the API.
#[test]
fn every_path_has_its_twins() {
    let server = Running::start(Setup { name: "models/tiny".into(), ..Setup::default() });
    let post_body = |path: &str| match path {
        "/completions" => json!({"prompt": "a", "max_tokens": 1}),
        "/detokenize" => json!({"tokens": [1]}),
        "/tokenize" => json!({"content": "a"}),
        _ => json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    };
    for path in ["/completions", "/chat/completions", "/tokenize", "/detokenize", "/apply-template"] {
        for path in [path.to_owned(), format!("{path}/"), format!("/v1{path}"), format!("/v1{path}/")] {
            let body = post_body(path.trim_start_matches("/v1").trim_end_matches('/'));
            let answer = post(server.address, &path, &body);
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            assert_eq!(get(server.address, &path).status, 405, "{path}");
        }
    }
    for path in [
        "/models",
        "/models/models/tiny",
        "/models/models%2Ftiny",
        "/health",
        "/props",
        "/metrics",
        "/tokenizer_info",
        "/openapi.json",
    ] {
        for path in [path.to_owned(), format!("{path}/"), format!("/v1{path}"), format!("/v1{path}/")] {
            let answer = get(server.address, &path);
            assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        }
    }
    let model = get(server.address, "/v1/models/models/tiny").json();
    assert_eq!(model, get(server.address, "/models").json()["data"][0]);
    for path in ["/v1/models/tiny", "/v2/models", "/v1", "/v1/v1/models", "/models/models/tiny/x"] {
        assert_eq!(get(server.address, path).status, 404, "{path}");
    }
}

/// An error names the element that is wrong.
#[test]
fn the_wrong_element_is_named() {
    let server = Running::start(Setup::default());
    for (path, body, param, message) in [
        ("/v1/completions", json!({"prompt": [[1, 2], {"a": 1}]}), "prompt[1]", "is an object"),
        ("/v1/completions", json!({"prompt": [[1, 2], [3, "x"]]}), "prompt[1][1]", "is `x`"),
        ("/v1/completions", json!({"prompt": [1, 2, "x"]}), "prompt[2]", "is `x`"),
        ("/v1/completions", json!({"prompt": ["a", null]}), "prompt[1]", "is null"),
        ("/v1/completions", json!({"prompt": "a", "stop": ["b", ""]}), "stop[1]", "1 to 1024 bytes"),
        ("/v1/completions", json!({"prompt": "a", "logit_bias": {"7": true}}), "logit_bias.7", "is true"),
        ("/detokenize", json!({"tokens": [1, 2, -3]}), "tokens[2]", "is -3"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [[1, 2], "x"]}]}),
            "messages[0].content[0]",
            "is a list",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "x"]}]}),
            "messages[0].content[1]",
            "is `x`",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"text": "a"}]}]}),
            "messages[0].content[0]",
            "has no `type`",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content[0].text",
            "is missing",
        ),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content[0]",
            "`image_url`",
        ),
    ] {
        let refused = post(server.address, path, &body);
        assert_eq!(refused.status, 400, "{body}: {}", refused.body);
        let error = &refused.json()["error"];
        assert_eq!(error["param"], param, "{}", refused.body);
        let told = error["message"].as_str().expect("a message");
        assert!(told.starts_with(&format!("`{param}` ")) && told.contains(message), "{told}");
    }
    // Texts and ids side by side are prompts like any others.
    assert_eq!(complete(server.address, &json!({"prompt": [[1, 2], "x"], "max_tokens": 1}))["choices"][1]["index"], 1);
}
