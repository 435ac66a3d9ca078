//! `config.json` to [`ModelConfig`] and back.
//!
//! Accepted: `BitNetForCausalLM` and LLaMA-shaped configurations with or without a `quantization_config` of method
//! `bitnet`. Two keys of our own inside it, `weight_scheme` and `activation_scheme`, name the quantizers; without them it
//! means ternary weights and int8 activations, which is what everybody else's files mean.

use serde_json::{Map, Value, json};

use super::defaults::{CLASSES, Defaults};
use super::{HiddenAct, ModelConfig, Quantization, Storage, rope_keys, unread};
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
    let class = class(&keys)?;
    let head_dim = match keys.optional_size("head_dim")?.or(class.head_dim.filter(|_| !keys.is_null("head_dim"))) {
        Some(dim) => dim,
        None if heads > 0 && hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(
                keys.fail("num_attention_heads", format!("is {heads}, which does not divide hidden_size = {hidden}"))
            );
        }
    };
    let config = ModelConfig {
        vocab_size: keys.size("vocab_size")?,
        hidden_size: hidden,
        intermediate_size: keys.size("intermediate_size")?,
        num_hidden_layers: keys.size("num_hidden_layers")?,
        num_attention_heads: heads,
        num_key_value_heads: key_value_heads(&keys, class, heads)?,
        head_dim,
        hidden_act: hidden_act(&keys)?.unwrap_or(class.hidden_act),
        max_position_embeddings: keys
            .optional_size("max_position_embeddings")?
            .unwrap_or(class.max_position_embeddings),
        rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(class.rms_norm_eps),
        rope_theta: rope_keys::theta(&keys)?.unwrap_or(class.rope_theta),
        rope_scaling: rope_keys::scaling(&keys)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
        sub_norms: class.sub_norms,
        quantization,
        storage,
        bos_token_id: keys.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: ends(&keys, class)?,
    };
    unread::check(&map, class, &config, origin)?;
    Ok(config)
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
        "rope_scaling": rope_keys::scaling_json(config),
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
pub(super) fn shortest(x: f32) -> f64 {
    x.to_string().parse().expect("a printed number parses")
}

/// Typed access to the keys of an object.
pub(super) struct Keys<'a> {
    pub map: &'a Map<String, Value>,
    pub origin: &'a str,
}

impl Keys<'_> {
    pub fn fail(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::config(self.origin, key, reason)
    }

    /// The value of `key`, with `null` counting as absent.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` is there and null.
    fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    pub fn size(&self, key: &str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.fail(key, "is missing, expected a positive integer"))
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let to_size = |v: &Value| {
            let size = v.as_u64().and_then(|n| usize::try_from(n).ok());
            size.ok_or_else(|| self.fail(key, format!("is {v}, expected a positive integer")))
        };
        self.value(key).map(to_size).transpose()
    }

    pub fn number(&self, key: &str) -> Result<Option<f32>> {
        let to_number = |v: &Value| {
            v.as_f64().map(|x| x as f32).ok_or_else(|| self.fail(key, format!("is {v}, expected a number")))
        };
        self.value(key).map(to_number).transpose()
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let to_flag = |v: &Value| v.as_bool().ok_or_else(|| self.fail(key, format!("is {v}, expected true or false")));
        self.value(key).map(to_flag).transpose()
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let to_text = |v| Value::as_str(v).ok_or_else(|| self.fail(key, format!("is {v}, expected a string")));
        self.value(key).map(to_text).transpose()
    }

    pub fn object(&self, key: &str) -> Result<Option<Keys<'_>>> {
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

/// A key that is null, as against one that is missing, means as many as query heads in every class.
fn key_value_heads(keys: &Keys, class: &Defaults, heads: usize) -> Result<usize> {
    const KEY: &str = "num_key_value_heads";
    match (keys.optional_size(KEY)?, class.num_key_value_heads.filter(|_| !keys.is_null(KEY))) {
        (Some(count), _) => Ok(count),
        (None, Some(count)) if !heads.is_multiple_of(count) => {
            let reason = format!(
                "is missing, and the default of `{}`, {count}, does not divide num_attention_heads = {heads}: \
                 add the number of key and value heads",
                class.names[0]
            );
            Err(keys.fail(KEY, reason))
        }
        (None, default) => Ok(default.unwrap_or(heads)),
    }
}

/// The tokens that end a text. A key that is null, as against one that is missing, means none in every class; and a default is left
/// out where the vocabulary has no such token.
fn ends(keys: &Keys, class: &Defaults) -> Result<Vec<u32>> {
    if keys.map.contains_key("eos_token_id") {
        return keys.tokens("eos_token_id");
    }
    let vocabulary = keys.size("vocab_size")?;
    Ok(class.eos_token_id.into_iter().filter(|&id| (id as usize) < vocabulary).collect())
}

