//! Whether a result holds the very codes that it should, and the scales to the bits that its format has for them.

use bitnet_model::files::gguf::TensorType;
use bitnet_model::files::source::WeightSource;
use bitnet_model::packed::PackedMatrix;
use bitnet_model::weights::LinearWeights;
use half::f16;

use super::Target;
use super::part::relative_error;
use crate::engine::{Error, ModelFiles, Result};

/// What was compared, all of it equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct SameCodes {
    /// Projections whose codes and scales were compared; not those that the target holds as floats.
    pub projections: usize,
    /// The largest relative difference of a scale, which the format explains.
    pub largest_scale_error: f64,
}

/// Compares every projection of `found` (in `files`) with `wanted`, as `target` holds it.
///
/// # Errors
/// The first projection with other codes, or a scale further away than the target explains.
pub(super) fn compare(
    wanted: &dyn WeightSource,
    found: &dyn WeightSource,
    target: Target,
    files: [&ModelFiles; 2],
) -> Result<SameCodes> {
    let mut same = SameCodes::default();
    if found.config().quantization.weight.is_none() {
        return Ok(same);
    }
    for layer in 0..wanted.config().num_hidden_layers {
        for (index, (name, ..)) in wanted.config().projections().into_iter().enumerate() {
            let parts = (wanted.projection(layer, index)?, found.projection(layer, index)?);
            let error = match &parts {
                (LinearWeights::Packed(wanted), LinearWeights::Packed(found)) => difference(wanted, found, target),
                // Scales that differ within a row were floats in the source, too.
                (LinearWeights::Float(_), LinearWeights::Float(_)) => continue,
                _ => Err("is codes on one side and floats on the other".into()),
            };
            let error = error.map_err(|reason| {
                let path = files[1].path().display();
                Error::Input(format!("{path}: model.layers.{layer}.{name} {reason}: do not use it"))
            })?;
            same.projections += 1;
            same.largest_scale_error = same.largest_scale_error.max(error);
        }
        files.iter().for_each(|files| files.release());
    }
    Ok(same)
}

/// The largest relative difference of a scale; the error is a sentence.
fn difference(wanted: &PackedMatrix, found: &PackedMatrix, target: Target) -> Result<f64, String> {
    if (wanted.rows(), wanted.cols()) != (found.rows(), found.cols()) {
        return Err("has another shape".into());
    }
    let (mut a, mut b) = (vec![0i8; wanted.cols()], vec![0i8; wanted.cols()]);
    let mut largest = 0f64;
    for row in 0..wanted.rows() {
        wanted.unpack_row(row, &mut a);
        found.unpack_row(row, &mut b);
        if let Some(col) = a.iter().zip(&b).position(|(a, b)| a != b) {
            return Err(format!("has the code {} at row {row}, column {col}, and the source {}", b[col], a[col]));
        }
        // Of nothing but zeros any scale is right.
        if a.iter().all(|&code| code == 0) {
            continue;
        }
        let (wanted, found) = (wanted.scales_of(row), found.scales_of(row));
        if wanted.len() != found.len() {
            return Err(format!("has {} scales in a row, and the source {}", found.len(), wanted.len()));
        }
        for (&scale, &held) in wanted.iter().zip(found) {
            if !explains(target, scale, held) {
                return Err(format!("has the scale {held:e} in row {row}, and the source {scale:e}"));
            }
            largest = largest.max(relative_error(held, scale));
        }
    }
    Ok(largest)
}

/// Whether a target makes `held` of a scale.
fn explains(target: Target, scale: f32, held: f32) -> bool {
    match target {
        Target::HfPacked | Target::Bitnet | Target::Gguf(TensorType::I2S) => held == scale,
        Target::Gguf(_) => held == f16::from_f32(scale).to_f32(),
        // Masters give their mean back to the last bits of f32.
        Target::Hf | Target::Universal => relative_error(held, scale) <= MEAN_ROUNDING,
    }
}

/// What the mean of up to 2^24 floats of one magnitude loses.
const MEAN_ROUNDING: f64 = 1e-6;
