//! A model's weights wherever they are: every format is read through one trait, one tensor at a time.

use half::f16;

use super::gguf::{TensorType, decode_row};
use super::tensors::FloatBytes;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::finite::{complaint, first_not_finite};
use crate::packed::PackedMatrix;
use crate::weights::{FloatData, FloatMatrix, FloatType, LayerWeights, LinearWeights};

/// How a note begins that says what looks wrong.
pub const WARNING: &str = "warning: ";

/// Index of the query and key projections in [`ModelConfig::projections`]: what a rotary layout rearranges.
pub const ROTATED: std::ops::Range<usize> = 0..2;

/// The weights that a configuration promises, read one tensor at a time, so that a caller may use and drop each.
///
/// Every method fails if a tensor is missing, is not what the configuration says, or holds NaN, infinity or impossible codes.
pub trait WeightSource: Sync {
    /// What the model is.
    fn config(&self) -> &ModelConfig;

    /// The token embedding, `[vocab, hidden]`.
    ///
    /// # Errors
    /// See [`WeightSource`]; so for every method here. The numbers of a table are not looked at.
    fn embedding_table(&self) -> Result<TableView<'_>>;

    /// The head, `[vocab, hidden]`, unless it is tied to the embedding.
    fn head_table(&self) -> Result<Option<TableView<'_>>>;

    /// The norm before the head, `[hidden]`.
    fn final_norm(&self) -> Result<Vec<f32>>;

    /// Norm `index` of [`ModelConfig::norms`] of block `layer`.
    fn norm(&self, layer: usize, index: usize) -> Result<Vec<f32>>;

    /// Projection `index` of [`ModelConfig::projections`] of block `layer`, its rows in the order of the half-rotated form.
    fn projection(&self, layer: usize, index: usize) -> Result<LinearWeights>;

    /// The latent weights behind a projection, where the source has them: what [`WeightSource::projection`] quantizes.
    fn latent(&self, layer: usize, index: usize) -> Result<Option<FloatMatrix>>;

    /// Every tensor of the files, in the order in which they lie.
    fn tensors(&self) -> Vec<TensorRecord>;

    /// What was decided where a file leaves room, and why; and, after [`WARNING`], what looks wrong but keeps nothing from running.
    fn notes(&self) -> Vec<String>;

    /// Block `layer`. Projections that are multiplied as one are of one kind: where the source mixes kinds, floats.
    fn block(&self, layer: usize) -> Result<LayerWeights> {
        let config = self.config();
        let norm = |index| self.norm(layer, index);
        let sub_norm = |index| config.sub_norms.then(|| norm(index)).transpose();
        let linear = |index| self.projection(layer, index);
        let (input_layernorm, post_attention_layernorm) = (norm(0)?, norm(1)?);
        let (attn_sub_norm, ffn_sub_norm) = (sub_norm(2)?, sub_norm(3)?);
        let [q_proj, k_proj, v_proj] = alike([linear(0)?, linear(1)?, linear(2)?]);
        let [gate_proj, up_proj] = alike([linear(4)?, linear(5)?]);
        Ok(LayerWeights {
            input_layernorm,
            q_proj,
            k_proj,
            v_proj,
            attn_sub_norm,
            o_proj: linear(3)?,
            post_attention_layernorm,
            gate_proj,
            up_proj,
            ffn_sub_norm,
            down_proj: linear(6)?,
        })
    }
}

/// One tensor as it stands in a file.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct TensorRecord {
    /// Its name there.
    pub name: String,
    /// The name of its type there.
    pub kind: String,
    /// Dimensions, the slowest first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub bytes: usize,
    /// Where they begin in the file.
    pub offset: usize,
}

/// A `[rows, cols]` matrix of a file that is read row by row: an embedding or a head.
#[derive(Clone, Copy, Debug)]
pub struct TableView<'a> {
    /// Vocabulary entries.
    pub rows: usize,
    /// The hidden size.
    pub cols: usize,
    /// What the file holds.
    pub data: TableBytes<'a>,
    /// The name of the tensor.
    pub name: &'static str,
    /// The name of the file in errors.
    pub origin: &'a str,
}

