//! What answers hold, against what the engine gives directly.

use std::ops::ControlFlow;

use bitnet_infer::engine::{KvType, SamplerConfig};
use bitnet_infer::eval::score::continuation;
use bitnet_infer::generate::{GenerateOptions, Generator};
use serde_json::{Value, json};

use super::client::{complete, get, post, text_of};
use super::{Running, Setup};
use crate::common::{BOS, EOS};

fn generated(server: &Running, prompt: &str, tokens: usize, sampler: SamplerConfig) -> String {
    let generator = Generator::new(&server.loaded.model, server.loaded.require_tokenizer().expect("a tokenizer"));
    let options = GenerateOptions { max_new_tokens: tokens, sampler, ..GenerateOptions::default() };
    generator.run(prompt, &options, |_| ControlFlow::Continue(())).expect("generates").text
}

#[test]
fn texts_are_those_of_the_engine() {
    let server = Running::start(Setup::default());
    for (prompt, temperature, seed) in [("Once", 0.0, 0), ("Once upon a time", 0.9, 7), ("é", 1.5, 8)] {
        let sampler = SamplerConfig { temperature, seed, ..SamplerConfig::default() };
        let expected = generated(&server, prompt, 40, sampler);
        let body =
            json!({"model": "tiny", "prompt": prompt, "max_tokens": 40, "temperature": temperature, "seed": seed});
        let answer = complete(server.address, &body);
        assert_eq!(text_of(&answer), expected);
        assert_eq!(answer["usage"]["prompt_tokens"], prompt.len() + 1, "BOS is counted");
    }
}

#[test]
fn a_stream_says_what_an_answer_says() {
    let server = Running::start(Setup::default());
    for logprobs in [json!(2), Value::Null] {
        check_stream(
            &server,
            json!({"prompt": ["One", "Two"], "n": 2, "max_tokens": 30, "seed": 5, "logprobs": logprobs, "echo": true}),
        );
    }
    check_stream(&server, json!({"prompt": ["One", "Two"], "n": 2, "max_tokens": 0, "echo": true}));
}

fn check_stream(server: &Running, mut body: Value) {
    let whole = complete(server.address, &body);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let answer = post(server.address, "/v1/completions", &body);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let (events, done) = answer.events();
    assert!(done, "{}", answer.body);
    let (usage, events) = events.split_last().expect("events");
    assert_eq!(usage["choices"], json!([]));
    for name in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(usage["usage"][name], whole["usage"][name], "{name}");
    }
    assert!(events.iter().all(|event| event["usage"].is_null() && event["id"] == usage["id"]));
    for index in 0..4 {
        let own: Vec<&Value> =
            events.iter().map(|event| &event["choices"][0]).filter(|choice| choice["index"] == index).collect();
        let expected = &whole["choices"][index];
        let text: String = own.iter().map(|choice| choice["text"].as_str().expect("text")).collect();
        assert_eq!(text, expected["text"].as_str().expect("text"));
        let finished: Vec<&Value> =
            own.iter().map(|choice| &choice["finish_reason"]).filter(|f| !f.is_null()).collect();
        assert_eq!(finished, [&expected["finish_reason"]]);
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let pieces = own.iter().filter_map(|choice| choice["logprobs"][list].as_array());
            let joined: Vec<Value> = pieces.flatten().cloned().collect();
            let expected = expected["logprobs"][list].as_array().cloned().unwrap_or_default();
            assert_eq!(joined, expected, "{list}");
        }
    }
}

