//! Which documents train and which validate.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use bitnet_model::error::readable;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::progress::{OnProgress, Stage};
use super::source::{Source, SourceConfig};
use super::stories::{GENERATOR_VERSION, Split};

/// What the model is validated on: a part of the source, or a source of its own. Not both.
///
/// Built-in stories always validate on stories of held-out combinations; `fraction` says how many.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationConfig {
    /// The share of the documents, evenly spread over the source; of a source with one document, the share
    /// of its text, cut off at its end before a paragraph or line. More than 0, at most 0.5. Default 0.05.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// A source of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceConfig>,
}

/// One of the two parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// For training.
    Train,
    /// For validation.
    Validation,
}

/// Both, in the order in which they are made.
pub const PARTS: [Part; 2] = [Part::Train, Part::Validation];

/// Where the text of both parts comes from, nothing of it read yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Sources {
    source: Source,
    /// Another source validates.
    separate: Option<Source>,
    fraction: f64,
}

/// What reading a corpus found out: which part each document belongs to, and what both parts are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    how: How,
    /// SHA-256 of all that decides the documents of each part.
    contents: [[u8; 32]; 2],
}

/// A corpus whose two parts are decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Corpus {
    source: Source,
    separate: Option<Source>,
    decision: Decision,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum How {
    /// Another source validates.
    Separate,
    /// Of `documents`, `held` are spread over the source.
    Documents { documents: u64, held: u64 },
    /// The one document is cut at this byte.
    Cut { at: usize },
}

impl Sources {
    /// Finds the files of both parts; downloads what is not there.
    ///
    /// # Errors
    ///
    /// Settings that contradict, a missing file, what `progress` returns.
    pub fn resolve(source: &SourceConfig, validation: &ValidationConfig, progress: &OnProgress<'_>) -> Result<Self> {
        let fraction = validation.fraction.unwrap_or(DEFAULT_FRACTION);
        ensure!(
            fraction > 0.0 && fraction <= 0.5,
            "data.validation: `fraction` is {}, expected more than 0 and at most 0.5",
            readable(fraction)
        );
        let fetching = Stage::new("fetching from the Hub", progress);
        let resolved = Source::resolve(source, &fetching)?;
        let separate = match (&validation.source, &resolved) {
            (Some(_), _) if validation.fraction.is_some() => {
                bail!("data.validation: give `fraction` or `source`, not both")
            }
            (Some(SourceConfig::Stories { seed, count }), _) => {
                ensure!(*count > 0, "data.validation.source: `count` of stories must be at least 1");
                Some(Source::Stories { seed: *seed, count: *count, split: Split::Validation })
            }
            (Some(separate), _) => Some(Source::resolve(separate, &fetching)?),
            (None, Source::Stories { seed, count, .. }) => {
                let count = ((*count as f64 * fraction) as u64).max(1);
                Some(Source::Stories { seed: *seed, count, split: Split::Validation })
            }
            (None, _) => None,
        };
        Ok(Self { source: resolved, separate, fraction })
    }

    /// All files, those of the training source first.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.source.paths().chain(self.separate.iter().flat_map(Source::paths))
    }

    /// What is the same while nothing but the contents of files changes.
    pub fn settings(&self) -> String {
        format!("{:?} {:?} {:?} stories {GENERATOR_VERSION}", self.source, self.separate, self.fraction)
    }

    /// Reads the files once, to count documents and to tell what they are.
    ///
    /// # Errors
    ///
    /// An empty corpus, one too short to be cut, whatever reading or `stage` returns.
    pub fn read(&self, stage: &Stage<'_>) -> Result<Decision> {
        let (how, identities) = match &self.separate {
            Some(separate) => (How::Separate, [self.source.identity(stage)?, separate.identity(stage)?]),
            None => {
                let (how, identity) = by_fraction(&self.source, self.fraction, stage)?;
                (how, [identity.clone(), identity])
            }
        };
        let content = |part: Part| {
            let mut hash = Sha256::new();
            hash.update(&identities[part as usize]);
            match &how {
                How::Separate => hash.update("whole\n"),
                How::Documents { documents, held } => hash.update(format!("{held} of {documents} {part:?}\n")),
                How::Cut { at } => hash.update(format!("cut at {at} {part:?}\n")),
            }
            hash.finalize().into()
        };
        Ok(Decision { contents: PARTS.map(content), how })
    }

    /// The corpus, once its parts are decided.
    pub fn decided(self, decision: Decision) -> Corpus {
        Corpus { source: self.source, separate: self.separate, decision }
    }
}

