//! Fields that clients send to other servers and that this one does not read.
//!
//! Sources: OpenAI's reference; the schemas of llama.cpp's server (`server-schema.cpp`), vLLM (`protocol.py`) and SGLang; the
//! documentation of Ollama, Text Generation Inference, text-generation-webui and KoboldCpp. A field that would change the
//! answer is refused, unless it holds the value with which it changes nothing. The others are passed over, as are names that
//! are not listed.

use serde_json::{Map, Value};

use crate::server::error::ApiError;

/// What a field would change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes {
    /// What the model reads.
    Prompt,
    /// What the model writes.
    Text,
    /// What the answer tells of it.
    Answer,
}

/// A value with which a field changes nothing; `null` always is one.
#[derive(Clone, Copy, Debug)]
pub enum Neutral {
    /// This truth value.
    Flag(bool),
    /// This number.
    Number(f64),
    /// Numbers up to this one.
    UpTo(f64),
    /// This text.
    Text(&'static str),
    /// A list or an object without anything in it.
    Empty,
    /// A list of this one text.
    Only(&'static str),
    /// The order of llama.cpp's samplers, or the part of it that this server has.
    Order,
}

impl Neutral {
    fn is(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Flag(flag), Value::Bool(value)) => flag == *value,
            (Self::Number(number), Value::Number(value)) => value.as_f64() == Some(number),
            (Self::UpTo(most), Value::Number(value)) => value.as_f64().is_some_and(|value| value <= most),
            (Self::Text(text), Value::String(value)) => text == value,
            (Self::Empty, Value::Array(values)) => values.is_empty(),
            (Self::Empty, Value::Object(values)) => values.is_empty(),
            (Self::Only(text), Value::Array(values)) => matches!(values.as_slice(), [value] if value == text),
            (Self::Order, value) => is_our_order(value),
            _ => false,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Flag(flag) => flag.to_string(),
            Self::Number(number) => number.to_string(),
            Self::UpTo(most) => format!("a number up to {most}"),
            Self::Text("") => "empty".into(),
            Self::Text(text) => format!("`{text}`"),
            Self::Empty => "empty".into(),
            Self::Only(text) => format!("[\"{text}\"]"),
            Self::Order => "the order penalties, top_k, top_p, min_p, temperature".into(),
        }
    }
}

/// Whether samplers stand in the order of this server. Those that it does not have must be turned off by their own fields.
fn is_our_order(value: &Value) -> bool {
    const OURS: [(&str, char); 5] =
        [("penalties", 'e'), ("top_k", 'k'), ("top_p", 'p'), ("min_p", 'm'), ("temperature", 't')];
    const OTHERS: [(&str, char); 4] = [("dry", 'd'), ("top_n_sigma", 's'), ("typ_p", 'y'), ("xtc", 'x')];
    let names: Option<Vec<&str>> = match value {
        Value::Array(names) => names.iter().map(Value::as_str).collect(),
        Value::String(letters) => letters
            .chars()
            .map(|letter| OURS.iter().chain(&OTHERS).find(|(_, own)| *own == letter).map(|(name, _)| *name))
            .collect(),
        _ => None,
    };
    let is_other = |name: &str| matches!(name, "typical_p") || OTHERS.iter().any(|(other, _)| *other == name);
    names.is_some_and(|names| {
        let ours = names.into_iter().filter(|name| !is_other(name));
        ours.eq(OURS.iter().map(|(name, _)| *name))
    })
}

/// A field that is refused unless it changes nothing.
#[derive(Debug)]
pub struct Refused {
    /// Its name.
    pub name: &'static str,
    /// What it would change.
    pub changes: Changes,
    /// Values with which it changes nothing.
    pub neutral: &'static [Neutral],
    /// What to do instead.
    pub instead: &'static str,
}