/// What evaluation harnesses rely on: one entry for each token of the prompt and one more, and likelihoods of the engine to the
/// bit, with the first choice recognizable by equality.
#[test]
fn echoed_log_probabilities_are_the_engines_own() {
    let server = Running::start(Setup::default());
    let prompts: Vec<Vec<u32>> =
        vec![vec![BOS, 72, 101, 108, 108, 111], (0..300).map(|i| (i * 7) % 250).collect(), vec![5]];
    let body = json!({"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true, "seed": 1234});
    // The second time everything is known already, and must be scored all the same.
    for _ in 0..2 {
        let answer = complete(server.address, &body);
        for (index, prompt) in prompts.iter().enumerate() {
            let log = &answer["choices"][index]["logprobs"];
            let logprobs = log["token_logprobs"].as_array().expect("a list");
            assert_eq!(logprobs.len(), prompt.len() + 1);
            for list in ["tokens", "top_logprobs", "text_offset"] {
                assert_eq!(log[list].as_array().expect("a list").len(), prompt.len() + 1, "{list}");
            }
            assert!(logprobs[0].is_null() && log["top_logprobs"][0].is_null());
            let expected =
                continuation(&server.loaded.model, &prompt[..1], &prompt[1..], (1, KvType::F32)).expect("scores");
            for (at, expected) in expected.iter().enumerate() {
                let found = logprobs[at + 1].as_f64().expect("a number") as f32;
                assert_eq!(found.to_bits(), expected.logprob.to_bits(), "prompt {index}, token {}", at + 1);
                let top = log["top_logprobs"][at + 1].as_object().expect("an object");
                let best = top.values().filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max);
                assert_eq!(best as f32, expected.top[0].1);
            }
            // The new token is the most probable one.
            let last = log["top_logprobs"][prompt.len()].as_object().expect("an object");
            assert!(last.values().all(|value| value.as_f64() <= logprobs[prompt.len()].as_f64()));
        }
    }
}

#[test]
fn a_text_may_only_be_scored() {
    let server = Running::start(Setup::default());
    let answer = complete(server.address, &json!({"prompt": "abc", "max_tokens": 0, "logprobs": 0, "echo": true}));
    let choice = &answer["choices"][0];
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some("abc"), Some("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["<s>", "a", "b", "c"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 0, 1, 2]));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
}

#[test]
fn offsets_count_characters_of_the_text() {
    let server = Running::start(Setup::default());
    let body =
        json!({"prompt": "héé, a tree", "max_tokens": 60, "logprobs": 0, "echo": true, "temperature": 1.0, "seed": 3});
    let answer = complete(server.address, &body);
    let choice = &answer["choices"][0];
    let (text, log) = (choice["text"].as_str().expect("a text"), &choice["logprobs"]);
    let letters: Vec<char> = text.chars().collect();
    let (tokens, offsets) = (log["tokens"].as_array().expect("a list"), log["text_offset"].as_array().expect("a list"));
    let mut whole = 0;
    let is_letter = |token: &Value| token.as_str().is_some_and(|token| token.len() == 1 && token.is_ascii());
    // Behind bytes that are no letter the place is not certain.
    for ((_, token), offset) in tokens.iter().zip(&tokens[1..]).zip(&offsets[1..]).filter(|((a, _), _)| is_letter(a)) {
        let (token, offset) = (token.as_str().expect("a text"), offset.as_u64().expect("a number") as usize);
        assert!(offset <= letters.len());
        // Tokens of this model are bytes: those of one letter of ASCII stand where they say.
        if token.len() == 1 && token.is_ascii() {
            assert_eq!(letters.get(offset).map(ToString::to_string).as_deref(), Some(token), "{text:?} at {offset}");
            whole += 1;
        }
    }
    assert!(whole > 0, "{text:?}");
}

#[test]
fn choices_draw_from_seeds_of_their_own() {
    let server = Running::start(Setup::default());
    let body = |n: usize, seed: u64| json!({"prompt": "Once upon", "n": n, "max_tokens": 30, "temperature": 1.2, "seed": seed});
    let several = complete(server.address, &body(5, 40));
    let texts: Vec<&str> = (0..5).map(|i| several["choices"][i]["text"].as_str().expect("a text")).collect();
    for (i, text) in texts.iter().enumerate() {
        assert_eq!(several["choices"][i]["index"], i);
        assert_eq!(text_of(&complete(server.address, &body(1, 40 + i as u64))), *text);
    }
    assert!(texts.iter().any(|text| *text != texts[0]));
    // To other programs -1 is a random seed.
    let random = |_| {
        text_of(&complete(server.address, &json!({"prompt": "Once", "max_tokens": 30, "temperature": 2, "seed": -1})))
            .to_owned()
    };
    let random: Vec<String> = (0..4).map(random).collect();
    assert!(random.iter().any(|text| *text != random[0]));
    assert_eq!(several["usage"]["prompt_tokens"], 10);
}

#[test]
fn texts_end_where_they_should() {
    let server = Running::start(Setup::default());
    let free = complete(server.address, &json!({"prompt": "abc", "max_tokens": 60, "seed": 1, "ignore_eos": true}));
    let text = text_of(&free);
    // A stop text out of the middle of what comes anyway.
    let letters: Vec<char> = text.chars().collect();
    let stop: String = letters[letters.len() / 2..letters.len() / 2 + 2].iter().collect();
    let body = json!({"prompt": "abc", "max_tokens": 60, "seed": 1, "ignore_eos": true, "stop": [stop, "never"], "logprobs": 0});
    let stopped = complete(server.address, &body);
    let choice = &stopped["choices"][0];
    let expected = text.split(stop.as_str()).next().expect("a part");
    assert_eq!(choice["text"], expected);
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(stop)));
    let offsets = choice["logprobs"]["text_offset"].as_array().expect("a list");
    assert!(expected.is_empty() || !offsets.is_empty());
    assert!(offsets.iter().all(|offset| offset.as_u64().expect("a number") <= expected.chars().count() as u64));

    // A bias makes the end certain; a least length puts it off.
    let biased = |more: Value| {
        let mut body = json!({"prompt": "abc", "max_tokens": 9, "logit_bias": {EOS.to_string(): 100}});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        complete(server.address, &body)
    };
    let ended = biased(json!({}));
    assert_eq!((text_of(&ended), &ended["choices"][0]["finish_reason"]), ("", &json!("stop")));
    assert_eq!((&ended["usage"]["completion_tokens"], &ended["choices"][0]["stop_reason"]), (&json!(1), &json!(EOS)));
    assert_eq!(biased(json!({"min_tokens": 4}))["usage"]["completion_tokens"], 5);
    assert_eq!(biased(json!({"ignore_eos": true}))["usage"]["completion_tokens"], 9);
    assert_eq!(biased(json!({"ignore_eos": true}))["choices"][0]["finish_reason"], "length");
    let banned =
        json!({"prompt": "abc", "max_tokens": 40, "temperature": 2, "top_k": 0, "logit_bias": {EOS.to_string(): -100}});
    assert_eq!(complete(server.address, &banned)["usage"]["completion_tokens"], 40);
}

