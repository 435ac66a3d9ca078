//! Hugging Face folders: `config.json`, `model.safetensors`, `tokenizer.json`.
//!
//! Reads float models, latent ("online") masters, and packed ("offline") codes; writes packed or float models. The scale
//! that is written is the scale that came with the codes, to the bit.

use std::path::Path;

use super::tensors::{self, Dtype, OwnedTensor, TensorFile};
use crate::config::{ModelConfig, Storage};
use crate::error::{Error, Result};
use crate::packed::{Layout, PackedMatrix};
use crate::quant::WeightScheme;
use crate::weights::{FloatMatrix, LayerWeights, LinearWeights};

/// Name of the configuration file of a model folder.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the weight file of a model folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the tokenizer file of a model folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

const GENERATION_FILE: &str = "generation_config.json";
const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";

/// Every file that [`write`] makes.
const WRITTEN: [&str; 5] = [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, GENERATION_FILE, TOKENIZER_CONFIG_FILE];

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Reads the weights that a configuration promises, one part at a time, so that a caller may repack and drop each.
pub struct WeightReader<'a> {
    config: &'a ModelConfig,
    file: &'a TensorFile<'a>,
}

impl<'a> WeightReader<'a> {
    /// A reader of `file` as a model of `config`.
    pub fn new(config: &'a ModelConfig, file: &'a TensorFile<'a>) -> Self {
        Self { config, file }
    }

    /// The token embedding, `[vocab, hidden]`.
    ///
    /// # Errors
    /// If the tensor is missing or not what the configuration says; so for every method here.
    pub fn embedding(&self) -> Result<FloatMatrix> {
        self.file.float_matrix(EMBEDDING, self.config.vocab_size, self.config.hidden_size)
    }

    /// The head, `[vocab, hidden]`, unless it is tied to the embedding.
    pub fn head(&self) -> Result<Option<FloatMatrix>> {
        if self.config.tie_word_embeddings {
            return Ok(None);
        }
        self.file.float_matrix(HEAD, self.config.vocab_size, self.config.hidden_size).map(Some)
    }

    /// The names of the float matrices outside the blocks, `[vocab, hidden]` each: embedding, and head unless it is tied.
    pub fn table_names(&self) -> (&'static str, Option<&'static str>) {
        (EMBEDDING, (!self.config.tie_word_embeddings).then_some(HEAD))
    }

    /// The norm before the head, `[hidden]`.
    pub fn final_norm(&self) -> Result<Vec<f32>> {
        self.file.float_vector(FINAL_NORM, self.config.hidden_size)
    }

    /// Block `index`.
    pub fn layer(&self, index: usize) -> Result<LayerWeights> {
        let config = self.config;
        let norm = |name: &str, len| self.file.float_vector(&format!("model.layers.{index}.{name}.weight"), len);
        let sub_norm = |name, len| if config.sub_norms { norm(name, len).map(Some) } else { Ok(None) };
        let [q, k, v, o, gate, up, down] = config.projections();
        let linear = |(name, rows, cols): (&str, usize, usize)| {
            self.linear(&format!("model.layers.{index}.{name}.weight"), rows, cols)
        };
        Ok(LayerWeights {
            input_layernorm: norm("input_layernorm", config.hidden_size)?,
            q_proj: linear(q)?,
            k_proj: linear(k)?,
            v_proj: linear(v)?,
            attn_sub_norm: sub_norm("self_attn.attn_sub_norm", config.query_size())?,
            o_proj: linear(o)?,
            post_attention_layernorm: norm("post_attention_layernorm", config.hidden_size)?,
            gate_proj: linear(gate)?,
            up_proj: linear(up)?,
            ffn_sub_norm: sub_norm("mlp.ffn_sub_norm", config.intermediate_size)?,
            down_proj: linear(down)?,
        })
    }

    fn linear(&self, name: &str, rows: usize, cols: usize) -> Result<LinearWeights> {
        let Some(scheme) = self.config.quantization.weight else {
            return Ok(LinearWeights::Float(self.file.float_matrix(name, rows, cols)?));
        };
        if self.config.storage == Storage::Float {
            let latent = self.file.float_matrix(name, rows, cols)?.to_f32();
            return quantize(scheme, &latent, rows, cols)
                .map(LinearWeights::Packed)
                .map_err(|reason| Error::tensor(self.file.origin(), name, reason));
        }
        let layout = self.config.storage.layout(scheme);
        let bytes = self.file.bytes(name, dtype_of(layout), &layout.byte_shape(rows, cols))?;
        let scale_name = format!("{name}_scale");
        let mut scales = self.file.float_vector(&scale_name, scheme.granularity().scale_count(rows, cols))?;
        if self.config.storage == Storage::PackedInverseScale {
            scales.iter_mut().for_each(|s| *s = 1.0 / *s);
        }
        PackedMatrix::from_grouped_bytes(
            layout,
            [rows, cols],
            scheme.granularity().group_cols(),
            bytes.to_vec(),
            scales,
        )
        .map(LinearWeights::Packed)
        .map_err(|reason| Error::tensor(self.file.origin(), name, reason))
    }
}

/// Quantizes latent weights into a packed matrix, with the scale that the scheme multiplies by.
///
/// # Errors
/// A sentence, if the scheme makes a code or scale that cannot be stored (weights that are not finite).
pub fn quantize(scheme: &dyn WeightScheme, latent: &[f32], rows: usize, cols: usize) -> Result<PackedMatrix, String> {
    let mut codes = vec![0; latent.len()];
    let scales = scheme.quantize(latent, rows, &mut codes);
    PackedMatrix::pack_grouped(scheme.layout(), [rows, cols], scheme.granularity().group_cols(), &codes, scales)
}

