//! The rules, each from a file's path (relative to the workspace) and text to complaints.

use super::scan::{scan, words};

/// The workspace, from the contract upwards: a crate may name those before it, never those after it.
pub const CRATES: [&str; 3] = ["bitnet-model", "bitnet-infer", "bitnet-train"];

/// All that is wrong with a Rust source.
pub fn check_source(path: &str, text: &str) -> Vec<String> {
    let scanned = scan(text);
    let mut complaints = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        complaints.push(format!("{path}: has {lines} lines, {MAX_LINES} are allowed: split it along its purposes"));
    }
    if path == "bitnet-model/src/lib.rs" && !scanned.code.contains("#![forbid(unsafe_code)]") {
        complaints.push(format!("{path}: lacks `#![forbid(unsafe_code)]`"));
    }
    let mut in_tests = path.contains("/tests/") || path.contains("/benches/");
    let scanned_lines = scanned.code.lines().zip(scanned.comments.lines());
    for (number, (line, (code, comment))) in text.lines().zip(scanned_lines).enumerate() {
        in_tests |= code.trim() == "#[cfg(test)]";
        let found = [layers(path, code), safety(path, code), leftovers(code, comment), silent(path, line, comment)];
        complaints.extend(found.into_iter().flatten().map(|what| format!("{path}: line {}: {what}", number + 1)));
        if !in_tests {
            complaints.extend(disk(path, code).map(|what| format!("{path}: line {}: {what}", number + 1)));
        }
    }
    complaints
}

/// All that is wrong with a crate's `Cargo.toml`.
pub fn check_manifest(path: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let names = line.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_'));
        for name in names.filter(|name| !path.starts_with(&format!("{name}/"))) {
            let name_in_code = name.replace('-', "_");
            let reason = if above(path, &name_in_code) {
                "is above this crate"
            } else if path.starts_with("bitnet-model/") && name == "rayon" {
                "brings threads to a crate that has none"
            } else {
                continue;
            };
            complaints.push(format!("{path}: line {}: depends on `{name}`, which {reason}", number + 1));
        }
    }
    complaints
}

/// The files of a `tests/suite` folder that its `main.rs` does not declare.
pub fn undeclared(folder: &str, main: &str, names: &[String]) -> Vec<String> {
    let code = scan(main).code;
    let declared: Vec<&str> =
        code.lines().filter_map(|line| line.trim().strip_prefix("mod ")?.strip_suffix(';')).collect();
    let modules = names.iter().filter(|name| *name != "main.rs");
    let missing = modules.filter(|name| !declared.contains(&name.trim_end_matches(".rs")));
    missing
        .map(|name| {
            let module = name.trim_end_matches(".rs");
            format!("{folder}/{name}: is never compiled: main.rs has no `mod {module};`")
        })
        .collect()
}

/// Whether the crate that `path` lies in must not know `name`.
fn above(path: &str, name: &str) -> bool {
    let own = CRATES.iter().position(|c| path.starts_with(&format!("{c}/"))).unwrap_or(CRATES.len());
    let theirs = CRATES.iter().position(|c| c.replace('-', "_") == name);
    let autograd = name == "candle" || name.starts_with("candle_");
    theirs.is_some_and(|theirs| theirs > own) || (autograd && own < CRATES.len() - 1)
}

fn layers(path: &str, code: &str) -> Option<String> {
    let (word, _) = words(code).find(|(word, _)| {
        above(path, word) || (path.starts_with("bitnet-model/") && matches!(*word, "rayon" | "thread" | "crossbeam"))
    })?;
    Some(if above(path, word) {
        format!("`{word}` is above this crate: imports point from bitnet-train to bitnet-infer to bitnet-model")
    } else {
        format!("`{word}`: this crate has no threads")
    })
}

/// Outside `src/files/`, the contract neither reads nor writes. Naming the type of a system error is not file access.
fn disk(path: &str, code: &str) -> Option<String> {
    if !path.starts_with("bitnet-model/src/") || path.starts_with("bitnet-model/src/files/") {
        return None;
    }
    let (word, rest) = words(code).find(|(word, rest)| match *word {
        "fs" | "File" | "OpenOptions" | "Mmap" | "net" => true,
        "io" => match rest.strip_prefix("::") {
            Some(item) => !item.starts_with("Error") && !item.starts_with("Result"),
            None => code.trim_start().starts_with("use std"),
        },
        _ => false,
    })?;
    let name = match (word, rest.strip_prefix("::")) {
        ("io", Some(item)) => format!("std::io::{}", words(item).next().map_or("", |(item, _)| item)),
        ("io", None) => "std::io".to_owned(),
        _ => word.to_owned(),
    };
    Some(format!("`{name}` outside src/files/: no other module of this crate touches a disk"))
}

/// `unsafe` stands in kernels and where a file is mapped into memory, and nowhere in the contract.
fn safety(path: &str, code: &str) -> Option<String> {
    words(code).find(|(word, _)| *word == "unsafe")?;
    if path.starts_with("bitnet-model/") {
        return Some("`unsafe` in a crate that has none".into());
    }
    let allowed = path.contains("/kernels/") || path == MEMORY_MAP;
    (!allowed).then(|| format!("`unsafe` outside a kernels/ folder and {MEMORY_MAP}"))
}

fn leftovers(code: &str, comment: &str) -> Option<String> {
    let macros = ["todo", "dbg", "unimplemented"];
    if let Some((word, _)) = words(code).find(|(word, rest)| macros.contains(word) && rest.starts_with('!')) {
        return Some(format!("`{word}!` is unfinished work"));
    }
    if code.replace(' ', "").contains("#[ignore") {
        return Some("`#[ignore]`: a test that nobody runs tests nothing".into());
    }
    let (mark, _) = words(comment).find(|(word, _)| ["FIXME", "TODO", "XXX"].contains(word))?;
    Some(format!("a comment says {mark}: do it, or say what is so and why"))
}

/// The one way to the data folder fails a test that cannot find it, where that is asked for.
fn silent(path: &str, line: &str, comment: &str) -> Option<String> {
    // Put together, so that this line breaks no rule.
    let folder = concat!("shared", "/data");
    let named = line.contains(folder) && !comment.contains(folder);
    (named && path != DATA_FOLDER).then(|| format!("a path to {folder}: ask `shared` of {DATA_FOLDER}"))
}

/// Where tests find the data folder.
const DATA_FOLDER: &str = "bitnet-model/tests/suite/data_folder.rs";

/// The one file outside the kernels that needs `unsafe`.
const MEMORY_MAP: &str = "bitnet-infer/src/engine/mmap.rs";

const MAX_LINES: usize = 500;