fn hidden_act(keys: &Keys) -> Result<Option<HiddenAct>> {
    match keys.text("hidden_act")? {
        Some("relu2") => Ok(Some(HiddenAct::Relu2)),
        Some("silu") => Ok(Some(HiddenAct::Silu)),
        Some(other) => Err(keys.fail("hidden_act", format!("is `{other}`, expected `relu2` or `silu`"))),
        None => Ok(None),
    }
}

/// The defaults of the class that the configuration names. Of Qwen, what has no biases and no norms of queries and keys is read:
/// the reader of the weights refuses the rest, by the names of their tensors.
fn class(keys: &Keys) -> Result<&'static Defaults> {
    static KNOWN: [Defaults; CLASSES.len()] = CLASSES;
    let name = architecture(keys)?.unwrap_or("missing");
    KNOWN.iter().find(|class| class.names.contains(&name)).ok_or_else(|| {
        let known: Vec<_> = KNOWN.iter().map(|class| class.names[0]).collect();
        keys.fail("architectures", format!("is `{name}`, expected one of: {}", known.join(", ")))
    })
}

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

    #[test]
    fn a_missing_key_has_the_default_of_its_class() {
        // What `LlamaConfig()`, `Qwen2Config()`, `Qwen3Config()` and `BitNetConfig()` of transformers 5.24 print.
        for (architecture, eps, theta, context, act, kv_heads, head_dim) in [
            ("LlamaForCausalLM", 1e-6, 1e4, 2048, HiddenAct::Silu, 160, 16),
            ("Qwen2ForCausalLM", 1e-6, 1e4, 32_768, HiddenAct::Silu, 32, 16),
            ("Qwen3ForCausalLM", 1e-6, 1e4, 32_768, HiddenAct::Silu, 32, 128),
            ("BitNetForCausalLM", 1e-5, 5e5, 2048, HiddenAct::Relu2, 5, 16),
            ("BitnetForCausalLM", 1e-6, 1e4, 2048, HiddenAct::Silu, 160, 16),
        ] {
            let text = |more: &str| {
                format!(
                    r#"{{"architectures": ["{architecture}"], "vocab_size": 64, "hidden_size": 2560, "intermediate_size": 32,
                        "num_hidden_layers": 1, "num_attention_heads": 160{more}}}"#
                )
            };
            let found = parsed(&text("")).expect(architecture);
            let sizes = [found.max_position_embeddings, found.num_key_value_heads, found.head_dim];
            assert_eq!((found.rms_norm_eps, found.rope_theta), (eps, theta), "{architecture}");
            assert_eq!((found.hidden_act, sizes), (act, [context, kv_heads, head_dim]), "{architecture}");
            assert!(!found.tie_word_embeddings);
            let null = parsed(&text(r#", "num_key_value_heads": null, "head_dim": null"#)).expect(architecture);
            assert_eq!((null.num_key_value_heads, null.head_dim), (160, 16), "{architecture}");
        }
        let message = parsed(&TINY.replace(r#""num_key_value_heads": 2, "#, "")).unwrap_err().to_string();
        assert!(
            message.contains("`num_key_value_heads` is missing, and the default of `BitNetForCausalLM`, 5"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_end_token_is_that_of_the_class_where_the_vocabulary_has_it() {
        // `eos_token_id` of the classes' defaults in transformers 5.24; null is no end token in each of them.
        for (architecture, vocabulary, expected) in [
            ("LlamaForCausalLM", 64, vec![2]),
            ("LlamaForCausalLM", 2, vec![]),
            ("BitnetForCausalLM", 64, vec![2]),
            ("BitNetForCausalLM", 128_256, vec![128_001]),
            ("BitNetForCausalLM", 64, vec![]),
            ("Qwen2ForCausalLM", 200_000, vec![]),
            ("Qwen3ForCausalLM", 200_000, vec![]),
        ] {
            let text = TINY.replace("BitNetForCausalLM", architecture);
            let text = text.replace(r#""vocab_size": 64"#, &format!(r#""vocab_size": {vocabulary}"#));
            let missing = parsed(&text.replace(r#", "eos_token_id": [1, 2]"#, "")).expect(architecture);
            assert_eq!(missing.eos_token_ids, expected, "{architecture} {vocabulary}");
            assert_eq!(missing.bos_token_id, None, "tokenizers say what begins a text");
            let null = parsed(&text.replace("[1, 2]", "null")).expect(architecture);
            assert!(null.eos_token_ids.is_empty(), "{architecture}");
        }
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
