//! What one request gets does not depend on the others.

use std::thread;
use std::time::Duration;

use bitnet_infer::server::scheduler::{Limits, Prefill};
use serde_json::{Value, json};

use super::client::complete;
use super::{Running, Setup};

/// A request of any kind, decided by a number.
fn request(i: u64) -> Value {
    let prompt: String = (0..(i * i * 37 % 400) + 1).map(|j| char::from(b'a' + (i % 3 * 5 + j) as u8 % 26)).collect();
    let temperature = [0.0, 0.7, 1.3][(i % 3) as usize];
    let top_k = [0, 40][(i % 2) as usize];
    let frequency_penalty = [0.0, 0.5][(i / 2 % 2) as usize];
    let logprobs = i.is_multiple_of(2).then_some(2);
    json!({
        "prompt": prompt, "max_tokens": 5 + i * 13 % 60, "seed": i, "temperature": temperature,
        "n": 1 + i % 3, "top_k": top_k, "ignore_eos": i.is_multiple_of(2), "echo": i.is_multiple_of(4),
        "logprobs": logprobs, "frequency_penalty": frequency_penalty,
    })
}

/// Without what differs between any two answers.
fn essence(mut answer: Value) -> Value {
    for name in ["id", "created", "timings"] {
        answer.as_object_mut().expect("an object").remove(name);
    }
    answer["usage"].as_object_mut().expect("an object").remove("prompt_tokens_details");
    answer
}

fn alone(i: u64) -> Value {
    let limits = Limits { prefix_cache: false, prefill: Prefill::Whole, ..Setup::default().limits };
    let server = Running::start(Setup { limits, ..Setup::default() });
    essence(complete(server.address, &request(i)))
}

/// The same texts and the same log-probabilities, to the bit: alone and in any company, with prompts whole and in pieces, with
/// what was read before and without it, and with so little memory that texts give theirs back to others.
#[test]
fn company_changes_nothing() {
    const REQUESTS: u64 = 24;
    let expected: Vec<Value> = (0..REQUESTS).map(alone).collect();
    // A page takes 64 positions of two layers, two heads of 22 numbers and of 32.
    let page = 64 * 2 * 2 * (22 + 32) * 4;
    let mut preempted = false;
    for (prefill, prefix_cache, pages) in [
        (Prefill::Tokens(16), true, 1000),
        (Prefill::Within(Duration::from_millis(2)), true, 14),
        (Prefill::Tokens(200), false, 12),
    ] {
        let limits = Limits { prefill, prefix_cache, kv_bytes: pages * page, ..Setup::default().limits };
        let server = Running::start(Setup { limits, ..Setup::default() });
        let address = server.address;
        for _ in 0..2 {
            thread::scope(|scope| {
                let answers: Vec<_> =
                    (0..REQUESTS).map(|i| scope.spawn(move || essence(complete(address, &request(i))))).collect();
                for (i, answer) in answers.into_iter().enumerate() {
                    assert_eq!(answer.join().expect("no panic"), expected[i], "request {i}, {prefill:?}");
                }
            });
        }
        server.settle();
        preempted |= server.metric("bitnet_preemptions_total") > 0.0;
        assert!(server.metric("bitnet_kv_cache_pages") <= pages as f64);
        if prefix_cache {
            assert!(server.metric("bitnet_prefix_cache_hit_tokens_total") > 0.0);
        } else {
            assert_eq!(server.metric("bitnet_kv_cache_pages"), 0.0);
        }
    }
    assert!(preempted, "no text had to give its memory back: the test is to be made tighter");
}
