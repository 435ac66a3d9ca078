//! Hugging Face folders: `config.json`, `model.safetensors`, `tokenizer.json`.
//!
//! Reads float models, latent ("online") masters, and packed ("offline") codes; writes packed or float models. The scale
//! that is written is the scale that came with the codes, to the bit.

use std::borrow::Cow;
use std::path::Path;

use super::source::{TableBytes, TableView, TensorRecord, WeightSource};
use super::tensors::{self, Dtype, OwnedTensor, TensorFile};
use super::text;
use crate::config::{ModelConfig, Storage};
use crate::error::{Error, Result};
use crate::packed::{Layout, PackedMatrix};
use crate::quant::{self, WeightScheme};
use crate::weights::{FloatMatrix, FloatType, LayerWeights, LinearWeights};

/// Name of the configuration file of a model folder.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the weight file of a model folder.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the file that says which of several weight files has which tensor.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// Name of the tokenizer file of a model folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// Name of the file that says how texts are generated.
pub const GENERATION_FILE: &str = "generation_config.json";
/// Name of the file with what `transformers` wants to know of a tokenizer.
pub const TOKENIZER_CONFIG_FILE: &str = "tokenizer_config.json";
/// Name of the file with the template of chats, where it is no part of [`TOKENIZER_CONFIG_FILE`].
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";
/// Name of the file with special tokens of older folders.
pub const SPECIAL_TOKENS_FILE: &str = "special_tokens_map.json";

/// Every file that a model folder of this project may hold.
const WRITTEN: [&str; 7] = [
    CONFIG_FILE,
    WEIGHTS_FILE,
    TOKENIZER_FILE,
    GENERATION_FILE,
    TOKENIZER_CONFIG_FILE,
    CHAT_TEMPLATE_FILE,
    SPECIAL_TOKENS_FILE,
];

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Reads the weights that a configuration promises, one part at a time, so that a caller may repack and drop each.
pub struct WeightReader<'a> {
    config: Cow<'a, ModelConfig>,
    file: &'a TensorFile<'a>,
    notes: Vec<String>,
}

impl<'a> WeightReader<'a> {
    /// A reader of `file` as a model of `config`. Where the configuration ties the head to the embedding and the file has a head
    /// with other numbers, the model has that head, as `transformers` has it: [`WeightSource::config`] then says so.
    pub fn new(config: &'a ModelConfig, file: &'a TensorFile<'a>) -> Self {
        let mut reader = Self { config: Cow::Borrowed(config), file, notes: Vec::new() };
        if config.tie_word_embeddings && file.contains(HEAD) && reader.heads_differ() {
            reader.config.to_mut().tie_word_embeddings = false;
            reader.notes.push(format!(
                "warning: the configuration ties the head to the embedding, but the file has another `{HEAD}`: that one is used"
            ));
        }
        reader
    }

    /// Whether head and embedding hold different numbers. One that cannot be read is left to those who read it.
    fn heads_differ(&self) -> bool {
        let (Ok(embedding), Ok(head)) = (self.table(EMBEDDING), self.table(HEAD)) else { return true };
        let row_of = |view: &TableView, row: usize| {
            let mut values = vec![0f32; view.cols];
            view.row_to_f32(row, &mut values);
            values
        };
        (0..embedding.rows).any(|row| row_of(&embedding, row) != row_of(&head, row))
    }

    /// The token embedding, `[vocab, hidden]`.
    ///
    /// # Errors
    /// If the tensor is missing or not what the configuration says; so for every method here.
    pub fn embedding(&self) -> Result<FloatMatrix> {
        self.whole_table(EMBEDDING)
    }

    /// The head, `[vocab, hidden]`, unless it is tied to the embedding.
    pub fn head(&self) -> Result<Option<FloatMatrix>> {
        if self.config.tie_word_embeddings {
            return Ok(None);
        }
        self.whole_table(HEAD).map(Some)
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
        self.block(index)
    }

    /// Refuses tensors that would change what the model computes and have no place in it: biases, norms of queries and keys,
    /// norms inside projections.
    ///
    /// # Errors
    /// The first of them.
    pub fn check_nothing_is_left_out(&self) -> Result<()> {
        for name in self.file.names() {
            let table = name.strip_suffix("_scale").unwrap_or(name);
            let known = table == EMBEDDING || name == FINAL_NORM || table == HEAD || self.is_of_a_block(name);
            let harmless = name.ends_with("rotary_emb.inv_freq");
            if !known && !harmless {
                let shown = name.escape_debug().to_string();
                let reason = "is no part of this model here (a bias, or a norm?): it cannot be left out";
                return Err(Error::tensor(self.file.origin(), &shown, reason));
            }
        }
        Ok(())
    }

