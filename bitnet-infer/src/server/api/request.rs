//! What completions and chats have in common: sampling, limits, stops.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fields::{Fields, integer_of, unexpected};
use crate::engine::{PAGE_TOKENS, SamplerConfig};
use crate::server::error::ApiError;
use crate::server::scheduler::Options;
use crate::server::state::Server;
use crate::server::structured::Constraint;

/// The fields that both kinds of requests have.
pub struct Common {
    /// As the scheduler takes it; the limit of new tokens is set once the prompt is known.
    pub options: Options,
    /// New tokens, if the request says.
    pub max_tokens: Option<Limit>,
    /// Whether nothing but the number of tokens ends a text.
    pub ignore_end: bool,
    /// Whether events are streamed.
    pub stream: bool,
    /// Whether a stream ends with counts.
    pub include_usage: bool,
}

/// How many new tokens a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// So many at most.
    Tokens(usize),
    /// As many as the context leaves.
    Context,
}

impl Common {
    /// Takes the common fields out of a request.
    ///
    /// # Errors
    /// The field, and what was expected of it.
    pub fn take(fields: &mut Fields, server: &Server) -> Result<Self, ApiError> {
        server.check_model(fields.text("model")?)?;
        let defaults = server.sampler.clone();
        let vocab = server.vocab_size();
        let top_k = fields.integer("top_k", -1..=i64::MAX)?;
        let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
        let repetition = match fields.number("repetition_penalty", 0.01..=100.0)? {
            None => fields.number("repeat_penalty", 0.01..=100.0)?,
            given => given,
        };
        let sampler = SamplerConfig {
            temperature: fields.number("temperature", 0.0..=2.0)?.unwrap_or(defaults.temperature),
            top_k: top_k.map_or(defaults.top_k, |k| usize::try_from(k).unwrap_or(0)),
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(defaults.top_p),
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(defaults.min_p),
            repeat_penalty: repetition.unwrap_or(defaults.repeat_penalty),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            logit_bias: biases(fields, vocab)?,
            // To llama.cpp, -1 is a random seed.
            seed: seed.and_then(|seed| u64::try_from(seed).ok()).unwrap_or_else(|| server.fresh_seed()),
            ..defaults
        };
        let most = MOST_CHOICES.min(server.limits.parallel as i64);
        let choices = fields.integer("n", 1..=most)?.unwrap_or(1) as usize;
        if fields.integer("best_of", 1..=MOST_CHOICES)?.is_some_and(|best_of| best_of as usize != choices) {
            return Err(ApiError::field("best_of", "is not supported beyond `n`: raise `n` and take the best choice"));
        }
        let mut max_tokens = None;
        for name in ["max_tokens", "max_completion_tokens"] {
            let Some(value) = fields.take(name) else { continue };
            let expected = "a whole number, 0 or more, or -1 for as many as the context leaves";
            let tokens = integer_of(name, &value, -1..=i64::MAX).map_err(|_| unexpected(name, &value, expected))?;
            max_tokens = Some(usize::try_from(tokens).map_or(Limit::Context, Limit::Tokens));
        }
        let min_tokens = fields.integer("min_tokens", 0..=i64::MAX)?.unwrap_or(0) as usize;
        if matches!(max_tokens, Some(Limit::Tokens(most)) if most < min_tokens) {
            return Err(ApiError::field("min_tokens", "is more than `max_tokens`"));
        }
        let ignore_end = fields.flag("ignore_eos")?.unwrap_or(false);
        let stream = fields.flag("stream")?.unwrap_or(false);
        let include_usage = match fields.object("stream_options")? {
            Some(_) if !stream => return Err(ApiError::field("stream_options", "needs `stream` to be true")),
            Some(mut options) => {
                if options.flag("continuous_usage_stats")?.unwrap_or(false) {
                    let message = "asks for `continuous_usage_stats`, which is not supported: use `include_usage`";
                    return Err(ApiError::field("stream_options", message).coded("unsupported_parameter"));
                }
                options.flag("include_usage")?.unwrap_or(false)
            }
            None => false,
        };
        let constraint = response_format(fields, server)?;
        if constraint.is_some() && min_tokens > 0 {
            return Err(ApiError::field("min_tokens", "cannot be used together with `response_format`"));
        }
        let options = Options {
            choices,
            max_tokens: 0,
            min_tokens,
            end_tokens: if ignore_end { Vec::new() } else { server.end_tokens.clone() },
            stops: stops(fields)?,
            sampler,
            logprobs: None,
            prompt_logprobs: None,
            constraint,
        };
        Ok(Self { options, max_tokens, ignore_end, stream, include_usage })
    }