impl Corpus {
    /// SHA-256 of all that decides a part.
    pub fn content(&self, part: Part) -> &[u8; 32] {
        &self.decision.contents[part as usize]
    }

    /// Calls `on_document` with each document of `parts`, those of a part in order, and reads each source once.
    ///
    /// # Errors
    ///
    /// What reading or `on_document` returns; a part without text.
    pub fn for_each(&self, parts: &[Part], on_document: &mut dyn FnMut(Part, &str) -> Result<()>) -> Result<()> {
        let mut seen = [false; 2];
        let mut tell = |part: Part, text: &str| {
            if !parts.contains(&part) {
                return Ok(());
            }
            seen[part as usize] |= !text.is_empty();
            on_document(part, text)
        };
        match (&self.separate, &self.decision.how) {
            (Some(separate), _) => {
                for (part, source) in PARTS.into_iter().zip([&self.source, separate]) {
                    if parts.contains(&part) {
                        source.for_each(&mut |text| tell(part, text))?;
                    }
                }
            }
            (None, How::Documents { documents, held }) => {
                let mut index = 0_u64;
                self.source.for_each(&mut |text| {
                    let is_held = held_before(index + 1, *documents, *held) > held_before(index, *documents, *held);
                    index += 1;
                    tell(if is_held { Part::Validation } else { Part::Train }, text)
                })?;
            }
            // The cut was found in this very text; were the file changed since, it might not fit.
            (None, How::Cut { at }) => self.source.for_each(&mut |text| {
                tell(Part::Train, text.get(..*at).unwrap_or(text))?;
                tell(Part::Validation, text.get(*at..).unwrap_or(""))
            })?,
            (None, How::Separate) => bail!("{}: nothing validates", self.source.describe()),
        }
        for &part in parts {
            let source = match (&self.separate, part) {
                (Some(separate), Part::Validation) => separate,
                _ => &self.source,
            };
            ensure!(seen[part as usize], "{} holds no text", source.describe());
        }
        Ok(())
    }
}

fn by_fraction(source: &Source, fraction: f64, stage: &Stage<'_>) -> Result<(How, Vec<u8>)> {
    let (mut documents, mut bytes, mut cut) = (0_u64, 0, None);
    let mut count = |text: &str| {
        documents += 1;
        if documents == 1 {
            bytes = text.len();
            cut = place_to_cut(text, fraction);
        }
        Ok(())
    };
    let identity = source.survey(&mut count, stage)?;
    let how = match documents {
        0 => bail!("{} holds no text", source.describe()),
        1 => match cut {
            Some(at) => How::Cut { at },
            None => bail!(
                "{}: its one document of {bytes} bytes is too short to be cut into a train and a validation part; \
                 give more text, or a `data.validation.source`",
                source.describe()
            ),
        },
        _ => {
            let held = ((documents as f64 * fraction).round() as u64).clamp(1, documents - 1);
            How::Documents { documents, held }
        }
    };
    Ok((how, identity))
}

/// How many of the first `index` documents are held, with `held` of `documents` spread evenly.
fn held_before(index: u64, documents: u64, held: u64) -> u64 {
    (u128::from(index) * u128::from(held) / u128::from(documents)) as u64
}

/// Where to cut so that the last `fraction` validates: after the last paragraph end before that point, else
/// after the last line end, else after the last space. None if that leaves a part empty.
fn place_to_cut(text: &str, fraction: f64) -> Option<usize> {
    let wanted = text.floor_char_boundary(((text.len() as f64) * (1.0 - fraction)) as usize);
    let head = &text[..wanted];
    // A boundary further back than the validation part is long would change its share too much.
    let nearest = wanted.saturating_sub(text.len() - wanted);
    let at = ["\n\n", "\n", " "]
        .iter()
        .filter_map(|boundary| head.rfind(boundary).map(|at| at + boundary.len()))
        .find(|&at| at >= nearest)
        .unwrap_or(wanted);
    (at > 0 && at < text.len()).then_some(at)
}

