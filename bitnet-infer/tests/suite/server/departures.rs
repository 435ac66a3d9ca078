//! Clients that leave, dawdle or send nonsense, and a server that is told to stop.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use bitnet_infer::engine::SamplerConfig;
use bitnet_infer::server::Connections;
use bitnet_infer::server::scheduler::{Event, Limits, Options, Prefill};
use serde_json::json;

use super::client::{complete, get, post, receive, send};
use super::{CONTEXT, Running, Setup};

fn long(stream: bool) -> Vec<u8> {
    // Long enough that it cannot end by itself before the client has left.
    let prompt = "long ago ".repeat(60);
    let body =
        json!({"prompt": prompt, "max_tokens": 400, "ignore_eos": true, "n": 4, "stream": stream, "logprobs": 5});
    body.to_string().into_bytes()
}

/// In the queue, while the prompt is read, and while text is generated; streamed and not.
#[test]
fn requests_of_clients_that_leave_are_dropped() {
    let limits = Limits { parallel: 4, prefill: Prefill::Tokens(8), ..Setup::default().limits };
    let server = Running::start(Setup { limits, ..Setup::default() });
    for round in 0..12u64 {
        for stream in [true, false] {
            let clients: Vec<TcpStream> =
                (0..3).map(|_| send(server.address, "POST", "/v1/completions", &[], &long(stream))).collect();
            thread::sleep(Duration::from_millis(round * 7));
            drop(clients);
        }
    }
    server.settle();
    assert!(server.metric("bitnet_requests_finished_total{reason=\"cancelled\"}") > 100.0);
    // What is kept of their prompts is all that is left.
    let pages = server.metric("bitnet_prefix_cache_pages");
    complete(server.address, &json!({"prompt": "a", "max_tokens": 1}));
    server.settle();
    assert!(server.metric("bitnet_kv_cache_pages") <= pages + 1.0);
    assert_eq!(server.metric("bitnet_requests_running"), 0.0);
    assert_eq!(server.metric("bitnet_requests_waiting"), 0.0);
}

fn options(max_tokens: usize) -> Options {
    Options {
        choices: 1,
        max_tokens,
        min_tokens: 0,
        end_tokens: Vec::new(),
        stops: Vec::new(),
        sampler: SamplerConfig::default(),
        logprobs: Some(0),
        prompt_logprobs: None,
        constraint: None,
    }
}

#[test]
fn a_reader_that_takes_nothing_is_given_up_and_a_slow_one_loses_nothing() {
    let limits = Limits { patience: Duration::from_millis(300), ..Setup::default().limits };
    let server = Running::start(Setup { limits, ..Setup::default() });
    let idle = server.engine.submit(vec![vec![1, 2, 3]], options(CONTEXT - 3)).expect("taken on");
    // Several texts for one reader that is slower than they come, for longer than anybody waits for one that takes nothing.
    let mut slow = server.engine.submit(vec![vec![1, 2, 3]], Options { choices: 3, ..options(600) }).expect("taken on");
    let (mut tokens, mut ended) = ([0; 3], 0);
    while ended < 3 {
        match slow.blocking_recv().expect("an event") {
            Event::Text { choice, tokens: some, .. } => tokens[choice] += some.len(),
            Event::End { choice, usage, .. } => {
                assert_eq!((usage.completion_tokens, tokens[choice]), (600, 600));
                ended += 1;
            }
            Event::Prompt { scores, .. } => assert!(scores.is_empty()),
            Event::Failed(message) => panic!("{message}"),
        }
        if tokens.iter().sum::<usize>() % 40 == 0 {
            thread::sleep(Duration::from_millis(20));
        }
    }
    server.settle();
    assert_eq!(server.metric("bitnet_requests_rejected_total{reason=\"slow_reader\"}"), 1.0);
    drop(idle);
}

/// However many choices prompts part into, no more are worked on than the server was told.
#[test]
fn no_more_texts_run_than_were_allowed() {
    let limits = Limits { parallel: 8, prefill: Prefill::Tokens(8), ..Setup::default().limits };
    let server = Running::start(Setup { limits, ..Setup::default() });
    let prompt: Vec<u32> = (0..200).collect();
    let readers: Vec<_> = [8, 7, 6, 5, 1, 1]
        .into_iter()
        .map(|choices| {
            server.engine.submit(vec![prompt.clone()], Options { choices, ..options(30) }).expect("taken on")
        })
        .map(|mut reader| thread::spawn(move || while reader.blocking_recv().is_some() {}))
        .collect();
    let mut most = 0f64;
    while server.engine.active() > 0 {
        most = most.max(server.metric("bitnet_requests_running"));
        thread::sleep(Duration::from_micros(200));
    }
    readers.into_iter().for_each(|reader| reader.join().expect("no panic"));
    assert!((1.0..=8.0).contains(&most), "{most} at a time");
    assert_eq!(server.metric("bitnet_requests_finished_total{reason=\"length\"}"), 28.0);
}

