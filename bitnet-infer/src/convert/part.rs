//! The parts of a model, each brought into the form that a target wants, and the way to the file.

use std::io::Write;
use std::path::Path;

use rayon::prelude::*;

use bitnet_model::files::gguf::{TensorType, encode_row};
use bitnet_model::files::hugging_face::quantize;
use bitnet_model::files::source::{TableBytes, TableView, WARNING, WeightSource, dequantized};
use bitnet_model::oddities;
use bitnet_model::packed::PackedMatrix;
use bitnet_model::quant::weight_scheme;
use bitnet_model::weights::{FloatMatrix, FloatType, LinearWeights};

use super::{Conversion, Job};
use crate::engine::{Error, Result};

/// Where bytes go, and who hears of them.
pub(super) struct Sink<'a> {
    pub out: &'a mut dyn Write,
    pub path: &'a Path,
    pub written: usize,
    pub total: usize,
    pub progress: &'a mut dyn FnMut(usize, usize),
}

impl Sink<'_> {
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).map_err(|cause| io_error(self.path, "write", cause))?;
        self.written += bytes.len();
        (self.progress)(self.written, self.total);
        Ok(())
    }
}

pub(super) fn io_error(path: &Path, action: &'static str, cause: std::io::Error) -> Error {
    bitnet_model::Error::Io { path: path.to_path_buf(), action, cause }.into()
}

pub(super) fn tensor_error(job: &Job, name: &str, reason: impl Into<String>) -> Error {
    let origin = job.files.path().display().to_string();
    bitnet_model::Error::Tensor { origin, name: name.to_owned(), reason: reason.into() }.into()
}

/// A float type as one of GGUF's, whose encoder serves both kinds of files.
pub(super) fn as_kind(float_type: FloatType) -> TensorType {
    match float_type {
        FloatType::F32 => TensorType::F32,
        FloatType::F16 => TensorType::F16,
        FloatType::Bf16 => TensorType::Bf16,
    }
}

/// Writes a table as `kind`, some rows at a time; as it stands where it is of that type already.
pub(super) fn write_table(job: &Job, view: TableView, kind: TensorType, sink: &mut Sink) -> Result<()> {
    let rows = (TABLE_BYTES / (4 * view.cols)).max(1);
    let pieces = rows.div_ceil(rayon::current_num_threads()).max(1);
    for start in (0..view.rows).step_by(rows) {
        let end = view.rows.min(start + rows);
        let starts: Vec<usize> = (start..end).step_by(pieces).collect();
        let encoded: Vec<Result<Vec<u8>>> = starts
            .into_par_iter()
            .map(|first| {
                let (mut values, mut bytes) = (vec![0f32; view.cols], Vec::new());
                for row in first..end.min(first + pieces) {
                    view.row_to_f32(row, &mut values);
                    check_values(job, view.name, &values, kind, row)?;
                    match view.data {
                        TableBytes::Floats(floats) if as_kind(floats.float_type) == kind => {
                            let row_bytes = view.cols * floats.float_type.byte_count();
                            bytes.extend(&floats.bytes[row * row_bytes..(row + 1) * row_bytes]);
                        }
                        _ => encode_row(kind, &values, &mut bytes),
                    }
                }
                Ok(bytes)
            })
            .collect();
        for bytes in encoded {
            sink.put(&bytes?)?;
        }
        job.files.release();
    }
    Ok(())
}

