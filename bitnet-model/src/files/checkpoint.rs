//! The trainer's own folder: named f32 tensors in safetensors files and a JSON state beside them.
//!
//! A checkpoint is a folder that appears complete or not at all. What the JSON says belongs to the trainer; this module
//! only knows how to write and read it whole.

use std::borrow::Cow;
use std::path::Path;

use safetensors::tensor::View;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::tensors::{self, Dtype, FloatBytes, TensorFile};
use crate::error::{Error, Result};
use crate::weights::FloatType;

/// Name of the JSON file of a checkpoint.
pub const STATE_FILE: &str = "state.json";

/// One safetensors file of a checkpoint: its name and its tensors.
pub struct TensorGroup<'a> {
    /// File name inside the checkpoint folder.
    pub file_name: &'static str,
    /// Tensors by name.
    pub tensors: Vec<(String, SavedTensor<'a>)>,
}

/// Numbers that live elsewhere. They become bytes as they are written, one tensor after the other, so that a checkpoint
/// takes no more memory than its largest tensor.
pub struct SavedTensor<'a> {
    shape: Vec<usize>,
    numbers: Numbers<'a>,
}

enum Numbers<'a> {
    F32(&'a [f32]),
    I8(&'a [i8]),
}

impl<'a> SavedTensor<'a> {
    /// An f32 tensor.
    ///
    /// # Panics
    /// If the shape does not hold `numbers.len()` elements.
    pub fn f32(shape: &[usize], numbers: &'a [f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), numbers.len(), "one number per element");
        Self { shape: shape.to_vec(), numbers: Numbers::F32(numbers) }
    }

    /// A vector of i8.
    pub fn i8(numbers: &'a [i8]) -> Self {
        Self { shape: vec![numbers.len()], numbers: Numbers::I8(numbers) }
    }
}

impl View for &SavedTensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.numbers {
            Numbers::F32(_) => Dtype::F32,
            Numbers::I8(_) => Dtype::I8,
        }
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(match self.numbers {
            // The size is known, which `flat_map` would not say: no room that grows and is left behind.
            Numbers::F32(numbers) => numbers.iter().map(|x| x.to_le_bytes()).collect::<Vec<_>>().into_flattened(),
            Numbers::I8(numbers) => numbers.iter().map(|&x| x as u8).collect(),
        })
    }
    fn data_len(&self) -> usize {
        match self.numbers {
            Numbers::F32(numbers) => size_of_val(numbers),
            Numbers::I8(numbers) => numbers.len(),
        }
    }
}

/// Writes a checkpoint folder, all or nothing.
///
/// # Errors
/// If anything cannot be written; an earlier folder at `path` is then untouched.
pub fn write(path: &Path, groups: &[TensorGroup], state: &impl Serialize) -> Result<()> {
    super::write_folder_atomic(path, |folder| {
        for group in groups {
            let metadata = ("format", r#"{"format":"bitnet-checkpoint","version":1}"#.to_owned());
            tensors::write(&folder.join(group.file_name), &group.tensors, metadata)?;
        }
        let json = serde_json::to_vec_pretty(state)
            .map_err(|e| Error::format(&path.display().to_string(), format!("state does not serialize: {e}")))?;
        super::write_synced(&folder.join(STATE_FILE), &json)
    })
}

/// Reads the JSON state of a checkpoint folder.
///
/// # Errors
/// If it is missing or not what was expected.
pub fn read_state<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let file = path.join(STATE_FILE);
    let bytes = super::read_bounded(&file, 64 << 20)?;
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::format(&file.display().to_string(), format!("is not a checkpoint state: {e}")))
}

/// Reads tensor `name` of a checkpoint file, which must have exactly `shape`.
///
/// # Errors
/// If it is missing, not f32 or of another shape, or holds NaN or infinity.
pub fn read_f32(file: &TensorFile, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    let bytes = file.bytes(name, tensors::Dtype::F32, shape)?;
    if let Some(index) = (FloatBytes { float_type: FloatType::F32, bytes }).first_not_finite() {
        return Err(file.not_finite(name, index));
    }
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_round_trips_to_the_bit() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("step-1");
        let values = [1.5, -0.0, f32::MIN_POSITIVE / 2.0, 3e38];
        let group = TensorGroup {
            file_name: "model.safetensors",
            tensors: vec![
                ("a.b".into(), SavedTensor::f32(&[2, 2], &values)),
                ("c".into(), SavedTensor::i8(&[-1, 0, 127])),
            ],
        };
        write(&path, &[group], &serde_json::json!({"step": 7})).expect("written");
        let state: serde_json::Value = read_state(&path).expect("state");
        assert_eq!(state["step"], 7);
        let bytes = std::fs::read(path.join("model.safetensors")).expect("bytes");
        let file = TensorFile::parse(&bytes, "model.safetensors").expect("valid");
        let read = read_f32(&file, "a.b", &[2, 2]).expect("tensor");
        assert!(read.iter().zip(&values).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert_eq!(file.bytes("c", Dtype::I8, &[3]).expect("tensor"), [255, 0, 127]);
        assert!(read_f32(&file, "a.b", &[4]).unwrap_err().to_string().contains("has shape [2, 2], expected [4]"));
    }
}
