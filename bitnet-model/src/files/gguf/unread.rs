//! Keys of a GGUF file that change what a model computes and are not computed here.
//!
//! A key of a namespace that is known and that no table names is taken for harmless. Refused by name are the keys below unless
//! they hold a value with which they change nothing, every unknown key of rotary scaling, and namespaces of vendors that
//! are not known: a program that writes its own namespace may mean anything by it (PrismML's `prism.hadamard.*` turns all
//! weights into another basis).

use super::keys::{BITNET, Keys, LLAMA, shown};
use super::parse::Value;
use crate::config::ModelConfig;
use crate::error::Result;

/// A key behind the name of the architecture, when it changes nothing, and that in words.
type Unread = (&'static str, fn(f64, &ModelConfig) -> bool, &'static str);

fn zero(x: f64, _: &ModelConfig) -> bool {
    x == 0.0
}

/// 0 stands for "not set" in llama.cpp.
fn one_or_zero(x: f64, _: &ModelConfig) -> bool {
    x == 0.0 || x == 1.0
}

fn whole_context(x: f64, config: &ModelConfig) -> bool {
    x == 0.0 || x >= config.max_position_embeddings as f64
}

fn usual_scale(x: f64, config: &ModelConfig) -> bool {
    x == 0.0 || (x * (config.head_dim as f64).sqrt() - 1.0).abs() < 1e-6
}

fn yes(x: f64, _: &ModelConfig) -> bool {
    x == 1.0
}

const UNREAD: [Unread; 24] = [
    ("attention.sliding_window", whole_context, "0, or at least the context_length"),
    ("attention.sliding_window_pattern", zero, "0"),
    ("attention.scale", usual_scale, "1 / sqrt(key_length)"),
    ("attention.output_scale", one_or_zero, "1"),
    ("attention.temperature_length", zero, "0"),
    ("attention.temperature_scale", zero, "0"),
    ("attention.clamp_kqv", zero, "0"),
    ("attention.max_alibi_bias", zero, "0"),
    ("attention.causal", yes, "true"),
    ("attention.chunk_size", zero, "0"),
    ("attention.kv_lora_rank", zero, "0"),
    ("attention.q_lora_rank", zero, "0"),
    ("logit_scale", one_or_zero, "1"),
    ("residual_scale", one_or_zero, "1"),
    ("embedding_scale", one_or_zero, "1"),
    ("attn_logit_softcapping", zero, "0"),
    ("router_logit_softcapping", zero, "0"),
    ("final_logit_softcapping", zero, "0"),
    ("use_parallel_residual", zero, "false"),
    ("swin_norm", zero, "false"),
    ("no_rope_layer_step", zero, "0"),
    ("rope.freq_base_swa", |_, _| false, "no such key"),
    ("rope.dimension_sections", |_, _| false, "no such key"),
    ("rope.scaling.attn_factor", one_or_zero, "1"),
];

/// Keys of rotary scaling that are read, or mean something to kinds of scaling that are refused by their name alone.
const ROPE_SCALING: [&str; 9] = [
    "type",
    "factor",
    "attn_factor",
    "original_context_length",
    "finetuned",
    "yarn_ext_factor",
    "yarn_attn_factor",
    "yarn_beta_fast",
    "yarn_beta_slow",
];

/// First words of keys that say nothing of a model's arithmetic: the format's own, and of programs that note how they made a
/// file. `split` is looked at where parts are told from whole models.
const HARMLESS: [&str; 6] = ["general", "tokenizer", "split", "quantize", "imatrix", "mradermacher"];

/// Refuses a file whose model computes something that is not computed here.
///
/// # Errors
/// The key, its value, and the value with which it would change nothing.
pub(super) fn check(keys: &Keys, config: &ModelConfig) -> Result<()> {
    for (key, value) in keys.file.values() {
        let Some(own) = key.strip_prefix(keys.architecture).and_then(|rest| rest.strip_prefix('.')) else {
            let namespace = key.split('.').next().unwrap_or_default();
            // Those of other architectures are read by nobody; `bitnet` is this project's own besides.
            let mut architectures = BITNET.iter().chain([&LLAMA]);
            if HARMLESS.contains(&namespace)
                || architectures.any(|&name| namespace == name || key.starts_with(&format!("{name}.")))
            {
                continue;
            }
            let reason = format!(
                "is {}: keys that begin with `{}` are unknown, and may change what the model computes",
                shown(value),
                namespace.escape_debug()
            );
            return Err(keys.fail(&key.escape_debug().to_string(), reason));
        };
        if let Some(scaling) = own.strip_prefix("rope.scaling.")
            && !ROPE_SCALING.contains(&scaling)
        {
            let known = ROPE_SCALING.join(", ");
            let reason = format!("is {}, an unknown kind of rotary scaling, expected one of: {known}", shown(value));
            return Err(keys.fail(&key.escape_debug().to_string(), reason));
        }
        let Some((_, is_neutral, expected)) = UNREAD.iter().find(|(name, ..)| *name == own) else { continue };
        if !number_of(value).is_some_and(|x| is_neutral(x, config)) {
            let reason = format!(
                "is {}, which changes what the model computes and is not supported; expected {expected}",
                shown(value)
            );
            return Err(keys.fail(key, reason));
        }
    }
    Ok(())
}

fn number_of(value: Value) -> Option<f64> {
    match value {
        Value::Unsigned(n) => Some(n as f64),
        Value::Signed(n) => Some(n as f64),
        Value::Float(x) => Some(x),
        Value::Bool(flag) => Some(f64::from(u8::from(flag))),
        Value::Text(_) | Value::Array(_) => None,
    }
}