/// A model to be written.
pub struct ModelParts<'a> {
    /// The configuration; its `storage` says whether the projections are packed.
    pub config: &'a ModelConfig,
    /// Token embedding.
    pub embedding: FloatMatrix,
    /// Head, unless tied.
    pub head: Option<FloatMatrix>,
    /// Norm before the head.
    pub final_norm: Vec<f32>,
    /// The blocks.
    pub layers: Vec<LayerWeights>,
    /// Bytes of the `tokenizer.json`, if there is one.
    pub tokenizer_json: Option<Vec<u8>>,
}

/// Writes a model folder, all or nothing.
///
/// # Errors
/// If weights do not fit the storage that the configuration names, anything cannot be written, or `path` holds something that is no part of a model; an earlier folder at `path` is then
/// untouched.
pub fn write(path: &Path, parts: &ModelParts) -> Result<()> {
    check_replaceable(path)?;
    let tensors = tensor_list(parts).map_err(|reason| Error::format(&path.display().to_string(), reason))?;
    super::write_folder_atomic(path, |folder| {
        tensors::write(&folder.join(WEIGHTS_FILE), &tensors, ("format", "pt".into()))?;
        super::write_synced(&folder.join(CONFIG_FILE), parts.config.to_json().as_bytes())?;
        super::write_synced(&folder.join(GENERATION_FILE), generation_config(parts.config).as_bytes())?;
        match &parts.tokenizer_json {
            Some(json) => {
                super::write_synced(&folder.join(TOKENIZER_FILE), json)?;
                super::write_synced(&folder.join(TOKENIZER_CONFIG_FILE), TOKENIZER_CONFIG.as_bytes())
            }
            None => Ok(()),
        }
    })
}

/// Replacing a folder removes what it holds: only what this module writes may be lost.
fn check_replaceable(path: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        // Whatever else is wrong with the path shows when the folder is made.
        Err(_) => return Ok(()),
    };
    for entry in entries {
        let name = entry.map_err(Error::io(path, "read"))?.file_name();
        if !WRITTEN.iter().any(|written| name == *written) {
            let reason =
                format!("holds `{}`, which is no part of a model; choose another folder", name.to_string_lossy());
            return Err(Error::format(&path.display().to_string(), reason));
        }
    }
    Ok(())
}

/// Named tensors in the order of the model.
///
/// # Errors
/// A sentence, if codes do not fit the layout that the configuration names.
fn tensor_list(parts: &ModelParts) -> Result<Vec<(String, OwnedTensor)>, String> {
    let vector = |values: &[f32]| OwnedTensor::f32(&[values.len()], values);
    let mut list = vec![
        (EMBEDDING.to_owned(), OwnedTensor::float_matrix(&parts.embedding)),
        (FINAL_NORM.to_owned(), vector(&parts.final_norm)),
    ];
    list.extend(parts.head.iter().map(|head| (HEAD.to_owned(), OwnedTensor::float_matrix(head))));
    for (index, layer) in parts.layers.iter().enumerate() {
        let mut push = |name: &str, tensor| list.push((format!("model.layers.{index}.{name}"), tensor));
        push("input_layernorm.weight", vector(&layer.input_layernorm));
        push("post_attention_layernorm.weight", vector(&layer.post_attention_layernorm));
        if let Some(norm) = &layer.attn_sub_norm {
            push("self_attn.attn_sub_norm.weight", vector(norm));
        }
        if let Some(norm) = &layer.ffn_sub_norm {
            push("mlp.ffn_sub_norm.weight", vector(norm));
        }
        for ((name, _, _), weights) in parts.config.projections().iter().zip(layer.projections()) {
            match weights {
                LinearWeights::Float(matrix) => push(&format!("{name}.weight"), OwnedTensor::float_matrix(matrix)),
                LinearWeights::Packed(matrix) => {
                    let layout = parts.config.quantization.weight.map(|scheme| parts.config.storage.layout(scheme));
                    let matrix = match layout.filter(|&layout| layout != matrix.layout()) {
                        Some(layout) => {
                            &matrix.repack(layout).map_err(|reason| format!("layer {index}, {name} {reason}"))?
                        }
                        None => matrix,
                    };
                    let shape = matrix.layout().byte_shape(matrix.rows(), matrix.cols()).to_vec();
                    let codes = OwnedTensor { dtype: dtype_of(matrix.layout()), shape, bytes: matrix.bytes().to_vec() };
                    push(&format!("{name}.weight"), codes);
                    push(&format!("{name}.weight_scale"), vector(matrix.scales()));
                }
            }
        }
    }
    Ok(list)
}

fn dtype_of(layout: Layout) -> Dtype {
    match layout {
        Layout::TwoBit | Layout::Base3 | Layout::OneBit | Layout::Int4 => Dtype::U8,
        Layout::Int8 => Dtype::I8,
    }
}

fn generation_config(config: &ModelConfig) -> String {
    let value = serde_json::json!({ "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_ids });
    serde_json::to_string_pretty(&value).expect("a JSON value always prints") + "\n"
}

/// Enough for `AutoTokenizer` to pick the fast tokenizer up.
const TOKENIZER_CONFIG: &str = "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n";