#[test]
fn a_chat_is_a_completion_of_its_template() {
    let server = Running::start(Setup::default());
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]);
    let prompt = post(server.address, "/apply-template", &json!({"messages": messages})).json();
    assert_eq!(prompt["prompt"], "Be brief.\n\nUser: Hi\nAssistant:");
    let sampling = json!({"max_completion_tokens": 25, "seed": 9});
    let merged = |mut body: Value| {
        body.as_object_mut().expect("an object").extend(sampling.as_object().expect("an object").clone());
        body
    };
    let text = complete(server.address, &merged(json!({"prompt": prompt["prompt"], "stop": "\nUser:"})));
    let body = merged(json!({"messages": messages, "logprobs": true, "top_logprobs": 3}));
    let answer = post(server.address, "/v1/chat/completions", &body).json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"].as_str(), Some(text_of(&text)));
    let bytes = choice["logprobs"]["content"].as_array().expect("a list").iter().flat_map(|entry| {
        assert_eq!(entry["top_logprobs"].as_array().map(Vec::len), Some(3));
        entry["bytes"]
            .as_array()
            .expect("bytes")
            .iter()
            .map(|byte| byte.as_u64().expect("a byte") as u8)
            .collect::<Vec<_>>()
    });
    let bytes: Vec<u8> = bytes.collect();
    assert!(String::from_utf8_lossy(&bytes).starts_with(text_of(&text).trim_end_matches('\u{fffd}')));

    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    let (events, done) = post(server.address, "/v1/chat/completions", &streamed).events();
    assert!(done);
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
    let joined: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(Some(joined.as_str()), choice["message"]["content"].as_str());
    assert_eq!(events.last().expect("some")["choices"][0]["finish_reason"], choice["finish_reason"]);
}