/// The bytes of a table.
#[derive(Clone, Copy, Debug)]
pub enum TableBytes<'a> {
    /// Floats that can be used as they stand.
    Floats(FloatBytes<'a>),
    /// Blocks of a quantized type of GGUF.
    Blocks(TensorType, &'a [u8]),
    /// Codes of 8 bits (`int8`), and the f32 scale of each row.
    Codes {
        /// `rows * cols` of them.
        codes: &'a [u8],
        /// Four bytes a row.
        scales: &'a [u8],
    },
}

impl TableView<'_> {
    /// Writes `row` into `out` as f32.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not `cols` long.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.cols, "row {row} of {} x {}", self.rows, self.cols);
        match self.data {
            TableBytes::Floats(floats) => {
                let size = floats.float_type.byte_count();
                let bytes = &floats.bytes[row * self.cols * size..(row + 1) * self.cols * size];
                FloatBytes { bytes, ..floats }.to_f32(out);
            }
            TableBytes::Blocks(kind, bytes) => {
                let row_bytes = bytes.len() / self.rows;
                decode_row(kind, &bytes[row * row_bytes..(row + 1) * row_bytes], out);
            }
            TableBytes::Codes { codes, scales } => {
                let scale = f32::from_le_bytes(scales.as_chunks::<4>().0[row]);
                let codes = &codes[row * self.cols..][..self.cols];
                out.iter_mut().zip(codes).for_each(|(out, &code)| *out = f32::from(code as i8) * scale);
            }
        }
    }

    /// Bytes that it takes in memory.
    pub fn byte_count(&self) -> usize {
        match self.data {
            TableBytes::Floats(floats) => floats.bytes.len(),
            TableBytes::Blocks(..) => self.rows * self.cols * FloatType::F32.byte_count(),
            TableBytes::Codes { codes, scales } => codes.len() + scales.len(),
        }
    }

    /// The type of the numbers: that of the file, or f32, which holds what a block or a code stands for.
    pub fn float_type(&self) -> FloatType {
        match self.data {
            TableBytes::Floats(floats) => floats.float_type,
            TableBytes::Blocks(..) | TableBytes::Codes { .. } => FloatType::F32,
        }
    }

    /// The name of the type in the file.
    pub fn kind(&self) -> &'static str {
        match self.data {
            TableBytes::Floats(floats) => floats.float_type.name(),
            TableBytes::Blocks(kind, _) => kind.name(),
            TableBytes::Codes { .. } => "I8",
        }
    }

    /// The index of the first number that is NaN or infinite.
    pub fn first_not_finite(&self) -> Option<usize> {
        match self.data {
            TableBytes::Floats(floats) => floats.first_not_finite(),
            TableBytes::Blocks(..) | TableBytes::Codes { .. } => {
                let mut row_values = vec![0f32; self.cols];
                (0..self.rows).find_map(|row| {
                    self.row_to_f32(row, &mut row_values);
                    let bad = first_not_finite(&row_values)?;
                    Some(row * self.cols + bad)
                })
            }
        }
    }

    /// The complaint about a number at `index` that is NaN or infinite.
    pub fn not_finite(&self, index: usize) -> Error {
        Error::tensor(self.origin, self.name, complaint(index))
    }

    /// A copy of all numbers.
    pub fn to_matrix(&self) -> FloatMatrix {
        let data = match self.data {
            TableBytes::Floats(floats) => floats.to_data(),
            TableBytes::Blocks(..) | TableBytes::Codes { .. } => {
                let mut values = vec![0f32; self.rows * self.cols];
                for (row, values) in values.chunks_mut(self.cols.max(1)).enumerate() {
                    self.row_to_f32(row, values);
                }
                FloatData::F32(values)
            }
        };
        FloatMatrix { rows: self.rows, cols: self.cols, data }
    }
}

/// Weights that can be multiplied as one matrix: all packed alike, or all floats of one type.
pub fn alike<const N: usize>(parts: [LinearWeights; N]) -> [LinearWeights; N] {
    fn kind(weights: &LinearWeights) -> Result<crate::packed::Layout, FloatType> {
        match weights {
            LinearWeights::Packed(matrix) => Ok(matrix.layout()),
            LinearWeights::Float(matrix) => Err(matrix.float_type()),
        }
    }
    if parts.iter().all(|part| kind(part) == kind(&parts[0])) {
        return parts;
    }
    parts.map(|part| {
        let values = dequantized(&part);
        LinearWeights::Float(FloatMatrix { rows: part.rows(), cols: part.cols(), data: FloatData::F32(values) })
    })
}

/// The numbers that a projection stands for, row-major.
pub fn dequantized(weights: &LinearWeights) -> Vec<f32> {
    match weights {
        LinearWeights::Float(matrix) => matrix.to_f32(),
        LinearWeights::Packed(matrix) => {
            let mut codes = vec![0i8; matrix.cols()];
            let mut values = Vec::with_capacity(matrix.rows() * matrix.cols());
            for row in 0..matrix.rows() {
                matrix.unpack_row(row, &mut codes);
                let groups = codes.chunks(matrix.group().unwrap_or(matrix.cols()).max(1)).zip(matrix.scales_of(row));
                values
                    .extend(groups.flat_map(|(codes, &scale)| codes.iter().map(move |&code| f32::from(code) * scale)));
            }
            values
        }
    }
}