/// Refuses what a request asks for beyond what was read of it; `which` says of which kinds.
///
/// # Errors
/// The first field that would change something.
pub fn refuse(rest: &Map<String, Value>, which: &[Changes]) -> Result<(), ApiError> {
    for (name, value) in rest.iter().filter(|(_, value)| !value.is_null()) {
        let Some(field) = REFUSED.iter().find(|field| field.name == name) else { continue };
        if !which.contains(&field.changes) || field.neutral.iter().any(|neutral| neutral.is(value)) {
            continue;
        }
        let mut allowed: Vec<String> = field.neutral.iter().map(|neutral| neutral.name()).collect();
        allowed.dedup();
        let except = match allowed.is_empty() {
            true => String::new(),
            false => format!(" unless it is {}", allowed.join(" or ")),
        };
        let message = format!("is not supported{except}: {}", field.instead);
        return Err(ApiError::field(name, message).coded("unsupported_parameter"));
    }
    Ok(())
}

macro_rules! refused {
    ($($changes:ident { $($name:literal: [$($neutral:expr),*] $instead:expr;)* })*) => {
        /// Every field that is refused.
        pub const REFUSED: &[Refused] = &[$($(
            Refused { name: $name, changes: Changes::$changes, neutral: &[$($neutral),*], instead: $instead },
        )*)*];
    };
}

use Neutral::{Empty, Flag, Number, Only, Order, Text as Is, UpTo};

const FORMAT: &str = "use `response_format` with `json_object` or `json_schema`";
const LIMIT: &str = "use `max_tokens`";
const SAMPLING: &str = "this server samples with the fields that GET /openapi.json lists";
const STOP: &str = "use `stop`";
const SCORES: &str = "use `logprobs`";
const TOOLS: &str = "this server generates text and calls no tools";
const TEXT: &str = "this server reads and writes text only";
const TEMPLATE: &str = "the server's own template is used as it is";
const ADAPTERS: &str = "this server has one model without adapters";
const TOP: &str = "give its contents as fields of the request itself";
const OTHER_ROUTE: &str = "it belongs to the other kind of completions";