    /// Sets the limit of new tokens for prompts of these lengths.
    ///
    /// # Errors
    /// If a prompt is empty, or does not fit the context with what was asked for.
    pub fn fit(
        &mut self,
        lengths: impl Iterator<Item = usize>,
        default: usize,
        server: &Server,
    ) -> Result<(), ApiError> {
        let context = server.context();
        let (mut longest, mut prompts) = (0, 0);
        for length in lengths {
            prompts += 1;
            if length == 0 {
                return Err(ApiError::field("prompt", "is empty, and this model has no token to begin a text with"));
            }
            longest = longest.max(length);
        }
        let (texts, most) = (prompts * self.options.choices, server.most_prompts);
        if texts > most {
            return Err(ApiError::field(
                "n",
                format!("times the number of prompts is {texts}, expected at most {most}"),
            ));
        }
        let asked = self.max_tokens;
        // A prompt that fills the context can still be scored.
        let room = context.min(server.page_limit() * PAGE_TOKENS).saturating_sub(longest);
        let wanted = match asked {
            Some(Limit::Tokens(tokens)) => tokens,
            Some(Limit::Context) => room.max(1),
            None => default.min(room.max(1)),
        };
        if longest.saturating_add(wanted) > context {
            let message = format!(
                "this model's context is {context} tokens, the prompt has {longest} and {wanted} more were asked for: shorten one of them"
            );
            return Err(ApiError::invalid(message).coded("context_length_exceeded"));
        }
        server.check_memory(longest + wanted)?;
        self.options.max_tokens = wanted;
        Ok(())
    }
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let expected = format!("a string or a list of at most {MOST_STOPS} strings, each of 1 to {LONGEST_STOP} bytes");
    let text = |name: &str, stop: Value| match stop {
        Value::String(text) if (1..=LONGEST_STOP).contains(&text.len()) => Ok(text),
        other => Err(unexpected(name, &other, &expected)),
    };
    let stops = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(stops)) => stops,
        Some(stop) => return Ok(vec![text("stop", stop)?]),
    };
    if stops.len() > MOST_STOPS {
        return Err(ApiError::field("stop", format!("has {} strings, expected {expected}", stops.len())));
    }
    stops.into_iter().enumerate().map(|(index, stop)| text(&format!("stop[{index}]"), stop)).collect()
}

fn biases(fields: &mut Fields, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let name = "logit_bias";
    let map = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(unexpected(name, &other, "an object of token ids and numbers")),
    };
    if map.len() > MOST_BIASES {
        return Err(ApiError::field(name, format!("has {} tokens, expected at most {MOST_BIASES}", map.len())));
    }
    let mut biases = BTreeMap::new();
    for (token, bias) in map {
        let id = token.parse::<u32>().ok().filter(|&id| (id as usize) < vocab).ok_or_else(|| {
            ApiError::field(name, format!("has the token `{}`, expected ids below {vocab}", token.escape_debug()))
        })?;
        let value = bias.as_f64().map(|bias| bias as f32).filter(|bias| (-100.0..=100.0).contains(bias));
        let value = value.ok_or_else(|| unexpected(&format!("{name}.{id}"), &bias, "a number from -100 to 100"))?;
        biases.insert(id, value);
    }
    Ok(biases.into_iter().collect())
}

/// What a text must be: any JSON object, or JSON that fits a schema.
fn response_format(fields: &mut Fields, server: &Server) -> Result<Option<Constraint>, ApiError> {
    let name = "response_format";
    let Some(mut format) = fields.object(name)? else { return Ok(None) };
    let schema = match format.text("type")?.as_deref() {
        None | Some("text") => return Ok(None),
        Some("json_object") => serde_json::json!({"type": "object"}),
        Some("json_schema") => {
            let Some(mut named) = format.object("json_schema")? else {
                return Err(ApiError::field(name, "has no `json_schema`"));
            };
            named.take("schema").ok_or_else(|| ApiError::field(name, "has no `json_schema.schema`"))?
        }
        Some(other) => {
            let other = other.escape_debug();
            let message = format!("asks for `{other}`, expected `text`, `json_object` or `json_schema`");
            return Err(ApiError::field(name, message).coded("unsupported_parameter"));
        }
    };
    let constraint = server.structured.schema(schema, server.tokenizer()?, server.loaded.model.config());
    constraint
        .map(Some)
        .map_err(|reason| ApiError::field(name, format!("has a schema that this server cannot enforce: {reason}")))
}

/// Token ids of a request.
///
/// # Errors
/// If one is no token of the model.
pub fn token_ids(name: &str, values: &[Value], vocab: usize) -> Result<Vec<u32>, ApiError> {
    let id = |(index, value): (usize, &Value)| {
        integer_of(name, value, 0..=vocab as i64 - 1)
            // The name of the place only where it is needed: a prompt has thousands.
            .or_else(|_| integer_of(&format!("{name}[{index}]"), value, 0..=vocab as i64 - 1))
            .map(|id| id as u32)
    };
    values.iter().enumerate().map(id).collect()
}

/// Choices for each prompt, if so many are worked on at a time.
const MOST_CHOICES: i64 = 128;
const MOST_STOPS: usize = 16;
const LONGEST_STOP: usize = 1024;
const MOST_BIASES: usize = 1024;
