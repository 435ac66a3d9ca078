//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bitnet_model::tokenizer::TextStream;
use serde::Serialize;
use serde_json::{Value, json};

use super::answer::{Answer, Chunks, Totals, finish_reason, stop_reason, stream};
use super::body::{Body, aside, json_text};
use super::fields::{Fields, unexpected};
use super::known::Changes;
use super::log::{Lists, Log};
use super::request::{Common, token_ids};
use super::size::AnswerSize;
use crate::eval::score::TokenScore;
use crate::generate::Generator;
use crate::server::error::ApiError;
use crate::server::scheduler::Event;
use crate::server::state::Server;

/// A prompt as it was given and as tokens.
pub struct Prompt {
    /// The tokens.
    pub tokens: Vec<u32>,
    text: String,
    /// What becomes of a character that the tokens begin and do not end, if nothing follows.
    unfinished: String,
    /// Where each token begins in the text, in characters, if that is needed.
    pub offsets: Vec<usize>,
}

/// What decides the shape of an answer.
struct Shape {
    server: Arc<Server>,
    id: String,
    created: u64,
    prompts: Vec<Prompt>,
    choices: usize,
    echo: bool,
    logprobs: bool,
    include_usage: bool,
    totals: Totals,
}

/// Answers a request for completions.
///
/// # Errors
/// What is wrong with the request.
pub async fn completions(State(server): State<Arc<Server>>, Body(bytes): Body) -> Result<Response, ApiError> {
    let (common, shape) = aside(&server, bytes.len(), prepare, bytes).await?;
    let tokens: Vec<Vec<u32>> = shape.prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
    let (prompts, choices) = (tokens.len(), tokens.len() * shape.choices);
    let events = server.engine.submit(tokens, common.options)?;
    if common.stream {
        return stream(events, choices, shape).await;
    }
    let answer = Answer::collect(events, prompts, choices).await?;
    // With log-probabilities of long prompts this is some work.
    let whole = tokio::task::spawn_blocking(move || shape.whole(answer)).await;
    let whole = whole.map_err(|e| ApiError::internal(e.to_string()))?;
    Ok(json_text(whole.map_err(|e| ApiError::internal(e.to_string()))?))
}

fn prepare(server: &Arc<Server>, bytes: &[u8]) -> Result<(Common, Shape), ApiError> {
    let mut fields = Fields::parse(bytes)?;
    let mut common = Common::take(&mut fields, server)?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    let logprobs = match fields.take("logprobs") {
        // What `false` and `true` mean for chats.
        Some(Value::Bool(false)) | None => None,
        Some(value) => Some(super::fields::integer_of("logprobs", &value, 0..=MOST_LOGPROBS)? as usize),
    };
    let add_special = fields.flag("add_special_tokens")?.unwrap_or(true);
    let details = Details { add_special, text: echo, offsets: echo && logprobs.is_some() };
    let prompt = fields.take("prompt");
    fields.refuse_rest(&[Changes::Prompt, Changes::Text, Changes::Answer])?;
    let mut prompts = prompts(prompt, server, details)?;
    common.fit(prompts.iter().map(|prompt| prompt.tokens.len()), DEFAULT_TOKENS, server)?;
    let sum = |of: fn(&Prompt) -> usize| if echo { prompts.iter().map(of).sum() } else { 0 };
    let size = AnswerSize {
        prompts: prompts.len(),
        choices: common.options.choices,
        echoed_tokens: sum(|prompt| prompt.tokens.len()),
        echoed_bytes: sum(|prompt| prompt.text.len()),
        held_tokens: if common.stream { 0 } else { common.options.max_tokens },
        logprobs,
    };
    size.check()?;
    if common.options.max_tokens == 0 {
        prompts.iter_mut().for_each(|prompt| prompt.text.push_str(&prompt.unfinished));
    }
    common.options.logprobs = logprobs;
    common.options.prompt_logprobs = logprobs.filter(|_| echo);
    let shape = Shape {
        server: Arc::clone(server),
        id: server.fresh_id("cmpl"),
        created: super::now(),
        prompts,
        choices: common.options.choices,
        echo,
        logprobs: logprobs.is_some(),
        include_usage: common.include_usage,
        totals: Totals::default(),
    };
    Ok((common, shape))
}

/// What of prompts is needed besides their tokens.
#[derive(Clone, Copy)]
struct Details {
    add_special: bool,
    text: bool,
    offsets: bool,
}

