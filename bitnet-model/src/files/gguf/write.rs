//! The header of a GGUF file from keys and planned tensors; their bytes follow in the same order.

use super::TensorType;
use super::keys::{ACTIVATION_SCHEME, WEIGHT_SCHEME};
use super::tokens::TokenLists;
use crate::config::{HiddenAct, ModelConfig, RopeScaling};

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// Its name in the file.
    pub name: String,
    /// Its type.
    pub kind: TensorType,
    /// `[rows, cols]`, or the length of a vector.
    pub shape: Vec<usize>,
}

impl PlannedTensor {
    /// Its bytes.
    ///
    /// # Errors
    /// A sentence, if a row is no whole number of blocks.
    pub fn byte_count(&self) -> Result<usize, String> {
        let (rows, cols) = match self.shape[..] {
            [len] => (1, len),
            [rows, cols] => (rows, cols),
            _ => return Err(format!("has shape {:?}, expected one or two dimensions", self.shape)),
        };
        self.kind.tensor_bytes(rows, cols).ok_or_else(|| {
            format!("has {cols} columns, and {} needs a multiple of {}", self.kind.name(), self.kind.block())
        })
    }

    /// Zero bytes between this tensor and the next.
    pub fn padding(bytes: usize) -> usize {
        bytes.next_multiple_of(ALIGNMENT) - bytes
    }
}

/// Collects keys, then makes the header.
#[derive(Debug, Default)]
pub struct HeaderWriter {
    keys: u64,
    bytes: Vec<u8>,
}

impl HeaderWriter {
    /// A text.
    pub fn text(&mut self, key: &str, text: &str) {
        self.key(key, 8);
        self.string(text);
    }

    /// A 32-bit unsigned integer.
    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4);
        self.bytes.extend(value.to_le_bytes());
    }

    /// A float.
    pub fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.bytes.extend(value.to_le_bytes());
    }

    /// True or false.
    pub fn flag(&mut self, key: &str, value: bool) {
        self.key(key, 7);
        self.bytes.push(value.into());
    }

    /// Texts.
    pub fn texts(&mut self, key: &str, texts: &[String]) {
        self.array(key, 8, texts.len());
        texts.iter().for_each(|text| self.string(text));
    }

    /// Floats.
    pub fn floats(&mut self, key: &str, values: &[f32]) {
        self.array(key, 6, values.len());
        values.iter().for_each(|value| self.bytes.extend(value.to_le_bytes()));
    }

    /// 32-bit signed integers.
    pub fn integers(&mut self, key: &str, values: &[i32]) {
        self.array(key, 5, values.len());
        values.iter().for_each(|value| self.bytes.extend(value.to_le_bytes()));
    }

    /// The lists of a tokenizer.
    pub fn tokenizer(&mut self, lists: &TokenLists) {
        self.text("tokenizer.ggml.model", lists.model);
        if let Some(pre) = lists.pre {
            self.text("tokenizer.ggml.pre", pre);
        }
        self.texts("tokenizer.ggml.tokens", &lists.tokens);
        if let Some(scores) = &lists.scores {
            self.floats("tokenizer.ggml.scores", scores);
        }
        self.integers("tokenizer.ggml.token_type", &lists.types);
        if !lists.merges.is_empty() {
            self.texts("tokenizer.ggml.merges", &lists.merges);
        }
        self.flag("tokenizer.ggml.add_space_prefix", lists.add_space_prefix);
    }

    /// The whole header, up to where the first tensor begins.
    ///
    /// # Errors
    /// A tensor's name and a sentence, if its rows are no whole blocks.
    pub fn finish(self, tensors: &[PlannedTensor]) -> Result<Vec<u8>, (String, String)> {
        let mut out = super::MAGIC.to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend(self.keys.to_le_bytes());
        out.extend(&self.bytes);
        let mut offset = 0usize;
        for tensor in tensors {
            out.extend((tensor.name.len() as u64).to_le_bytes());
            out.extend(tensor.name.as_bytes());
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&dim| out.extend((dim as u64).to_le_bytes()));
            out.extend(tensor.kind.id().to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            let bytes = tensor.byte_count().map_err(|reason| (tensor.name.clone(), reason))?;
            offset += bytes + PlannedTensor::padding(bytes);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        Ok(out)
    }

    fn key(&mut self, key: &str, kind: u32) {
        self.keys += 1;
        self.string(key);
        self.bytes.extend(kind.to_le_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, len: usize) {
        self.key(key, 9);
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((len as u64).to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.bytes.extend((text.len() as u64).to_le_bytes());
        self.bytes.extend(text.as_bytes());
    }
}

/// The keys of a configuration, as llama.cpp wants them: `bitnet` for a model with sub-norms, `llama` for one without.
pub fn config_keys(config: &ModelConfig, file_type: u32) -> HeaderWriter {
    let architecture = if config.sub_norms { "bitnet" } else { "llama" };
    let mut header = HeaderWriter::default();
    header.text("general.architecture", architecture);
    header.text("general.type", "model");
    header.u32("general.file_type", file_type);
    header.u32("general.quantization_version", 2);
    let own = |key: &str| format!("{architecture}.{key}");
    for (key, value) in [
        ("vocab_size", config.vocab_size),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("block_count", config.num_hidden_layers),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
        ("rope.dimension_count", config.head_dim),
    ] {
        // All are below 2^24.
        header.u32(&own(key), value as u32);
    }
    header.f32(&own("attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
    header.f32(&own("rope.freq_base"), config.rope_theta);
    if let Some(RopeScaling::Linear { factor }) = config.rope_scaling {
        header.text(&own("rope.scaling.type"), "linear");
        header.f32(&own("rope.scaling.factor"), factor);
    }
    let act = match config.hidden_act {
        HiddenAct::Relu2 => "relu2",
        HiddenAct::Silu => "silu",
    };
    header.text(&own("hidden_activation"), act);
    header.text(WEIGHT_SCHEME, config.quantization.weight_name());
    header.text(ACTIVATION_SCHEME, config.quantization.activation_name());
    header
}

const ALIGNMENT: usize = 32;