refused! {
    Prompt {
        "tools": [Empty] TOOLS;
        "functions": [Empty] TOOLS;
        "documents": [Empty] "write them into a message";
        "images": [Empty] TEXT;
        "chat_template": [Is("")] TEMPLATE;
        "chat_template_kwargs": [Empty] TEMPLATE;
        "template": [Is("")] TEMPLATE;
        "enable_thinking": [] TEMPLATE;
        "think": [Flag(false)] TEMPLATE;
        "raw": [Flag(false)] "use /v1/completions";
        "system": [Is(""), Empty] "use a message of the role `system`";
        "context": [Empty] "use `messages`";
        "suffix": [Is("")] "this server does not fill in gaps";
        "input_prefix": [Is("")] "this server does not fill in gaps";
        "input_suffix": [Is("")] "this server does not fill in gaps";
        "input_extra": [Empty] "this server does not fill in gaps";
        "truncate_prompt_tokens": [] "shorten the prompt";
        "truncate": [] "shorten the prompt";
        "truncate_sequence": [Flag(false)] "shorten the prompt";
        "add_special_tokens": [Flag(false)] "the template decides which special tokens a conversation has";
        "add_bos_token": [Flag(true)] "use `add_special_tokens`";
        "add_generation_prompt": [Flag(true)] OTHER_ROUTE;
        "continue_final_message": [Flag(false)] OTHER_ROUTE;
        "messages": [Empty] "use /v1/chat/completions";
        "prompt": [Is(""), Empty] "use /v1/completions";
        "negative_prompt": [Is("")] SAMPLING;
    }
    Text {
        "n_predict": [Number(-1.0)] LIMIT;
        "num_predict": [Number(-1.0)] LIMIT;
        "max_new_tokens": [] LIMIT;
        "max_length": [] LIMIT;
        "max_output_tokens": [] LIMIT;
        "max_tokens_to_sample": [] LIMIT;
        "min_length": [UpTo(0.0)] "use `min_tokens`";
        "min_new_tokens": [UpTo(0.0)] "use `min_tokens`";
        "t_max_predict_ms": [UpTo(0.0)] LIMIT;
        "n_cmpl": [Number(1.0)] "use `n`";
        "stop_token_ids": [Empty] STOP;
        "stop_regex": [Is(""), Empty] STOP;
        "stop_sequences": [Empty] STOP;
        "stop_sequence": [Empty] STOP;
        "include_stop_str_in_output": [Flag(false)] "the stop text is told as `stop_reason`";
        "no_stop_trim": [Flag(false)] "the stop text is told as `stop_reason`";
        "bad_words": [Empty] "use `logit_bias`";
        "allowed_token_ids": [Empty] "use `logit_bias`";
        "custom_token_bans": [Is("")] "use `logit_bias`";
        "ban_eos_token": [Flag(false)] "use `ignore_eos`";
        "logits_processors": [Empty] SAMPLING;
        "skip_special_tokens": [Flag(true)] "special tokens are no part of a text";
        "detokenize": [Flag(true)] "this server answers with text";
        "grammar": [Is("")] FORMAT;
        "json_schema": [] FORMAT;
        "format": [Is("")] FORMAT;
        "guided_json": [] FORMAT;
        "guided_json_object": [Flag(false)] FORMAT;
        "guided_regex": [Is("")] FORMAT;
        "guided_choice": [Empty] FORMAT;
        "guided_grammar": [Is("")] FORMAT;
        "structured_outputs": [Empty] FORMAT;
        "structural_tag": [Is("")] FORMAT;
        "regex": [Is("")] FORMAT;
        "ebnf": [Is("")] FORMAT;
        "grammar_string": [Is("")] FORMAT;
        "repeat_last_n": [Number(64.0)] "`repetition_penalty` looks at the last 64 tokens";
        "repetition_penalty_range": [Number(64.0)] "`repetition_penalty` looks at the last 64 tokens";
        "rep_pen": [Number(1.0)] "use `repetition_penalty`";
        "rep_pen_range": [Number(64.0)] "`repetition_penalty` looks at the last 64 tokens";
        "encoder_repetition_penalty": [Number(1.0)] SAMPLING;
        "no_repeat_ngram_size": [Number(0.0)] SAMPLING;
        "penalize_nl": [Flag(true)] "penalties treat line breaks like any other token";
        "penalty_prompt": [] SAMPLING;
        "penalty_alpha": [Number(0.0)] SAMPLING;
        "length_penalty": [Number(1.0)] SAMPLING;
        "use_beam_search": [Flag(false)] SAMPLING;
        "num_beams": [Number(1.0)] SAMPLING;
        "do_sample": [Flag(true)] "use a `temperature` of 0";
        "samplers": [Order] SAMPLING;
        "sampler_order": [] SAMPLING;
        "sampler_priority": [] SAMPLING;
        "temperature_last": [Flag(true)] SAMPLING;
        "dynamic_temperature": [Flag(false)] SAMPLING;
        "dynatemp_range": [Number(0.0)] SAMPLING;
        "smoothing_factor": [Number(0.0)] SAMPLING;
        "top_n_sigma": [UpTo(0.0)] SAMPLING;
        "nsigma": [UpTo(0.0)] SAMPLING;
        "top_a": [Number(0.0)] SAMPLING;
        "tfs": [Number(1.0)] SAMPLING;
        "tfs_z": [Number(1.0)] SAMPLING;
        "typical": [Number(1.0)] SAMPLING;
        "typical_p": [Number(1.0)] SAMPLING;
        "typ_p": [Number(1.0)] SAMPLING;
        "epsilon_cutoff": [Number(0.0)] SAMPLING;
        "eta_cutoff": [Number(0.0)] SAMPLING;
        "xtc_probability": [Number(0.0)] SAMPLING;
        "dry_multiplier": [Number(0.0)] SAMPLING;
        "mirostat": [Number(0.0)] SAMPLING;
        "mirostat_mode": [Number(0.0)] SAMPLING;
        "adaptive_target": [UpTo(-f64::MIN_POSITIVE)] SAMPLING;
        "min_keep": [UpTo(1.0)] SAMPLING;
        "n_indent": [Number(0.0)] SAMPLING;
        "guidance_scale": [Number(1.0)] SAMPLING;
        "cfg_scale": [Number(1.0)] SAMPLING;
        "watermark": [Flag(false)] SAMPLING;
        "watermarking": [Flag(false)] SAMPLING;
        "custom_logit_processor": [Is("")] SAMPLING;
        "custom_params": [Empty] SAMPLING;
        "vllm_xargs": [Empty] SAMPLING;
        "repetition_detection": [Empty] SAMPLING;
        "lora": [Empty] ADAPTERS;
        "lora_path": [Is("")] ADAPTERS;
        "adapter_id": [Is("")] ADAPTERS;
        "tool_choice": [Is("auto"), Is("none")] TOOLS;
        "function_call": [Is("auto"), Is("none")] TOOLS;
        "web_search_options": [] TOOLS;
        "modalities": [Only("text"), Empty] TEXT;
        "audio": [] TEXT;
        "reasoning_effort": [Is("none")] "this server does not tell reasoning from other text";
        "reasoning": [Empty] "this server does not tell reasoning from other text";
        "reasoning_budget_tokens": [UpTo(-1.0)] "this server does not tell reasoning from other text";
        "thinking_budget_tokens": [UpTo(-1.0)] "this server does not tell reasoning from other text";
        "thinking_token_budget": [UpTo(-1.0)] "this server does not tell reasoning from other text";
        "thinking": [] "this server does not tell reasoning from other text";
        "verbosity": [Is("medium")] "ask for it in a message";
        "parameters": [Empty] TOP;
        "options": [Empty] TOP;
        "extra_body": [Empty] TOP;
    }
    Answer {
        "n_probs": [Number(0.0)] SCORES;
        "top_n_tokens": [Number(0.0)] SCORES;
        "top_logprobs": [Number(0.0)] SCORES;
        "prompt_logprobs": [] "use /v1/completions with `echo` and `logprobs`";
        "decoder_input_details": [Flag(false)] "use /v1/completions with `echo` and `logprobs`";
        "logprob_token_ids": [Empty] SCORES;
        "return_logprob": [Flag(false)] SCORES;
        "post_sampling_probs": [Flag(false)] "probabilities are those of the model, before the samplers";
        "return_tokens_as_token_ids": [Flag(false)] "use /tokenize";
        "return_tokens": [Flag(false)] "use /tokenize";
        "return_token_ids": [Flag(false)] "use /tokenize";
        "return_prompt_text": [Flag(false)] "use /apply-template";
        "return_hidden_states": [Flag(false)] "this server answers with text";
        "return_full_text": [Flag(false)] "use /v1/completions with `echo`";
        "echo": [Flag(false)] "use /v1/completions";
        "response_fields": [Empty] "the answer has all of its fields";
    }
}

