//! The whole way from a config to two token shards, cached.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bitnet_model::files::write_atomic;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::encode::Encoder;
use super::progress::{OnProgress, Stage};
use super::receipts::{Receipts, Stamp, Trust, hex};
use super::shards::{Shard, ShardWriter};
use super::source::SourceConfig;
use super::split::{Corpus, Decision, PARTS, Part, Sources, ValidationConfig};
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
    /// What was found wrong, a sentence each: damage in the cache, which was made anew, and text that changed without a trace.
    pub warnings: Vec<String>,
}

/// Makes the tokenizer and the shards of a run, or takes them from the cache folder.
///
/// `cache` is used where the config names no folder. `trust` says whether files that were read before are read again. A damaged
/// shard is made anew and reported in [`Prepared::warnings`].
///
/// # Errors
///
/// One line that names the file, row, key or byte at fault; or what `progress` returns, which is called between any two pieces
/// of work that take a while. What is complete then stays in the cache.
pub fn prepare(
    config: &DataConfig,
    tokenizer: &TokenizerConfig,
    cache: &Path,
    trust: Trust,
    progress: &OnProgress<'_>,
) -> Result<Prepared> {
    let cache = config.cache_dir.as_deref().unwrap_or(cache);
    fs::create_dir_all(cache).with_context(|| format!("data: cannot create the cache folder {}", cache.display()))?;
    let receipts = Receipts { folder: cache, trust };
    let mut warnings = Vec::new();
    let corpus = corpus_of(config, receipts, &mut warnings, progress)?;
    let built = built_tokenizer(&corpus, tokenizer, cache, &mut warnings, progress)?;
    let encoder = Encoder::new(&built.json)?;
    let separator = built.eos.filter(|_| config.separator);
    let places = PARTS.map(|part| {
        let mut hash = Sha256::new();
        hash.update(corpus.content(part));
        hash.update(Sha256::digest(&built.json));
        hash.update(format!("separator {separator:?}\n"));
        let name = if part == Part::Train { "train" } else { "validation" };
        Place::of(name, cache, hash.finalize().into())
    });
    let mut shards = PARTS.map(|part| places[part as usize].open(receipts, &mut warnings));
    let missing: Vec<Part> = PARTS.into_iter().filter(|&part| shards[part as usize].is_none()).collect();
    if !missing.is_empty() {
        let stage = Stage::new("tokenizing", progress);
        let mut writers = [None, None];
        for &part in &missing {
            let path = &places[part as usize].path;
            writers[part as usize] = Some(ShardWriter::create(path, &encoder, built.vocab_size, separator, &stage)?);
        }
        corpus.for_each(&missing, &mut |part, text| match &mut writers[part as usize] {
            Some(writer) => writer.add(text),
            None => Ok(()),
        })?;
        for ((place, shard), writer) in places.iter().zip(&mut shards).zip(writers) {
            if let Some(writer) = writer {
                writer.finish(&place.key)?;
                receipts.write(&place.name, &Stamp::of([place.path.as_path()])?, ())?;
                *shard = Some(Shard::open_unread(&place.path, &place.key)?);
            }
        }
        stage.end()?;
    }
    let [Some(train), Some(validation)] = shards else { bail!("data: a part was made and is missing") };
    Ok(Prepared {
        train,
        validation,
        vocab_size: built.vocab_size,
        eos: built.eos,
        tokenizer_json: built.json,
        warnings,
    })
}

/// The corpus with its parts decided: read once, or as it was found before.
fn corpus_of(
    config: &DataConfig,
    receipts: Receipts<'_>,
    warnings: &mut Vec<String>,
    progress: &OnProgress<'_>,
) -> Result<Corpus> {
    let sources = Sources::resolve(&config.source, &config.validation, progress)?;
    let reading = Stage::new("reading the corpus", progress);
    if sources.paths().next().is_none() {
        // Stories are generated.
        let decision = sources.read(&reading)?;
        return Ok(sources.decided(decision));
    }
    let stamp = Stamp::of(sources.paths())?;
    let name = format!("corpus-{}", short(&Sha256::digest(sources.settings()).into()));
    if let Some(decision) = receipts.find(&name, &stamp) {
        return Ok(sources.decided(decision));
    }
    let decision = sources.read(&reading)?;
    if receipts.earlier::<Decision>(&name, &stamp).is_some_and(|earlier| earlier != decision) {
        let first = sources.paths().next().unwrap_or(Path::new("data.source")).display().to_string();
        warnings.push(format!(
            "data.source ({first} and what is read with it): the text is not the one that was read before, though all sizes and \
             times of change are the same"
        ));
    }
    receipts.keep(&name, &stamp, sources.paths(), &decision)?;
    Ok(sources.decided(decision))
}

/// A shard in the cache.
struct Place {
    name: String,
    path: PathBuf,
    key: [u8; 32],
}

impl Place {
    fn of(part: &str, cache: &Path, key: [u8; 32]) -> Self {
        let name = format!("{part}-{}", short(&key));
        Self { path: cache.join(format!("{name}.tokens")), name, key }
    }

    /// The shard, if it is there and whole.
    fn open(&self, receipts: Receipts<'_>, warnings: &mut Vec<String>) -> Option<Shard> {
        if !self.path.exists() {
            return None;
        }
        let stamp = Stamp::of([self.path.as_path()]);
        let known = stamp.as_ref().is_ok_and(|stamp| receipts.find::<()>(&self.name, stamp).is_some());
        let opened = if known {
            Shard::open_unread(&self.path, &self.key)
        } else {
            Shard::open(&self.path, &self.key).and_then(|shard| receipts.write(&self.name, &stamp?, ()).map(|()| shard))
        };
        opened.map_err(|fault| warnings.push(format!("{fault:#}; it was made anew"))).ok()
    }
}

/// The tokenizer, from the cache if it was trained on the same text with the same settings.
fn built_tokenizer(
    corpus: &Corpus,
    config: &TokenizerConfig,
    cache: &Path,
    warnings: &mut Vec<String>,
    progress: &OnProgress<'_>,
) -> Result<BuiltTokenizer> {
    let mut hash = Sha256::new();
    hash.update(corpus.content(Part::Train));
    hash.update(serde_json::to_vec(config)?);
    let path = cache.join(format!("tokenizer-{}.json", short(&hash.finalize().into())));
    let from_file = matches!(config, TokenizerConfig::File { .. });
    if !from_file && path.exists() {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        match BuiltTokenizer::from_json(bytes) {
            Ok(built) => return Ok(built),
            Err(fault) => warnings.push(format!("{}: {fault:#}; it was made anew", path.display())),
        }
    }
    let stage = Stage::new("training the tokenizer", progress);
    let built = tokenizer::build(config, &|on_document| {
        corpus.for_each(&[Part::Train], &mut |_, text| {
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

/// The first 16 bytes as hexadecimal digits: enough for a file name.
fn short(key: &[u8; 32]) -> String {
    hex(&key[..16])
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests;
