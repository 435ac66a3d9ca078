//! A float model with its projections quantized as they are read: a baseline without training.

use bitnet_model::ModelConfig;
use bitnet_model::config::{Quantization, Storage};
use bitnet_model::files::hugging_face::quantize;
use bitnet_model::files::source::{TableView, TensorRecord, WeightSource, dequantized};
use bitnet_model::weights::{FloatMatrix, LinearWeights};

use crate::engine::{Error, Result};

/// Another source, its projections quantized by a scheme.
pub struct Requantized<'a> {
    inner: &'a dyn WeightSource,
    config: ModelConfig,
}

impl<'a> Requantized<'a> {
    /// Quantizes the projections of `inner` by the schemes of these names.
    ///
    /// # Errors
    /// If a name is unknown or `none`, or `inner` is quantized already.
    pub fn new(inner: &'a dyn WeightSource, weight: &str, activation: &str) -> Result<Self> {
        let quantization = Quantization::by_name(weight, activation).map_err(Error::Input)?;
        let now = inner.config().quantization.weight_name();
        if quantization.weight.is_none() || inner.config().quantization.weight.is_some() {
            return Err(Error::Input(format!(
                "cannot quantize to `{weight}`: expected a weight scheme, and a model of float weights (this one's are `{now}`)"
            )));
        }
        let config = ModelConfig { quantization, storage: Storage::Packed, ..inner.config().clone() };
        Ok(Self { inner, config })
    }
}

type ModelResult<T> = bitnet_model::Result<T>;

impl WeightSource for Requantized<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding_table(&self) -> ModelResult<TableView<'_>> {
        self.inner.embedding_table()
    }

    fn head_table(&self) -> ModelResult<Option<TableView<'_>>> {
        self.inner.head_table()
    }

    fn final_norm(&self) -> ModelResult<Vec<f32>> {
        self.inner.final_norm()
    }

    fn norm(&self, layer: usize, index: usize) -> ModelResult<Vec<f32>> {
        self.inner.norm(layer, index)
    }

    fn projection(&self, layer: usize, index: usize) -> ModelResult<LinearWeights> {
        let weights = self.inner.projection(layer, index)?;
        let scheme = self.config.quantization.weight.expect("checked when this was made");
        let (name, rows, cols) = self.config.projections()[index];
        let packed = quantize(scheme, &dequantized(&weights), rows, cols);
        packed.map(LinearWeights::Packed).map_err(|reason| bitnet_model::Error::Tensor {
            origin: "the source".into(),
            name: format!("model.layers.{layer}.{name}.weight"),
            reason,
        })
    }

    fn latent(&self, layer: usize, index: usize) -> ModelResult<Option<FloatMatrix>> {
        match self.inner.projection(layer, index)? {
            LinearWeights::Float(matrix) => Ok(Some(matrix)),
            LinearWeights::Packed(_) => Ok(None),
        }
    }

    fn tensors(&self) -> Vec<TensorRecord> {
        self.inner.tensors()
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = self.inner.notes();
        let scheme = self.config.quantization.weight_name();
        let range = self.config.quantization.weight.map_or(0, |scheme| scheme.code_range().1);
        notes.push(match range {
            1 => format!(
                "warning: `{scheme}` without training destroys a model: this is a baseline to show that, or a start for training"
            ),
            _ => format!("`{scheme}` by rounding to nearest: a baseline without training"),
        });
        notes
    }
}
