//! `config.json` to [`ModelConfig`] and back.
//!
//! Accepted: `BitNetForCausalLM` and LLaMA-shaped configurations with or without a `quantization_config` of method
//! `bitnet`. Two keys of our own inside it, `weight_scheme` and `activation_scheme`, name the quantizers; without them it
//! means ternary weights and int8 activations, which is what everybody else's files mean.

use serde_json::{Map, Value, json};

use super::{HiddenAct, ModelConfig, Quantization, RopeScaling, Storage};
use crate::error::{Error, Result};

pub(super) fn parse(bytes: &[u8], origin: &str) -> Result<ModelConfig> {
    let value: Value = crate::files::text::json(bytes, origin)?;
    let Value::Object(map) = value else {
        return Err(Error::format(origin, "is not a JSON object"));
    };
    let keys = Keys { map: &map, origin };
    let (heads, hidden) = (keys.size("num_attention_heads")?, keys.size("hidden_size")?);
    let (quantization, storage) = quantization(&keys)?;
    for bias in ["attention_bias", "mlp_bias"] {
        if keys.flag(bias)? == Some(true) {
            return Err(keys.fail(bias, "is true, expected false: projections have no bias here"));
        }
    }
    let head_dim = match keys.optional_size("head_dim")? {
        Some(dim) => dim,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(
                keys.fail("num_attention_heads", format!("is {heads}, which does not divide hidden_size = {hidden}"))
            );
        }
    };
    Ok(ModelConfig {
        vocab_size: keys.size("vocab_size")?,
        hidden_size: hidden,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers: keys.size("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: keys.optional_size("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        hidden_act: hidden_act(&keys)?,
        max_position_embeddings: keys.optional_size("max_position_embeddings")?.unwrap_or(2048),
        rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-5),
        rope_theta: rope_theta(&keys)?,
        rope_scaling: rope_scaling(&keys)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        sub_norms: sub_norms(&keys)?,
        quantization,
        storage,
        bos_token_id: keys.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: keys.tokens("eos_token_id")?,
    })
}

pub(super) fn write(config: &ModelConfig) -> String {
    let (architecture, model_type) =
        if config.sub_norms { ("BitNetForCausalLM", "bitnet") } else { ("LlamaForCausalLM", "llama") };
    let mut value = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": shortest(config.rms_norm_eps),
        "rope_theta": shortest(config.rope_theta),
        "rope_scaling": rope_scaling_json(config),
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": match config.eos_token_ids.as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            many => json!(many),
        },
        "torch_dtype": "float32",
        "use_cache": true,
    });
    if config.quantization != Quantization::NONE {
        value["quantization_config"] = json!({
            "quant_method": "bitnet",
            "linear_class": match config.storage {
                Storage::PackedInverseScale => "bitlinear",
                Storage::PackedBase3 => "base3",
                Storage::Packed | Storage::Float => "autobitlinear",
            },
            "quantization_mode": if config.storage == Storage::Float { "online" } else { "offline" },
            "modules_to_not_convert": ["lm_head"],
            "weight_scheme": config.quantization.weight_name(),
            "activation_scheme": config.quantization.activation_name(),
        });
    }
    serde_json::to_string_pretty(&value).expect("a JSON value always prints") + "\n"
}

/// An f32 as the decimal a person would write (1e-5, not 9.999999747378752e-6).
fn shortest(x: f32) -> f64 {
    x.to_string().parse().expect("a printed number parses")
}

struct Keys<'a> {
    map: &'a Map<String, Value>,
    origin: &'a str,
}