fn prompts(value: Option<Value>, server: &Server, details: Details) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, a list of strings, a list of token ids, or a list of such lists";
    let value = value.ok_or_else(|| ApiError::field("prompt", format!("is missing, expected {expected}")))?;
    let of_ids = |name: &str, ids: Vec<Value>| {
        server.check_length(ids.len())?;
        Prompt::of_tokens(server, token_ids(name, &ids, server.vocab_size())?, details)
    };
    let parts = match value {
        Value::String(text) => return Ok(vec![Prompt::of_text(server, text, details)?]),
        Value::Array(ids) if ids.first().is_some_and(Value::is_number) => return Ok(vec![of_ids("prompt", ids)?]),
        Value::Array(parts) => parts,
        other => return Err(unexpected("prompt", &other, expected)),
    };
    if parts.is_empty() || parts.len() > server.most_prompts {
        let most = server.most_prompts;
        return Err(ApiError::field("prompt", format!("has {} prompts, expected 1 to {most}", parts.len())));
    }
    let prompt = |(index, part): (usize, Value)| match part {
        Value::String(text) => Prompt::of_text(server, text, details),
        Value::Array(ids) => of_ids(&format!("prompt[{index}]"), ids),
        other => Err(unexpected(&format!("prompt[{index}]"), &other, "a string or a list of token ids")),
    };
    parts.into_iter().enumerate().map(prompt).collect()
}

impl Prompt {
    fn of_text(server: &Server, text: String, details: Details) -> Result<Self, ApiError> {
        server.check_text(text.len())?;
        let tokenizer = server.tokenizer()?;
        let tokens = match details.add_special {
            true => Generator::new(&server.loaded.model, tokenizer).encode(&text)?,
            false => tokenizer.encode(&text)?,
        };
        server.check_length(tokens.len())?;
        let offsets = if details.offsets { Decoded::of(server, &tokens)?.offsets } else { Vec::new() };
        Ok(Self { tokens, text, unfinished: String::new(), offsets })
    }

    fn of_tokens(server: &Server, tokens: Vec<u32>, details: Details) -> Result<Self, ApiError> {
        let decoded = if details.text { Decoded::of(server, &tokens)? } else { Decoded::default() };
        Ok(Self { tokens, text: decoded.text, unfinished: decoded.unfinished, offsets: decoded.offsets })
    }
}

/// The text of tokens, as the text that is generated goes on behind it.
#[derive(Default)]
struct Decoded {
    text: String,
    unfinished: String,
    /// Characters of the text before each token.
    offsets: Vec<usize>,
}

impl Decoded {
    fn of(server: &Server, tokens: &[u32]) -> Result<Self, ApiError> {
        let mut stream = TextStream::new(server.tokenizer()?, &[])?;
        let (mut text, mut at, mut offsets) = (String::new(), 0, Vec::with_capacity(tokens.len()));
        for &token in tokens {
            offsets.push(at);
            let piece = stream.push(token)?;
            at += piece.chars().count();
            text.push_str(&piece);
        }
        Ok(Self { text, unfinished: stream.finish(), offsets })
    }
}

/// A choice of a whole answer.
#[derive(Serialize)]
struct Whole<'a> {
    index: usize,
    text: String,
    logprobs: Option<Lists<'a>>,
    finish_reason: &'static str,
    stop_reason: Value,
}

/// A whole answer.
#[derive(Serialize)]
struct Everything<'a> {
    #[serde(flatten)]
    envelope: Value,
    choices: Vec<Whole<'a>>,
}

