//! Programs that are told to end, and models named in every way that a command takes.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::common::{byte_tokenizer, tiny_config, write_model};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-infer"));
    command.env_remove("BITNET_KERNEL").env_remove("BITNET_TERNARY").arg("--threads=1");
    command
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn model(root: &Path) -> std::path::PathBuf {
    let folder = root.join("model");
    write_model(&folder, &tiny_config("ternary", "int8"), 1);
    fs::write(folder.join("tokenizer.json"), byte_tokenizer(&[])).expect("written");
    folder
}

/// Sends a signal by name, as another program would.
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.expect("kill runs").success());
}

/// How long a child takes to end, at most ten seconds.
fn seconds_to_end(child: &mut Child) -> f64 {
    let started = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if started.elapsed() > Duration::from_secs(10) {
            child.kill().expect("killed");
            panic!("it goes on");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    started.elapsed().as_secs_f64()
}

#[test]
fn every_command_that_waits_ends_within_a_second_of_a_signal() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let folder = text(&folder);
    // What it is given to read, and by what one knows that it is ready.
    let waiting: [(&[&str], &str, &str); 3] = [
        (&["chat", folder, "--chat-template=plain", "--no-history"], "/help\n", "/exit"),
        (&["serve", folder, "--port=0", "--chat-template=plain"], "", "http://127.0.0.1:"),
        (&["generate", folder, "-n", "1000000", "--context", "300"], "", ""),
    ];
    for (arguments, input, ready) in waiting {
        for name in ["TERM", "HUP"] {
            let mut command = program();
            command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("runs");
            // Kept open: it is not the end of the input that ends the program.
            let mut stdin = child.stdin.take().expect("piped");
            stdin.write_all(input.as_bytes()).expect("written");
            if !ready.is_empty() {
                let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
                assert!(lines.map_while(Result::ok).any(|line| line.contains(ready)), "{arguments:?}");
            }
            signal(&child, name);
            let seconds = seconds_to_end(&mut child);
            assert!(seconds < 1.0, "{arguments:?}: {seconds:.1} s after SIG{name}");
            drop(stdin);
        }
    }
}

#[test]
fn every_command_ends_within_a_second_of_its_reader() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let folder = text(&folder);
    let words = root.path().join("words");
    fs::write(&words, "the quick brown fox ".repeat(500_000)).expect("written");
    // Each has much to do before it writes, or waits for what does not come.
    let busy: [&[&str]; 5] = [
        &["perplexity", folder, text(&words)],
        &["bench", "--shape", "tiny", "--repeats=4096"],
        &["score", folder],
        &["generate", folder],
        &["chat", folder, "--chat-template=plain", "--no-history"],
    ];
    for arguments in busy {
        let mut command = program();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("runs");
        let stdin = child.stdin.take();
        drop(child.stdout.take());
        let seconds = seconds_to_end(&mut child);
        assert!(seconds < 1.0, "{arguments:?}: {seconds:.1} s after its reader");
        assert!(child.wait().expect("ended").success(), "{arguments:?}");
        drop(stdin);
    }
}

#[test]
fn every_command_takes_every_kind_of_source() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = model(root.path());
    let gguf = root.path().join("model.gguf");
    let run = |arguments: &[&str], input: &str| -> Output {
        let mut command = program();
        command.args(arguments).env("HF_HUB_CACHE", root.path().join("cache")).env_remove("HF_HOME");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        child.wait_with_output().expect("ends")
    };
    let converted = run(&["convert", text(&folder), text(&gguf), "--to", "gguf-f16"], "");
    assert!(converted.status.success(), "{}", String::from_utf8_lossy(&converted.stderr));
    let repository = root.path().join("cache/models--some--model");
    fs::create_dir_all(repository.join("refs")).expect("made");
    fs::write(repository.join("refs/main"), "abc123").expect("written");
    let snapshot = repository.join("snapshots/abc123");
    fs::create_dir_all(&snapshot).expect("made");
    for file in fs::read_dir(&folder).expect("readable") {
        let file = file.expect("readable");
        fs::copy(file.path(), snapshot.join(file.file_name())).expect("copied");
    }
    fs::copy(&gguf, snapshot.join("m.gguf")).expect("copied");
    let words = root.path().join("words");
    fs::write(&words, "the quick brown fox jumps over the lazy dog").expect("written");
    let out = root.path().join("out");

    for source in [text(&folder), text(&gguf), "hub:some/model", "hub:some/model:m.gguf"] {
        let commands: [(&[&str], &str); 7] = [
            (&["generate", source, "a", "-n", "2", "--offline"], ""),
            (&["chat", source, "--chat-template=plain", "-n", "2", "--offline"], "hi\n"),
            (&["perplexity", source, text(&words), "--offline"], ""),
            (&["score", source, "--offline"], "{\"context\": \"a\", \"continuation\": \"b\"}\n"),
            (&["convert", source, text(&out), "--to", "universal", "--offline"], ""),
            (&["inspect", source, "--offline"], ""),
            (&["bench", "--model", source, "--prompt=4", "--generate=2", "--repeats=1", "--offline"], ""),
        ];
        for (arguments, input) in commands {
            let output = run(arguments, input);
            assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        fs::remove_dir_all(&out).expect("what was converted");
        let mut command = program();
        command.args(["serve", source, "--port=0", "--chat-template=plain", "--offline"]);
        command.env("HF_HUB_CACHE", root.path().join("cache")).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut server = command.spawn().expect("runs");
        let lines = BufReader::new(server.stderr.take().expect("piped")).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("http://127.0.0.1:")), "{source}");
        signal(&server, "TERM");
        seconds_to_end(&mut server);
    }
}
