//! What downloads leave in a model's place when they go wrong.

use bitnet_model::ModelConfig;
use bitnet_model::files::tensors::TensorFile;
use bitnet_model::files::{mistaken, read_ordinary};
use bitnet_model::tokenizer::Tokenizer;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4096\n";
const PAGES: [&str; 3] =
    ["<!DOCTYPE html>\n<html><body>Not found</body></html>", "\n <html lang=en>", "<?xml version=\"1.0\"?><Error/>"];

#[test]
fn pointers_and_pages_are_named_as_such_by_every_reader() {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("config.json");
    for (text, expected) in
        [(POINTER, "is a Git LFS pointer")].into_iter().chain(PAGES.map(|page| (page, "is a web page")))
    {
        std::fs::write(&path, text).expect("written");
        for message in [
            read_ordinary(&path, 1 << 20).map(drop).expect_err(expected).to_string(),
            ModelConfig::read(&path).map(drop).expect_err(expected).to_string(),
            Tokenizer::read(&path).map(drop).expect_err(expected).to_string(),
            TensorFile::parse(text.as_bytes(), "model.safetensors").map(drop).expect_err(expected).to_string(),
        ] {
            assert!(message.contains(expected) && message.lines().count() == 1, "{message}");
        }
    }
    for bytes in [&b""[..], b"{}", b"GGUF\x03\0\0\0", b"version 2", &[0xff; 300], "é".repeat(150).as_bytes()] {
        assert_eq!(mistaken(bytes), None);
    }
}
