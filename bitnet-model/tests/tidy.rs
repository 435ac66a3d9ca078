//! The rules of the house that a compiler does not know: layers, file sizes, where `unsafe` may stand.
//!
//! Each rule is a function from a file to sentences. The tree must give none; snippets that break a rule must give theirs.

mod tidy {
    pub mod rules;
    pub mod scan;
}

use std::fs;
use std::path::{Path, PathBuf};

use tidy::rules::{CRATES, check_manifest, check_source, undeclared};

#[test]
fn the_tree_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in a workspace");
    let mut complaints = Vec::new();
    let mut sources = 0;
    for name in CRATES {
        let folder = root.join(name);
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("each crate has a manifest");
        complaints.extend(check_manifest(&format!("{name}/Cargo.toml"), &manifest));
        for path in files_under(&folder) {
            if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("sources are readable UTF-8");
                let relative = path.strip_prefix(root).expect("under the root").to_string_lossy().replace('\\', "/");
                complaints.extend(check_source(&relative, &text));
                sources += 1;
            }
        }
        let suite = folder.join("tests/suite");
        if suite.is_dir() {
            let main = fs::read_to_string(suite.join("main.rs")).expect("a suite has a main.rs");
            let names: Vec<String> = fs::read_dir(&suite)
                .expect("readable")
                .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
                .collect();
            complaints.extend(undeclared(&format!("{name}/tests/suite"), &main, &names));
        }
    }
    assert!(sources > 30, "only {sources} sources found under {}", root.display());
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn every_rule_can_fail() {
    let long = "\n".repeat(501);
    for (path, text, expected) in [
        ("bitnet-model/src/a.rs", "use candle_core::Tensor;", "line 1: `candle_core` is above this crate"),
        ("bitnet-model/src/a.rs", "fn f() { bitnet_infer::x() }", "`bitnet_infer` is above"),
        ("bitnet-model/tests/suite/a.rs", "\nuse bitnet_train as t;", "line 2: `bitnet_train` is above"),
        ("bitnet-infer/src/a.rs", "use candle_nn::ops;", "`candle_nn` is above"),
        ("bitnet-infer/benches/a.rs", "use bitnet_train::nn;", "`bitnet_train` is above"),
        ("bitnet-model/src/a.rs", "use rayon::prelude::*;", "`rayon`: this crate has no threads"),
        ("bitnet-model/src/files/a.rs", "std::thread::spawn(f);", "`thread`: this crate has no threads"),
        ("bitnet-model/src/a.rs", "use std::fs;", "`fs` outside src/files/"),
        ("bitnet-model/src/a.rs", "use std::{fs, mem};", "`fs` outside src/files/"),
        ("bitnet-model/src/a.rs", "let f = File::open(p)?;", "`File` outside src/files/"),
        ("bitnet-model/src/a.rs", "use std::io::Read;", "`std::io::Read` outside src/files/"),
        ("bitnet-model/src/a.rs", "use std::{io, mem};", "`std::io` outside src/files/"),
        ("bitnet-model/src/a.rs", "use memmap2::Mmap;", "`Mmap` outside src/files/"),
        ("bitnet-train/src/a.rs", &long, "has 501 lines, 500 are allowed"),
        ("bitnet-infer/src/engine/a.rs", "let x = unsafe { *p };", "line 1: `unsafe` outside a kernels/ folder"),
        ("bitnet-train/src/a.rs", "let map = unsafe { Mmap::map(&file) };", "`unsafe` outside a kernels/ folder"),
        ("bitnet-infer/src/a/mykernels/a.rs", "unsafe impl Send for A {}", "`unsafe` outside a kernels/ folder"),
        ("bitnet-model/src/kernels/a.rs", "unsafe fn f() {}", "`unsafe` in a crate that has none"),
        ("bitnet-model/src/lib.rs", "//! #![forbid(unsafe_code)]", "lacks `#![forbid(unsafe_code)]`"),
        ("bitnet-train/src/a.rs", "fn f() { todo!() }", "`todo!`"),
        ("bitnet-train/src/a.rs", "fn f() { dbg ! (1) }", "`dbg!`"),
        ("bitnet-train/tests/suite/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}", "line 2: `#[ignore]`"),
        ("bitnet-train/src/a.rs", "let a = 1; // FIXME: later", "line 1: a comment says FIXME"),
        ("bitnet-train/src/a.rs", "/* a\nb TODO c */", "line 2: a comment says TODO"),
        ("bitnet-infer/tests/suite/a.rs", concat!("f(\"../../shared", "/data/x\")"), "line 1: a path to shared"),
    ] {
        let complaints = check_source(path, text);
        let found = complaints.iter().any(|c| c.starts_with(path) && c.contains(expected));
        assert!(found, "{path}: {text:?} gave {complaints:?}, expected {expected:?}");
    }
}

#[test]
fn what_is_allowed_passes() {
    for (path, text) in [
        ("bitnet-model/src/lib.rs", "//! Knows no candle, no unsafe.\n#![forbid(unsafe_code)]\npub mod a;"),
        ("bitnet-model/src/a.rs", "/// Not rayon, std::fs or dbg!.\nfn io(e: std::io::Error) {}"),
        (
            "bitnet-model/src/a.rs",
            "const A: &str = \"use candle\"; const B: char = '\"'; const C: &str = r#\"unsafe \" \"#;",
        ),
        ("bitnet-model/src/a.rs", "fn f<'a>(x: &'a str) {}\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}"),
        ("bitnet-model/src/files/a.rs", "use std::fs::File;\nuse std::io::Read;"),
        ("bitnet-model/tests/suite/a.rs", concat!("use std::fs; // not ../shared", "/data")),
        ("bitnet-infer/src/kernels/avx2.rs", "unsafe { f() }"),
        ("bitnet-train/src/ops/kernels/gemm.rs", "unsafe { f() }"),
        ("bitnet-infer/src/engine/mmap.rs", "let map = unsafe { Mmap::map(&file) };"),
        ("bitnet-train/src/a.rs", "use candle_core::Tensor;\nuse bitnet_infer::linear;\nlet fs = 1;"),
    ] {
        assert_eq!(check_source(path, text), [""; 0], "{path}: {text:?}");
    }
}

#[test]
fn manifests_and_suites_are_read_too() {
    let complaint = |path, text| check_manifest(path, text).join("; ");
    let expected = "bitnet-infer/Cargo.toml: line 2: depends on `candle-core`, which is above this crate";
    assert_eq!(complaint("bitnet-infer/Cargo.toml", "[dependencies]\ncandle-core.workspace = true"), expected);
    assert!(complaint("bitnet-model/Cargo.toml", "rayon = \"1\"").contains("depends on `rayon`"));
    assert!(complaint("bitnet-model/Cargo.toml", "[dependencies.bitnet-infer]").contains("`bitnet-infer`"));
    assert_eq!(complaint("bitnet-infer/Cargo.toml", "# no candle here\nrayon.workspace = true"), "");
    assert_eq!(complaint("bitnet-train/Cargo.toml", "candle-core.workspace = true"), "");

    let names = ["main.rs", "one.rs", "two.rs", "folder"].map(String::from);
    let complaints = undeclared("x/tests/suite", "mod one;\n// mod two;\nmod folder;", &names);
    assert_eq!(complaints, ["x/tests/suite/two.rs: is never compiled: main.rs has no `mod two;`"]);
}

/// Every file under `folder`, in name order.
fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable").path()).collect();
    entries.sort();
    entries.into_iter().flat_map(|path| if path.is_dir() { files_under(&path) } else { vec![path] }).collect()
}
