//! `POST /v1/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bitnet_model::tokenizer::TextStream;
use serde_json::{Map, Value, json};

use super::answer::{Answer, Chunks, Totals, finish_reason, stop_reason, stream, token_text};
use super::body::{Body, aside, json_text};
use super::fields::{Fields, unexpected};
use super::request::{Common, token_ids};
use crate::eval::score::TokenScore;
use crate::generate::Generator;
use crate::server::error::ApiError;
use crate::server::scheduler::{Event, Scored};
use crate::server::state::Server;

/// A prompt as it was given and as tokens.
struct Prompt {
    tokens: Vec<u32>,
    text: String,
    /// What becomes of a character that the tokens begin and do not end, if nothing follows.
    unfinished: String,
    /// Where each token begins in the text, in characters, if that is needed.
    offsets: Vec<usize>,
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
    let whole = tokio::task::spawn_blocking(move || shape.whole(answer).to_string()).await;
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
    let mut prompts = prompts(&mut fields, server, details)?;
    common.fit(prompts.iter().map(|prompt| prompt.tokens.len()), DEFAULT_TOKENS, server)?;
    let scored: usize = prompts.iter().map(|prompt| prompt.tokens.len()).sum();
    if echo && logprobs.is_some_and(|top| scored.saturating_mul(top + 1) > MOST_SCORES) {
        let message =
            format!("with `echo` asks for more than {MOST_SCORES} log-probabilities: send fewer prompts at a time");
        return Err(ApiError::field("logprobs", message));
    }
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

fn prompts(fields: &mut Fields, server: &Server, details: Details) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a text, a list of texts, a list of token ids, or a list of such lists";
    let value =
        fields.take("prompt").ok_or_else(|| ApiError::field("prompt", format!("is missing, expected {expected}")))?;
    let parts = match value {
        Value::Array(parts) if parts.first().is_some_and(Value::is_number) => vec![Value::Array(parts)],
        Value::Array(parts) => parts,
        text => vec![text],
    };
    if parts.is_empty() || parts.len() > server.most_prompts {
        let most = server.most_prompts;
        return Err(ApiError::field("prompt", format!("has {} prompts, expected 1 to {most}", parts.len())));
    }
    let prompt = |part: Value| match part {
        Value::String(text) => Prompt::of_text(server, text, details),
        Value::Array(ids) => {
            server.check_length(ids.len())?;
            Prompt::of_tokens(server, token_ids("prompt", &ids, server.vocab_size())?, details)
        }
        other => Err(unexpected("prompt", &other, expected)),
    };
    parts.into_iter().map(prompt).collect()
}

impl Prompt {
    fn of_text(server: &Server, text: String, details: Details) -> Result<Self, ApiError> {
        server.check_text(&text)?;
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

impl Shape {
    fn whole(mut self, answer: Answer) -> Value {
        let mut choices = Vec::new();
        for (index, choice) in answer.choices.into_iter().enumerate() {
            let (prompt, scores) = (&self.prompts[index / self.choices], &answer.prompts[index / self.choices]);
            let mut log = Log::new(&self.server);
            let mut text = String::new();
            let mut shift = 0;
            if self.echo {
                text.push_str(&prompt.text);
                shift = prompt.text.chars().count();
                log.prompt(prompt, scores);
            }
            text.push_str(&choice.text);
            log.new_tokens(&choice.tokens, shift);
            let Some((finish, usage)) = choice.end else { continue };
            self.totals.add(index, self.choices, usage);
            choices.push(json!({
                "index": index, "text": text, "logprobs": self.logprobs.then(|| log.object()),
                "finish_reason": finish_reason(&finish), "stop_reason": stop_reason(&finish),
            }));
        }
        let mut whole = self.envelope(choices);
        whole["usage"] = self.totals.usage();
        whole["timings"] = self.totals.timings();
        whole
    }

    fn envelope(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.server.name,
            "system_fingerprint": super::FINGERPRINT, "choices": choices,
        })
    }

    fn chunk(&self, choice: usize, text: &str, logprobs: Option<Value>, end: Option<(&str, Value)>) -> Value {
        let (finish, stop) = end.map_or((None, Value::Null), |(finish, stop)| (Some(finish), stop));
        let choice =
            json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish, "stop_reason": stop});
        let mut chunk = self.envelope(vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The prompt, as it stands before the text of each of its choices.
    fn echoed(&self, prompt: usize, scores: &[TokenScore]) -> Vec<Value> {
        let own = &self.prompts[prompt];
        let mut log = Log::new(&self.server);
        log.prompt(own, scores);
        let logprobs = self.logprobs.then(|| log.object());
        let choices = prompt * self.choices..(prompt + 1) * self.choices;
        choices.map(|choice| self.chunk(choice, &own.text, logprobs.clone(), None)).collect()
    }
}

impl Chunks for Shape {
    fn of(&mut self, event: Event) -> Vec<Value> {
        match event {
            Event::Prompt { prompt, scores } if self.echo => self.echoed(prompt, &scores),
            Event::Prompt { .. } => Vec::new(),
            Event::Text { choice, text, tokens } => {
                let shift = if self.echo { self.prompts[choice / self.choices].text.chars().count() } else { 0 };
                let logprobs = self.logprobs.then(|| {
                    let mut log = Log::new(&self.server);
                    log.new_tokens(&tokens, shift);
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

/// The four lists of log-probabilities.
struct Log<'a> {
    server: &'a Server,
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
}

impl<'a> Log<'a> {
    fn new(server: &'a Server) -> Self {
        Self { server, tokens: Vec::new(), logprobs: Vec::new(), top: Vec::new(), offsets: Vec::new() }
    }

    /// Nothing is known of the first token: nothing stands before it.
    fn prompt(&mut self, prompt: &Prompt, scores: &[TokenScore]) {
        let Some(&first) = prompt.tokens.first() else { return };
        self.tokens.push(token_text(self.server, first).into());
        self.logprobs.push(Value::Null);
        self.top.push(Value::Null);
        self.offsets.push(0);
        for (score, &offset) in scores.iter().zip(prompt.offsets.iter().skip(1)) {
            self.score(score, offset);
        }
    }

    fn new_tokens(&mut self, tokens: &[Scored], shift: usize) {
        for scored in tokens {
            self.score(&scored.score, shift + scored.offset);
        }
    }

    fn score(&mut self, score: &TokenScore, offset: usize) {
        let mut top = Map::new();
        // Tokens may look alike; the more probable one stands for them. The token itself is one of the list.
        for (token, logprob) in score.top.iter().copied().chain([(score.token, score.logprob)]) {
            let text = token_text(self.server, token);
            if !top.contains_key(&text) {
                top.insert(text, logprob.into());
            }
        }
        self.tokens.push(token_text(self.server, score.token).into());
        self.logprobs.push(score.logprob.into());
        self.top.push(top.into());
        self.offsets.push(offset);
    }

    fn object(self) -> Value {
        json!({"tokens": self.tokens, "token_logprobs": self.logprobs, "top_logprobs": self.top, "text_offset": self.offsets})
    }
}

/// New tokens where a request does not say: OpenAI's number.
const DEFAULT_TOKENS: usize = 16;

/// Log-probabilities that one answer holds of its prompts, alternatives included.
const MOST_SCORES: usize = 1 << 20;

/// Alternatives of a token. OpenAI allows 5, but local clients ask for 10.
const MOST_LOGPROBS: i64 = 20;
