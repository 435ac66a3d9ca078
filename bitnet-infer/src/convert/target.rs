//! The formats that are written.

use std::fmt;
use std::str::FromStr;

use bitnet_model::ModelConfig;
use bitnet_model::config::{Quantization, Storage};
use bitnet_model::files::gguf::TensorType;
use bitnet_model::packed::Layout;

use crate::engine::{Error, Result};

/// A format to convert to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Hugging Face folder of float weights: masters that are quantized at load, or a float model.
    Hf,
    /// A Hugging Face folder of packed ternary codes, as `transformers` reads it (`autobitlinear`).
    HfPacked,
    /// A Hugging Face folder of plain bf16 weights: what the codes stand for.
    Universal,
    /// GGUF with projections of this type.
    Gguf(TensorType),
    /// This project's own folder: any scheme, ternary codes five to a byte.
    Bitnet,
}

impl Target {
    /// All targets.
    pub const ALL: [Self; 10] = [
        Self::Hf,
        Self::HfPacked,
        Self::Universal,
        Self::Gguf(TensorType::Tq1_0),
        Self::Gguf(TensorType::Tq2_0),
        Self::Gguf(TensorType::Q2_0),
        Self::Gguf(TensorType::Q1_0),
        Self::Gguf(TensorType::I2S),
        Self::Gguf(TensorType::F16),
        Self::Bitnet,
    ];

    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hf => "hf",
            Self::HfPacked => "hf-packed",
            Self::Universal => "universal",
            Self::Gguf(TensorType::Tq1_0) => "gguf-tq1",
            Self::Gguf(TensorType::Tq2_0) => "gguf-tq2",
            Self::Gguf(TensorType::Q2_0) => "gguf-q2",
            Self::Gguf(TensorType::Q1_0) => "gguf-q1",
            Self::Gguf(TensorType::I2S) => "gguf-i2s",
            Self::Gguf(_) => "gguf-f16",
            Self::Bitnet => "bitnet",
        }
    }

    /// The type of projections in GGUF, if it is that.
    pub fn gguf_type(self) -> Option<TensorType> {
        match self {
            Self::Gguf(kind) => Some(kind),
            _ => None,
        }
    }

    /// The configuration of what is written for a model of `config`.
    ///
    /// # Errors
    /// If the target does not hold weights of the model's scheme.
    pub(super) fn config(self, config: &ModelConfig) -> Result<ModelConfig> {
        let layout = config.quantization.weight.map(|scheme| scheme.layout());
        let needs = |wanted: Layout, what: &str| match layout == Some(wanted) {
            true => Ok(()),
            false => Err(Error::Input(format!(
                "`{}` holds {what} weights, and the model's are `{}`: choose another target, or quantize with --quantize",
                self.name(),
                config.quantization.weight_name()
            ))),
        };
        let (storage, quantization) = match self {
            Self::Hf => (Storage::Float, config.quantization),
            Self::Universal => (Storage::Float, Quantization::NONE),
            Self::HfPacked => {
                needs(Layout::TwoBit, "ternary")?;
                if config.quantization.activation.is_none() {
                    return Err(Error::Input(format!(
                        "`{}` means int8 activations to other programs, and the model's are not quantized: choose `universal`",
                        self.name()
                    )));
                }
                (Storage::Packed, config.quantization)
            }
            Self::Bitnet => {
                let storage = match layout {
                    None => Storage::Float,
                    Some(Layout::TwoBit) => Storage::PackedBase3,
                    Some(_) => Storage::Packed,
                };
                (storage, config.quantization)
            }
            Self::Gguf(kind) => {
                match kind {
                    TensorType::Q1_0 => needs(Layout::OneBit, "binary")?,
                    kind if kind.is_ternary() => needs(Layout::TwoBit, "ternary")?,
                    _ => {}
                }
                // Floats of one magnitude are recognized as codes again; those of other schemes would be rounded anew.
                let keeps = matches!(layout, Some(Layout::TwoBit | Layout::OneBit));
                (Storage::Packed, if keeps { config.quantization } else { Quantization::NONE })
            }
        };
        Ok(ModelConfig { storage, quantization, ..config.clone() })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|target| target.name() == name);
        found.ok_or_else(|| format!("is `{name}`, expected one of: {names}"))
    }
}

/// The type of a head in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadType {
    /// Half precision.
    F16,
    /// 8 bits, a scale for each 32 (GGUF).
    Q8_0,
    /// 6.6 bits, scales for each 16 (GGUF).
    Q6K,
    /// 8 bits, a scale for each row (this project's folder).
    Int8,
}

impl HeadType {
    /// All types.
    pub const ALL: [Self; 4] = [Self::F16, Self::Q8_0, Self::Q6K, Self::Int8];

    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Int8 => "int8",
        }
    }

    /// As a type of GGUF, if it is one.
    pub(super) fn gguf(self) -> Option<TensorType> {
        match self {
            Self::F16 => Some(TensorType::F16),
            Self::Q8_0 => Some(TensorType::Q8_0),
            Self::Q6K => Some(TensorType::Q6K),
            Self::Int8 => None,
        }
    }
}

impl FromStr for HeadType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| format!("is `{name}`, expected one of: {names}"))
    }
}
