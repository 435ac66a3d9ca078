//! A model's weights in memory, as the files hold them: packed codes for projections, floats for the rest.

use half::{bf16, f16};

use crate::finite;
use crate::packed::PackedMatrix;

/// Numbers of a float matrix in the type they were stored in.
#[derive(Clone, Debug, PartialEq)]
pub enum FloatData {
    /// 32-bit.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// bfloat16.
    Bf16(Vec<bf16>),
}

/// The type of a float matrix's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// 32-bit.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// Bytes of a number.
    pub fn byte_count(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// The nearest number of this type.
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// The name used in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }
}

/// A `[rows, cols]` float matrix, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct FloatMatrix {
    /// Output features, or vocabulary entries.
    pub rows: usize,
    /// Input features, or the hidden size.
    pub cols: usize,
    /// `rows * cols` numbers.
    pub data: FloatData,
}

impl FloatMatrix {
    /// Rounds `values` (row-major, `rows * cols`) to `float_type`.
    ///
    /// # Panics
    /// If `values` is not `rows * cols` long.
    pub fn new(rows: usize, cols: usize, values: &[f32], float_type: FloatType) -> Self {
        assert_eq!(values.len(), rows * cols, "a whole matrix");
        let data = match float_type {
            FloatType::F32 => FloatData::F32(values.to_vec()),
            FloatType::F16 => FloatData::F16(values.iter().map(|&v| f16::from_f32(v)).collect()),
            FloatType::Bf16 => FloatData::Bf16(values.iter().map(|&v| bf16::from_f32(v)).collect()),
        };
        Self { rows, cols, data }
    }

    /// As [`FloatMatrix::new`], of numbers that come from outside.
    ///
    /// # Errors
    /// A sentence that names the first number that is not finite, or would not be in `float_type`.
    ///
    /// # Panics
    /// As [`FloatMatrix::new`].
    pub fn rounded(rows: usize, cols: usize, values: &[f32], float_type: FloatType) -> Result<Self, String> {
        finite::check(values)?;
        match values.iter().position(|&value| !float_type.round(value).is_finite()) {
            Some(index) => {
                let (value, name) = (values[index], float_type.name());
                Err(format!("holds {value:e} at element {index}, which is too large for {name}"))
            }
            None => Ok(Self::new(rows, cols, values, float_type)),
        }
    }

    /// The type of the stored numbers.
    pub fn float_type(&self) -> FloatType {
        match self.data {
            FloatData::F32(_) => FloatType::F32,
            FloatData::F16(_) => FloatType::F16,
            FloatData::Bf16(_) => FloatType::Bf16,
        }
    }

    /// Bytes of the stored numbers.
    pub fn byte_count(&self) -> usize {
        self.rows * self.cols * self.float_type().byte_count()
    }

    /// Writes `row` into `out` (of length `cols`) as f32.
    ///
    /// # Panics
    /// If `row` is not below `rows` or `out` is not `cols` long.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "one value per column");
        let range = row * self.cols..(row + 1) * self.cols;
        match &self.data {
            FloatData::F32(v) => out.copy_from_slice(&v[range]),
            FloatData::F16(v) => out.iter_mut().zip(&v[range]).for_each(|(o, v)| *o = v.to_f32()),
            FloatData::Bf16(v) => out.iter_mut().zip(&v[range]).for_each(|(o, v)| *o = v.to_f32()),
        }
    }

    /// All numbers as f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.data {
            FloatData::F32(v) => v.clone(),
            FloatData::F16(v) => v.iter().map(|v| v.to_f32()).collect(),
            FloatData::Bf16(v) => v.iter().map(|v| v.to_f32()).collect(),
        }
    }
}

/// The weights of one projection, `[out_features, in_features]`.
#[derive(Clone, Debug, PartialEq)]
pub enum LinearWeights {
    /// Integer codes with scales.
    Packed(PackedMatrix),
    /// Floats, for models without weight quantization.
    Float(FloatMatrix),
}

impl LinearWeights {
    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Self::Packed(m) => m.rows(),
            Self::Float(m) => m.rows,
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            Self::Packed(m) => m.cols(),
            Self::Float(m) => m.cols,
        }
    }

    /// Bytes of storage, scales included.
    pub fn byte_count(&self) -> usize {
        match self {
            Self::Packed(m) => m.bytes().len() + m.scales().len() * 4,
            Self::Float(m) => m.byte_count(),
        }
    }
}

/// One transformer block.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerWeights {
    /// Norm before attention, `[hidden]`.
    pub input_layernorm: Vec<f32>,
    /// Query projection.
    pub q_proj: LinearWeights,
    /// Key projection.
    pub k_proj: LinearWeights,
    /// Value projection.
    pub v_proj: LinearWeights,
    /// Norm before the output projection, `[heads * head_dim]`, in BitNet models.
    pub attn_sub_norm: Option<Vec<f32>>,
    /// Output projection.
    pub o_proj: LinearWeights,
    /// Norm before the feed-forward half, `[hidden]`.
    pub post_attention_layernorm: Vec<f32>,
    /// Gate projection.
    pub gate_proj: LinearWeights,
    /// Up projection.
    pub up_proj: LinearWeights,
    /// Norm before the down projection, `[intermediate]`, in BitNet models.
    pub ffn_sub_norm: Option<Vec<f32>>,
    /// Down projection.
    pub down_proj: LinearWeights,
}

impl LayerWeights {
    /// The seven projections in the order of [`crate::ModelConfig::projections`].
    pub fn projections(&self) -> [&LinearWeights; 7] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, &self.gate_proj, &self.up_proj, &self.down_proj]
    }
}
