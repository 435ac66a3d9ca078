//! The whole way from a config to two token shards, cached.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bitnet_model::files::write_atomic;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::encode::Encoder;
use super::progress::{OnProgress, Stage};
use super::shards::{Shard, ShardWriter};
use super::source::SourceConfig;
use super::split::{Corpus, Part, ValidationConfig};
use super::tokenizer::{self, BuiltTokenizer, TokenizerConfig};

/// The data of a run: the section `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Whether the tokenizer's end-of-text token stands between documents, if it has one. Default true.
    #[serde(default = "yes")]
    pub separator: bool,
    /// Where shards are kept, in place of the run's own choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_dir: Option<PathBuf>,
    /// Where the text comes from. Default: the built-in stories.
    #[serde(default)]
    pub source: SourceConfig,
    /// What is held back for validation. Default: 5 % of the documents.
    #[serde(default)]
    pub validation: ValidationConfig,
}

impl Default for DataConfig {
    fn default() -> Self {
        DataConfig {
            separator: true,
            cache_dir: None,
            source: SourceConfig::default(),
            validation: ValidationConfig::default(),
        }
    }
}

/// Everything a run needs to know of its data.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The tokens to train on.
    pub train: Shard,
    /// The tokens to validate on.
    pub validation: Shard,
    /// The bytes of the tokenizer's `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// One more than the largest token id.
    pub vocab_size: usize,
    /// The end-of-text token, where the tokenizer has one.
    pub eos: Option<u32>,
    /// What was found wrong in the cache and made anew, a sentence each.
    pub rebuilt: Vec<String>,
}

/// Makes the tokenizer and the shards of a run, or takes them from the cache folder.
///
/// `cache` is used where the config names no folder. A damaged shard is made anew and reported in [`Prepared::rebuilt`].
///
/// # Errors
///
/// One line that names the file, row, key or byte at fault; or what `progress` returns, which is called between any two pieces
/// of work that take a while. What is complete then stays in the cache.
pub fn prepare(
    config: &DataConfig,
    tokenizer: &TokenizerConfig,
    cache: &Path,
    progress: &OnProgress<'_>,
) -> Result<Prepared> {
    let cache = config.cache_dir.as_deref().unwrap_or(cache);
    fs::create_dir_all(cache).with_context(|| format!("data: cannot create the cache folder {}", cache.display()))?;
    let corpus = Corpus::resolve(&config.source, &config.validation, progress)?;
    let hashing = Stage::new("reading the corpus", progress);
    let contents = [content_of(&corpus, Part::Train, &hashing)?, content_of(&corpus, Part::Validation, &hashing)?];
    let mut rebuilt = Vec::new();
    let built = built_tokenizer(&corpus, &contents[0], tokenizer, cache, &mut rebuilt, progress)?;
    let encoder = Encoder::new(&built.json)?;
    let separator = built.eos.filter(|_| config.separator);
    let mut shard = |part: Part, content: &[u8; 32]| -> Result<Shard> {
        let mut hash = Sha256::new();
        hash.update(content);
        hash.update(Sha256::digest(&built.json));
        // Other rules for what of a file is text would have to say so here.
        hash.update(format!("separator {separator:?}, no byte-order mark\n"));
        let key: [u8; 32] = hash.finalize().into();
        let name = if part == Part::Train { "train" } else { "validation" };
        let path = cache.join(format!("{name}-{}.tokens", hex(&key)));
        if path.exists() {
            match Shard::open(&path, &key) {
                Ok(shard) => return Ok(shard),
                Err(fault) => rebuilt.push(format!("{fault:#}; it was made anew")),
            }
        }
        let stage = if part == Part::Train { "tokenizing train" } else { "tokenizing validation" };
        let stage = Stage::new(stage, progress);
        let mut writer = ShardWriter::create(&path, &encoder, built.vocab_size, separator, &stage)?;
        corpus.for_each(part, &mut |text| writer.add(text))?;
        writer.finish(&key)?;
        stage.end()?;
        Shard::open(&path, &key)
    };
    let train = shard(Part::Train, &contents[0])?;
    let validation = shard(Part::Validation, &contents[1])?;
    Ok(Prepared {
        train,
        validation,
        vocab_size: built.vocab_size,
        eos: built.eos,
        tokenizer_json: built.json,
        rebuilt,
    })
}

/// The tokenizer, from the cache if it was trained on the same text with the same settings.
fn built_tokenizer(
    corpus: &Corpus,
    content: &[u8; 32],
    config: &TokenizerConfig,
    cache: &Path,
    rebuilt: &mut Vec<String>,
    progress: &OnProgress<'_>,
) -> Result<BuiltTokenizer> {
    let mut hash = Sha256::new();
    hash.update(content);
    hash.update(serde_json::to_vec(config)?);
    let path = cache.join(format!("tokenizer-{}.json", hex(&hash.finalize().into())));
    let from_file = matches!(config, TokenizerConfig::File { .. });
    if !from_file && path.exists() {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        match BuiltTokenizer::from_json(bytes) {
            Ok(built) => return Ok(built),
            Err(fault) => rebuilt.push(format!("{}: {fault:#}; it was made anew", path.display())),
        }
    }
    let stage = Stage::new("training the tokenizer", progress);
    let built = tokenizer::build(config, &|on_document| {
        corpus.for_each(Part::Train, &mut |text| {
            stage.add(text.len())?;
            on_document(text)
        })
    })?;
    if !from_file {
        write_atomic(&path, &built.json)?;
        stage.end()?;
    }
    Ok(built)
}

fn content_of(corpus: &Corpus, part: Part, stage: &Stage<'_>) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    corpus.fingerprint(part, &mut hash, stage)?;
    Ok(hash.finalize().into())
}

/// The first 16 bytes as hexadecimal digits: enough for a file name.
fn hex(key: &[u8; 32]) -> String {
    key[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests;