/// Writes a table as 8-bit codes with a scale for each row, those that it has already where it is one; then the scales.
pub(super) fn write_coded_table(job: &Job, view: TableView, sink: &mut Sink) -> Result<()> {
    let scheme = weight_scheme("int8").ok().flatten().expect("in the table");
    let mut scales = Vec::with_capacity(4 * view.rows);
    let rows: Vec<usize> = (0..view.rows).collect();
    for rows in rows.chunks((TABLE_BYTES / (4 * view.cols)).max(1)) {
        let coded: Vec<Result<(Vec<u8>, f32)>> = rows
            .par_iter()
            .map(|&row| {
                if let TableBytes::Codes { codes, scales } = view.data {
                    let scale = f32::from_le_bytes(scales.as_chunks::<4>().0[row]);
                    return Ok((codes[row * view.cols..][..view.cols].to_vec(), scale));
                }
                let (mut values, mut codes) = (vec![0f32; view.cols], vec![0i8; view.cols]);
                view.row_to_f32(row, &mut values);
                check_values(job, view.name, &values, TensorType::F32, row)?;
                let scale = scheme.quantize(&values, 1, &mut codes)[0];
                Ok((codes.into_iter().map(|code| code as u8).collect(), scale))
            })
            .collect();
        for coded in coded {
            let (codes, scale) = coded?;
            sink.put(&codes)?;
            scales.extend(scale.to_le_bytes());
        }
        job.files.release();
    }
    sink.put(&scales)
}

/// Refuses what is not finite, and what would not be once it is rounded to `kind`.
pub(super) fn check_values(job: &Job, name: &str, values: &[f32], kind: TensorType, row: usize) -> Result<()> {
    let held_in = match kind {
        TensorType::F32 => FloatType::F32,
        TensorType::Bf16 => FloatType::Bf16,
        // The scales of blocks are f16, too.
        _ => FloatType::F16,
    };
    let Some(col) = values.iter().position(|&value| !held_in.round(value).is_finite()) else { return Ok(()) };
    let (value, kind) = (values[col], kind.name());
    let reason = match value.is_finite() {
        true => format!("holds {value:e} at row {row}, column {col}, which is too large for {kind}"),
        false => format!("holds NaN or infinity at row {row}, column {col}"),
    };
    Err(tensor_error(job, name, reason))
}

/// What looks wrong in a projection of the source.
pub(super) fn warnings_of(job: &Job, layer: usize, index: usize, weights: &LinearWeights) -> Vec<String> {
    let config = job.weights.config();
    let (name, ..) = config.projections()[index];
    oddities::of_projection(config, &oddities::full_name(layer, name), weights)
}

/// A projection as floats of `kind`, row by row.
pub(super) fn floats_of(job: &Job, name: &str, weights: &LinearWeights, kind: TensorType) -> Result<Vec<u8>> {
    let values = dequantized(weights);
    let mut bytes = Vec::with_capacity(values.len() * kind.block_bytes());
    for (row, values) in values.chunks(weights.cols()).enumerate() {
        check_values(job, name, values, kind, row)?;
        encode_row(kind, values, &mut bytes);
    }
    Ok(bytes)
}

/// The codes of a projection, for targets that hold nothing else.
pub(super) fn codes_of<'a>(job: &Job, name: &str, weights: &'a LinearWeights) -> Result<&'a PackedMatrix> {
    match weights {
        LinearWeights::Packed(matrix) => Ok(matrix),
        LinearWeights::Float(_) => Err(tensor_error(
            job,
            name,
            format!("has scales that differ within a row, and `{}` holds one for a row at most", job.options.target),
        )),
    }
}