const DEFAULT_FRACTION: f64 = 0.05;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::Paths;

    fn parts_of(files: &[&str], fraction: f64) -> Result<(Vec<String>, Vec<String>)> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (index, text) in files.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{index:04}.txt")), text).expect("writes");
        }
        let source = SourceConfig::Text { path: Paths::One(folder.path().to_path_buf()) };
        let validation = ValidationConfig { fraction: Some(fraction), source: None };
        let corpus = corpus(&source, &validation)?;
        let [train, both] = [documents(&corpus, &[Part::Train])?, documents(&corpus, &PARTS)?];
        assert_eq!(train[0], both[0], "a part is the same alone and with the other");
        let [train, validation] = both;
        Ok((train, validation))
    }

    fn corpus(source: &SourceConfig, validation: &ValidationConfig) -> Result<Corpus> {
        let sources = Sources::resolve(source, validation, &|_| Ok(()))?;
        let decision = sources.read(&Stage::new("reading", &|_| Ok(())))?;
        let kept = serde_json::to_vec(&decision).expect("prints");
        assert_eq!(serde_json::from_slice::<Decision>(&kept).expect("its own output"), decision);
        Ok(sources.decided(decision))
    }

    fn documents(corpus: &Corpus, parts: &[Part]) -> Result<[Vec<String>; 2]> {
        let mut out = [Vec::new(), Vec::new()];
        corpus.for_each(parts, &mut |part, text| {
            out[part as usize].push(text.to_string());
            Ok(())
        })?;
        Ok(out)
    }

    #[test]
    fn documents_are_divided_without_overlap_or_loss() {
        for (count, fraction, held) in [(2, 0.05, 1), (10, 0.05, 1), (40, 0.05, 2), (100, 0.25, 25), (3, 0.5, 2)] {
            let texts: Vec<String> = (0..count).map(|index| format!("document {index}")).collect();
            let files: Vec<&str> = texts.iter().map(String::as_str).collect();
            let (train, validation) = parts_of(&files, fraction).expect("divides");
            assert_eq!((train.len(), validation.len()), (count - held, held));
            let mut all: Vec<String> = [train, validation].concat();
            all.sort();
            let mut expected = texts.clone();
            expected.sort();
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn one_document_is_cut_at_a_boundary() {
        let paragraphs = "one two\nthree\n\n".repeat(100);
        for (text, before) in [
            (paragraphs.clone(), "\n\n"),
            (paragraphs.replace("\n\n", "\n"), "\n"),
            (paragraphs.replace('\n', " "), " "),
            ("\u{e9}".repeat(1000), "\u{e9}"),
        ] {
            let (train, validation) = parts_of(&[&text], 0.1).expect("is long enough");
            assert_eq!(train.concat() + &validation.concat(), text);
            assert!(train[0].ends_with(before));
            let share = validation[0].len() as f64 / text.len() as f64;
            assert!((0.1..0.2).contains(&share), "{share}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (files, fraction, said) in [
            (&["", ""][..], 0.1, "holds no text"),
            (&["a"][..], 0.1, "too short to be cut"),
            (&["a b"][..], 0.0, "`fraction` is 0"),
            (&["a b"][..], 0.6, "`fraction` is 0.6"),
            (&["a b"][..], f64::NAN, "`fraction` is NaN"),
        ] {
            let error = parts_of(files, fraction).expect_err(said).to_string();
            assert!(error.contains(said), "{error}");
        }
        let both = ValidationConfig { fraction: Some(0.1), source: Some(SourceConfig::default()) };
        let error = corpus(&SourceConfig::default(), &both).expect_err("both").to_string();
        assert!(error.contains("not both"), "{error}");
    }

    #[test]
    fn stories_validate_on_the_held_out_half() {
        let (source, validation) = (SourceConfig::Stories { seed: 3, count: 100 }, ValidationConfig::default());
        let corpus = corpus(&source, &validation).expect("needs nothing");
        let [_, seen] = documents(&corpus, &[Part::Validation]).expect("stories cannot fail");
        let expected: Vec<String> =
            (0..5).map(|index| crate::data::stories::story(3, Split::Validation, index).document()).collect();
        assert_eq!(seen, expected);
    }
}