/// A model of random weights writes what it likes, but for a schema it must write what fits.
#[test]
fn a_schema_is_held_to() {
    let server = Running::start(Setup::default());
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "age", "tags"],
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
            "tags": {"type": "array", "maxItems": 3, "items": {"enum": ["red", "blue"]}},
        },
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema}});
    for seed in 0..10 {
        let body = json!({"prompt": "A person:", "max_tokens": 200, "seed": seed, "temperature": 1.5, "n": 2, "response_format": format});
        let answer = complete(server.address, &body);
        for choice in answer["choices"].as_array().expect("choices") {
            assert_eq!(choice["finish_reason"], "stop", "{choice}");
            let text = choice["text"].as_str().expect("a text");
            let person: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
            assert_eq!(person.as_object().map(serde_json::Map::len), Some(3), "{text}");
            assert!(person["name"].as_str().is_some_and(|name| name.chars().count() <= 5), "{text}");
            assert!(person["age"].as_u64().is_some_and(|age| age < 100), "{text}");
            let tags = person["tags"].as_array().expect("a list");
            assert!(tags.len() <= 3 && tags.iter().all(|tag| tag == "red" || tag == "blue"), "{text}");
        }
    }
    let body = json!({"messages": [{"role": "user", "content": "JSON!"}], "max_tokens": 900, "seed": 1, "response_format": {"type": "json_object"}});
    let answer = post(server.address, "/v1/chat/completions", &body).json();
    let text = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(text.starts_with('{'), "{text}");
    if answer["choices"][0]["finish_reason"] == "stop" {
        assert!(serde_json::from_str::<Value>(text).expect("JSON").is_object());
    }
}

#[test]
fn tokens_come_in_both_shapes() {
    let server = Running::start(Setup::default());
    let ask = |path: &str, body: Value| post(server.address, path, &body).json();
    assert_eq!(ask("/tokenize", json!({"content": "hé"}))["tokens"], json!([104, 195, 169]));
    assert_eq!(ask("/tokenize", json!({"prompt": "h"}))["tokens"], json!([BOS, 104]));
    assert_eq!(ask("/tokenize", json!({"prompt": "h", "add_special_tokens": false}))["count"], 1);
    assert_eq!(ask("/tokenize", json!({"content": "</s>"}))["tokens"], json!([EOS]));
    assert_eq!(ask("/tokenize", json!({"content": "</s>", "parse_special": false}))["count"], 4);
    let pieces = ask("/tokenize", json!({"content": "hé", "with_pieces": true}));
    assert_eq!(
        pieces["tokens"],
        json!([{"id": 104, "piece": "h"}, {"id": 195, "piece": [195]}, {"id": 169, "piece": [169]}])
    );
    let text = ask("/detokenize", json!({"tokens": [104, 195, 169, EOS]}));
    assert_eq!((&text["content"], &text["prompt"]), (&json!("hé</s>"), &json!("hé</s>")));
    let info = get(server.address, "/tokenizer_info").json();
    assert_eq!((&info["bos_token"], &info["eos_token"]), (&json!("<s>"), &json!("</s>")));
}

#[test]
fn the_server_says_what_it_is() {
    let server = Running::start(Setup::default());
    complete(server.address, &json!({"prompt": "Hello there", "max_tokens": 20, "ignore_eos": true}));
    assert_eq!(get(server.address, "/health").json(), json!({"status": "ok"}));
    let models = get(server.address, "/v1/models").json();
    assert_eq!(models["data"][0]["id"], "tiny");
    assert_eq!(get(server.address, "/v1/models/tiny").json(), models["data"][0]);
    assert_eq!(get(server.address, "/v1/models/other").status, 404);
    let props = get(server.address, "/props").json();
    assert_eq!((props["context_length"].as_u64(), props["total_slots"].as_u64()), (Some(1024), Some(8)));
    // As people write them, and not as single precision has them.
    let settings = &props["default_generation_settings"];
    assert_eq!(
        (&settings["temperature"], &settings["top_p"], &settings["min_p"]),
        (&json!(0.8), &json!(0.95), &json!(0.05))
    );
    let metrics = get(server.address, "/metrics").body;
    for line in [
        "bitnet_generation_tokens_total 20",
        "bitnet_prompt_tokens_total 12",
        "bitnet_time_to_first_token_seconds_count 1",
        "bitnet_inter_token_latency_seconds_count 19",
        "bitnet_queue_seconds_count 1",
        "bitnet_requests_finished_total{reason=\"length\"} 1",
        "bitnet_requests_running 0",
        "bitnet_requests_waiting 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    assert_eq!(get(server.address, "/openapi.json").json()["openapi"], "3.1.0");
    let page = get(server.address, "/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").expect("a policy").contains("default-src 'none'"));
}
