//! A GGUF file as a model.

use std::collections::BTreeSet;

use super::blocks::{decode_codes, decode_row};
use super::keys::{self, EMBEDDING, FINAL_NORM, HEAD, Keys, LLAMA, NORMS, PROJECTIONS, ROPE_DIVISORS};
use super::layout::{I2sLayout, unpack_i2s};
use super::parse::{GgufFile, TensorInfo};
use super::probe;
use super::types::TensorType;
use super::unread;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::files::hugging_face::quantize;
use crate::files::source::{
    ROTATED, TableBytes, TableView, TensorRecord, WeightSource, row_of_neighbours, rows_from, uniform_scales,
};
use crate::files::tensors::FloatBytes;
use crate::finite;
use crate::packed::{Layout, PackedMatrix};
use crate::weights::{FloatData, FloatMatrix, FloatType, LinearWeights};

/// What a reader may be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct GgufOptions {
    /// How I2_S codes lie; `None`: what a probe of the codes finds.
    pub i2s: Option<I2sLayout>,
}

/// A GGUF file as a model.
pub struct GgufModel<'a> {
    file: GgufFile<'a>,
    config: ModelConfig,
    /// Queries and keys are stored as neighbours.
    neighbours: bool,
    i2s: I2sLayout,
    notes: Vec<String>,
}

impl<'a> GgufModel<'a> {
    /// Parses `bytes` and checks keys and tensors against each other; `origin` names the file in errors.
    ///
    /// # Errors
    /// What is wrong: the offset, key or tensor.
    pub fn parse(bytes: &'a [u8], origin: &str, options: GgufOptions) -> Result<Self> {
        let file = GgufFile::parse(bytes, origin)?;
        let mut notes = Vec::new();
        if let Some((part, parts)) = file.part() {
            let reason = format!(
                "is part {part} of {parts} of a split model: join the parts with `llama-gguf-split --merge` of llama.cpp first"
            );
            return Err(Error::format(origin, reason));
        }
        let keys = Keys::new(&file)?;
        let config = keys::config(&keys, &mut notes)?;
        unread::check(&keys, &config)?;
        let neighbours = keys.architecture == LLAMA;
        config.validate(origin)?;
        let mut model = Self { file, config, neighbours, i2s: I2sLayout::Group128, notes };
        model.check_tensors()?;
        if model.has_i2s() {
            let decided = match options.i2s {
                Some(layout) => probe::Decision { layout, why: "as asked for".into() },
                None => probe::layout(&model),
            };
            model.notes.push(format!("I2_S layout {}: {}", decided.layout, decided.why));
            model.i2s = decided.layout;
        }
        Ok(model)
    }