impl Keys<'_> {
    fn fail(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::config(self.origin, key, reason)
    }

    /// The value of `key`, with `null` counting as absent.
    fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.fail(key, "is missing, expected a positive integer"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let to_size = |v: &Value| {
            let size = v.as_u64().and_then(|n| usize::try_from(n).ok());
            size.ok_or_else(|| self.fail(key, format!("is {v}, expected a positive integer")))
        };
        self.value(key).map(to_size).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f32>> {
        let to_number = |v: &Value| {
            v.as_f64().map(|x| x as f32).ok_or_else(|| self.fail(key, format!("is {v}, expected a number")))
        };
        self.value(key).map(to_number).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let to_flag = |v: &Value| v.as_bool().ok_or_else(|| self.fail(key, format!("is {v}, expected true or false")));
        self.value(key).map(to_flag).transpose()
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        let to_text = |v| Value::as_str(v).ok_or_else(|| self.fail(key, format!("is {v}, expected a string")));
        self.value(key).map(to_text).transpose()
    }

    fn object(&self, key: &str) -> Result<Option<Keys<'_>>> {
        let to_object = |v: &'_ Value| match v {
            Value::Object(_) => Ok(()),
            _ => Err(self.fail(key, "is not an object")),
        };
        self.value(key).map(to_object).transpose()?;
        Ok(self.value(key).and_then(Value::as_object).map(|map| Keys { map, origin: self.origin }))
    }

    /// One token id or a list of them.
    fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let one = |v: &Value| {
            let id = v.as_u64().and_then(|n| u32::try_from(n).ok());
            id.ok_or_else(|| self.fail(key, format!("is {v}, expected a token id or a list of them")))
        };
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(v) => Ok(vec![one(v)?]),
        }
    }
}

fn hidden_act(keys: &Keys) -> Result<HiddenAct> {
    match keys.text("hidden_act")? {
        Some("relu2") => Ok(HiddenAct::Relu2),
        Some("silu") => Ok(HiddenAct::Silu),
        Some(other) => Err(keys.fail("hidden_act", format!("is `{other}`, expected `relu2` or `silu`"))),
        None => Err(keys.fail("hidden_act", "is missing, expected `relu2` or `silu`")),
    }
}

fn rope_theta(keys: &Keys) -> Result<f32> {
    if let Some(theta) = keys.number("rope_theta")? {
        return Ok(theta);
    }
    let nested = keys.object("rope_parameters")?;
    Ok(nested.map(|rope| rope.number("rope_theta")).transpose()?.flatten().unwrap_or(10_000.0))
}

/// A kind of scaling that is not known is refused: running such a model with plain angles would be silently wrong.
fn rope_scaling(keys: &Keys) -> Result<Option<RopeScaling>> {
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = keys.object(key)? else { continue };
        let number = |name: &str| {
            rope.number(name)?.ok_or_else(|| keys.fail(&format!("{key}.{name}"), "is missing, expected a number"))
        };
        match rope.text("rope_type")?.or(rope.text("type")?).unwrap_or("default") {
            "default" => {}
            "linear" => return Ok(Some(RopeScaling::Linear { factor: number("factor")? })),
            "llama3" => {
                let context = "original_max_position_embeddings";
                return Ok(Some(RopeScaling::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original_max_position_embeddings: rope.size(context)?,
                }));
            }
            other => {
                return Err(keys.fail(key, format!("has type `{other}`, expected `default`, `linear` or `llama3`")));
            }
        }
    }
    Ok(None)
}

/// `rope_scaling` of a `config.json`, null without one. Divisors that are no published scaling have no name there and are
/// refused by whoever writes a model.
fn rope_scaling_json(config: &ModelConfig) -> Value {
    match config.rope_scaling.as_ref().and_then(|scaling| scaling.recognize(config.rope_theta)) {
        Some(RopeScaling::Linear { factor }) => json!({ "rope_type": "linear", "factor": shortest(factor) }),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
            json!({
                "rope_type": "llama3",
                "factor": shortest(factor),
                "low_freq_factor": shortest(low_freq_factor),
                "high_freq_factor": shortest(high_freq_factor),
                "original_max_position_embeddings": original_max_position_embeddings,
            })
        }
        Some(RopeScaling::Divisors(_)) | None => Value::Null,
    }
}

fn sub_norms(keys: &Keys) -> Result<bool> {
    match architecture(keys)? {
        Some("BitNetForCausalLM" | "BitnetForCausalLM" | "bitnet") => Ok(true),
        Some(name) if LLAMA_SHAPED.contains(&name) => Ok(false),
        other => Err(keys.fail(
            "architectures",
            format!(
                "is `{}`, expected `BitNetForCausalLM`, `BitnetForCausalLM` or one of: {}",
                other.unwrap_or("missing"),
                LLAMA_SHAPED.join(", ")
            ),
        )),
    }
}