    fn is_of_a_block(&self, name: &str) -> bool {
        let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
            return false;
        };
        if !layer.parse().is_ok_and(|layer: usize| layer < self.config.num_hidden_layers) {
            return false;
        }
        let Some((part, kind)) = part.rsplit_once('.') else { return false };
        let norms = self.config.norms();
        let is_norm = norms.iter().any(|(norm, _)| *norm == part || other_name(norm) == Some(part));
        let is_projection = self.config.projections().iter().any(|(projection, ..)| *projection == part);
        (is_norm && kind == "weight") || (is_projection && matches!(kind, "weight" | "weight_scale"))
    }

    fn projection_name(&self, layer: usize, index: usize) -> (String, usize, usize) {
        let (name, rows, cols) = self.config.projections()[index];
        (format!("model.layers.{layer}.{name}.weight"), rows, cols)
    }

    fn table(&self, name: &'static str) -> Result<TableView<'_>> {
        let (rows, cols) = (self.config.vocab_size, self.config.hidden_size);
        let is_coded = self.file.view(name)?.dtype() == Dtype::I8;
        let data = if is_coded {
            self.coded_table(name)?
        } else {
            TableBytes::Floats(self.file.float_bytes(name, rows, cols)?)
        };
        Ok(TableView { rows, cols, data, name, origin: self.file.origin() })
    }

    /// A table of 8-bit codes, as `convert --head int8` writes it.
    fn coded_table(&self, name: &str) -> Result<TableBytes<'_>> {
        let (rows, cols) = (self.config.vocab_size, self.config.hidden_size);
        let codes = self.file.bytes(name, Dtype::I8, &[rows, cols])?;
        let scale_name = format!("{name}_scale");
        let scales = self.file.bytes(&scale_name, Dtype::F32, &[rows])?;
        // Times a code, it must be a number still.
        let limit = f32::MAX / 128.0;
        let mut all = scales.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).enumerate();
        if let Some((row, scale)) = all.find(|(_, scale)| !(*scale > 0.0 && *scale <= limit)) {
            let reason = format!("holds {scale:e} at row {row}, expected a positive number of at most {limit:e}");
            return Err(Error::codes(self.file.origin(), &scale_name, reason));
        }
        Ok(TableBytes::Codes { codes, scales })
    }

    fn whole_table(&self, name: &'static str) -> Result<FloatMatrix> {
        let view = self.table(name)?;
        match view.first_not_finite() {
            Some(index) => Err(view.not_finite(index)),
            None => Ok(view.to_matrix()),
        }
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
        let bytes = self.file.bytes(name, tensor_type(layout), &layout.byte_shape(rows, cols))?;
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
        .map_err(|reason| Error::codes(self.file.origin(), name, reason))
    }
}

/// The names of the weight files that the bytes of an [`INDEX_FILE`] list, sorted; `origin` names it in errors.
///
/// # Errors
/// If it is no such index, or lists a file outside its folder.
pub fn shard_names(bytes: &[u8], origin: &str) -> Result<Vec<String>> {
    let fail = |reason: String| Error::format(origin, reason);
    let index: serde_json::Value = text::json(bytes, origin)?;
    let map = index["weight_map"].as_object().ok_or_else(|| fail("has no object `weight_map`".into()))?;
    let mut names = std::collections::BTreeSet::new();
    for (tensor, file) in map {
        let plain = |name: &&str| !name.is_empty() && !name.contains(['/', '\\']) && *name != "..";
        let file = file.as_str().filter(plain).ok_or_else(|| {
            let tensor = tensor.escape_debug();
            fail(format!("says that tensor `{tensor}` is in {file}, expected the name of a file beside it"))
        })?;
        names.insert(file.to_owned());
    }
    if names.is_empty() || names.len() > MOST_SHARDS {
        return Err(fail(format!("lists {} files, expected 1 to {MOST_SHARDS}", names.len())));
    }
    Ok(names.into_iter().collect())
}

const MOST_SHARDS: usize = 4096;

/// The template of chats of a model folder: `chat_template.jinja`, or the one in `tokenizer_config.json`.
///
/// # Errors
/// If a file is there and cannot be read.
pub fn chat_template(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(CHAT_TEMPLATE_FILE);
    if path.exists() {
        return text::read(&path, 1 << 20).map(Some);
    }
    let path = folder.join(TOKENIZER_CONFIG_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let json: serde_json::Value = text::read_json(&path, 16 << 20)?;
    let template = &json["chat_template"];
    let named = template.as_array().into_iter().flatten().find(|entry| entry["name"] == "default");
    Ok(template.as_str().or(named.and_then(|entry| entry["template"].as_str())).map(str::to_owned))
}

/// The name of a sub-norm in the models of 1bitLLM.
fn other_name(norm: &str) -> Option<&'static str> {
    match norm {
        "self_attn.attn_sub_norm" => Some("self_attn.inner_attn_ln"),
        "mlp.ffn_sub_norm" => Some("mlp.ffn_layernorm"),
        _ => None,
    }
}

