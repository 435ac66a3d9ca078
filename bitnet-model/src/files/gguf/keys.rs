//! The configuration that a GGUF file's keys and tensors describe.

use super::parse::{GgufFile, Value};
use super::types::TensorType;
use crate::config::{HiddenAct, ModelConfig, Quantization, RopeScaling, Storage};
use crate::error::{Error, Result};
use crate::files::added_tokens::AddedTokens;

/// Architectures of BitNet models: with sub-norms, and half-rotated queries and keys.
pub(super) const BITNET: [&str; 3] = ["bitnet", "bitnet-b1.58", "bitnet-25"];
/// LLaMA, whose queries and keys are stored as neighbours.
pub(super) const LLAMA: &str = "llama";

/// Keys of this project, where the format has none: the quantizers by name.
pub(super) const WEIGHT_SCHEME: &str = "bitnet.weight_scheme";
pub(super) const ACTIVATION_SCHEME: &str = "bitnet.activation_scheme";
/// The same for all tokens that end a text, of which llama.cpp knows three.
pub const EOS_TOKENS: &str = "bitnet.eos_token_ids";

/// The seven projections of a block in the order of [`ModelConfig::projections`], as GGUF names them.
pub const PROJECTIONS: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
/// The norms of a block in the order of [`ModelConfig::norms`].
pub const NORMS: [&str; 4] = ["attn_norm", "ffn_norm", "attn_sub_norm", "ffn_sub_norm"];

pub(super) const EMBEDDING: &str = "token_embd.weight";
pub(super) const HEAD: &str = "output.weight";
pub(super) const FINAL_NORM: &str = "output_norm.weight";
pub(super) const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Typed access to keys.
pub(super) struct Keys<'f, 'a> {
    pub file: &'f GgufFile<'a>,
    pub architecture: &'a str,
}

impl<'f, 'a> Keys<'f, 'a> {
    pub fn new(file: &'f GgufFile<'a>) -> Result<Self> {
        match file.value("general.architecture") {
            Some(Value::Text(architecture)) => Ok(Self { file, architecture }),
            Some(other) => Err(Error::config(file.origin(), "general.architecture", format!("is {}", shown(other)))),
            None => Err(Error::config(file.origin(), "general.architecture", "is missing, expected a text")),
        }
    }

    pub fn fail(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::config(self.file.origin(), key, reason)
    }

    /// The full name of a key of the architecture.
    pub fn own(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let number = match self.file.value(key) {
            None => return Ok(None),
            Some(Value::Unsigned(n)) => usize::try_from(n).ok(),
            Some(Value::Signed(n)) => usize::try_from(n).ok(),
            // One number for each block: as good as one, if they are equal.
            Some(Value::Array(array)) => array.integers().and_then(|mut all| {
                let first = all.next()?;
                all.all(|other| other == first).then_some(usize::try_from(first).ok()).flatten()
            }),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| {
            let reason = match self.file.value(key) {
                Some(Value::Array(_)) => "is a list of different numbers, expected one for all blocks".to_owned(),
                other => format!("is {}, expected an integer", other.map_or_else(String::new, shown)),
            };
            self.fail(key, reason)
        })
    }

    /// A size that must be there.
    pub fn needed(&self, key: &str) -> Result<usize> {
        let key = self.own(key);
        self.size(&key)?.ok_or_else(|| self.fail(&key, "is missing, expected an integer"))
    }

    pub fn float(&self, key: &str) -> Result<Option<f32>> {
        match self.file.value(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(x as f32)),
            Some(other) => Err(self.fail(key, format!("is {}, expected a float", shown(other)))),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        match self.file.value(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.fail(key, format!("is {}, expected a text", shown(other)))),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.file.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.fail(key, format!("is {}, expected true or false", shown(other)))),
        }
    }

    pub fn token(&self, key: &str) -> Result<Option<u32>> {
        // -1 stands for none in some files.
        if matches!(self.file.value(key), Some(Value::Signed(-1) | Value::Unsigned(0xffff_ffff))) {
            return Ok(None);
        }
        let id = self.size(key)?;
        id.map(|id| u32::try_from(id).map_err(|_| self.fail(key, format!("is {id}, expected a token")))).transpose()
    }
}

