//! Conversations that began elsewhere go on here, and every token of an answer has its score.

use serde_json::{Value, json};

use super::client::{complete, post, text_of};
use super::{Running, Setup};
use crate::common::EOS;

/// A template that writes everything it sees of a conversation with tools.
const TEMPLATE: &str = "{%- for m in messages -%}
[{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}{% if m.tool_call_id is defined %} #{{ m.tool_call_id }}{% endif %}]
{%- if m.content is none %} -{% else %} {{ m.content }}{% endif -%}
{%- if m.tool_calls is defined -%}{%- for c in m.tool_calls %} {{ c.id }}:{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor -%}{%- endif %}
{% endfor -%}
";

/// One that adds arguments to a text, as the templates of some models do.
const WRITTEN: &str = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name + ' ' + c.function.arguments }}{% endfor %}{% endfor %}";

/// A server whose template is `source`.
fn with_template(source: &str) -> (Running, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("temp dir");
    let path = folder.path().join("chat.jinja");
    std::fs::write(&path, source).expect("writes");
    let template = Some(path.to_str().expect("UTF-8").to_owned());
    (Running::start(Setup { template, ..Setup::default() }), folder)
}

fn call(id: &str, name: &str, arguments: &Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments.to_string()}})
}

fn history() -> Value {
    let weather = json!({"town": "Köln", "days": 2, "a": [true, null]});
    json!([
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "refusal": null, "audio": null, "tool_calls": [call("c1", "weather", &weather), call("c2", "time", &json!({}))]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "{\"sky\": \"<clear>\"}"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "12:00"}]},
        {"role": "assistant", "content": "Clear at noon.", "tool_calls": [], "function_call": null},
        {"role": "user", "content": "Thanks"},
    ])
}

fn rendered(server: &Running, messages: &Value) -> String {
    let answer = post(server.address, "/apply-template", &json!({"messages": messages}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()["prompt"].as_str().expect("a text").to_owned()
}

/// Expected: `apply_chat_template` of transformers 5.24 with the arguments as objects. It leaves out what is null, so that a
/// content of null is undefined, and not none.
#[test]
fn calls_of_tools_are_written_by_the_template() {
    let (server, _folder) = with_template(TEMPLATE);
    let expected = "[user] Weather?[assistant]  c1:weather({\"town\": \"Köln\", \"days\": 2, \"a\": [true, null]}) \
                    c2:time({})[tool weather #c1] {\"sky\": \"<clear>\"}[tool #c2] 12:00[assistant] Clear at noon.[user] Thanks";
    assert_eq!(rendered(&server, &history()), expected);
    let body = json!({"messages": history(), "max_tokens": 3});
    assert_eq!(post(server.address, "/v1/chat/completions", &body).status, 200);
    // The older form.
    let older = json!([
        {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": "{\"x\": 1}"}},
        {"role": "function", "name": "f", "content": "2"},
    ]);
    assert_eq!(rendered(&server, &older), "[assistant]  :f({\"x\": 1})[tool f] 2");
    // Arguments that a model has garbled go on as they are.
    let garbled = json!([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{\"x"}}]}]);
    assert_eq!(rendered(&server, &garbled), "[assistant]  :f(\"{\\\"x\")");
}

#[test]
fn templates_that_know_no_calls_write_the_rest() {
    let server = Running::start(Setup::default());
    assert_eq!(
        rendered(&server, &history()),
        "User: Weather?\nAssistant: \nTool: {\"sky\": \"<clear>\"}\nTool: 12:00\nAssistant: Clear at noon.\nUser: Thanks\nAssistant:"
    );
    let (server, _folder) = with_template(WRITTEN);
    assert_eq!(
        rendered(&server, &json!([{"role": "assistant", "tool_calls": [call("c", "f", &json!({"x": [1, 2]}))]}])),
        "f {\"x\": [1, 2]}"
    );
}

#[test]
fn an_assistant_may_have_said_nothing() {
    let server = Running::start(Setup::default());
    for message in [
        json!({"role": "assistant"}),
        json!({"role": "assistant", "content": null}),
        json!({"role": "assistant", "content": []}),
    ] {
        let messages = json!([{"role": "user", "content": "Hi"}, message, {"role": "user", "content": "?"}]);
        assert_eq!(rendered(&server, &messages), "User: Hi\nAssistant: \nUser: ?\nAssistant:", "{message}");
        let body = json!({"messages": messages, "max_tokens": 2, "tools": null, "tool_choice": null});
        assert_eq!(post(server.address, "/v1/chat/completions", &body).status, 200, "{message}");
    }
    let refusal = json!([{"role": "assistant", "content": null, "refusal": "No."}]);
    assert_eq!(rendered(&server, &refusal), "Assistant: No.\nAssistant:");
    for (message, param, told) in [
        (json!({"role": "user"}), "messages[0].content", "is missing"),
        (json!({"role": "system", "content": null}), "messages[0].content", "is missing"),
        (
            json!({"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}),
            "messages[0].tool_calls",
            "the role `assistant`",
        ),
        (json!({"role": "assistant", "tool_calls": "f"}), "messages[0].tool_calls", "is `f`"),
        (json!({"role": "assistant", "tool_calls": [5]}), "messages[0].tool_calls[0]", "is 5"),
        (
            json!({"role": "assistant", "tool_calls": [{"function": {}}]}),
            "messages[0].tool_calls[0].function.name",
            "is missing",
        ),
    ] {
        let refused = post(server.address, "/v1/chat/completions", &json!({"messages": [message]}));
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(param)), "{}", refused.body);
        assert!(refused.body.contains(told), "{}", refused.body);
    }
}