    /// The file.
    pub fn file(&self) -> &GgufFile<'a> {
        &self.file
    }

    /// Every tensor that the model has must be there with its shape, and nothing that would change what it computes may be
    /// there besides.
    fn check_tensors(&self) -> Result<()> {
        let config = &self.config;
        // Filled as it is checked: what is not there ends this before a lying number of blocks makes a long list.
        let mut expected = BTreeSet::new();
        let mut need = |name: String, shape: &[usize]| {
            let found = self.info(&name)?;
            if found.shape != shape {
                return Err(self.fail(&name, format!("has shape {:?}, expected {shape:?}", found.shape)));
            }
            expected.insert(name);
            Ok(())
        };
        let table = [config.vocab_size, config.hidden_size];
        need(EMBEDDING.into(), &table)?;
        need(FINAL_NORM.into(), &[config.hidden_size])?;
        if !config.tie_word_embeddings {
            need(HEAD.into(), &table)?;
        }
        for layer in 0..config.num_hidden_layers {
            for ((_, len), name) in config.norms().into_iter().zip(NORMS) {
                need(format!("blk.{layer}.{name}.weight"), &[len])?;
            }
            for ((_, rows, cols), name) in config.projections().into_iter().zip(PROJECTIONS) {
                need(format!("blk.{layer}.{name}.weight"), &[rows, cols])?;
            }
        }
        let more = self.file.tensors().map(|(name, _)| name).filter(|name| !expected.contains(*name));
        for name in more {
            let is_scale = name.strip_suffix(".scale").and_then(|name| name.rsplit('.').next()).is_some_and(|part| {
                PROJECTIONS.contains(&part) && expected.contains(&format!("{}.weight", name.trim_end_matches(".scale")))
            });
            if is_scale || name == ROPE_DIVISORS {
                continue;
            }
            return Err(self.fail(
                name,
                format!("is no part of a model of architecture `{}` here: it cannot be left out", self.architecture()),
            ));
        }
        Ok(())
    }

    fn architecture(&self) -> &str {
        Keys::new(&self.file).map_or("", |keys| keys.architecture)
    }

    fn has_i2s(&self) -> bool {
        self.file.tensors().any(|(_, info)| info.kind == TensorType::I2S)
    }

    fn fail(&self, name: &str, reason: impl Into<String>) -> Error {
        Error::tensor(self.file.origin(), name, reason)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.file.tensor(name).ok_or_else(|| self.fail(name, "is missing"))
    }

    pub(super) fn projection_info(&self, layer: usize, index: usize) -> Result<(String, &TensorInfo)> {
        let name = format!("blk.{layer}.{}.weight", PROJECTIONS[index]);
        let info = self.info(&name)?;
        Ok((name, info))
    }

    fn vector(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.info(name)?;
        if info.kind.float_type().is_none() {
            return Err(self.fail(name, format!("is {}, expected F32, F16 or BF16", info.kind.name())));
        }
        let mut values = vec![0f32; info.shape.iter().product()];
        decode_row(info.kind, self.file.bytes(info), &mut values);
        self.finite(name, &values)?;
        Ok(values)
    }

    fn finite(&self, name: &str, values: &[f32]) -> Result<()> {
        finite::check(values).map_err(|reason| self.fail(name, reason))
    }

    fn table(&self, name: &'static str) -> Result<TableView<'_>> {
        let info = self.info(name)?;
        let (rows, cols, bytes) = (self.config.vocab_size, self.config.hidden_size, self.file.bytes(info));
        let data = match info.kind.float_type() {
            Some(float_type) => TableBytes::Floats(FloatBytes { float_type, bytes }),
            None if info.kind == TensorType::I2S => {
                return Err(self.fail(name, "is I2_S, which is read for projections only"));
            }
            None => TableBytes::Blocks(info.kind, bytes),
        };
        Ok(TableView { rows, cols, data, name, origin: self.file.origin() })
    }

    /// What multiplies a projection besides its own scales: the tensor `NAME.scale`, one number.
    fn extra_scale(&self, name: &str) -> Result<f32> {
        let scale_name = format!("{}.scale", name.trim_end_matches(".weight"));
        if self.file.tensor(&scale_name).is_none() {
            return Ok(1.0);
        }
        match self.vector(&scale_name)?[..] {
            [scale] if scale > 0.0 => Ok(scale),
            ref other => {
                Err(self.fail(&scale_name, format!("has {} numbers, expected one that is positive", other.len())))
            }
        }
    }

    /// A projection in the order of rows of the file.
    fn stored(&self, layer: usize, index: usize) -> Result<LinearWeights> {
        let (name, info) = self.projection_info(layer, index)?;
        let (rows, cols, bytes) = (info.shape[0], info.shape[1], self.file.bytes(info));
        let fail = |reason: String| self.fail(&name, reason);
        let wrong_codes = |reason: String| Error::codes(self.file.origin(), &name, reason);
        let extra = self.extra_scale(&name)?;
        let layout = self.config.quantization.weight.map(|scheme| scheme.layout());
        let packed = |layout, codes: &[i8], scales: Vec<f32>| {
            let scales = scales.into_iter().map(|scale| scale * extra).collect();
            PackedMatrix::pack(layout, rows, cols, codes, scales).map(LinearWeights::Packed).map_err(wrong_codes)
        };
        if info.kind == TensorType::I2S {
            if layout != Some(Layout::TwoBit) {
                let scheme = self.config.quantization.weight_name();
                return Err(fail(format!("is I2_S, which holds ternary codes, but the weight scheme is `{scheme}`")));
            }
            let (codes, scale) = unpack_i2s(self.i2s, rows, cols, bytes).map_err(wrong_codes)?;
            // Of nothing but zeros, any scale is as good as the zero that was stored.
            let all_zero = scale == 0.0 && codes.iter().all(|&code| code == 0);
            let scales = if all_zero { uniform_scales(1, &[scale]).unwrap_or_default() } else { vec![scale] };
            return packed(Layout::TwoBit, &codes, scales);
        }
        let row_bytes = bytes.len() / rows;
        if let Some(layout) = layout.filter(|&layout| holds(info.kind, layout)) {
            let mut codes = vec![0i8; rows * cols];
            let mut scales = Vec::new();
            for (row, codes) in bytes.chunks_exact(row_bytes).zip(codes.chunks_exact_mut(cols)) {
                decode_codes(info.kind, row, codes, &mut scales);
            }
            if let Some(scales) = uniform_scales(rows, &scales) {
                return packed(layout, &codes, scales);
            }
        }
        let floats = match info.kind.float_type() {
            Some(float_type) => {
                let floats = FloatBytes { float_type, bytes };
                if let Some(at) = floats.first_not_finite() {
                    return Err(fail(finite::complaint(at)));
                }
                FloatMatrix { rows, cols, data: floats.to_data() }
            }
            None => {
                let mut values = vec![0f32; rows * cols];
                for (row, values) in bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(cols)) {
                    decode_row(info.kind, row, values);
                }
                self.finite(&name, &values)?;
                FloatMatrix { rows, cols, data: FloatData::F32(values) }
            }
        };
        let floats = if extra == 1.0 {
            floats
        } else {
            let scaled: Vec<f32> = floats.to_f32().into_iter().map(|value| value * extra).collect();
            self.finite(&name, &scaled)?;
            FloatMatrix::new(rows, cols, &scaled, FloatType::F32)
        };
        match (layout, info.kind.float_type()) {
            (Some(layout), Some(_)) => self.codes_of_floats(&name, layout, &floats).map(LinearWeights::Packed),
            _ => Ok(LinearWeights::Float(floats)),
        }
    }

    /// Codes of float weights: those that the floats are (one magnitude, and zero), else those that the scheme makes of them.
    fn codes_of_floats(&self, name: &str, layout: Layout, floats: &FloatMatrix) -> Result<PackedMatrix> {
        let values = floats.to_f32();
        let (rows, cols) = (floats.rows, floats.cols);
        let one_magnitude = matches!(layout, Layout::TwoBit | Layout::OneBit).then(|| {
            let magnitude = values.iter().copied().find(|value| *value != 0.0)?.abs();
            values.iter().all(|&value| value == 0.0 || value.abs() == magnitude).then_some(magnitude)
        });
        if let Some(scale) = one_magnitude.flatten() {
            let code = |&value: &f32| if value == 0.0 { 0 } else { value.signum() as i8 };
            let codes: Vec<i8> = values.iter().map(code).collect();
            return PackedMatrix::pack(layout, rows, cols, &codes, vec![scale])
                .map_err(|reason| self.fail(name, reason));
        }
        let scheme = self.config.quantization.weight.expect("a layout is that of a scheme");
        quantize(scheme, &values, rows, cols).map_err(|reason| self.fail(name, reason))
    }

    fn half_rotated(&self, index: usize, weights: LinearWeights) -> LinearWeights {
        if !self.neighbours || !ROTATED.contains(&index) {
            return weights;
        }
        rows_from(weights, |row| row_of_neighbours(row, self.config.head_dim))
    }
}