/// While everything stands still for a reader, the engine's thread does too.
#[test]
fn a_stalled_engine_does_not_spin() {
    let limits = Limits { parallel: 1, patience: Duration::from_millis(600), ..Setup::default().limits };
    let server = Running::start(Setup { limits, ..Setup::default() });
    let readers: Vec<_> =
        (0..3).map(|_| server.engine.submit(vec![vec![1, 2, 3]], options(900)).expect("taken on")).collect();
    thread::sleep(Duration::from_millis(300));
    let before = server.metric("bitnet_engine_rounds_total");
    thread::sleep(Duration::from_millis(200));
    let rounds = server.metric("bitnet_engine_rounds_total") - before;
    assert!(rounds < 100.0, "{rounds} rounds in 200 ms");
    drop(readers);
    server.settle();
}

#[test]
fn a_head_that_does_not_come_ends_the_connection() {
    let connections = Connections { head_time: Duration::from_millis(400), ..Connections::default() };
    let server = Running::start(Setup { connections, ..Setup::default() });
    let started = Instant::now();
    let mut slow: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(server.address).expect("connects")).collect();
    for stream in &mut slow {
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
        stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx: ").expect("writes");
    }
    // Others are served meanwhile.
    complete(server.address, &json!({"prompt": "a", "max_tokens": 2}));
    for stream in &mut slow {
        // An error is an end too: the connection may be reset.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    let started = Instant::now();
    while server.metric("bitnet_connections") > 0.0 {
        assert!(started.elapsed() < Duration::from_secs(10));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_server_that_stops_lets_requests_end_and_takes_no_more() {
    let mut server = Running::start(Setup::default());
    let body = json!({"prompt": "a", "max_tokens": 900, "ignore_eos": true, "stream": true});
    let stream = send(server.address, "POST", "/v1/completions", &[], body.to_string().as_bytes());
    while server.engine.active() == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let address = server.address;
    let reader = thread::spawn(move || receive(stream));
    server.stop();
    let (events, done) = reader.join().expect("no panic").events();
    assert!(done && events.len() > 5, "{} events", events.len());
    assert_eq!(events.last().expect("some")["choices"][0]["finish_reason"], "length");
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_server_that_stops_cuts_off_what_does_not_end() {
    let limits = Limits { patience: Duration::from_secs(60), ..Setup::default().limits };
    let connections = Connections { grace: Duration::from_millis(300), ..Connections::default() };
    let mut server = Running::start(Setup { limits, connections, ..Setup::default() });
    // Answers of some megabytes to clients that read none of them.
    let body = json!({"prompt": "a", "max_tokens": 1000, "ignore_eos": true, "stream": true, "n": 8, "logprobs": 20, "echo": true});
    let clients: Vec<TcpStream> =
        (0..2).map(|_| send(server.address, "POST", "/v1/completions", &[], body.to_string().as_bytes())).collect();
    while server.engine.active() == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let started = Instant::now();
    server.stop();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    drop(clients);
}

#[test]
fn a_full_queue_says_so_and_recovers() {
    let limits = Limits { parallel: 1, queue: 3, ..Setup::default().limits };
    let server = Running::start(Setup { limits, ..Setup::default() });
    let body = json!({"prompt": "a", "max_tokens": 900, "ignore_eos": true, "stream": true}).to_string();
    let busy: Vec<TcpStream> =
        (0..4).map(|_| send(server.address, "POST", "/v1/completions", &[], body.as_bytes())).collect();
    while server.engine.active() < 4 {
        thread::sleep(Duration::from_millis(1));
    }
    let refused = post(server.address, "/v1/completions", &json!({"prompt": "a"}));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["error"]["code"], "queue_full");
    // A request is taken on as a whole or not at all.
    let several = post(server.address, "/v1/completions", &json!({"prompt": ["a", "b", "c"]}));
    assert_eq!(several.status, 429);
    drop(busy);
    server.settle();
    complete(server.address, &json!({"prompt": "a", "max_tokens": 1}));
    assert_eq!(get(server.address, "/health").status, 200);
}
