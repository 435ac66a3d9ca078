//! `chat`, in a pipe and in a terminal: what it says, and that nothing of what is typed is lost.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::common::{tiny_config, write_model};

fn model(root: &Path) -> PathBuf {
    let folder = root.join("small-talker");
    write_model(&folder, &tiny_config("ternary", "int8"), 1);
    folder
}

fn chat(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-infer"));
    command.env_remove("BITNET_KERNEL").env_remove("BITNET_TERNARY").env("NO_COLOR", "1").env("TERM", "xterm");
    command.arg("--threads=1").arg("chat").arg(folder).args(["--chat-template=plain", "--no-history", "-n", "4"]);
    command
}

/// What `chat` says on stderr, line by line.
fn told(folder: &Path, input: &str) -> Vec<String> {
    let mut command = chat(folder);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{stderr}");
    let cut_off = |line: &&str| !line.starts_with("(cut off") && !line.starts_with("(the context is full");
    stderr.lines().filter(cut_off).map(str::to_owned).collect()
}

#[test]
fn commands_say_what_they_did() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let file = root.path().join("saved.json");
    let place = file.display();
    let input = format!(
        "/system Be  kind.\n/set temperature 0.5\nhi there\n/save {place}\n/undo\n/load {place}\n/reset\n/system\n/set seed 7\n"
    );
    let expected = [
        "(the system text from now on: “Be kind.”)".to_owned(),
        "(temperature is 0.5 from now on)".to_owned(),
        format!("(wrote 3 messages to {place})"),
        "(took back “hi there”; 1 message left)".to_owned(),
        format!("(read 3 messages from {place})"),
        "(begun anew; the system text stays)".to_owned(),
        "(no system text from now on)".to_owned(),
        "(seed is 7 from now on)".to_owned(),
    ];
    assert_eq!(told(&folder, &input), expected);
}

#[test]
fn a_conversation_begun_elsewhere_is_loaded_and_goes_on() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let begun = serde_json::json!([
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": "Weather?", "name": null},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "w", "arguments": "{\"a\": 1}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "assistant", "content": "It rains.", "tool_calls": []},
    ]);
    let (list, object) = (root.path().join("list.json"), root.path().join("object.json"));
    fs::write(&list, begun.to_string()).expect("written");
    fs::write(&object, serde_json::json!({"model": "x", "messages": begun}).to_string()).expect("written");
    for path in [list, object] {
        let saved = root.path().join("saved.json");
        told(&folder, &format!("/load {}\nAnd now?\n/save {}\n", path.display(), saved.display()));
        let messages: Value = serde_json::from_slice(&fs::read(&saved).expect("saved")).expect("JSON");
        let messages = messages.as_array().expect("a list");
        assert_eq!(messages.len(), 7);
        assert_eq!(messages[0], serde_json::json!({"role": "system", "content": "Be kind."}));
        assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"]["a"], 1);
        assert_eq!((messages[3]["role"].as_str(), messages[5]["content"].as_str()), (Some("tool"), Some("And now?")));
    }
}

#[test]
fn what_is_no_conversation_is_refused_by_its_place() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let file = root.path().join("file.json");
    for (text, expected) in [
        ("{}", "file.json: is no list: expected a list of messages"),
        ("[1", "file.json: expected a list of messages with `role` and `content`"),
        (
            r#"[{"role": "user", "content": "a"}, {"role": "king", "content": "b"}]"#,
            "file.json: message 2: unknown variant `king`",
        ),
        (r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#, "file.json: message 1: "),
    ] {
        fs::write(&file, text).expect("written");
        let mut child = chat(&folder).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        let line = format!("/load {}\n", file.display());
        child.stdin.take().expect("piped").write_all(line.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("ends");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(expected), "{stderr} lacks {expected}");
    }
}

/// A terminal: its own side, and the side that a program sees.
fn terminal() -> (OwnedFd, File) {
    let own = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&own).expect("granted");
    unlockpt(&own).expect("unlocked");
    let name = ptsname(&own, Vec::new()).expect("a name").into_string().expect("UTF-8");
    (own, File::options().read(true).write(true).open(name).expect("the other side"))
}

#[test]
fn lines_pasted_together_are_all_taken() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let saved = root.path().join("saved.json");
    let (own, other) = terminal();
    let side = || Stdio::from(other.try_clone().expect("a copy"));
    let mut child = chat(&folder).stdin(side()).stdout(side()).stderr(side()).spawn().expect("runs");
    drop(other);
    let mut own = File::from(own);
    let mut screen = own.try_clone().expect("a copy");
    let (shown, seen) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        // It ends with an error once the program has closed its side.
        while let Ok(n @ 1..) = screen.read(&mut bytes) {
            if shown.send(String::from_utf8_lossy(&bytes[..n]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut text = String::new();
    let wait_for = |text: &mut String, words: &str| {
        while !text.contains(words) {
            match seen.recv_timeout(Duration::from_secs(20)) {
                Ok(more) => text.push_str(&more),
                Err(_) => return false,
            }
        }
        true
    };
    assert!(wait_for(&mut text, "> "), "{text}");
    let first = text.lines().next().unwrap_or_default();
    for words in ["small-talker", "300 tokens of context", "/help", "/exit or Ctrl-D ends the chat"] {
        assert!(first.contains(words), "{first} lacks {words}");
    }
    // Without the marks that terminals put around what is pasted.
    write!(own, "one\rtwo\r/save {}\r/exit\r", saved.display()).expect("written");
    let ended = wait_for(&mut text, "(wrote ");
    if !ended {
        child.kill().expect("killed");
    }
    child.wait().expect("ends");
    assert!(ended, "{text}");
    let messages: Vec<Value> = serde_json::from_slice(&fs::read(&saved).expect("saved")).expect("JSON");
    let typed = messages.iter().filter(|message| message["role"] == "user").map(|message| message["content"].as_str());
    assert_eq!(typed.collect::<Vec<_>>(), [Some("one"), Some("two")], "{text}");
}
