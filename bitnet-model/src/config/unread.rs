//! Keys of a `config.json` that change what a model computes and are not computed here.
//!
//! A key that no table names is taken for harmless and passed over: `transformers` writes dozens of them. Each key below is
//! refused by name, unless it holds a value with which it changes nothing.

use serde_json::{Map, Value};

use super::ModelConfig;
use crate::error::{Error, Result};

/// A key, when it changes nothing, and that in words.
struct Unread {
    key: &'static str,
    is_neutral: fn(&Value, &ModelConfig) -> bool,
    expected: &'static str,
}

const fn unread(key: &'static str, is_neutral: fn(&Value, &ModelConfig) -> bool, expected: &'static str) -> Unread {
    Unread { key, is_neutral, expected }
}

fn one(value: &Value, _: &ModelConfig) -> bool {
    value.as_f64() == Some(1.0)
}

fn zero(value: &Value, _: &ModelConfig) -> bool {
    value.as_f64() == Some(0.0)
}

fn no(value: &Value, _: &ModelConfig) -> bool {
    value == false
}

fn never(_: &Value, _: &ModelConfig) -> bool {
    false
}

/// At least the longest sequence: such a window cuts nothing off.
fn whole_context(value: &Value, config: &ModelConfig) -> bool {
    value.as_u64().is_some_and(|window| window >= config.max_position_embeddings as u64)
}

/// Attention's own scale, `1 / sqrt(head_dim)`.
fn usual_scale(value: &Value, config: &ModelConfig) -> bool {
    value.as_f64().is_some_and(|scale| (scale * (config.head_dim as f64).sqrt() - 1.0).abs() < 1e-6)
}

fn all_full(value: &Value, _: &ModelConfig) -> bool {
    value.as_array().is_some_and(|layers| layers.iter().all(|layer| layer == "full_attention"))
}

/// Each of these with the class or model family of `transformers` that reads it.
const UNREAD: [Unread; 47] = [
    // Windows: Qwen2, Mistral, Gemma.
    unread("layer_types", all_full, "nothing but \"full_attention\""),
    // Multipliers: Granite, Cohere, Gemma, MiniCPM, Falcon-H1.
    unread("attention_multiplier", usual_scale, "1 / sqrt(head_dim)"),
    unread("query_pre_attn_scalar", |v, c| v.as_f64() == Some(c.head_dim as f64), "head_dim"),
    unread("logits_scaling", one, "1"),
    unread("logit_scale", one, "1"),
    unread("residual_multiplier", one, "1"),
    unread("embedding_multiplier", one, "1"),
    unread("embedding_scale", one, "1"),
    unread("lm_head_multiplier", one, "1"),
    unread("key_multiplier", one, "1"),
    unread("attention_in_multiplier", one, "1"),
    unread("attention_out_multiplier", one, "1"),
    unread("mlp_multipliers", never, "no such key"),
    unread("scale_emb", one, "1"),
    unread("scale_depth", never, "no such key"),
    unread("dim_model_base", |v, c| v.as_f64() == Some(c.hidden_size as f64), "hidden_size"),
    // Soft caps: Gemma 2.
    unread("final_logit_softcapping", zero, "null"),
    unread("attn_logit_softcapping", zero, "null"),
    unread("logits_soft_cap", zero, "null"),
    // Rotary positions: Phi, StableLM, GPT-NeoX, SmolLM3, Llama 4, Gemma 3.
    unread("partial_rotary_factor", one, "1"),
    unread("rotary_pct", one, "1"),
    unread("rotary_percent", one, "1"),
    unread("rotary_dim", |v, c| v.as_u64() == Some(c.head_dim as u64), "head_dim"),
    unread("rope_interleaved", no, "false"),
    unread("rope_interleave", no, "false"),
    unread("no_rope_layers", |v, _| v.as_array().is_some_and(|l| l.iter().all(|x| x == 1)), "1 for every layer"),
    unread("no_rope_layer_interval", zero, "0"),
    unread("rope_local_base_freq", never, "no such key"),
    unread("alibi", no, "false"),
    unread("position_embedding_type", |v, _| v == "rope" || v == "rotary" || v == "absolute", "`rope`"),
    // Norms and biases: OLMo, Chameleon, Llama 4, Phi, InternLM, ChatGLM, DBRX.
    unread("use_qk_norm", no, "false"),
    unread("qk_layernorm", no, "false"),
    unread("swin_norm", no, "false"),
    unread("clip_qkv", never, "null"),
    unread("use_bias", no, "false"),
    unread("bias", no, "false"),
    unread("qkv_bias", no, "false"),
    unread("add_qkv_bias", no, "false"),
    unread("add_bias_linear", no, "false"),
    unread("lm_head_bias", no, "false"),
    unread("use_parallel_residual", no, "false"),
    unread("parallel_attn", no, "false"),
    // The bits of 1bitLLM's quantizers: 1 stands for ternary there.
    unread("weight_bits", one, "1"),
    unread("input_bits", |v, _| v.as_u64() == Some(8), "8"),
    // Experts: Mixtral, Qwen2-MoE, DeepSeek.
    unread("num_local_experts", |v, c| zero(v, c) || one(v, c), "0"),
    unread("num_experts", |v, c| zero(v, c) || one(v, c), "0"),
    unread("n_routed_experts", zero, "null"),
];