/// Codes with a scale for each row if a scale holds for a whole row everywhere, one for the matrix if it holds everywhere;
/// `None` if scales differ within a row. `scales` has as many for each row as blocks are in it. Zero is the scale of a block
/// whose codes are all zero, which any scale fits.
pub(super) fn uniform_scales(rows: usize, scales: &[f32]) -> Option<Vec<f32>> {
    let blocks = scales.len() / rows.max(1);
    let one_of = |scales: &[f32]| {
        let first = scales.iter().copied().find(|&scale| scale != 0.0);
        scales.iter().all(|&scale| scale == 0.0 || Some(scale) == first).then_some(first)
    };
    if let Some(only) = one_of(scales) {
        return Some(vec![only.unwrap_or(ZERO_SCALE)]);
    }
    scales.chunks(blocks.max(1)).map(|row| one_of(row).map(|scale| scale.unwrap_or(ZERO_SCALE))).collect()
}

/// What stands for the scale of codes that are all zero: any positive number would do. In f16 it is itself.
const ZERO_SCALE: f32 = f16::MIN_POSITIVE.to_f32_const();

/// The rows of `matrix` in another order: row `i` of the result is row `source(i)`.
///
/// # Panics
/// If `source` names a row that does not exist.
pub fn rows_from(weights: LinearWeights, source: impl Fn(usize) -> usize) -> LinearWeights {
    let (rows, cols) = (weights.rows(), weights.cols());
    match weights {
        LinearWeights::Packed(matrix) => {
            let mut codes = vec![0i8; rows * cols];
            for (row, codes) in codes.chunks_mut(cols.max(1)).enumerate() {
                matrix.unpack_row(source(row), codes);
            }
            let scales = match matrix.scales() {
                [one] => vec![*one],
                _ => (0..rows).flat_map(|row| matrix.scales_of(source(row)).iter().copied()).collect(),
            };
            let packed = PackedMatrix::pack_grouped(matrix.layout(), [rows, cols], matrix.group(), &codes, scales);
            LinearWeights::Packed(packed.expect("codes and scales of the same matrix"))
        }
        LinearWeights::Float(matrix) => {
            fn reordered<T: Copy>(data: &[T], cols: usize, rows: usize, source: impl Fn(usize) -> usize) -> Vec<T> {
                (0..rows).flat_map(|row| data[source(row) * cols..][..cols].iter().copied()).collect()
            }
            let data = match &matrix.data {
                FloatData::F32(v) => FloatData::F32(reordered(v, cols, rows, source)),
                FloatData::F16(v) => FloatData::F16(reordered(v, cols, rows, source)),
                FloatData::Bf16(v) => FloatData::Bf16(reordered(v, cols, rows, source)),
            };
            LinearWeights::Float(FloatMatrix { data, ..matrix })
        }
    }
}

/// Where row `row` of a half-rotated query or key projection stands in one whose pairs are neighbours (llama.cpp's LLaMA
/// files, llama2.c): pair `j` of a head is `(j, j + d/2)` here and `(2j, 2j + 1)` there.
pub fn row_of_neighbours(row: usize, head_dim: usize) -> usize {
    let (head, at) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (at % half) + at / half
}

/// The inverse of [`row_of_neighbours`]: where row `row` of neighbours stands in the half-rotated form.
pub fn row_of_halves(row: usize, head_dim: usize) -> usize {
    let (head, at) = (row / head_dim, row % head_dim);
    head * head_dim + at / 2 + (at % 2) * (head_dim / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_rotary_layouts_are_inverse() {
        for head_dim in [2, 4, 8, 64] {
            for row in 0..3 * head_dim {
                assert_eq!(row_of_halves(row_of_neighbours(row, head_dim), head_dim), row);
            }
        }
        let order: Vec<usize> = (0..4).map(|row| row_of_neighbours(row, 4)).collect();
        assert_eq!(order, [0, 2, 1, 3]);
    }

    #[test]
    fn scales_are_one_or_one_a_row_or_neither() {
        assert_eq!(uniform_scales(2, &[0.5, 0.5, 0.0, 0.5]), Some(vec![0.5]));
        assert_eq!(uniform_scales(2, &[0.5, 0.0, 0.25, 0.25]), Some(vec![0.5, 0.25]));
        assert_eq!(uniform_scales(2, &[0.5, 0.25, 0.25, 0.25]), None);
        let zeros = uniform_scales(2, &[0.0; 4]).expect("any scale fits");
        assert!(zeros.len() == 1 && zeros[0] > 0.0);
    }
}
