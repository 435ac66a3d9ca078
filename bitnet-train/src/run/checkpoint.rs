//! Everything a run needs to take the same next step: latent weights, moments, counters.
//!
//! Data order and other randomness are functions of the seed and the step, so they need no state of their own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bitnet_model::ModelConfig;
use bitnet_model::files::checkpoint::{self, SavedTensor, TensorGroup};
use bitnet_model::files::reader::TensorReader;
use serde::{Deserialize, Serialize};

use super::folder::RunFolder;
use crate::nn::parameters::Parameters;
use crate::ops::{Codes, Values, values};
use crate::optim::{AdamW, AdamWConfig, Moments};

const MODEL_FILE: &str = "model.safetensors";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const CODES_FILE: &str = "codes.safetensors";

/// The counters of a run. Invariant: with the tensors beside it, this is all that the loop carries from step to step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Format of this file.
    pub version: u32,
    /// Optimizer steps taken.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Lowest validation loss so far, and its step.
    pub best: Option<Best>,
    /// Fingerprint of the training tokens: a resume on other data is refused.
    pub data: String,
}

/// A validation worth keeping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// The step after which it was measured.
    pub step: u64,
    /// Nats per token.
    pub loss: f64,
}

/// Version that [`State::version`] must have.
pub const VERSION: u32 = 1;

/// What a checkpoint holds beside its [`State`].
pub struct Contents<'a> {
    /// Latent weights.
    pub parameters: &'a Parameters,
    /// Moments.
    pub optimizer: &'a AdamW,
    /// Codes of the last report.
    pub codes: &'a Codes,
}

/// The newest checkpoint of a run.
pub struct Latest {
    /// Its folder.
    pub path: PathBuf,
    /// Its counters.
    pub state: State,
}

impl Latest {
    /// Finds the newest complete checkpoint of a run.
    ///
    /// # Errors
    /// If there is none, or its state cannot be read.
    pub fn find(folder: &RunFolder) -> Result<Self> {
        let steps = list(&folder.checkpoints())?;
        let step = steps.last().with_context(|| {
            format!("{}: holds no checkpoint yet; begin again with --overwrite", folder.checkpoints().display())
        })?;
        Self::read(path_of(folder, *step))
    }

    /// The checkpoint in `path`.
    ///
    /// # Errors
    /// If its state cannot be read.
    pub fn read(path: PathBuf) -> Result<Self> {
        let state: State = checkpoint::read_state(&path)?;
        ensure!(
            state.version == VERSION,
            "{}: is a checkpoint of version {}, expected {VERSION}",
            path.display(),
            state.version
        );
        Ok(Self { path, state })
    }

    /// The optimizer as it was.
    ///
    /// # Errors
    /// If the moments are missing or do not fit.
    pub fn optimizer(&self, config: AdamWConfig, parameters: &Parameters) -> Result<AdamW> {
        let mut file = TensorReader::open(&self.path.join(OPTIMIZER_FILE))?;
        let moments = |name: &str, shape: &[usize], moments: Moments<&mut [f32]>| {
            file.read_finite(&format!("first.{name}"), shape, moments.first)?;
            Ok(file.read_finite(&format!("second.{name}"), shape, moments.second)?)
        };
        AdamW::resume(config, parameters, moments, self.state.step)
    }

    /// The codes of the last report.
    ///
    /// # Errors
    /// If the file is damaged.
    pub fn codes(&self) -> Result<Codes> {
        let mut file = TensorReader::open(&self.path.join(CODES_FILE))?;
        let names = file.names().into_iter();
        Ok(names.map(|name| file.read_i8(&name).map(|codes| (name, codes))).collect::<Result<_, _>>()?)
    }
}

/// The latent weights of a checkpoint.
///
/// # Errors
/// If a tensor is missing or does not fit the configuration.
pub fn load_parameters(path: &Path, config: &ModelConfig) -> Result<Parameters> {
    let mut file = TensorReader::open(&path.join(MODEL_FILE))?;
    Parameters::from_values(config, |name, shape| {
        let mut values = vec![0.0; shape.iter().product()];
        file.read_finite(name, shape, &mut values)?;
        Ok(values)
    })
}

/// Writes a checkpoint and removes those that need not be kept.
///
/// # Errors
/// If it cannot be written; earlier checkpoints are then untouched.
pub fn save(
    folder: &RunFolder,
    state: &State,
    contents: &Contents,
    keep_last: usize,
    keep_best: bool,
) -> Result<PathBuf> {
    let path = path_of(folder, state.step);
    let weights: Vec<(&str, Values)> =
        contents.parameters.iter().map(|(name, var)| Ok((name, values(var)?))).collect::<Result<_>>()?;
    let shapes: Vec<&[usize]> = contents.parameters.iter().map(|(_, var)| var.dims()).collect();
    let model = weights
        .iter()
        .zip(&shapes)
        .map(|((name, values), shape)| ((*name).to_owned(), SavedTensor::f32(shape, values)));
    let moments = contents.optimizer.moments().zip(&shapes).flat_map(|((name, m), shape)| {
        [("first", m.first), ("second", m.second)]
            .map(|(kind, values)| (format!("{kind}.{name}"), SavedTensor::f32(shape, values)))
    });
    let codes = contents.codes.iter().map(|(name, codes)| (name.clone(), SavedTensor::i8(codes)));
    let groups = [
        TensorGroup { file_name: MODEL_FILE, tensors: model.collect() },
        TensorGroup { file_name: OPTIMIZER_FILE, tensors: moments.collect() },
        TensorGroup { file_name: CODES_FILE, tensors: codes.collect() },
    ];
    checkpoint::write(&path, &groups, state)?;
    prune(folder, state, keep_last, keep_best)?;
    Ok(path)
}

/// The folder of the checkpoint after `step` steps.
pub fn path_of(folder: &RunFolder, step: u64) -> PathBuf {
    folder.checkpoints().join(name_of(step))
}

fn prune(folder: &RunFolder, state: &State, keep_last: usize, keep_best: bool) -> Result<()> {
    let steps = list(&folder.checkpoints())?;
    let kept_from = steps.len().saturating_sub(keep_last);
    let best = state.best.filter(|_| keep_best).map(|best| best.step);
    for step in &steps[..kept_from] {
        if Some(*step) != best {
            let path = path_of(folder, *step);
            fs::remove_dir_all(&path).with_context(|| format!("{}: cannot remove", path.display()))?;
        }
    }
    Ok(())
}

/// Removes what a killed process left half-written.
///
/// # Errors
/// If the folder cannot be read or a leftover cannot be removed.
pub fn remove_leftovers(folder: &RunFolder) -> Result<()> {
    let checkpoints = folder.checkpoints();
    let entries = fs::read_dir(&checkpoints).with_context(|| format!("{}: cannot read", checkpoints.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("{}: cannot read", checkpoints.display()))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(".step-") && name.ends_with(".tmp") {
            fs::remove_dir_all(&path).with_context(|| format!("{}: cannot remove", path.display()))?;
        }
    }
    Ok(())
}

/// Steps of the complete checkpoints, ascending. A temporary folder has another name and does not count.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(checkpoints: &Path) -> Result<Vec<u64>> {
    let entries = fs::read_dir(checkpoints).with_context(|| format!("{}: cannot read", checkpoints.display()))?;
    let mut steps = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("{}: cannot read", checkpoints.display()))?.file_name();
        steps.extend(name.to_str().and_then(|n| n.strip_prefix("step-")).and_then(|n| n.parse::<u64>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}
