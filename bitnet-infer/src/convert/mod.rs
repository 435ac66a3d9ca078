//! Any model that can be read to any format that is written, tensor by tensor.
//!
//! A conversion is a plan (names, types and shapes, from the configuration alone) and a loop over it: each tensor is read, brought
//! into its form and written before the next is read. Integer codes never change; a scale changes only where a format holds
//! it in fewer bits, and the report says by how much.

mod folder;
mod gguf;
mod part;
mod requantized;
mod same_codes;
mod target;
mod verify;

use std::path::Path;

use bitnet_model::ModelConfig;
use bitnet_model::files::source::WeightSource;

use crate::engine::{Error, ModelFiles, Result};

pub use requantized::Requantized;
pub use same_codes::SameCodes;
pub use target::{HeadType, Target};
pub use verify::{Agreement, Verification, check_positions, verify};

/// What to convert to, and how.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The format.
    pub target: Target,
    /// The type of the head (of the embedding, if they are one); `None`: f16 in GGUF, elsewhere as the source has it.
    pub head: Option<HeadType>,
    /// Quantize float weights first: names of a weight scheme and of an activation scheme.
    pub quantize: Option<(String, String)>,
    /// Whether something at the destination may be replaced.
    pub force: bool,
}

/// What was done.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Conversion {
    /// The name of the target.
    pub target: &'static str,
    /// Bytes of the weights that were read.
    pub bytes_read: usize,
    /// Bytes that were written.
    pub bytes_written: usize,
    /// Projections whose codes were carried over.
    pub coded_projections: usize,
    /// The largest relative difference between a scale and what the target holds of it.
    pub largest_scale_error: f64,
    /// What the reader decided, and what other programs will make of the result.
    pub notes: Vec<String>,
}

/// Converts the model in `files` to `destination`, which appears whole or not at all. `progress` hears of bytes written and of
/// all that will be.
///
/// # Errors
/// If the source is damaged, the target cannot hold the model (which tensor, and why), something is at the destination and
/// may not be replaced, or the disk is full; what was at the destination is then untouched.
pub fn convert(
    files: &ModelFiles,
    destination: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Conversion> {
    convert_checked(files, destination, options, progress, &mut |_| Ok(()))
}

/// The same, but what was written gets its name only after `check` has seen it under a temporary one.
///
/// # Errors
/// As [`convert`], or that of `check`.
pub fn convert_checked(
    files: &ModelFiles,
    destination: &Path,
    options: &ConvertOptions,
    progress: &mut dyn FnMut(usize, usize),
    check: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<Conversion> {
    check_destination(files.path(), destination, options)?;
    with_wanted(files, options, |weights| {
        let config = options.target.config(weights.config())?;
        let mut done = Conversion {
            target: options.target.name(),
            bytes_read: files.byte_count(),
            bytes_written: 0,
            coded_projections: 0,
            largest_scale_error: 0.0,
            notes: weights.notes(),
        };
        let job = Job { files, weights, config: &config, options };
        if options.target.gguf_type().is_some() {
            gguf::write(&job, destination, &mut done, progress, check)?;
        } else {
            folder::write(&job, destination, &mut done, progress, check)?;
        }
        Ok(done)
    })
}

/// Gives what is to be written to `use_weights`: the weights of the source, quantized if that was asked for.
fn with_wanted<R>(
    files: &ModelFiles,
    options: &ConvertOptions,
    use_weights: impl FnOnce(&dyn WeightSource) -> Result<R>,
) -> Result<R> {
    files.with_weights(|weights| match &options.quantize {
        None => use_weights(weights),
        Some((weight, activation)) => use_weights(&Requantized::new(weights, weight, activation)?),
    })
}

/// What the writers of all formats work with.
struct Job<'a> {
    files: &'a ModelFiles,
    weights: &'a dyn WeightSource,
    /// What is written, where `weights.config()` is what is read.
    config: &'a ModelConfig,
    options: &'a ConvertOptions,
}

fn check_destination(source: &Path, destination: &Path, options: &ConvertOptions) -> Result<()> {
    let name = destination.display();
    let same = |a: &Path, b: &Path| a.canonicalize().ok().zip(b.canonicalize().ok()).is_some_and(|(a, b)| a == b);
    if same(source, destination) {
        return Err(Error::Input(format!("{name}: is the source itself, expected another place")));
    }
    if destination.exists() && !options.force {
        return Err(Error::Input(format!("{name}: exists already: choose another name, or replace it with --force")));
    }
    if options.target.gguf_type().is_some() && destination.is_dir() {
        return Err(Error::Input(format!("{name}: is a folder, expected a file name for `{}`", options.target.name())));
    }
    Ok(())
}