impl WeightSource for WeightReader<'_> {
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
        self.file.float_vector(FINAL_NORM, self.config.hidden_size)
    }

    fn norm(&self, layer: usize, index: usize) -> Result<Vec<f32>> {
        let (name, len) = self.config.norms()[index];
        let full = |name: &str| format!("model.layers.{layer}.{name}.weight");
        let other = other_name(name).map(full).filter(|other| self.file.contains(other));
        self.file.float_vector(&other.unwrap_or_else(|| full(name)), len)
    }

    fn projection(&self, layer: usize, index: usize) -> Result<LinearWeights> {
        let (name, rows, cols) = self.projection_name(layer, index);
        self.linear(&name, rows, cols)
    }

    fn latent(&self, layer: usize, index: usize) -> Result<Option<FloatMatrix>> {
        if self.config.quantization.weight.is_none() || self.config.storage != Storage::Float {
            return Ok(None);
        }
        let (name, rows, cols) = self.projection_name(layer, index);
        self.file.float_matrix(&name, rows, cols).map(Some)
    }

    fn tensors(&self) -> Vec<TensorRecord> {
        self.file.records()
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }
}

/// Quantizes latent weights into a packed matrix, with the scale that the scheme multiplies by.
///
/// # Errors
/// A sentence that names the first weight that is NaN or infinite.
pub fn quantize(scheme: &dyn WeightScheme, latent: &[f32], rows: usize, cols: usize) -> Result<PackedMatrix, String> {
    let mut codes = vec![0; latent.len()];
    let scales = quant::quantize(scheme, latent, rows, &mut codes)?;
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
        super::write_synced(&folder.join(CONFIG_FILE), config_json(parts.config, norm_type(parts)).as_bytes())?;
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

/// Replacing a folder removes what it holds: only the files of a model may be lost.
///
/// # Errors
/// If the folder holds anything else.
pub fn check_replaceable(path: &Path) -> Result<()> {
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
    let norm_type = norm_type(parts);
    let norm = |values: &[f32]| {
        let tensor = OwnedTensor::float_matrix(&FloatMatrix::new(1, values.len(), values, norm_type));
        OwnedTensor { shape: vec![values.len()], ..tensor }
    };
    let mut list = vec![
        (EMBEDDING.to_owned(), OwnedTensor::float_matrix(&parts.embedding)),
        (FINAL_NORM.to_owned(), norm(&parts.final_norm)),
    ];
    list.extend(parts.head.iter().map(|head| (HEAD.to_owned(), OwnedTensor::float_matrix(head))));
    for (index, layer) in parts.layers.iter().enumerate() {
        let mut push = |name: &str, tensor| list.push((format!("model.layers.{index}.{name}"), tensor));
        push("input_layernorm.weight", norm(&layer.input_layernorm));
        push("post_attention_layernorm.weight", norm(&layer.post_attention_layernorm));
        if let Some(weights) = &layer.attn_sub_norm {
            push("self_attn.attn_sub_norm.weight", norm(weights));
        }
        if let Some(weights) = &layer.ffn_sub_norm {
            push("mlp.ffn_sub_norm.weight", norm(weights));
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
                    let codes =
                        OwnedTensor { dtype: tensor_type(matrix.layout()), shape, bytes: matrix.bytes().to_vec() };
                    push(&format!("{name}.weight"), codes);
                    push(&format!("{name}.weight_scale"), vector(matrix.scales()));
                }
            }
        }
    }
    Ok(list)
}

/// The type of norms: that of the embedding if it holds all of them exactly, else f32. `transformers` cannot run a quantized
/// model whose floats are of two types.
fn norm_type(parts: &ModelParts) -> FloatType {
    let wanted = parts.embedding.float_type();
    let blocks = parts.layers.iter().flat_map(|layer| {
        let sub_norms = [&layer.attn_sub_norm, &layer.ffn_sub_norm].into_iter().flatten();
        [&layer.input_layernorm, &layer.post_attention_layernorm].into_iter().chain(sub_norms)
    });
    let exact = |values: &Vec<f32>| FloatMatrix::new(1, values.len(), values, wanted).to_f32() == *values;
    if blocks.chain([&parts.final_norm]).all(exact) { wanted } else { FloatType::F32 }
}

/// The element type of packed codes in a file.
pub fn tensor_type(layout: Layout) -> Dtype {
    match layout {
        Layout::TwoBit | Layout::Base3 | Layout::OneBit | Layout::Int4 => Dtype::U8,
        Layout::Int8 => Dtype::I8,
    }
}

/// The `config.json` of a model whose floats are of this type: `transformers` computes in the type that it names, and in no other
/// where a model is quantized.
pub fn config_json(config: &ModelConfig, floats: FloatType) -> String {
    let mut json: serde_json::Value = serde_json::from_str(&config.to_json()).expect("own output");
    json["torch_dtype"] = match floats {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    }
    .into();
    serde_json::to_string_pretty(&json).expect("a JSON value always prints") + "\n"
}

/// The `generation_config.json` of a model.
pub fn generation_config(config: &ModelConfig) -> String {
    let value = serde_json::json!({ "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_ids });
    serde_json::to_string_pretty(&value).expect("a JSON value always prints") + "\n"
}

/// Enough for `AutoTokenizer` to pick the fast tokenizer up.
const TOKENIZER_CONFIG: &str = "{\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n";
