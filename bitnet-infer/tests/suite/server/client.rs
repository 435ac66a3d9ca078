//! HTTP over a socket, by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The objects of a stream, and whether it ended as it should.
    pub fn events(&self) -> (Vec<Value>, bool) {
        let data: Vec<&str> = self.body.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
        let done = data.last() == Some(&"[DONE]");
        let objects = data.iter().filter(|data| **data != "[DONE]");
        (objects.map(|data| serde_json::from_str(data).expect("JSON")).collect(), done)
    }
}

/// Sends a request and leaves the connection open to be read from.
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "host") {
        head.push_str(&format!("host: {address}\r\n"));
    }
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    stream.write_all(format!("{head}\r\n").as_bytes()).expect("writes");
    // A server that refuses a body may close before it has all of it.
    let _ = stream.write_all(body);
    stream
}

fn head(reader: &mut impl BufRead) -> (u16, Vec<(String, String)>) {
    let mut line = String::new();
    reader.read_line(&mut line).expect("a status");
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    (status, headers)
}

/// Reads an answer to its end.
pub fn receive(stream: TcpStream) -> Answer {
    let mut reader = BufReader::new(stream);
    let (mut status, mut headers) = head(&mut reader);
    // Interim answers, which say that the real one will come.
    while status == 100 {
        (status, headers) = head(&mut reader);
    }
    let chunked = headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).expect("a size");
            let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).expect("a chunk");
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                break;
            }
        }
    } else {
        // A connection that is reset after an answer has still given it.
        let _ = reader.read_to_end(&mut body);
    }
    Answer { status, headers, body: String::from_utf8(body).expect("UTF-8") }
}

pub fn get(address: SocketAddr, path: &str) -> Answer {
    receive(send(address, "GET", path, &[], b""))
}

pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    receive(send(address, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes()))
}

/// A completion that must succeed.
pub fn complete(address: SocketAddr, body: &Value) -> Value {
    let answer = post(address, "/v1/completions", body);
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.json()
}

/// The text of its first choice.
pub fn text_of(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().expect("a text")
}