/// Fields that clients send and that change nothing here: names, bookkeeping, hints on speed, and the details of samplers and
/// constraints that must be turned off themselves.
#[cfg(test)]
pub const HARMLESS: &[&str] = &[
    "adaptive_decay",
    "backend_sampling",
    "cache_prompt",
    "cache_salt",
    "chat_format",
    "dry_allowed_length",
    "dry_base",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "dynatemp_exponent",
    "early_stopping",
    "grammar_lazy",
    "grammar_triggers",
    "guided_decoding_backend",
    "guided_whitespace_pattern",
    "id_slot",
    "include_reasoning",
    "keep_alive",
    "metadata",
    "mirostat_eta",
    "mirostat_tau",
    "n_cache_reuse",
    "n_discard",
    "n_keep",
    "num_ctx",
    "parallel_tool_calls",
    "parse_tool_calls",
    "prediction",
    "preserved_tokens",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_format",
    "request_id",
    "return_progress",
    "safety_identifier",
    "service_tier",
    "session_id",
    "spaces_between_special_tokens",
    "sse_ping_interval",
    "store",
    "stream_interval",
    "timings_per_token",
    "truncation_side",
    "user",
    "verbose",
    "xtc_threshold",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ALL: [Changes; 3] = [Changes::Prompt, Changes::Text, Changes::Answer];

    fn refused(name: &str, value: Value) -> Option<ApiError> {
        let rest = Map::from_iter([(name.to_owned(), value)]);
        refuse(&rest, &ALL).err()
    }

    /// Some JSON value of every kind, none of which is neutral for many fields.
    fn values() -> Vec<Value> {
        vec![
            json!(true),
            json!(false),
            json!(-1),
            json!(0),
            json!(0.37),
            json!(7),
            json!(64),
            json!("x"),
            json!(""),
            json!([]),
            json!({}),
            json!(["x"]),
            json!({"x": 1}),
        ]
    }

    #[test]
    fn names_stand_once() {
        let mut names: Vec<&str> = REFUSED.iter().map(|field| field.name).chain(HARMLESS.iter().copied()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn fields_pass_with_a_neutral_value_alone() {
        for field in REFUSED {
            assert_eq!(refused(field.name, Value::Null), None, "{}", field.name);
            let passing = values().into_iter().filter(|value| refused(field.name, value.clone()).is_none()).count();
            // `UpTo` lets two through, `Empty` too; a field may have two neutral values.
            assert!(passing <= 4, "{}: {passing} values pass", field.name);
            let error = refused(field.name, json!({"x": 1})).unwrap_or_else(|| panic!("{} passes", field.name));
            assert_eq!(error.param.as_deref(), Some(field.name));
            assert!(error.message.starts_with(&format!("`{}` is not supported", field.name)), "{}", error.message);
        }
        for name in HARMLESS {
            assert!(values().into_iter().all(|value| refused(name, value).is_none()), "{name}");
        }
    }

    #[test]
    fn neutral_values_are_those_with_which_other_servers_do_the_same() {
        for (name, value, passes) in [
            ("n_predict", json!(-1), true),
            ("n_predict", json!(5), false),
            ("n_probs", json!(0), true),
            ("repeat_last_n", json!(64), true),
            ("repeat_last_n", json!(128), false),
            ("dry_multiplier", json!(0.0), true),
            ("dry_multiplier", json!(0.8), false),
            ("top_n_sigma", json!(-1.0), true),
            ("adaptive_target", json!(-1.0), true),
            ("adaptive_target", json!(0.0), false),
            ("tools", json!([]), true),
            ("tools", json!([{}]), false),
            ("tool_choice", json!("auto"), true),
            ("tool_choice", json!("required"), false),
            ("modalities", json!(["text"]), true),
            ("modalities", json!(["text", "audio"]), false),
            ("json_schema", json!({}), false),
            (
                "samplers",
                json!(["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]),
                true,
            ),
            ("samplers", json!("edskypmxt"), true),
            ("samplers", json!(["temperature", "top_k"]), false),
            ("samplers", json!("kt"), false),
        ] {
            assert_eq!(refused(name, value.clone()).is_none(), passes, "{name}: {value}");
        }
        let error = refused("grammar", json!("root ::= \"yes\"")).expect("refused");
        assert!(
            error.message.starts_with("`grammar` is not supported unless it is empty: use `response_format`"),
            "{}",
            error.message
        );
        // What does not touch the prompt is nothing to those who ask for its tokens alone.
        let rest = Map::from_iter([("grammar".to_owned(), json!("x"))]);
        assert_eq!(refuse(&rest, &[Changes::Prompt]), Ok(()));
    }
}
