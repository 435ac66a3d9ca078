//! The whole way, on stories and on real text.

use std::cell::Cell;

use super::*;
use crate::data::batches::windows;
use crate::data::progress::{Progress, Stopped};
use crate::data::shared;
use crate::data::source::Paths;

fn silent(_: Progress) -> Result<()> {
    Ok(())
}

fn stories(count: u64) -> DataConfig {
    DataConfig { source: SourceConfig::Stories { seed: 1, count }, ..DataConfig::default() }
}

fn is_receipt(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("seen-"))
}

fn small_bpe() -> TokenizerConfig {
    TokenizerConfig::Bpe { vocab_size: 500, min_frequency: 2, train_bytes: 1 << 20 }
}

fn text_config(train: PathBuf, validation: PathBuf) -> DataConfig {
    DataConfig {
        source: SourceConfig::Text { path: Paths::One(train) },
        validation: ValidationConfig {
            fraction: None,
            source: Some(SourceConfig::Text { path: Paths::One(validation) }),
        },
        ..DataConfig::default()
    }
}

#[test]
fn stories_become_shards_that_decode_to_the_stories() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let prepared = prepare(&stories(60), &small_bpe(), folder.path(), Trust::SizeAndTime, &silent).expect("prepares");
    assert_eq!((prepared.vocab_size, prepared.eos), (500, Some(0)));
    let tokenizer = tokenizers::Tokenizer::from_bytes(&prepared.tokenizer_json).expect("loads");
    use crate::data::stories::{Split, story};
    for (shard, split, count) in [(&prepared.train, Split::Train, 60), (&prepared.validation, Split::Validation, 3)] {
        let tokens = shard.tokens(0, shard.len());
        let documents: Vec<String> =
            tokens.split(|&id| id == 0).map(|ids| tokenizer.decode(ids, true).expect("decodes")).collect();
        let expected: Vec<String> = (0..count).map(|index| story(1, split, index).document()).collect();
        assert_eq!(documents, expected);
        assert_eq!(shard.text_bytes(), expected.iter().map(|text| text.len() as u64).sum::<u64>());
    }
    let bytes_per_token = prepared.validation.text_bytes() as f64 / prepared.validation.len() as f64;
    assert!(bytes_per_token > 1.5, "{bytes_per_token}");
}

#[test]
fn the_cache_is_used_and_damage_is_repaired() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let first = prepare(&stories(20), &small_bpe(), folder.path(), Trust::SizeAndTime, &silent).expect("prepares");
    let listing = |folder: &Path| {
        let mut names: Vec<PathBuf> = fs::read_dir(folder).expect("lists").map(|e| e.expect("entry").path()).collect();
        names.sort();
        names
    };
    let files = listing(folder.path());
    assert_eq!(files.len(), 5, "a tokenizer, two shards and their receipts: {files:?}");
    let times: Vec<_> = files.iter().map(|path| fs::metadata(path).and_then(|m| m.modified()).expect("has")).collect();
    let second = prepare(&stories(20), &small_bpe(), folder.path(), Trust::SizeAndTime, &silent).expect("prepares");
    let again: Vec<_> = files.iter().map(|path| fs::metadata(path).and_then(|m| m.modified()).expect("has")).collect();
    assert_eq!(times, again, "something was written again");
    assert!(second.warnings.is_empty());
    let all = |shard: &Shard| shard.tokens(0, shard.len());
    for path in files.iter().filter(|path| !is_receipt(path)) {
        let good = fs::read(path).expect("reads");
        // Removed first: the old file is still mapped, and a map must not lose its pages.
        fs::remove_file(path).expect("removes");
        fs::write(path, &good[..good.len() / 2]).expect("writes");
        let repaired =
            prepare(&stories(20), &small_bpe(), folder.path(), Trust::SizeAndTime, &silent).expect("repairs");
        assert_eq!(repaired.warnings.len(), 1, "{:?}", repaired.warnings);
        assert!(repaired.warnings[0].contains("made anew"), "{:?}", repaired.warnings);
        assert_eq!(fs::read(path).expect("reads"), good);
        assert_eq!(all(&repaired.train), all(&first.train));
        assert_eq!(all(&repaired.validation), all(&first.validation));
    }
    // What decides the content decides the name.
    let unseparated = DataConfig { separator: false, ..stories(20) };
    let other = prepare(&unseparated, &small_bpe(), folder.path(), Trust::SizeAndTime, &silent).expect("prepares");
    assert_eq!(other.train.len() + 19, first.train.len());
    assert_eq!(listing(folder.path()).len(), 9);
    prepare(&stories(21), &small_bpe(), folder.path(), Trust::SizeAndTime, &silent).expect("prepares");
    assert_eq!(listing(folder.path()).len(), 14, "another tokenizer, hence two other shards");
}

