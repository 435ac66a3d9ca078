//! Rotary positions in a `config.json`: `rope_theta`, and the object `rope_scaling` or `rope_parameters`.
//!
//! Which value counts is what `transformers` 5.24 makes of it: of two objects, `rope_scaling`, unless it is empty; of two
//! `rope_theta`, the one in the object.

use serde_json::{Map, Value, json};

use super::json::{Keys, shortest};
use super::{ModelConfig, RopeScaling};
use crate::error::Result;

/// The object that counts, and its key.
pub(super) fn section(map: &Map<String, Value>) -> Option<(&'static str, &Map<String, Value>)> {
    let of =
        |key| map.get(key).and_then(Value::as_object).filter(|object| !object.is_empty()).map(|object| (key, object));
    of("rope_scaling").or_else(|| of("rope_parameters"))
}

/// The base of the frequencies, where one is given.
pub(super) fn theta(keys: &Keys) -> Result<Option<f32>> {
    let nested = match section(keys.map) {
        Some((key, _)) => keys.object(key)?.map(|rope| rope.number("rope_theta")).transpose()?.flatten(),
        None => None,
    };
    Ok(nested.or(keys.number("rope_theta")?))
}

/// A kind of scaling that is not known is refused: running such a model with plain angles would be silently wrong.
pub(super) fn scaling(keys: &Keys) -> Result<Option<RopeScaling>> {
    for key in ["rope_scaling", "rope_parameters"] {
        // One that does not count must be an object, too.
        keys.object(key)?;
    }
    let Some((key, _)) = section(keys.map) else { return Ok(None) };
    let Some(rope) = keys.object(key)? else { return Ok(None) };
    let number = |name: &str| {
        rope.number(name)?.ok_or_else(|| keys.fail(&format!("{key}.{name}"), "is missing, expected a number"))
    };
    match rope.text("rope_type")?.or(rope.text("type")?).unwrap_or("default") {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear { factor: number("factor")? })),
        "llama3" => Ok(Some(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_position_embeddings: rope.size("original_max_position_embeddings")?,
        })),
        other => Err(keys.fail(key, format!("has type `{other}`, expected `default`, `linear` or `llama3`"))),
    }
}

/// `rope_scaling` of a `config.json`, null without one. Divisors that are no published scaling have no name there and are
/// refused by whoever writes a model.
pub(super) fn scaling_json(config: &ModelConfig) -> Value {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(more: &Value) -> Result<ModelConfig> {
        let mut config = json!({"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 16,
            "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4});
        more.as_object().expect("keys").iter().for_each(|(key, value)| config[key] = value.clone());
        ModelConfig::from_json(config.to_string().as_bytes(), "config.json")
    }

    #[test]
    fn of_several_values_the_one_counts_that_transformers_takes() {
        let linear = Some(RopeScaling::Linear { factor: 2.0 });
        // What `LlamaConfig(...).rope_parameters` of transformers 5.24 prints for these keys.
        for (keys, theta, scaling) in [
            (json!({}), 1e4, None),
            (json!({"rope_theta": 5e5}), 5e5, None),
            (json!({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}), 5e5, None),
            (json!({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}), 1e6, None),
            (json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}), 1e6, linear.clone()),
            (
                json!({"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}),
                1e6,
                linear.clone(),
            ),
            (
                json!({"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
                1e4,
                None,
            ),
            (
                json!({"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
                1e4,
                linear.clone(),
            ),
            (json!({"rope_scaling": null, "rope_parameters": {"type": "linear", "factor": 2.0}}), 1e4, linear),
        ] {
            let found = read(&keys).unwrap_or_else(|error| panic!("{keys}: {error}"));
            assert_eq!((found.rope_theta, found.rope_scaling), (theta, scaling), "{keys}");
        }
    }

    #[test]
    fn an_unknown_key_of_the_object_is_refused_by_name() {
        let plain = json!({"rope_type": "default", "rope_theta": 1e6});
        for (key, value) in [
            ("full_attention", json!({"rope_type": "default", "rope_theta": 1e4})),
            ("sliding_attention", json!({"rope_theta": 1e4})),
            ("some_trick", json!(2)),
        ] {
            for section in ["rope_scaling", "rope_parameters"] {
                let mut rope = plain.clone();
                rope[key] = value.clone();
                let message = read(&json!({ section: rope })).expect_err(key).to_string();
                assert!(message.contains(&format!("`{section}.{key}` is")), "{message}");
                assert!(message.contains("unknown key of rotary positions"), "{message}");
                let mut rope = plain.clone();
                rope[key] = Value::Null;
                read(&json!({ section: rope })).expect("null says nothing");
            }
        }
        // Those of other kinds of scaling say nothing of these.
        for key in ["beta_fast", "beta_slow", "mscale", "mscale_all_dim", "finetuned", "factor", "low_freq_factor"] {
            let mut rope = plain.clone();
            rope[key] = json!(1.5);
            read(&json!({ "rope_parameters": rope })).expect(key);
        }
        let message = read(&json!({"rope_scaling": {"rope_type": "default"}, "rope_parameters": 3})).unwrap_err();
        assert!(message.to_string().contains("`rope_parameters` is not an object"), "{message}");
    }
}