/// Keys inside `rope_scaling` and `rope_parameters` that plain, linear and `llama3` scaling do not read.
const UNREAD_OF_ROPE: [Unread; 4] = [
    unread("partial_rotary_factor", one, "1"),
    unread("mrope_section", never, "no such key"),
    unread("attention_factor", one, "1"),
    unread("rope_local_base_freq", never, "no such key"),
];

/// Refuses a configuration whose model computes something that is not computed here.
///
/// # Errors
/// The key, its value, and the value with which it would change nothing.
pub(super) fn check(map: &Map<String, Value>, config: &ModelConfig, origin: &str) -> Result<()> {
    let refuse = |key: &str, value: &Value, expected: &str| {
        let shown: String = value.to_string().chars().take(60).collect();
        let reason =
            format!("is {shown}, which changes what the model computes and is not supported; expected {expected}");
        Err(Error::config(origin, key, reason))
    };
    let set = |map: &Map<String, Value>, key: &str| map.get(key).filter(|value| !value.is_null()).cloned();
    for Unread { key, is_neutral, expected } in UNREAD {
        if let Some(value) = set(map, key).filter(|value| !is_neutral(value, config)) {
            return refuse(key, &value, expected);
        }
    }
    // Qwen2 has a window and a switch for it, which is off where it is missing; others have the window alone.
    let switch = set(map, "use_sliding_window");
    if let Some(window) = set(map, "sliding_window").filter(|window| !whole_context(window, config)) {
        let qwen = matches!(map.get("model_type").and_then(Value::as_str), Some("qwen2" | "qwen3"));
        match switch {
            Some(Value::Bool(false)) => {}
            None if qwen => {}
            Some(on) => return refuse("use_sliding_window", &on, "false"),
            None => return refuse("sliding_window", &window, "null, or at least max_position_embeddings"),
        }
    } else if switch.as_ref().is_some_and(|on| *on != false) && set(map, "sliding_window").is_none() {
        return refuse("use_sliding_window", &Value::Bool(true), "false");
    }
    if let Some(value) = set(map, "use_sub_norms").filter(|value| *value != config.sub_norms) {
        let expected = if config.sub_norms { "true, as BitNet has them" } else { "false" };
        return refuse("use_sub_norms", &value, expected);
    }
    for rope in ["rope_scaling", "rope_parameters"] {
        let Some(Value::Object(inner)) = set(map, rope) else { continue };
        for Unread { key, is_neutral, expected } in UNREAD_OF_ROPE {
            if let Some(value) = set(&inner, key).filter(|value| !is_neutral(value, config)) {
                return refuse(&format!("{rope}.{key}"), &value, expected);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(architecture: &str, model_type: &str, more: &[(&str, Value)]) -> Result<ModelConfig> {
        let mut config = json!({"architectures": [architecture], "model_type": model_type, "vocab_size": 64,
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 256});
        more.iter().for_each(|(key, value)| config[*key] = value.clone());
        ModelConfig::from_json(config.to_string().as_bytes(), "config.json")
    }

    fn llama(more: &[(&str, Value)]) -> Result<ModelConfig> {
        read("LlamaForCausalLM", "llama", more)
    }

    #[test]
    fn every_key_of_the_table_is_refused_by_name_and_null_is_not() {
        for Unread { key, is_neutral, .. } in UNREAD {
            // A number and a text that no key takes for neutral.
            for value in [json!(0.123), json!("elsewhere")] {
                assert!(!is_neutral(&value, &llama(&[]).expect("valid")), "{key}");
                let message = llama(&[(key, value)]).expect_err(key).to_string();
                assert!(message.contains(&format!("`{key}` is ")) && message.lines().count() == 1, "{message}");
            }
            llama(&[(key, Value::Null)]).expect(key);
        }
        for Unread { key, .. } in UNREAD_OF_ROPE {
            let message = llama(&[("rope_parameters", json!({ "rope_type": "default", key: 0.5 }))]);
            let message = message.expect_err(key).to_string();
            assert!(message.contains(&format!("`rope_parameters.{key}` is 0.5")), "{message}");
        }
    }

    #[test]
    fn neutral_values_pass() {
        for (key, value) in [
            ("layer_types", json!(["full_attention", "full_attention"])),
            ("attention_multiplier", json!(0.5)),
            ("query_pre_attn_scalar", json!(4)),
            ("logits_scaling", json!(1)),
            ("residual_multiplier", json!(1.0)),
            ("embedding_multiplier", json!(1.0)),
            ("partial_rotary_factor", json!(1.0)),
            ("rope_interleaved", json!(false)),
            ("no_rope_layers", json!([1, 1])),
            ("use_qk_norm", json!(false)),
            ("sliding_window", json!(256)),
            ("sliding_window", json!(4096)),
            ("use_sliding_window", json!(false)),
            ("use_sub_norms", json!(false)),
            ("num_local_experts", json!(0)),
            // Harmless keys, known and unknown.
            ("pretraining_tp", json!(2)),
            ("attention_dropout", json!(0.1)),
            ("use_cache", json!(false)),
            ("some_key_of_tomorrow", json!({"a": 1})),
        ] {
            llama(&[(key, value.clone())]).unwrap_or_else(|error| panic!("{key} {value}: {error}"));
        }
    }

    #[test]
    fn a_window_counts_only_where_it_is_on() {
        let refused = |result: Result<ModelConfig>, text: &str| {
            let message = result.expect_err(text).to_string();
            assert!(message.contains(text), "{message}");
        };
        let qwen = |more: &[(&str, Value)]| read("Qwen2ForCausalLM", "qwen2", more);
        let (window, on, off) = (("sliding_window", json!(64)), json!(true), json!(false));
        refused(llama(&[window.clone()]), "`sliding_window` is 64");
        refused(qwen(&[window.clone(), ("use_sliding_window", on.clone())]), "`use_sliding_window` is true");
        refused(qwen(&[("use_sliding_window", on)]), "`use_sliding_window` is true");
        qwen(&[window.clone(), ("use_sliding_window", off)]).expect("off");
        qwen(&[window]).expect("off where it is missing");
        let bitnet = read("BitNetForCausalLM", "bitnet", &[("use_sub_norms", json!(false))]);
        refused(
            bitnet,
            "`use_sub_norms` is false, which changes what the model computes and is not supported; expected true",
        );
    }
}
