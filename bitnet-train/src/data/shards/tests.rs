//! Round trips and hostile files.

use std::cell::Cell;
use std::fs;

use super::*;
use crate::data::progress::Stopped;
use crate::data::tokenizer::{TokenizerConfig, build};
use proptest::prelude::*;

const KEY: [u8; 32] = [7; 32];

fn character_encoder(text: &str) -> (Encoder, usize) {
    let built = build(&TokenizerConfig::Char {}, &|on| on(text)).expect("builds");
    (Encoder::new(&built.json).expect("loads"), built.vocab_size)
}

fn write(folder: &Path, documents: &[&str], vocab_size: Option<usize>, separator: Option<u32>) -> PathBuf {
    let (encoder, characters) = character_encoder("abcdefgh \n");
    let path = folder.join("shard.tokens");
    let (vocab_size, stage) = (vocab_size.unwrap_or(characters), Stage::new("tokenizing", &|_| Ok(())));
    let mut writer = ShardWriter::create(&path, &encoder, vocab_size, separator, &stage).expect("starts");
    documents.iter().for_each(|document| writer.add(document).expect("encodes"));
    writer.finish(&KEY).expect("finishes");
    path
}

#[test]
fn tokens_come_back_with_separators_between_documents_only() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for vocab_size in [None, Some(100_000)] {
        let path = write(folder.path(), &["ab", "c", "ba"], vocab_size, Some(0));
        let shard = Shard::open(&path, &KEY).expect("opens");
        assert_eq!(shard.tokens(0, shard.len()), [3, 4, 0, 5, 0, 4, 3]);
        assert_eq!(shard.tokens(2, 3), [0, 5, 0]);
        assert_eq!((shard.text_bytes(), shard.is_empty()), (5, false));
        let bytes = fs::metadata(&path).expect("exists").len();
        assert_eq!(bytes, 96 + 7 * if vocab_size.is_none() { 2 } else { 4 });
    }
    let path = write(folder.path(), &["ab", "c"], None, None);
    assert_eq!(Shard::open(&path, &KEY).expect("opens").tokens(0, 3), [3, 4, 5]);
    let left: Vec<_> = fs::read_dir(folder.path()).expect("lists").collect();
    assert_eq!(left.len(), 1, "a temporary file was left behind");
}

#[test]
fn an_unfinished_shard_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (encoder, vocab_size) = character_encoder("ab");
    let path = folder.path().join("shard.tokens");
    let stage = Stage::new("tokenizing", &|_| Ok(()));
    let mut writer = ShardWriter::create(&path, &encoder, vocab_size, None, &stage).expect("starts");
    writer.add("abz").expect("waits");
    let error = writer.finish(&KEY).expect_err("z is unknown").to_string();
    assert!(error.contains("'z'"), "{error}");
    let empty = ShardWriter::create(&path, &encoder, vocab_size, None, &stage).expect("starts");
    assert!(empty.finish(&KEY).is_err());
    assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0);
}

#[test]
fn one_long_document_can_be_stopped_half_way() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (encoder, vocab_size) = character_encoder("ab ");
    let text = "a b ".repeat(PIECE * PIECES_TOGETHER / 2);
    let told = Cell::new(0);
    let stop_at_once = |progress: crate::data::Progress| {
        told.set(progress.done);
        Err(Stopped.into())
    };
    let stage = Stage::new("tokenizing", &stop_at_once);
    let path = folder.path().join("shard.tokens");
    let mut writer = ShardWriter::create(&path, &encoder, vocab_size, None, &stage).expect("starts");
    let error = writer.add(&text).expect_err("stopped");
    assert!(error.is::<Stopped>(), "{error:#}");
    assert!((1..=text.len() as u64 * 3 / 4).contains(&told.get()), "{} of {} bytes", told.get(), text.len());
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).expect("lists").count(), 0);
}

#[test]
fn damage_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = write(folder.path(), &["abc abc"], None, None);
    let good = fs::read(&path).expect("reads");
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    for (bytes, said) in [
        (good[..50].to_vec(), "50 bytes are too short"),
        (Vec::new(), "too short"),
        (good[..good.len() - 1].to_vec(), "truncated or damaged"),
        ([&good[..], &[0]].concat(), "truncated or damaged"),
        (with(0, b'X'), "not a token shard"),
        (with(8, 9), "version 9, expected 1"),
        (with(12, 3), "tokens of 3 bytes"),
        (with(23, 0xff), "header says far more"),
        (with(24, 99), "checksum"),
        (with(32, 0), "other data or with another tokenizer"),
        (with(100, 0xff), "checksum"),
    ] {
        fs::write(&path, &bytes).expect("writes");
        let error = Shard::open(&path, &KEY).expect_err(said).to_string();
        assert!(error.contains(said), "expected `{said}`, found `{error}`");
    }
}

proptest! {
    #[test]
    fn any_flipped_bit_is_noticed(at in 0_usize..1000, bit in 0_u32..8) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = write(folder.path(), &["abc abc"], None, None);
        let mut bytes = fs::read(&path).expect("reads");
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        fs::write(&path, &bytes).expect("writes");
        prop_assert!(Shard::open(&path, &KEY).is_err());
    }

    #[test]
    fn random_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        fs::write(file.path(), [&MAGIC[..], &bytes].concat()).expect("writes");
        prop_assert!(Shard::open(file.path(), &KEY).is_err());
    }
}
