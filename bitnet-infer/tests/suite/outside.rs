//! Folders and texts as other people's programs write them: byte-order marks, other line ends, ids of tokens with gaps.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bitnet_infer::chat::GenerationDefaults;
use bitnet_infer::engine::{SamplerConfig, open};
use bitnet_infer::generate::{GenerateOptions, Generator};
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;
use serde_json::Value;

use crate::common::{byte_tokenizer, tiny_config, write_model};
use crate::conversions;

const MARK: &str = "\u{feff}";

fn program(arguments: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bitnet-infer"));
    command.env_remove("BITNET_KERNEL").env_remove("BITNET_TERNARY").arg("--threads=1").args(arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    // A program that refuses its model does not read.
    let _ = child.stdin.take().expect("piped").write_all(stdin.as_bytes());
    child.wait_with_output().expect("ends")
}

fn stdout(arguments: &[&str], stdin: &str) -> String {
    let output = program(arguments, stdin);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

const TEMPLATE: &str = "{% for m in messages %}\n{{ m.content }}|\n\n{% endfor %}";

fn folder(root: &Path, name: &str, change: impl Fn(&str) -> String) -> PathBuf {
    let path = root.join(name);
    write_model(&path, &tiny_config("ternary", "int8"), 5);
    for (file, content) in [
        ("tokenizer_config.json", "{\n\"add_bos_token\": false,\n\"bos_token\": \"<s>\"\n}\n"),
        ("generation_config.json", "{\n\"eos_token_id\": [257, 10],\n\"temperature\": 0.5\n}\n"),
        ("chat_template.jinja", TEMPLATE),
    ] {
        fs::write(path.join(file), content).expect("written");
    }
    for entry in fs::read_dir(&path).expect("a folder") {
        let file = entry.expect("an entry").path();
        if let Ok(content) = fs::read_to_string(&file) {
            fs::write(&file, change(&content)).expect("written");
        }
    }
    path
}

#[test]
fn a_mark_and_line_ends_change_nothing() {
    let root = tempfile::tempdir().expect("temp dir");
    let plain = folder(root.path(), "plain", str::to_owned);
    let marked = folder(root.path(), "marked", |content| format!("{MARK}{}", content.replace('\n', "\r\n")));
    let (a, b) = (conversions::open(&plain), conversions::open(&marked));
    assert_eq!(b.tokenizer_json().expect("reads").map(|json| json[0]), Some(b'{'), "no mark goes on to other formats");
    let ends = |files| GenerationDefaults::of(files).expect("reads").end_tokens().to_vec();
    assert_eq!((ends(&a), ends(&b)), (vec![257, 10], vec![257, 10]));
    let rendered = |files: &bitnet_infer::engine::ModelFiles| {
        let source = files.chat_template().expect("reads").expect("there");
        let template = bitnet_infer::chat::Template::new(source).expect("a template");
        let messages: Vec<bitnet_infer::chat::Message> =
            serde_json::from_str(r#"[{"role": "user", "content": "hi\r\n"}]"#).expect("messages");
        template.render(&messages, false, "", "").expect("renders")
    };
    // Jinja turns the line ends of a template into its own, and leaves those of a message.
    assert_eq!((rendered(&a), rendered(&b)), ("hi\r\n|\n\n".to_owned(), "hi\r\n|\n\n".to_owned()));
    let (a, b) = (text(&plain), text(&marked));
    let greedy = ["--temperature=0", "--max-tokens=12", "--json"];
    let generated = |model: &str, stdin: &str| -> Value {
        let json = stdout(&[&["generate", model, "-"], &greedy[..]].concat(), stdin);
        let value: Value = serde_json::from_str(&json).expect("JSON");
        value["tokens"].clone()
    };
    let expected = generated(a, "hello");
    for prompt in ["hello\n", "hello\r\n", "\u{feff}hello", "\u{feff}hello\r\n"] {
        assert_eq!(generated(b, prompt), expected, "{prompt:?}");
    }
    let file = |name: &str, content: String| {
        let path = root.path().join(name);
        fs::write(&path, content).expect("written");
        text(&path).to_owned()
    };
    let words = "some words of a text ".repeat(20);
    let figures = |model: &str, file: &str| {
        let json: Value = serde_json::from_str(&stdout(&["perplexity", model, file, "--json"], "")).expect("JSON");
        (json["perplexity"].clone(), json["tokens"].clone())
    };
    let (bare, with_mark) = (file("a.txt", words.clone()), file("b.txt", format!("{MARK}{words}")));
    assert_eq!(figures(b, &with_mark), figures(a, &bare));
    let lines = "{\"context\": \"ab\", \"continuation\": \"c\"}\n{\"context\": \"a\", \"continuation\": \"b\"}\n";
    let (bare, with_mark) =
        (file("a.jsonl", lines.into()), file("b.jsonl", format!("{MARK}{}", lines.replace('\n', "\r\n"))));
    assert_eq!(stdout(&["score", b, &with_mark], ""), stdout(&["score", a, &bare], ""));
    // What is written anew has no mark that other programs would stumble over.
    let copy = root.path().join("copy");
    conversions::converted(&marked, &copy, &conversions::options("hf-packed"));
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"] {
        let bytes = fs::read(copy.join(name)).expect("written");
        assert!(!bytes.starts_with(MARK.as_bytes()), "{name}");
    }
}

/// Tokens at 300, 304, 306 and 308 behind a vocabulary of 256 bytes.
fn tokenizer_with_gaps() -> Vec<u8> {
    let mut json: Value = serde_json::from_slice(&byte_tokenizer(&["<a>", "<b>", "<c>", "<d>"])).expect("JSON");
    let added = json["added_tokens"].as_array_mut().expect("a list");
    for (token, id) in added[2..].iter_mut().zip([300, 304, 306, 308]) {
        token["id"] = id.into();
        token["special"] = false.into();
    }
    json.to_string().into_bytes()
}

#[test]
fn ids_with_gaps_go_through_every_format() {
    let root = tempfile::tempdir().expect("temp dir");
    let source = root.path().join("source");
    let config = ModelConfig { vocab_size: 310, ..conversions::config("ternary", true) };
    write_model(&source, &config, 2);
    fs::write(source.join("tokenizer.json"), tokenizer_with_gaps()).expect("written");
    let gguf = root.path().join("model.gguf");
    conversions::converted(&source, &gguf, &conversions::options("gguf-tq2"));
    let back = root.path().join("back");
    conversions::converted(&gguf, &back, &conversions::options("hf-packed"));
    // As another program's file: with the lists alone.
    let lists = root.path().join("lists.gguf");
    let mut bytes = fs::read(&gguf).expect("readable");
    let key = b"tokenizer.huggingface.json";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("there");
    bytes[at..at + key.len()].copy_from_slice(b"tokenizer.huggingface.jso_");
    fs::write(&lists, bytes).expect("written");
    let last = root.path().join("last");
    conversions::converted(&lists, &last, &conversions::options("hf-packed"));

    let mut answers = Vec::new();
    for path in [&source, &gguf, &back, &lists, &last] {
        let loaded = open(path, kernels::best().expect("a kernel")).expect("loads");
        let tokenizer = loaded.require_tokenizer().expect("a tokenizer");
        let ids = tokenizer.encode("x<a><b>y<c><d>").expect("encodes");
        assert_eq!(ids, [120, 300, 304, 121, 306, 308], "{}", path.display());
        assert_eq!(tokenizer.decode(&ids).expect("decodes"), "x<a><b>y<c><d>", "{}", path.display());
        let options = GenerateOptions {
            max_new_tokens: 20,
            sampler: SamplerConfig { seed: 3, ..SamplerConfig::default() },
            ..GenerateOptions::default()
        };
        let generator = Generator::new(&loaded.model, tokenizer);
        answers.push(generator.run("x<b>", &options, |_| std::ops::ControlFlow::Continue(())).expect("runs").tokens);
    }
    assert!(answers.iter().all(|tokens| *tokens == answers[0]), "{answers:?}");
}

#[test]
fn an_id_beyond_the_embedding_is_refused_by_every_command() {
    let root = tempfile::tempdir().expect("temp dir");
    let model = root.path().join("model");
    // Room for four more tokens, one after the other, but not for id 308.
    write_model(&model, &ModelConfig { vocab_size: 305, ..conversions::config("ternary", true) }, 2);
    fs::write(model.join("tokenizer.json"), tokenizer_with_gaps()).expect("written");
    let words = root.path().join("words.txt");
    fs::write(&words, "words ".repeat(100)).expect("written");
    let (model, words, to) = (text(&model), text(&words), root.path().join("to.gguf"));
    for arguments in [
        &["generate", model, "hi"][..],
        &["chat", model],
        &["serve", model, "--port=0"],
        &["perplexity", model, words],
        &["score", model],
        &["bench", "--model", model],
        &["convert", model, text(&to), "--to", "gguf-tq2"],
    ] {
        let output = program(arguments, "");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {message}");
        assert!(
            message.lines().any(|line| line.starts_with("error: ") && line.contains("`<d>` with id 308")),
            "{arguments:?}: {message}"
        );
    }
    assert!(stdout(&["inspect", model], "").contains("warning: "), "inspect says it and goes on");
    assert!(!to.exists());
}
