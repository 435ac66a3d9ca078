//! Where text comes from: a config, resolved once to files or stories, then streamed document by document.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::progress::Stage;
use super::sources::{files, hub, jsonl, parquet, text};
use super::stories::{self, Split};

/// Where a corpus comes from; the key `type` says which kind (`stories`, `text`, `jsonl`, `parquet`, `hub`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SourceConfig {
    /// The built-in stories: nothing to download.
    Stories {
        /// Other seeds give other stories. Default 0.
        #[serde(default)]
        seed: u64,
        /// How many stories the train split has. Default 40,000 (about 30 MB).
        #[serde(default = "default_count")]
        count: u64,
    },
    /// Plain UTF-8 text. Each file is one document.
    Text {
        /// A file, a folder (`*.txt` and `*.md` in it and below, in sorted order) or a list of these.
        path: Paths,
    },
    /// JSON Lines: each line is an object with the text in one field.
    Jsonl {
        /// A file, a folder (`*.jsonl` in it and below, in sorted order) or a list of these.
        path: Paths,
        /// The field that holds the text. Default `text`.
        #[serde(default = "default_field")]
        field: String,
    },
    /// Parquet: each row is a document.
    Parquet {
        /// A file, a folder (`*.parquet` in it and below, in sorted order) or a list of these.
        path: Paths,
        /// The column that holds the text. Default `text`.
        #[serde(default = "default_field")]
        field: String,
    },
    /// Files of a dataset repository of the Hugging Face Hub, by their endings `txt`, `md`, `jsonl`, `parquet`.
    Hub {
        /// `owner/name`.
        repo: String,
        /// A branch, tag or commit. Default `main`.
        #[serde(default = "default_revision")]
        revision: String,
        /// Patterns of file names: `*` within a folder, `**` across folders, `?` one character.
        files: Vec<String>,
        /// The field or column that holds the text. Default `text`.
        #[serde(default = "default_field")]
        field: String,
    },
}

/// One path or a list of paths.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Paths {
    /// One file or folder.
    One(PathBuf),
    /// Several, read in this order.
    Many(Vec<PathBuf>),
}

impl Paths {
    /// The paths in order.
    pub fn as_slice(&self) -> &[PathBuf] {
        match self {
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Many(paths) => paths,
        }
    }
}

impl Default for SourceConfig {
    fn default() -> Self {
        SourceConfig::Stories { seed: 0, count: default_count() }
    }
}

/// How a file holds documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileKind {
    /// The whole file is one document.
    Text,
    /// One JSON object a line.
    Jsonl,
    /// One row a document.
    Parquet,
}

impl FileKind {
    /// The endings (without dot) by which files of this kind are found in a folder.
    pub fn endings(self) -> &'static [&'static str] {
        match self {
            FileKind::Text => &["txt", "md"],
            FileKind::Jsonl => &["jsonl"],
            FileKind::Parquet => &["parquet"],
        }
    }
}

/// What is called with each document.
pub type OnDocument<'a> = dyn FnMut(&str) -> Result<()> + 'a;

/// What is called with the bytes of a file in order, piece by piece.
pub type OnBytes<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// A source whose files are known and at hand.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Stories `0..count` of a split.
    Stories {
        /// The seed.
        seed: u64,
        /// Their number.
        count: u64,
        /// The split.
        split: Split,
    },
    /// Local files in order.
    Files {
        /// Each file and how it holds documents.
        files: Vec<(PathBuf, FileKind)>,
        /// The field or column with the text.
        field: String,
    },
}

impl Source {
    /// Finds the files of a source; for the Hub, downloads those that are not in its cache and tells `stage`.
    ///
    /// # Errors
    ///
    /// A missing path, an empty folder, no matching file in the repository, no connection.
    pub fn resolve(config: &SourceConfig, stage: &Stage<'_>) -> Result<Source> {
        let of_kind = |path: &Paths, kind: FileKind, field: &str| -> Result<Source> {
            let files = files::expand(path.as_slice(), kind)?;
            Ok(Source::Files { files, field: field.to_string() })
        };
        match config {
            SourceConfig::Stories { count: 0, .. } => bail!("data.source: `count` of stories must be at least 1"),
            SourceConfig::Stories { seed, count } => {
                Ok(Source::Stories { seed: *seed, count: *count, split: Split::Train })
            }
            SourceConfig::Text { path } => of_kind(path, FileKind::Text, "text"),
            SourceConfig::Jsonl { path, field } => of_kind(path, FileKind::Jsonl, field),
            SourceConfig::Parquet { path, field } => of_kind(path, FileKind::Parquet, field),
            SourceConfig::Hub { repo, revision, files, field } => {
                let files = hub::fetch(&hub::HubSettings::from_env(), repo, revision, files, stage)?;
                ensure!(
                    *field == default_field() || files.iter().any(|(_, kind)| *kind != FileKind::Text),
                    "data.source: `field` is `{field}` and has no effect: plain text has no fields, and the files of {repo} that \
                     match are all plain text; leave it out"
                );
                Ok(Source::Files { files, field: field.clone() })
            }
        }
    }

