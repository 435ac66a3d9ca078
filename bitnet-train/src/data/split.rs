//! Which documents train and which validate.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::progress::{OnProgress, Stage};
use super::source::{OnDocument, Source, SourceConfig};
use super::stories::Split;

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

/// A corpus whose two parts are decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Corpus {
    source: Source,
    how: How,
}

#[derive(Debug, Clone, PartialEq)]
enum How {
    /// Another source validates.
    Separate(Source),
    /// Of `documents`, `held` are spread over the source.
    Documents { documents: u64, held: u64 },
    /// The one document is cut at this byte.
    Cut { at: usize },
}

impl Corpus {
    /// Resolves the sources and decides the parts; reads the source once to count its documents, unless
    /// another source validates.
    ///
    /// # Errors
    ///
    /// Settings that contradict, an empty corpus, one too short to be cut, whatever reading or `progress` returns.
    pub fn resolve(source: &SourceConfig, validation: &ValidationConfig, progress: &OnProgress<'_>) -> Result<Corpus> {
        let fraction = validation.fraction.unwrap_or(DEFAULT_FRACTION);
        ensure!(
            fraction > 0.0 && fraction <= 0.5,
            "data.validation: `fraction` is {fraction}, expected more than 0 and at most 0.5"
        );
        let fetching = Stage::new("fetching from the Hub", progress);
        let resolved = Source::resolve(source, &fetching)?;
        let how = match (&validation.source, &resolved) {
            (Some(_), _) if validation.fraction.is_some() => {
                bail!("data.validation: give `fraction` or `source`, not both")
            }
            (Some(SourceConfig::Stories { seed, count }), _) => {
                ensure!(*count > 0, "data.validation.source: `count` of stories must be at least 1");
                How::Separate(Source::Stories { seed: *seed, count: *count, split: Split::Validation })
            }
            (Some(separate), _) => How::Separate(Source::resolve(separate, &fetching)?),
            (None, Source::Stories { seed, count, .. }) => {
                let count = ((*count as f64 * fraction) as u64).max(1);
                How::Separate(Source::Stories { seed: *seed, count, split: Split::Validation })
            }
            (None, _) => by_fraction(&resolved, fraction, &Stage::new("reading the corpus", progress))?,
        };
        Ok(Corpus { source: resolved, how })
    }

    /// Calls `on_document` with each document of a part, in order.
    ///
    /// # Errors
    ///
    /// What reading or `on_document` returns; a part without text.
    pub fn for_each(&self, part: Part, on_document: &mut OnDocument<'_>) -> Result<()> {
        let mut seen = 0_u64;
        let source = self.source_of(part);
        let mut index = 0_u64;
        source.for_each(&mut |text| {
            let here = index;
            index += 1;
            let text = match (&self.how, part) {
                (How::Separate(_), _) => text,
                (How::Documents { documents, held }, part) => {
                    let is_held = held_before(here + 1, *documents, *held) > held_before(here, *documents, *held);
                    if is_held != (part == Part::Validation) {
                        return Ok(());
                    }
                    text
                }
                // The cut was found in this very text; were the file changed since, it might not fit.
                (How::Cut { at }, Part::Train) => text.get(..*at).unwrap_or(text),
                (How::Cut { at }, Part::Validation) => text.get(*at..).unwrap_or(""),
            };
            seen += u64::from(!text.is_empty());
            on_document(text)
        })?;
        ensure!(seen > 0, "{} holds no text", source.describe());
        Ok(())
    }

    /// Feeds the hash with all that decides a part; `stage` hears of the bytes that are read.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or what `stage` returns.
    pub fn fingerprint(&self, part: Part, hash: &mut Sha256, stage: &Stage<'_>) -> Result<()> {
        self.source_of(part).fingerprint(hash, stage)?;
        match &self.how {
            How::Separate(_) => hash.update("whole\n"),
            How::Documents { documents, held } => hash.update(format!("{held} of {documents} {part:?}\n")),
            How::Cut { at } => hash.update(format!("cut at {at} {part:?}\n")),
        }
        Ok(())
    }

    fn source_of(&self, part: Part) -> &Source {
        match (&self.how, part) {
            (How::Separate(source), Part::Validation) => source,
            _ => &self.source,
        }
    }
}

fn by_fraction(source: &Source, fraction: f64, stage: &Stage<'_>) -> Result<How> {
    let (mut documents, mut bytes, mut cut) = (0_u64, 0, None);
    source.for_each(&mut |text| {
        documents += 1;
        if documents == 1 {
            bytes = text.len();
            cut = place_to_cut(text, fraction);
        }
        stage.add(text.len())
    })?;
    match documents {
        0 => bail!("{} holds no text", source.describe()),
        1 => match cut {
            Some(at) => Ok(How::Cut { at }),
            None => bail!(
                "{}: its one document of {bytes} bytes is too short to be cut into a train and a validation part; \
                 give more text, or a `data.validation.source`",
                source.describe()
            ),
        },
        _ => {
            let held = ((documents as f64 * fraction).round() as u64).clamp(1, documents - 1);
            Ok(How::Documents { documents, held })
        }
    }
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
        let corpus = Corpus::resolve(&source, &validation, &|_| Ok(()))?;
        let read = |part| {
            let mut out = Vec::new();
            corpus.for_each(part, &mut |text| {
                out.push(text.to_string());
                Ok(())
            })?;
            Ok::<_, anyhow::Error>(out)
        };
        Ok((read(Part::Train)?, read(Part::Validation)?))
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
        let error = Corpus::resolve(&SourceConfig::default(), &both, &|_| Ok(())).expect_err("both").to_string();
        assert!(error.contains("not both"), "{error}");
    }

    #[test]
    fn stories_validate_on_the_held_out_half() {
        let (source, validation) = (SourceConfig::Stories { seed: 3, count: 100 }, ValidationConfig::default());
        let corpus = Corpus::resolve(&source, &validation, &|_| Ok(())).expect("needs nothing");
        let mut seen = Vec::new();
        corpus
            .for_each(Part::Validation, &mut |text| {
                seen.push(text.to_string());
                Ok(())
            })
            .expect("stories cannot fail");
        let expected: Vec<String> =
            (0..5).map(|index| crate::data::stories::story(3, Split::Validation, index).document()).collect();
        assert_eq!(seen, expected);
    }
}