#[test]
fn a_stop_anywhere_leaves_only_what_is_complete() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("source");
    fs::create_dir(&source).expect("creates");
    for index in 0..5 {
        fs::write(source.join(format!("{index}.txt")), format!("document {index} ").repeat(50)).expect("writes");
    }
    let config = DataConfig { source: SourceConfig::Text { path: Paths::One(source) }, ..DataConfig::default() };
    let contents = |cache: &Path| -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(cache).expect("lists").map(|entry| entry.expect("entry")).collect();
        // Receipts hold times, which no two caches share.
        files.retain(|file| !is_receipt(&file.path()));
        files.sort_by_key(fs::DirEntry::file_name);
        files.iter().map(|file| (file.file_name(), fs::read(file.path()).expect("reads"))).collect()
    };
    let (whole, calls) = (folder.path().join("whole"), Cell::new(0));
    let count = |_: Progress| {
        calls.set(calls.get() + 1);
        Ok(())
    };
    prepare(&config, &small_bpe(), &whole, Trust::SizeAndTime, &count).expect("prepares");
    let whole = contents(&whole);
    assert!(calls.get() > 10, "only {} places to stop at", calls.get());
    for last in 0..calls.get() {
        let (cache, left) = (folder.path().join(format!("stopped-{last}")), Cell::new(last));
        let stop = |_: Progress| match left.get() {
            0 => Err(Stopped.into()),
            n => {
                left.set(n - 1);
                Ok(())
            }
        };
        let error = prepare(&config, &small_bpe(), &cache, Trust::SizeAndTime, &stop).expect_err("stopped");
        assert!(error.is::<Stopped>(), "{error:#}");
        assert!(contents(&cache).iter().all(|file| whole.contains(file)), "half-written after call {last}");
        prepare(&config, &small_bpe(), &cache, Trust::SizeAndTime, &silent).expect("goes on");
        assert_eq!(contents(&cache), whole, "after a stop at call {last}");
    }
}

#[test]
fn dickens_has_the_tokens_of_the_whole_file() {
    let paths =
        ["text/dickens-train.txt", "text/dickens-valid.txt", "tokenizers/dickens-4096/tokenizer.json"].map(shared);
    let [Some(train), Some(valid), Some(json)] = paths else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = text_config(train.clone(), valid);
    let started = std::time::Instant::now();
    let prepared =
        prepare(&config, &TokenizerConfig::File { path: json.clone() }, folder.path(), Trust::SizeAndTime, &silent)
            .expect("prepares");
    let seconds = started.elapsed().as_secs_f64();
    println!("{:.1} s, {:.0} tokens/s", seconds, prepared.train.len() as f64 / seconds);
    assert_eq!(prepared.train.len(), 2_873_434);
    assert_eq!(prepared.vocab_size, 4096);
    let validation = windows(&prepared.validation, 256).expect("long enough");
    assert_eq!(validation.len(), 302);
    let bytes_per_token = prepared.validation.text_bytes() as f64 / prepared.validation.len() as f64;
    assert!((bytes_per_token - 3.2225).abs() < 5e-5, "{bytes_per_token}");
    // The plain library on the whole text: the definition.
    let tokenizer = tokenizers::Tokenizer::from_file(json).expect("loads");
    let text = fs::read_to_string(train).expect("reads");
    let whole = tokenizer.encode_fast(text, false).expect("encodes");
    assert!(prepared.train.tokens(0, prepared.train.len()) == whole.get_ids(), "the pieces differ from the whole");
}

#[test]
fn characters_of_shakespeare_are_those_of_nanogpt() {
    let Some(path) = shared("text/tinyshakespeare.txt") else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let config = DataConfig {
        source: SourceConfig::Text { path: Paths::One(path) },
        validation: ValidationConfig { fraction: Some(0.1), source: None },
        ..DataConfig::default()
    };
    let prepared =
        prepare(&config, &TokenizerConfig::Char {}, folder.path(), Trust::SizeAndTime, &silent).expect("prepares");
    assert_eq!(prepared.vocab_size, 65 + 1, "65 characters and the end-of-text token");
    assert_eq!(prepared.train.len() + prepared.validation.len(), 1_115_394);
}