    /// Its files; none for stories.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let files = match self {
            Source::Stories { .. } => &[][..],
            Source::Files { files, .. } => files,
        };
        files.iter().map(|(path, _)| path.as_path())
    }

    /// Calls `on_document` with every document that is not empty, in order.
    ///
    /// # Errors
    ///
    /// Names the file and the line, row or byte that is at fault; or what `on_document` returned.
    pub fn for_each(&self, on_document: &mut OnDocument<'_>) -> Result<()> {
        let mut on_text = |text: &str| if text.is_empty() { Ok(()) } else { on_document(text) };
        let on_bytes = &mut |_: &[u8]| Ok(());
        match self {
            Source::Stories { seed, count, split } => {
                (0..*count).try_for_each(|index| on_text(&stories::story(*seed, *split, index).document()))
            }
            Source::Files { files, field } => files.iter().try_for_each(|(path, kind)| match kind {
                FileKind::Text => text::read(path, on_bytes, &mut on_text),
                FileKind::Jsonl => jsonl::read(path, field, on_bytes, &mut on_text),
                FileKind::Parquet => parquet::read(path, field, &mut on_text),
            }),
        }
    }

    /// All that decides the documents: parameters of stories, or the hashes of the files, without their paths, so that a moved
    /// corpus keeps its shards. `stage` hears of the bytes that are read.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or what `stage` returns.
    pub fn identity(&self, stage: &Stage<'_>) -> Result<Vec<u8>> {
        self.identity_by(|path, _| files::sha256(path, &|bytes| stage.add(bytes)))
    }

    /// The same, and calls `on_document` as [`Source::for_each`] does, while the files are read once. (Parquet is read twice, one
    /// file after the other, since its documents do not lie in the order of its bytes.)
    ///
    /// # Errors
    ///
    /// As both.
    pub fn survey(&self, on_document: &mut OnDocument<'_>, stage: &Stage<'_>) -> Result<Vec<u8>> {
        let Source::Files { field, .. } = self else {
            self.for_each(on_document)?;
            return self.identity(stage);
        };
        let mut on_text = |text: &str| if text.is_empty() { Ok(()) } else { on_document(text) };
        self.identity_by(|path, kind| {
            let mut hash = Sha256::new();
            let mut on_bytes = |bytes: &[u8]| {
                hash.update(bytes);
                stage.add(bytes.len())
            };
            match kind {
                FileKind::Text => text::read(path, &mut on_bytes, &mut on_text)?,
                FileKind::Jsonl => jsonl::read(path, field, &mut on_bytes, &mut on_text)?,
                FileKind::Parquet => {
                    let hash = files::sha256(path, &|bytes| stage.add(bytes))?;
                    parquet::read(path, field, &mut on_text)?;
                    return Ok(hash);
                }
            }
            Ok(hash.finalize().into())
        })
    }

    fn identity_by(&self, mut hash: impl FnMut(&Path, FileKind) -> Result<[u8; 32]>) -> Result<Vec<u8>> {
        match self {
            Source::Stories { seed, count, split } => {
                let version = stories::GENERATOR_VERSION;
                Ok(format!("stories {version} {seed} {count} {split:?}\n").into_bytes())
            }
            Source::Files { files, field } => {
                let mut out = format!("files {} field {field:?}\n", files.len()).into_bytes();
                for (path, kind) in files {
                    out.extend(format!("{kind:?}\n").bytes());
                    out.extend(hash(path, *kind)?);
                }
                Ok(out)
            }
        }
    }

    /// What the source is, for messages.
    pub fn describe(&self) -> String {
        match self {
            Source::Stories { count, .. } => format!("{count} built-in stories"),
            Source::Files { files, .. } => match files.as_slice() {
                [(path, _)] => path.display().to_string(),
                [(path, _), rest @ ..] => format!("{} and {} more", path.display(), rest.len()),
                [] => "no file".to_string(),
            },
        }
    }
}

fn default_count() -> u64 {
    40_000
}

fn default_field() -> String {
    "text".to_string()
}

fn default_revision() -> String {
    "main".to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_round_trip_and_have_defaults() {
        for (toml, defaults) in [
            ("type = \"stories\"", "type = \"stories\"\nseed = 0\ncount = 40000\n"),
            ("type = \"text\"\npath = \"a.txt\"", "type = \"text\"\npath = \"a.txt\"\n"),
            ("type = \"text\"\npath = [\"a\", \"b\"]", "type = \"text\"\npath = [\"a\", \"b\"]\n"),
            ("type = \"jsonl\"\npath = \"a\"", "type = \"jsonl\"\npath = \"a\"\nfield = \"text\"\n"),
            ("type = \"parquet\"\npath = \"a\"", "type = \"parquet\"\npath = \"a\"\nfield = \"text\"\n"),
            (
                "type = \"hub\"\nrepo = \"a/b\"\nfiles = [\"*.txt\"]",
                "type = \"hub\"\nrepo = \"a/b\"\nrevision = \"main\"\nfiles = [\"*.txt\"]\nfield = \"text\"\n",
            ),
        ] {
            let config: SourceConfig = toml::from_str(toml).expect(toml);
            assert_eq!(toml::to_string(&config).expect("serialises"), defaults);
            assert_eq!(toml::from_str::<SourceConfig>(defaults).expect("its own output"), config);
        }
    }

    #[test]
    fn unknown_keys_and_kinds_are_refused() {
        for toml in [
            "type = \"stories\"\nsed = 1",
            "type = \"text\"\npath = \"a\"\nfield = \"b\"",
            "type = \"csv\"\npath = \"a\"",
            "seed = 1",
            "type = \"text\"",
        ] {
            assert!(toml::from_str::<SourceConfig>(toml).is_err(), "{toml}");
        }
    }

    #[test]
    fn stories_are_streamed_in_order() {
        let resolve =
            |seed, count| Source::resolve(&SourceConfig::Stories { seed, count }, &Stage::new("reading", &|_| Ok(())));
        let source = resolve(4, 3).expect("needs nothing");
        let mut seen = Vec::new();
        source
            .for_each(&mut |text| {
                seen.push(text.to_string());
                Ok(())
            })
            .expect("stories cannot fail");
        let expected: Vec<String> = (0..3).map(|i| stories::story(4, Split::Train, i).document()).collect();
        assert_eq!(seen, expected);
        assert!(resolve(4, 0).is_err());
    }
}