/// Whatever a part of a message spells, the model reads it as text.
#[test]
fn special_tokens_in_calls_are_plain_text() {
    let (server, _folder) = with_template(TEMPLATE);
    let end = "</s>";
    let messages = json!([
        {"role": "assistant", "content": null, "tool_calls": [call(end, end, &json!({end: [end, {"k": end}]}))]},
        {"role": "tool", "tool_call_id": end, "name": end, "content": end},
    ]);
    let tokens = |messages: &Value| {
        let answer = post(server.address, "/tokenize", &json!({"messages": messages})).json();
        answer["tokens"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
    };
    assert!(!tokens(&messages).contains(&json!(EOS)));
    assert_eq!(rendered(&server, &messages).matches(end).count(), 8);
    // Nor do two parts together, one behind the other.
    let (server, _folder) = with_template(
        "{% for m in messages %}{{ m.name }}{{ m.content }}{{ m.tool_calls[0].function.name }}{% endfor %}",
    );
    let messages =
        json!([{"role": "assistant", "name": "<", "content": "/s", "tool_calls": [{"function": {"name": ">"}}]}]);
    let answer = post(server.address, "/tokenize", &json!({"messages": messages})).json();
    assert_eq!(answer["tokens"].as_array().map(|tokens| tokens.contains(&json!(EOS))), Some(false), "{answer}");
}

/// As in OpenAI's answers: `usage` counts the tokens that have log-probabilities.
#[test]
fn every_new_token_has_its_log_probability() {
    let server = Running::start(Setup::default());
    let free = complete(server.address, &json!({"prompt": "abc", "max_tokens": 60, "seed": 1, "ignore_eos": true}));
    let letters: Vec<char> = text_of(&free).chars().collect();
    let stop: String = letters[letters.len() / 2..letters.len() / 2 + 4].iter().collect();
    // A text of letters, then its end.
    let end = json!({EOS.to_string(): 100, "97": 50});
    for (more, finish) in [
        (json!({"max_tokens": 9, "ignore_eos": true}), "length"),
        (json!({"max_tokens": 9, "ignore_eos": true, "logit_bias": end}), "length"),
        (json!({"max_tokens": 60, "ignore_eos": true, "stop": [stop]}), "stop"),
        (json!({"max_tokens": 9, "logit_bias": end}), "stop"),
        (json!({"max_tokens": 9, "logit_bias": end, "min_tokens": 4}), "stop"),
        (json!({"max_tokens": 0}), "length"),
    ] {
        let with = |own: Value| {
            let mut body = own;
            body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            body
        };
        let whole = with(json!({"prompt": "abc", "seed": 1, "logprobs": 1}));
        let answer = complete(server.address, &whole);
        let count = &answer["usage"]["completion_tokens"];
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], finish, "{answer}");
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(json!(choice["logprobs"][list].as_array().map(Vec::len)), *count, "{list} of {whole}");
        }
        let length = choice["text"].as_str().expect("a text").chars().count();
        let offsets = choice["logprobs"]["text_offset"].as_array().expect("a list");
        assert!(offsets.iter().all(|offset| offset.as_u64().is_some_and(|offset| offset as usize <= length)));
        check_streamed(&server, "/v1/completions", &whole, "tokens", count);

        let chat = with(
            json!({"messages": [{"role": "user", "content": "abc"}], "seed": 1, "logprobs": true, "top_logprobs": 1}),
        );
        let answer = post(server.address, "/v1/chat/completions", &chat).json();
        let (count, choice) = (&answer["usage"]["completion_tokens"], &answer["choices"][0]);
        let entries = choice["logprobs"]["content"].as_array().unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(json!(entries.len()), *count, "{chat}");
        // What ends a text is no part of it: the bytes of all tokens begin with the text.
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|entry| entry["bytes"].as_array().expect("bytes").clone())
            .map(|byte| byte.as_u64().expect("a byte") as u8)
            .collect();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let content = choice["message"]["content"].as_str().expect("a text");
        assert!(text.starts_with(content.trim_end_matches('\u{fffd}')), "{text:?} {content:?}");
        if finish == "stop" && more.get("stop").is_none() {
            assert_eq!((text.as_str(), entries.last().map(|entry| &entry["bytes"])), (content, Some(&json!([]))));
        }
        check_streamed(&server, "/v1/chat/completions", &chat, "content", count);
    }
}

fn check_streamed(server: &Running, path: &str, body: &Value, list: &str, count: &Value) {
    let mut body = body.clone();
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let (events, done) = post(server.address, path, &body).events();
    assert!(done);
    let own = events.iter().filter_map(|event| event["choices"][0]["logprobs"][list].as_array());
    assert_eq!(json!(own.map(Vec::len).sum::<usize>()), *count, "{path} {body}");
    assert_eq!(events.last().expect("events")["usage"]["completion_tokens"], *count);
}
