//! How requests may come in, below what they say.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{get, receive, send};
use super::{Running, Setup};

fn connect(server: &Running, head_and_body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    stream.write_all(head_and_body.as_bytes()).expect("writes");
    stream
}

fn completion(version: &str, body: &str) -> String {
    format!("POST /v1/completions HTTP/{version}\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// Whoever closes the sending half after a whole request still waits for the answer, whether it comes at once or after a while.
#[test]
fn half_closed_connections_get_their_answer() {
    let server = Running::start(Setup::default());
    for stream in [false, true] {
        for (version, tokens) in [("1.1", 1), ("1.1", 900), ("1.0", 1), ("1.0", 900)] {
            let body = json!({"prompt": "a", "max_tokens": tokens, "ignore_eos": true, "stream": stream}).to_string();
            let connection = connect(&server, &completion(version, &body));
            connection.shutdown(Shutdown::Write).expect("half closed");
            let answer = receive(connection);
            assert_eq!(answer.status, 200, "{version} {body}: {}", answer.body);
            match stream {
                true => assert!(answer.body.contains("[DONE]"), "{version}"),
                false => assert_eq!(answer.json()["usage"]["completion_tokens"], tokens, "{version}"),
            }
        }
    }
    let health = connect(&server, "GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
    health.shutdown(Shutdown::Write).expect("half closed");
    assert_eq!(receive(health).status, 200);
}

/// A client that has left looks like one that has closed its sending half, and is not worked for all the same.
#[test]
fn clients_that_have_left_are_told_from_those_that_wait() {
    let server = Running::start(Setup::default());
    let body = json!({"prompt": "a", "max_tokens": 1000, "ignore_eos": true, "n": 8, "logprobs": 20}).to_string();
    // As much as takes seconds.
    let crowd: Vec<TcpStream> = (0..8).map(|_| connect(&server, &completion("1.1", &body))).collect();
    while server.engine.active() < 64 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let waiting =
        connect(&server, &completion("1.1", &json!({"prompt": "b", "max_tokens": 3, "ignore_eos": true}).to_string()));
    waiting.shutdown(Shutdown::Write).expect("half closed");
    let started = Instant::now();
    drop(crowd);
    let answer = receive(waiting);
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3);
    server.settle();
    assert!(server.metric("bitnet_requests_finished_total{reason=\"cancelled\"}") >= 56.0);
    assert!(started.elapsed() < Duration::from_secs(20));
}

/// Load balancers ask so. A browser, through which a foreign name could reach this server, always sends a `Host`.
#[test]
fn http_1_0_needs_no_host() {
    let server = Running::start(Setup::default());
    for path in ["/health", "/v1/health", "/v1/models", "/metrics"] {
        let answer = receive(connect(&server, &format!("GET {path} HTTP/1.0\r\n\r\n")));
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
    let foreign = receive(connect(&server, "GET /health HTTP/1.0\r\nhost: evil.example\r\n\r\n"));
    assert_eq!(foreign.status, 403, "{}", foreign.body);
    let page = receive(connect(&server, "GET /v1/models HTTP/1.0\r\norigin: https://evil.example\r\n\r\n"));
    assert_eq!(page.status, 403, "{}", page.body);
    let missing = receive(connect(&server, "GET /health HTTP/1.1\r\nconnection: close\r\n\r\n"));
    assert_eq!(missing.status, 400);
    assert!(missing.body.contains("`Host` header, which HTTP/1.1 requires"), "{}", missing.body);
}

#[test]
fn the_option_that_allows_a_host_is_named_with_it() {
    let server = Running::start(Setup::default());
    let ask = |headers: &[(&str, &str)]| receive(send(server.address, "GET", "/v1/models", headers, b""));
    let refused = ask(&[("host", "host.docker.internal:8080")]);
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("--allow-host host.docker.internal"), "{}", refused.body);
    let refused = ask(&[("origin", "https://chat.example")]);
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("--cors-origin https://chat.example"), "{}", refused.body);
}

#[test]
fn compressed_bodies_are_refused_as_such() {
    let server = Running::start(Setup::default());
    // gzip.compress(b"{}") of Python.
    let gzip = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xab\xae\x05\x00\x43\xbf\xa6\xa3\x02\x00\x00\x00";
    for coding in ["gzip", "br", "deflate", "zstd", "GZIP, br"] {
        let headers = [("content-encoding", coding)];
        let refused = receive(send(server.address, "POST", "/v1/completions", &headers, gzip));
        assert_eq!(refused.status, 415, "{coding}: {}", refused.body);
        assert_eq!(refused.json()["error"]["code"], "unsupported_content_encoding");
        assert!(refused.body.contains("send it uncompressed"), "{}", refused.body);
        assert_eq!(refused.header("accept-encoding"), Some("identity"));
    }
    let unsaid = receive(send(server.address, "POST", "/v1/completions", &[], gzip));
    assert_eq!(unsaid.status, 400);
    assert!(unsaid.body.contains("compressed by gzip"), "{}", unsaid.body);
    let identity = [("content-encoding", "identity")];
    let plain = receive(send(server.address, "POST", "/tokenize", &identity, b"\xef\xbb\xbf{\"content\": \"a\"}"));
    assert_eq!(plain.status, 200, "{}", plain.body);
    // A connection that is refused so is usable for the next request.
    let mut both = connect(
        &server,
        "POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\nxxGET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
    );
    let mut text = String::new();
    both.read_to_string(&mut text).expect("two answers");
    assert!(text.contains("HTTP/1.1 415") && text.contains("HTTP/1.1 200"), "{text}");
    assert_eq!(get(server.address, "/health").status, 200);
}