/// A value for an error: short, on one line.
pub(super) fn shown(value: Value) -> String {
    match value {
        Value::Array(array) => format!("an array of {}", array.len()),
        Value::Text(text) => format!("`{}`", text.chars().take(40).flat_map(char::escape_debug).collect::<String>()),
        Value::Unsigned(n) => n.to_string(),
        Value::Signed(n) => n.to_string(),
        Value::Float(x) => x.to_string(),
        Value::Bool(b) => b.to_string(),
    }
}

/// The configuration of `file`, not validated yet. What was decided without a key goes to `notes`.
pub(super) fn config(keys: &Keys, notes: &mut Vec<String>) -> Result<ModelConfig> {
    let (file, architecture) = (keys.file, keys.architecture);
    let is_bitnet = BITNET.contains(&architecture);
    if !is_bitnet && architecture != LLAMA {
        let known = BITNET.join("`, `");
        return Err(keys.fail(
            "general.architecture",
            format!("is `{}`, expected `{LLAMA}`, `{known}`", architecture.escape_debug()),
        ));
    }
    if let Some(experts @ 1..) = keys.size(&keys.own("expert_count"))? {
        return Err(keys.fail(&keys.own("expert_count"), format!("is {experts}: experts are not supported")));
    }
    let table = file.tensor(EMBEDDING).ok_or_else(|| Error::tensor(file.origin(), EMBEDDING, "is missing"))?;
    let [vocab_size, hidden_size] = table.shape[..] else {
        return Err(Error::tensor(file.origin(), EMBEDDING, format!("has shape {:?}, expected two", table.shape)));
    };
    if let Some(claimed) = keys.size(&keys.own("vocab_size"))?.filter(|&claimed| claimed != vocab_size) {
        notes.push(format!("{} is {claimed}, but the embedding has {vocab_size} rows", keys.own("vocab_size")));
    }
    let (hidden, heads) = (keys.needed("embedding_length")?, keys.needed("attention.head_count")?);
    if hidden != hidden_size {
        let reason = format!("is {hidden}, but the embedding has {hidden_size} columns");
        return Err(keys.fail(&keys.own("embedding_length"), reason));
    }
    let head_dim = head_dim(keys, hidden, heads)?;
    let intermediate_size = keys.needed("feed_forward_length")?;
    let num_hidden_layers = keys.needed("block_count")?;
    if num_hidden_layers > MOST_LAYERS {
        let reason = format!("is {num_hidden_layers}, expected at most {MOST_LAYERS}");
        return Err(keys.fail(&keys.own("block_count"), reason));
    }
    let (quantization, storage) = quantization(keys, is_bitnet, num_hidden_layers, notes)?;
    let added = added_tokens(keys)?;
    let eps = keys.own("attention.layer_norm_rms_epsilon");
    Ok(ModelConfig {
        vocab_size,
        hidden_size: hidden,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: keys.size(&keys.own("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
        hidden_act: hidden_act(keys, num_hidden_layers, intermediate_size, notes)?,
        max_position_embeddings: keys.size(&keys.own("context_length"))?.unwrap_or(2048),
        rms_norm_eps: keys.float(&eps)?.ok_or_else(|| keys.fail(&eps, "is missing, expected a float"))?,
        rope_theta: keys.float(&keys.own("rope.freq_base"))?.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(keys, head_dim)?,
        tie_word_embeddings: file.tensor(HEAD).is_none(),
        sub_norms: is_bitnet,
        quantization,
        storage,
        bos_token_id: added.bos.filter(|_| added.add_bos == Some(true)),
        eos_token_ids: ends(keys)?,
    })
}

fn head_dim(keys: &Keys, hidden: usize, heads: usize) -> Result<usize> {
    let head_dim = match keys.size(&keys.own("attention.key_length"))? {
        Some(dim) => dim,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let reason = format!("is {heads}, which does not divide embedding_length = {hidden}");
            return Err(keys.fail(&keys.own("attention.head_count"), reason));
        }
    };
    for key in ["attention.value_length", "rope.dimension_count"] {
        let key = keys.own(key);
        if let Some(other) = keys.size(&key)?.filter(|&other| other != head_dim) {
            return Err(keys.fail(&key, format!("is {other}, expected the width of a head, {head_dim}")));
        }
    }
    Ok(head_dim)
}

fn hidden_act(keys: &Keys, layers: usize, intermediate: usize, notes: &mut Vec<String>) -> Result<HiddenAct> {
    for key in [keys.own("hidden_activation"), keys.own("hidden_act")] {
        match keys.text(&key)? {
            None => {}
            Some("relu2" | "relu_sqr" | "relu_squared") => return Ok(HiddenAct::Relu2),
            Some("silu" | "swiglu") => return Ok(HiddenAct::Silu),
            Some(other) => {
                let reason = format!("is `{}`, expected `relu2` or `silu`", other.escape_debug());
                return Err(keys.fail(&key, reason));
            }
        }
    }
    // Microsoft's files have no such key, and no other activation than these two was ever published.
    let (act, name, why) = match keys.architecture {
        LLAMA => return Ok(HiddenAct::Silu),
        "bitnet" if (layers, intermediate) != BITNET_2B => {
            (HiddenAct::Silu, "silu", "no key says so; architecture `bitnet` is 1bitLLM's")
        }
        _ => (HiddenAct::Relu2, "relu2", "no key says so; it is that of BitNet b1.58 2B4T"),
    };
    notes.push(format!("activation {name}: {why}"));
    Ok(act)
}

fn rope_scaling(keys: &Keys, head_dim: usize) -> Result<Option<RopeScaling>> {
    let file = keys.file;
    if let Some(info) = file.tensor(ROPE_DIVISORS)
        && (info.kind != TensorType::F32 || info.shape != [head_dim / 2])
    {
        let (kind, shape) = (info.kind.name(), &info.shape);
        let reason = format!("is {kind} of shape {shape:?}, expected F32 of [{}]", head_dim / 2);
        return Err(Error::tensor(file.origin(), ROPE_DIVISORS, reason));
    }
    // As llama.cpp has it: linear unless something else is said, by a key of an older name too, and 0 stands for none.
    let factor = match keys.float(&keys.own("rope.scaling.factor"))? {
        Some(factor) => Some(factor),
        None => keys.float(&keys.own("rope.scale_linear"))?,
    };
    let factor = factor.filter(|&factor| factor != 0.0).unwrap_or(1.0);
    let divisors = file.tensor(ROPE_DIVISORS).map(|info| file.bytes(info).as_chunks::<4>().0);
    let scaled = |factor: f32| match divisors {
        Some(divisors) => {
            Some(RopeScaling::Divisors(divisors.iter().map(|&b| f32::from_le_bytes(b) * factor).collect()))
        }
        None if factor == 1.0 => None,
        None => Some(RopeScaling::Linear { factor }),
    };
    match keys.text(&keys.own("rope.scaling.type"))?.unwrap_or("linear") {
        "none" => Ok(scaled(1.0)),
        "linear" => Ok(scaled(factor)),
        other => {
            let reason = format!("is `{}`, expected `none` or `linear`", other.escape_debug());
            Err(keys.fail(&keys.own("rope.scaling.type"), reason))
        }
    }
}

/// The quantizers: by this project's keys, else by the types of the projections.
fn quantization(
    keys: &Keys,
    is_bitnet: bool,
    layers: usize,
    notes: &mut Vec<String>,
) -> Result<(Quantization, Storage)> {
    let by_name = |weight: &str, activation: &str| {
        Quantization::by_name(weight, activation).map_err(|reason| keys.fail(WEIGHT_SCHEME, reason))
    };
    let packed =
        |schemes: Quantization| (schemes, if schemes.weight.is_some() { Storage::Packed } else { Storage::Float });
    if let Some(weight) = keys.text(WEIGHT_SCHEME)? {
        let activation = keys.text(ACTIVATION_SCHEME)?.unwrap_or("int8");
        return Ok(packed(by_name(&weight.escape_debug().to_string(), &activation.escape_debug().to_string())?));
    }
    let names = (0..layers).flat_map(|layer| PROJECTIONS.map(|name| format!("blk.{layer}.{name}.weight")));
    let kinds: Vec<TensorType> = names.filter_map(|name| keys.file.tensor(&name).map(|info| info.kind)).collect();
    if !kinds.is_empty() && kinds.iter().all(|kind| kind.is_ternary()) {
        return Ok(packed(by_name("ternary", "int8")?));
    }
    if !kinds.is_empty() && kinds.iter().all(|&kind| kind == TensorType::Q1_0) {
        return Ok(packed(by_name("binary", "int8")?));
    }
    if is_bitnet {
        notes.push(
            "the projections are floats or blocks of another scheme: they are taken for ternary weights, by \
             their architecture"
                .into(),
        );
        return Ok(packed(by_name("ternary", "int8")?));
    }
    Ok(packed(Quantization::NONE))
}

/// What the file says about the tokens around a text.
pub(super) fn added_tokens(keys: &Keys) -> Result<AddedTokens> {
    let model = keys.text("tokenizer.ggml.model")?;
    let pre = keys.text("tokenizer.ggml.pre")?;
    // What llama.cpp does without the key.
    let default = model == Some("llama") || matches!(pre, Some("llama-bpe" | "llama3" | "llama-v3"));
    Ok(AddedTokens {
        bos: keys.token("tokenizer.ggml.bos_token_id")?,
        add_bos: Some(keys.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(default)),
        add_eos: keys.flag("tokenizer.ggml.add_eos_token")?,
    })
}

/// The tokens that end a text: of this project's key, which has all of them; else of llama.cpp's three, and those that end a
/// turn of a chat by their spelling, as llama.cpp has it.
fn ends(keys: &Keys) -> Result<Vec<u32>> {
    if let Some(value) = keys.file.value(EOS_TOKENS) {
        let Value::Array(ids) = value else { return Err(keys.fail(EOS_TOKENS, format!("is {}", shown(value)))) };
        let ids = ids.integers().ok_or_else(|| keys.fail(EOS_TOKENS, "is no array of 32-bit integers"))?;
        let token = |id| u32::try_from(id).map_err(|_| keys.fail(EOS_TOKENS, format!("has {id}, expected a token")));
        return ids.map(token).collect();
    }
    let mut ends = Vec::new();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ends.extend(keys.token(&format!("tokenizer.ggml.{key}"))?);
    }
    if let Some(Value::Array(tokens)) = keys.file.value("tokenizer.ggml.tokens") {
        let named = tokens.texts().into_iter().flatten().enumerate();
        let named = named.filter(|(_, text)| ENDS_OF_TURNS.iter().any(|end| end.as_bytes() == *text));
        ends.extend(named.filter_map(|(id, _)| u32::try_from(id).ok()));
    }
    let mut seen = std::collections::BTreeSet::new();
    ends.retain(|id| seen.insert(*id));
    Ok(ends)
}

const ENDS_OF_TURNS: [&str; 4] = ["<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"];

/// Layers and feed-forward width of BitNet b1.58 2B4T, which some files call `bitnet`.
const BITNET_2B: (usize, usize) = (30, 6912);

const MOST_LAYERS: usize = 1024;
