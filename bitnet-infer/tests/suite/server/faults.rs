//! Requests that fail, and those beside them.

use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use bitnet_infer::engine::SamplerConfig;
use bitnet_infer::server::scheduler::{Event, Limits, Options};
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use super::client::{complete, get, post};
use super::{Running, Setup};

fn options(max_tokens: usize) -> Options {
    Options {
        choices: 1,
        max_tokens,
        min_tokens: 0,
        end_tokens: Vec::new(),
        stops: Vec::new(),
        sampler: SamplerConfig::default(),
        logprobs: None,
        prompt_logprobs: None,
        constraint: None,
    }
}

/// All events of a request, and why it failed, if it did.
fn read(mut events: Receiver<Event>) -> (String, usize, Option<String>) {
    let (mut text, mut ended, mut failed) = (String::new(), 0, None);
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Prompt { .. } => {}
            Event::Text { text: piece, .. } => text.push_str(&piece),
            Event::End { .. } => ended += 1,
            Event::Failed(reason) => failed = Some(reason),
        }
    }
    (text, ended, failed)
}

struct Panicking;

impl Wake for Panicking {
    fn wake(self: Arc<Self>) {
        panic!("a reader that does not want to be woken");
    }
}

#[test]
fn a_request_that_fails_fails_alone() {
    let server = Running::start(Setup::default());
    let submit = |prompt: Vec<u32>, options: Options| server.engine.submit(vec![prompt], options).expect("taken on");
    let (expected, ended, failed) = read(submit(vec![1, 2, 3], options(300)));
    assert_eq!((ended, failed), (1, None));
    for fault in ["unknown token", "no token", "no choices", "reader"] {
        let running = submit(vec![1, 2, 3], options(300));
        let faulty = match fault {
            "unknown token" => submit(vec![1, 258], options(9)),
            "no token" => submit(vec![], options(9)),
            "no choices" => submit(vec![1], Options { choices: 0, ..options(9) }),
            _ => {
                let mut faulty = submit(vec![1, 2], options(9));
                let waker = Waker::from(Arc::new(Panicking));
                // If an event is there already, it takes another look to be woken.
                while faulty.poll_recv(&mut Context::from_waker(&waker)).is_ready() {}
                faulty
            }
        };
        let (text, ended, failed) = read(running);
        assert_eq!((text.as_str(), ended, failed), (expected.as_str(), 1, None), "beside: {fault}");
        if fault != "reader" {
            let (_, ended, failed) = read(faulty);
            assert!(ended == 0 && failed.is_some(), "{fault}");
        }
        server.settle();
        assert!(server.engine.is_open(), "{fault}");
    }
    assert_eq!(get(server.address, "/health").status, 200);
    assert_eq!(server.metric("bitnet_requests_waiting"), 0.0);
}

/// Seventeen prompts, sixteen times, with fourteen alternatives: refused before a token of it is read.
#[test]
fn an_answer_is_bounded_in_all_its_dimensions() {
    let limits = Limits { parallel: 16, queue: 1000, ..Setup::default().limits };
    let server = Running::start(Setup { limits, body_limit: 4 << 20, ..Setup::default() });
    let prompt: Vec<u32> = (0..1000).map(|i| i % 250).collect();
    let refused = |body: Value, numbers: &[&str]| {
        let answer = post(server.address, "/v1/completions", &body);
        assert_eq!(answer.status, 400, "{}", answer.body);
        let message = answer.json()["error"]["message"].as_str().expect("a message").to_owned();
        numbers.iter().for_each(|number| assert!(message.contains(number), "{message} lacks {number}"));
    };
    let many = json!({"prompt": vec![&prompt; 17], "n": 16, "echo": true, "logprobs": 14, "max_tokens": 0});
    refused(many.clone(), &["4080000", "17 prompts with 17000 tokens", "`n` 16", "1048576"]);
    let mut streamed = many;
    streamed["stream"] = true.into();
    refused(streamed, &["4080000", "1048576"]);
    // New tokens count as the prompt's do, where they are held until all are there.
    let new = json!({"prompt": vec!["a"; 60], "n": 16, "logprobs": 20, "max_tokens": 900});
    refused(new, &["18144000", "900 new tokens", "1048576"]);
    // Text without scores, as bytes: whatever the tokens are.
    let text = "x".repeat(1000);
    refused(
        json!({"prompt": vec![&text; 60], "n": 16, "echo": true, "max_tokens": 1023 - 1001 + 9000}),
        &["context is 1024"],
    );
    assert_eq!(server.metric("bitnet_passes_total"), 0.0);
    // What fits is answered: each choice has what a single one has.
    let body =
        |n: usize| json!({"prompt": ["One", "Two"], "n": n, "echo": true, "logprobs": 2, "max_tokens": 3, "seed": 4});
    let (one, four) = (complete(server.address, &body(1)), complete(server.address, &body(4)));
    for (index, choice) in four["choices"].as_array().expect("choices").iter().enumerate() {
        let alone = &one["choices"][index / 4]["logprobs"];
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let both = [&choice["logprobs"][list], &alone[list]].map(|list| list.as_array().expect("a list"));
            assert_eq!(both.map(Vec::len), [4 + 3, 4 + 3], "{list}");
            assert_eq!(both[0][..4], both[1][..4], "{list}");
        }
    }
}

/// A stream without a schema beside eight texts that must fit one: it loses nothing, and its tokens come about as fast.
#[test]
fn texts_that_are_held_to_a_schema_hold_up_nobody_else() {
    let server =
        Running::start(Setup { limits: Limits { parallel: 16, ..Setup::default().limits }, ..Setup::default() });
    let stream = || {
        let started = Instant::now();
        let done = read(server.engine.submit(vec![vec![1, 2, 3]], options(300)).expect("taken on"));
        (done, started.elapsed())
    };
    let (expected, free) = stream();
    let schema =
        json!({"type": "array", "minItems": 400, "items": {"type": "string", "pattern": "^([a-z]{1,9} ){9,40}$"}});
    let body = json!({"prompt": "A list:", "max_tokens": 900, "n": 8, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}});
    let beside = std::thread::scope(|scope| {
        let held = scope.spawn(|| post(server.address, "/v1/completions", &body));
        while server.engine.active() < 8 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let beside = stream();
        assert!(held.join().expect("no panic").status == 200);
        beside
    });
    assert_eq!(beside.0, expected, "company changes nothing");
    println!("300 tokens: {free:?} alone, {:?} beside eight texts that are held to a schema", beside.1);
}