/// Architectures and model types without sub-norms. Of Qwen, what has no biases and no norms of queries and keys: the reader of
/// the weights refuses the rest, by the names of their tensors.
const LLAMA_SHAPED: [&str; 6] = ["LlamaForCausalLM", "llama", "Qwen2ForCausalLM", "qwen2", "Qwen3ForCausalLM", "qwen3"];

/// The first of `architectures`, else the model type.
fn architecture<'a>(keys: &'a Keys) -> Result<Option<&'a str>> {
    let first = match keys.value("architectures") {
        Some(Value::Array(names)) => names.first().and_then(Value::as_str),
        _ => None,
    };
    Ok(first.or(keys.text("model_type")?))
}

fn quantization(keys: &Keys) -> Result<(Quantization, Storage)> {
    let Some(quant) = keys.object("quantization_config")? else {
        // The models of 1bitLLM have no such section: their class quantizes its masters whenever it runs.
        if architecture(keys)? == Some("BitnetForCausalLM") {
            let schemes = Quantization::by_name("ternary", "int8").map_err(|e| keys.fail("architectures", e))?;
            return Ok((schemes, Storage::Float));
        }
        return Ok((Quantization::NONE, Storage::Float));
    };
    if quant.flag("use_rms_norm")? == Some(true) {
        let reason = "is true, expected false: a norm inside every projection is not supported";
        return Err(keys.fail("quantization_config.use_rms_norm", reason));
    }
    let nested = |key: &str| format!("quantization_config.{key}");
    if let Some(Value::Array(modules)) = quant.value("modules_to_not_convert") {
        // Neither embedding nor head is ever quantized here; whatever else is named would be.
        let known = ["lm_head", "embed_tokens", "model.embed_tokens"];
        if let Some(other) = modules.iter().find(|module| !module.as_str().is_some_and(|name| known.contains(&name))) {
            let reason = format!("has {other}, expected nothing but `lm_head` and `embed_tokens`");
            return Err(keys.fail(&nested("modules_to_not_convert"), reason));
        }
    }
    match quant.text("quant_method")? {
        Some("bitnet") => {}
        other => {
            let found = other.unwrap_or("missing");
            return Err(keys.fail(&nested("quant_method"), format!("is `{found}`, expected `bitnet`")));
        }
    }
    let weight = quant.text("weight_scheme")?.unwrap_or("ternary");
    let activation = quant.text("activation_scheme")?.unwrap_or("int8");
    let schemes =
        Quantization::by_name(weight, activation).map_err(|reason| keys.fail("quantization_config", reason))?;
    let storage = match (quant.text("quantization_mode")?, quant.text("linear_class")?) {
        (Some("online"), _) => Storage::Float,
        (Some("offline") | None, Some("autobitlinear")) => Storage::Packed,
        (Some("offline") | None, Some("base3")) if weight == "ternary" => Storage::PackedBase3,
        (Some("offline") | None, Some("base3")) => {
            let reason = format!("is `base3`, which holds ternary weights, but weight_scheme is `{weight}`");
            return Err(keys.fail(&nested("linear_class"), reason));
        }
        (Some("offline") | None, Some("bitlinear") | None) => Storage::PackedInverseScale,
        (Some("offline") | None, Some(other)) => {
            return Err(keys.fail(
                &nested("linear_class"),
                format!("is `{other}`, expected `autobitlinear`, `bitlinear` or `base3`"),
            ));
        }
        (Some(other), _) => {
            return Err(
                keys.fail(&nested("quantization_mode"), format!("is `{other}`, expected `online` or `offline`"))
            );
        }
    };
    // Weights that have no codes are floats, whatever the mode says.
    Ok((schemes, if schemes.weight.is_none() { Storage::Float } else { storage }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TINY: &str = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "relu2", "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "tie_word_embeddings": true, "eos_token_id": [1, 2],
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}}"#;

    fn parsed(text: &str) -> Result<ModelConfig> {
        ModelConfig::from_json(text.as_bytes(), "config.json")
    }

    #[test]
    fn a_bitnet_config_reads_and_round_trips() {
        let config = parsed(TINY).expect("valid");
        assert_eq!((config.head_dim, config.sub_norms, config.storage), (4, true, Storage::Packed));
        assert_eq!((config.quantization.weight_name(), config.quantization.activation_name()), ("ternary", "int8"));
        assert_eq!(config.eos_token_ids, [1, 2]);
        assert_eq!(parsed(&config.to_json()).expect("own output"), config);
    }

    #[test]
    fn every_scheme_round_trips() {
        for weight in ["none", "ternary", "binary", "int8", "int4"] {
            for activation in ["none", "int8"] {
                let mut config = parsed(TINY).expect("valid");
                config.quantization = Quantization::by_name(weight, activation).expect("known");
                config.storage = if weight == "none" { Storage::Float } else { Storage::Packed };
                assert_eq!(parsed(&config.to_json()).expect("own output"), config, "{weight} {activation}");
            }
        }
    }

    #[test]
    fn base3_is_a_storage_of_ternary_weights_only() {
        let mut config = parsed(TINY).expect("valid");
        config.storage = Storage::PackedBase3;
        let text = config.to_json();
        assert!(text.contains(r#""linear_class": "base3""#), "a name that other readers refuse");
        assert_eq!(parsed(&text).expect("own output"), config);
        let message = parsed(&text.replacen("ternary", "int8", 1)).unwrap_err().to_string();
        assert!(message.contains("`base3`, which holds ternary weights, but weight_scheme is `int8`"), "{message}");
    }

    #[test]
    fn lies_are_refused_with_key_and_reason() {
        for (from, to, expected) in [
            (r#""hidden_size": 16"#, r#""hidden_size": "16""#, "`hidden_size` is \"16\", expected a positive integer"),
            (r#""hidden_size": 16,"#, "", "`hidden_size` is missing"),
            (
                r#""hidden_size": 16"#,
                r#""hidden_size": 18"#,
                "`num_attention_heads` is 4, which does not divide hidden_size = 18",
            ),
            (r#""vocab_size": 64"#, r#""vocab_size": 99999999999"#, "`vocab_size` is 99999999999, expected 1 to"),
            (
                r#""num_key_value_heads": 2"#,
                r#""num_key_value_heads": 3"#,
                "`num_key_value_heads` is 3, which does not divide",
            ),
            (r#""relu2""#, r#""gelu""#, "`hidden_act` is `gelu`, expected `relu2` or `silu`"),
            (r#""rms_norm_eps": 1e-5"#, r#""rms_norm_eps": -1"#, "`rms_norm_eps` is -1, expected a positive number"),
            (r#"[1, 2]"#, r#"[1, 64]"#, "`eos_token_id` is 64, expected a token below vocab_size = 64"),
            ("BitNetForCausalLM", "GPT2LMHeadModel", "`architectures` is `GPT2LMHeadModel`"),
            (r#""bitnet","#, r#""gptq","#, "`quantization_config.quant_method` is `gptq`, expected `bitnet`"),
            ("autobitlinear", "somelinear", "`quantization_config.linear_class` is `somelinear`"),
            (r#""hidden_act""#, r#""attention_bias": true, "hidden_act""#, "`attention_bias` is true, expected false"),
            (
                r#""hidden_act""#,
                r#""rope_scaling": {"rope_type": "yarn"}, "hidden_act""#,
                "`rope_scaling` has type `yarn`",
            ),
            (
                r#""hidden_act""#,
                r#""rope_scaling": {"rope_type": "llama3", "factor": 8}, "hidden_act""#,
                "`rope_scaling.low_freq_factor` is missing",
            ),
            (
                r#""hidden_act""#,
                r#""rope_scaling": {"type": "linear", "factor": 0}, "hidden_act""#,
                "`rope_scaling` has factor 0, expected a positive number",
            ),
        ] {
            let text = TINY.replacen(from, to, 1);
            assert_ne!(text, TINY, "{from}");
            let message = parsed(&text).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message} lacks {expected}");
        }
        assert!(parsed("[1]").unwrap_err().to_string().contains("is not a JSON object"));
        assert!(parsed("{").unwrap_err().to_string().contains("is not valid JSON"));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_give_an_error_not_a_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), cut in 0usize..600) {
            let _ = ModelConfig::from_json(&bytes, "x");
            let text = &TINY.as_bytes()[..cut.min(TINY.len())];
            proptest::prop_assert_eq!(ModelConfig::from_json(text, "x").is_ok(), cut >= TINY.len());
        }
    }
}
