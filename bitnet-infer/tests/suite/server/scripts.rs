//! Texts that are not ASCII: tokens here are single bytes, so most of them are a part of a character.

use serde_json::{Value, json};

use super::client::{complete, post, text_of};
use super::{Running, Setup};

const TEXT: &str = "Привет, как дела? 안녕하세요 안녕하세요 السلام عليكم नमस्ते दुनिया 東京は夜の七時。👩‍👩‍👧‍👦🏳️‍🌈 naïve";

/// The pieces of a streamed completion.
fn streamed(server: &Running, body: &Value) -> Vec<String> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let (events, done) = post(server.address, "/v1/completions", &body).events();
    assert!(done);
    events.iter().map(|event| event["choices"][0]["text"].as_str().expect("a text").to_owned()).collect()
}

#[test]
fn a_text_of_many_scripts_comes_whole() {
    let server = Running::start(Setup::default());
    let format = json!({"type": "json_schema", "json_schema": {"name": "words", "schema": {"const": TEXT}}});
    let body = json!({"prompt": "Say:", "max_tokens": 600, "seed": 1, "response_format": format});
    let expected = format!("\"{TEXT}\"");
    let answer = complete(server.address, &body);
    assert_eq!(text_of(&answer), expected);
    let pieces = streamed(&server, &body);
    assert_eq!(pieces.concat(), expected);
    // A piece for each character: none waits for the next one.
    assert!(pieces.iter().all(|piece| piece.chars().count() <= 1), "{pieces:?}");
    let mut chat = body;
    chat["messages"] = json!([{"role": "user", "content": TEXT}]);
    chat.as_object_mut().expect("an object").remove("prompt");
    let answer = post(server.address, "/v1/chat/completions", &chat).json();
    assert_eq!(answer["choices"][0]["message"]["content"], expected);
}

#[test]
fn bytes_that_are_no_characters_are_shown() {
    let server = Running::start(Setup::default());
    // The bias leaves one token possible.
    let only = |prompt: Value, byte: u8, tokens: usize| json!({"prompt": prompt, "max_tokens": tokens, "logit_bias": {byte.to_string(): 100}, "ignore_eos": true, "logprobs": 0});
    for (prompt, byte, tokens, expected) in [
        (json!("a"), 0x80, 20, "\u{fffd}".repeat(20)),
        (json!("a"), 0xf0, 1, "\u{fffd}".into()),
        (json!("a"), 0xf0, 3, "\u{fffd}".repeat(3)),
        // The prompt ends inside a character.
        (json!([97, 0xf0, 0x9f, 0x98]), 0x80, 1, "😀".into()),
        (json!([97, 0xf0, 0x9f]), 0x41, 2, "\u{fffd}AA".into()),
    ] {
        let body = only(prompt, byte, tokens);
        let answer = complete(server.address, &body);
        assert_eq!(text_of(&answer), expected, "{body}");
        assert_eq!(streamed(&server, &body).concat(), expected, "{body}");
        let listed = answer["choices"][0]["logprobs"]["tokens"].as_array().map(Vec::len);
        assert_eq!(listed, Some(tokens), "every token is in the list: {body}");
        // Prompt and answer are one text.
        let Some(ids) = body["prompt"].as_array() else { continue };
        let mut echo = body.clone();
        echo["echo"] = true.into();
        assert_eq!(text_of(&complete(server.address, &echo)), format!("a{expected}"));
        echo["max_tokens"] = 0.into();
        assert_eq!(text_of(&complete(server.address, &echo)), "a\u{fffd}");
        let all = post(server.address, "/detokenize", &json!({"tokens": ids})).json();
        assert_eq!(all["content"], "a\u{fffd}");
    }
}

/// What is held back of a character at the end may be what a stop text waits for.
#[test]
fn a_stop_text_may_be_the_end() {
    let server = Running::start(Setup::default());
    let body = json!({"prompt": "a", "max_tokens": 1, "logit_bias": {"240": 100}, "stop": "\u{fffd}"});
    let answer = complete(server.address, &body);
    assert_eq!((text_of(&answer), &answer["choices"][0]["finish_reason"]), ("", &json!("stop")));
}