/// Whether blocks of `kind` may hold codes of a scheme that is stored as `layout`.
fn holds(kind: TensorType, layout: Layout) -> bool {
    match layout {
        Layout::TwoBit | Layout::Base3 => kind.is_ternary(),
        Layout::OneBit => kind == TensorType::Q1_0,
        Layout::Int8 => kind == TensorType::Q8_0,
        Layout::Int4 => kind == TensorType::Q4_0,
    }
}

impl WeightSource for GgufModel<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding_table(&self) -> Result<TableView<'_>> {
        self.table(EMBEDDING)
    }

    fn head_table(&self) -> Result<Option<TableView<'_>>> {
        if self.config.tie_word_embeddings { Ok(None) } else { self.table(HEAD).map(Some) }
    }

    fn final_norm(&self) -> Result<Vec<f32>> {
        self.vector(FINAL_NORM)
    }

    fn norm(&self, layer: usize, index: usize) -> Result<Vec<f32>> {
        self.vector(&format!("blk.{layer}.{}.weight", NORMS[index]))
    }

    fn projection(&self, layer: usize, index: usize) -> Result<LinearWeights> {
        Ok(self.half_rotated(index, self.stored(layer, index)?))
    }

    fn latent(&self, layer: usize, index: usize) -> Result<Option<FloatMatrix>> {
        let _ = (layer, index);
        Ok(None)
    }

    fn tensors(&self) -> Vec<TensorRecord> {
        let mut records: Vec<TensorRecord> = self
            .file
            .tensors()
            .map(|(name, info)| TensorRecord {
                name: name.to_owned(),
                kind: info.kind.name().to_owned(),
                shape: info.shape.clone(),
                bytes: info.len,
                offset: info.offset,
            })
            .collect();
        records.sort_by_key(|record| record.offset);
        records
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}