#[test]
fn random_bytes_are_no_corpus() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("noise.txt");
    let noise: Vec<u8> = (0..4096_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    fs::write(&path, noise).expect("writes");
    let config = DataConfig { source: SourceConfig::Text { path: Paths::One(path) }, ..DataConfig::default() };
    let error = prepare(&config, &small_bpe(), &folder.path().join("cache"), Trust::SizeAndTime, &silent)
        .expect_err("not text");
    assert!(error.to_string().contains("not UTF-8 text at byte"), "{error:#}");
}

#[test]
fn an_empty_corpus_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("empty.txt");
    fs::write(&path, "").expect("writes");
    let config = text_config(path.clone(), path);
    let error = prepare(&config, &small_bpe(), folder.path(), Trust::SizeAndTime, &silent).expect_err("empty");
    assert!(error.to_string().contains("empty.txt holds no text"), "{error:#}");
}

#[test]
fn a_config_round_trips_through_toml() {
    let default: DataConfig = toml::from_str("").expect("everything has a default");
    assert_eq!(default, DataConfig::default());
    let full = "separator = false\ncache_dir = \"cache\"\n\n[source]\ntype = \"jsonl\"\npath = \"a.jsonl\"\n\
                field = \"body\"\n\n[validation.source]\ntype = \"text\"\npath = [\"b.txt\", \"c\"]\n";
    let config: DataConfig = toml::from_str(full).expect("parses");
    assert_eq!(toml::to_string(&config).expect("serialises"), full);
    for wrong in ["sources = 1", "[validation]\nfracton = 0.1", "[source]\ntype = \"text\"\npaths = \"a\""] {
        assert!(toml::from_str::<DataConfig>(wrong).is_err(), "{wrong}");
    }
}

/// A checkpoint holds the key of its data: with another one, runs that earlier programs began would not resume.
#[test]
fn keys_are_hashes_of_what_decides_the_tokens_and_stay_what_they_were() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "one two three four\n".repeat(200);
    let sha = |parts: &[&[u8]]| -> [u8; 32] { Sha256::digest(parts.concat()).into() };
    let [one, many] = ["one", "many"].map(|name| folder.path().join(name));
    for path in [&one, &many] {
        fs::create_dir(path).expect("creates");
    }
    fs::write(one.join("a.txt"), &text).expect("writes");
    for index in 0..40 {
        fs::write(many.join(format!("{index:02}.txt")), &text).expect("writes");
    }
    // Without an end of the last line, and with ends of two characters: hashes are of the files as they are.
    let lines = vec![format!("{{\"text\": {:?}}}", &text[..190]); 40].join("\r\n");
    let path = folder.path().join("lines.jsonl");
    fs::write(&path, &lines).expect("writes");
    let source = SourceConfig::Jsonl { path: Paths::One(path), field: "text".into() };
    let config = DataConfig { source, ..DataConfig::default() };
    let prepared = prepare(&config, &small_bpe(), folder.path(), Trust::SizeAndTime, &silent).expect("prepares");
    let files = [b"files 1 field \"text\"\nJsonl\n", &sha(&[lines.as_bytes()])[..]].concat();
    let content = sha(&[&files, b"2 of 40 Train\n"]);
    let key = sha(&[&content, &sha(&[&prepared.tokenizer_json]), b"separator Some(0)\n"]);
    assert_eq!(prepared.train.fingerprint(), hex(&key));

    for (source, count) in [(one, 1), (many, 40)] {
        let config = DataConfig { source: SourceConfig::Text { path: Paths::One(source) }, ..DataConfig::default() };
        let prepared = prepare(&config, &small_bpe(), folder.path(), Trust::SizeAndTime, &silent).expect("prepares");
        for (shard, part) in [(&prepared.train, "Train"), (&prepared.validation, "Validation")] {
            let how = match count {
                1 => format!("cut at {} {part}\n", prepared.train.text_bytes()),
                // Five of a hundred, of forty.
                _ => format!("2 of 40 {part}\n"),
            };
            let mut files = format!("files {count} field \"text\"\n").into_bytes();
            for _ in 0..count {
                files.extend([b"Text\n", &sha(&[text.as_bytes()])[..]].concat());
            }
            let content = sha(&[&files, how.as_bytes()]);
            let key = sha(&[&content, &sha(&[&prepared.tokenizer_json]), b"separator Some(0)\n"]);
            assert_eq!(shard.fingerprint(), hex(&key), "{part} of {count} files");
        }
    }
}