impl Shape {
    /// The answer as JSON. What all choices repeat of a prompt exists once, and is written for each.
    fn whole(mut self, answer: Answer) -> Result<String, serde_json::Error> {
        let mut ends = Vec::new();
        for (index, choice) in answer.choices.into_iter().enumerate() {
            let Some((finish, usage)) = choice.end else { continue };
            self.totals.add(index, self.choices, usage);
            ends.push((index, choice.text, choice.tokens, finish));
        }
        let prompts: Vec<Log> = self.prompts.iter().zip(&answer.prompts).map(|both| self.prompt_log(both)).collect();
        let choices = ends.into_iter().map(|(index, new, tokens, finish)| {
            let prompt = &self.prompts[index / self.choices];
            let (text, shift) = match self.echo {
                true => (format!("{}{new}", prompt.text), prompt.text.chars().count()),
                false => (new, 0),
            };
            let mut own = Log::default();
            own.new_tokens(&self.server, &tokens, shift);
            let logprobs = self.logprobs.then(|| Lists { first: Some(&prompts[index / self.choices]), own });
            let (finish_reason, stop_reason) = (finish_reason(&finish), stop_reason(&finish));
            Whole { index, text, logprobs, finish_reason, stop_reason }
        });
        let choices = choices.collect();
        let mut envelope = self.envelope(Vec::new());
        envelope.as_object_mut().map(|envelope| envelope.remove("choices"));
        envelope["usage"] = self.totals.usage();
        envelope["timings"] = self.totals.timings();
        serde_json::to_string(&Everything { envelope, choices })
    }

    /// What is said of the tokens of a prompt, if it is repeated.
    fn prompt_log(&self, (prompt, scores): (&Prompt, &Vec<TokenScore>)) -> Log {
        let mut log = Log::default();
        if self.echo && self.logprobs {
            log.prompt(&self.server, prompt, scores);
        }
        log
    }

    fn envelope(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.server.name,
            "system_fingerprint": super::FINGERPRINT, "choices": choices,
        })
    }

    fn chunk(&self, choice: usize, text: &str, logprobs: Option<Value>, end: Option<(&str, Value)>) -> String {
        let (finish, stop) = end.map_or((None, Value::Null), |(finish, stop)| (Some(finish), stop));
        let choice =
            json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish, "stop_reason": stop});
        let mut chunk = self.envelope(vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk.to_string()
    }

    /// The prompt, as it stands before the text of each of its choices: written once for all of them, but for the number.
    fn echoed(&self, prompt: usize, scores: &Vec<TokenScore>) -> Vec<String> {
        let own = &self.prompts[prompt];
        let log = self.prompt_log((own, scores));
        let logprobs = self.logprobs.then(|| Lists { first: Some(&log), own: Log::default() });
        let choices = prompt * self.choices..(prompt + 1) * self.choices;
        let chunk = |index| {
            let choice = Echoed { index, text: &own.text, logprobs: &logprobs, finish_reason: (), stop_reason: () };
            let mut envelope = self.envelope(Vec::new());
            envelope.as_object_mut().map(|envelope| envelope.remove("choices"));
            if self.include_usage {
                envelope["usage"] = Value::Null;
            }
            serde_json::to_string(&EchoedChunk { envelope, choices: [choice] }).unwrap_or_default()
        };
        choices.map(chunk).collect()
    }
}

/// A prompt in a stream.
#[derive(Serialize)]
struct EchoedChunk<'a> {
    #[serde(flatten)]
    envelope: Value,
    choices: [Echoed<'a>; 1],
}

#[derive(Serialize)]
struct Echoed<'a> {
    index: usize,
    text: &'a str,
    logprobs: &'a Option<Lists<'a>>,
    finish_reason: (),
    stop_reason: (),
}

impl Chunks for Shape {
    fn of(&mut self, event: Event) -> Vec<String> {
        match event {
            Event::Prompt { prompt, scores } if self.echo => self.echoed(prompt, &scores),
            Event::Prompt { .. } => Vec::new(),
            Event::Text { choice, text, tokens } => {
                let shift = if self.echo { self.prompts[choice / self.choices].text.chars().count() } else { 0 };
                let logprobs = self.logprobs.then(|| {
                    let mut log = Log::default();
                    log.new_tokens(&self.server, &tokens, shift);
                    log.object()
                });
                vec![self.chunk(choice, &text, logprobs, None)]
            }
            Event::End { choice, finish, usage } => {
                self.totals.add(choice, self.choices, usage);
                vec![self.chunk(choice, "", None, Some((finish_reason(&finish), stop_reason(&finish))))]
            }
            Event::Failed(_) => Vec::new(),
        }
    }

    fn usage(&mut self) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.envelope(Vec::new());
            chunk["usage"] = self.totals.usage();
            chunk["timings"] = self.totals.timings();
            chunk
        })
    }
}

/// New tokens where a request does not say: OpenAI's number.
const DEFAULT_TOKENS: usize = 16;

/// Alternatives of a token. OpenAI allows 5, but local clients ask for 10.
const MOST_LOGPROBS: i64 = 20;