/// Masters of codes: floats that quantize to just these codes and, but for rounding, this scale. For ternary codes these are
/// larger than what the codes stand for, since the scale is the mean magnitude, zeros included.
///
/// Returns them with the relative difference of the scale.
pub(super) fn masters_of(job: &Job, name: &str, matrix: &PackedMatrix) -> Result<(FloatMatrix, f64)> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let codes = matrix.unpack();
    let scheme = job.weights.config().quantization.weight.expect("codes are of a scheme");
    let is_mean = scheme.code_range().1 == 1;
    let filled = codes.iter().filter(|code| **code != 0).count();
    let stretch = if is_mean && filled > 0 { codes.len() as f64 / filled as f64 } else { 1.0 };
    let mut values = Vec::with_capacity(codes.len());
    for (row, codes) in codes.chunks(cols).enumerate() {
        for (codes, &scale) in codes.chunks(matrix.group().unwrap_or(cols)).zip(matrix.scales_of(row)) {
            let magnitude = (f64::from(scale) * stretch) as f32;
            values.extend(codes.iter().map(|&code| f32::from(code) * magnitude));
        }
    }
    let again = quantize(scheme, &values, rows, cols).map_err(|reason| tensor_error(job, name, reason))?;
    if again.unpack() != codes {
        let reason =
            format!("has codes that no floats quantize to by `{}`: choose `bitnet` or `universal`", scheme.name());
        return Err(tensor_error(job, name, reason));
    }
    // Without any code but zero every scale stands for the same weights.
    let errors = again.scales().iter().zip(matrix.scales()).map(|(a, b)| relative_error(*a, *b));
    let error = if filled == 0 { 0.0 } else { errors.fold(0.0, f64::max) };
    Ok((FloatMatrix::new(rows, cols, &values, FloatType::F32), error))
}

pub(super) fn relative_error(found: f32, expected: f32) -> f64 {
    (f64::from(found) - f64::from(expected)).abs() / f64::from(expected).abs()
}

/// What became of a projection.
pub(super) struct Produced {
    pub bytes: Vec<Vec<u8>>,
    /// The largest relative error of a scale; `None` if it has no codes.
    pub scale_error: Option<f64>,
    /// What looks wrong in it.
    pub warnings: Vec<String>,
}

/// Produces all projections, as many at a time as the memory that a conversion may take allows, and writes them in order.
pub(super) fn write_projections(
    job: &Job,
    sink: &mut Sink,
    done: &mut Conversion,
    before_block: impl Fn(usize, &mut Sink) -> Result<()>,
    produce: impl Fn(usize, usize) -> Result<Produced> + Sync,
    write: impl Fn(&[u8], &mut Sink) -> Result<()>,
) -> Result<()> {
    let projections = job.config.projections();
    let indices: Vec<usize> = (0..projections.len()).collect();
    let largest = projections.iter().map(|(_, rows, cols)| rows * cols).max().unwrap_or(0);
    let budget = 2 * largest_tensor(job.weights) + SPARE_BYTES;
    // Floats, codes, their encoded form, and the pages they come from.
    let at_once = (budget / (largest * 10).max(1)).clamp(1, rayon::current_num_threads());
    for layer in 0..job.config.num_hidden_layers {
        before_block(layer, sink)?;
        for (index, (name, _)) in job.config.norms().iter().enumerate() {
            let odd = oddities::of_norm(&oddities::full_name(layer, name), &job.weights.norm(layer, index)?);
            done.notes.extend(odd.map(warning));
        }
        for some in indices.chunks(at_once) {
            let produced: Vec<Result<Produced>> = some.par_iter().map(|&index| produce(layer, index)).collect();
            for produced in produced {
                let produced = produced?;
                done.notes.extend(produced.warnings.into_iter().map(warning));
                if let Some(error) = produced.scale_error {
                    done.coded_projections += 1;
                    done.largest_scale_error = done.largest_scale_error.max(error);
                }
                for bytes in &produced.bytes {
                    write(bytes, sink)?;
                }
            }
            job.files.release();
        }
    }
    Ok(())
}

/// How a note says that it is one.
fn warning(text: String) -> String {
    format!("{WARNING}{text}")
}

fn largest_tensor(weights: &dyn WeightSource) -> usize {
    weights.tensors().iter().map(|record| record.bytes).max().unwrap_or(0)
}

/// Bytes of a table, as f32, that are worked on at a time.
const TABLE_BYTES: usize = 16 << 20;

/// Memory that a conversion may take besides two of the largest tensor, less what the program itself takes.
const SPARE_BYTES: usize = 120 << 20;
