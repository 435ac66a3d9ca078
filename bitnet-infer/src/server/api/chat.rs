//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde_json::{Value, json};

use super::answer::{Answer, Chunks, Totals, finish_reason, stop_reason, stream, token_text};
use super::body::{Body, aside, json_text};
use super::fields::Fields;
use super::known::Changes;
use super::messages::conversation;
use super::request::Common;
use super::size::AnswerSize;
use crate::server::error::ApiError;
use crate::server::scheduler::{Event, Finish, Scored};
use crate::server::state::Server;

struct Shape {
    server: Arc<Server>,
    id: String,
    created: u64,
    logprobs: bool,
    /// Tokens that write nothing.
    silent: Vec<u32>,
    include_usage: bool,
    totals: Totals,
    /// Choices that have said who speaks.
    begun: Vec<bool>,
}

/// Answers a conversation.
///
/// # Errors
/// What is wrong with the request.
pub async fn chat(State(server): State<Arc<Server>>, Body(bytes): Body) -> Result<Response, ApiError> {
    let (common, shape, tokens) = aside(&server, bytes.len(), prepare, bytes).await?;
    let choices = common.options.choices;
    let events = server.engine.submit(vec![tokens], common.options)?;
    if common.stream {
        return stream(events, choices, shape).await;
    }
    let answer = Answer::collect(events, 1, choices).await?;
    // With log-probabilities of long answers this is some work.
    let whole = tokio::task::spawn_blocking(move || shape.whole(answer).to_string()).await;
    Ok(json_text(whole.map_err(|e| ApiError::internal(e.to_string()))?))
}

fn prepare(server: &Arc<Server>, bytes: &[u8]) -> Result<(Common, Shape, Vec<u32>), ApiError> {
    let mut fields = Fields::parse(bytes)?;
    let format = server.chat()?;
    let mut common = Common::take(&mut fields, server)?;
    let logprobs = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MOST_LOGPROBS)?;
    if top.is_some_and(|top| top > 0) && !logprobs {
        return Err(ApiError::field("top_logprobs", "needs `logprobs` to be true"));
    }
    let (messages, ending) = conversation(&mut fields)?;
    fields.refuse_rest(&[Changes::Prompt, Changes::Text, Changes::Answer])?;
    messages.iter().try_for_each(|message| server.check_text(message.bytes()))?;
    let tokens = format.encode(server.tokenizer()?, &messages, ending)?;
    let logprobs = logprobs.then_some(top.unwrap_or(0) as usize);
    let mut size = AnswerSize { prompts: 1, choices: common.options.choices, logprobs, ..AnswerSize::default() };
    // As much as the context leaves, and an answer may hold.
    let room = if common.stream { usize::MAX } else { size.room() };
    common.fit([tokens.len()].into_iter(), room, server)?;
    size.held_tokens = if common.stream { 0 } else { common.options.max_tokens };
    size.check()?;
    if !common.ignore_end {
        common.options.end_tokens.extend(format.end_tokens());
        common.options.stops.extend(format.stops().iter().cloned());
    }
    common.options.logprobs = logprobs;
    let specials = server.tokenizer()?.special_tokens().map(|(id, _)| id);
    let silent = specials.chain(common.options.end_tokens.iter().copied()).collect();
    let shape = Shape {
        server: Arc::clone(server),
        id: server.fresh_id("chatcmpl"),
        created: super::now(),
        logprobs: logprobs.is_some(),
        silent,
        include_usage: common.include_usage,
        totals: Totals::default(),
        begun: vec![false; common.options.choices],
    };
    Ok((common, shape, tokens))
}

impl Shape {
    fn whole(mut self, answer: Answer) -> Value {
        let mut choices = Vec::new();
        for (index, choice) in answer.choices.into_iter().enumerate() {
            let Some((finish, usage)) = choice.end else { continue };
            self.totals.add(index, self.begun.len(), usage);
            let logprobs = self.logprobs.then(|| self.log(&choice.tokens));
            choices.push(json!({
                "index": index,
                "message": {"role": "assistant", "content": choice.text, "refusal": null},
                "logprobs": logprobs,
                "finish_reason": finish_reason(&finish), "stop_reason": stop_reason(&finish),
            }));
        }
        let mut whole = self.envelope("chat.completion", choices);
        whole["usage"] = self.totals.usage();
        whole["timings"] = self.totals.timings();
        whole
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.server.name,
            "system_fingerprint": super::FINGERPRINT, "choices": choices,
        })
    }

    fn chunk(&self, choice: usize, delta: Value, logprobs: Option<Value>, finish: Option<&Finish>) -> Value {
        let mut choice =
            json!({"index": choice, "delta": delta, "logprobs": logprobs, "finish_reason": finish.map(finish_reason)});
        if let Some(finish) = finish {
            choice["stop_reason"] = stop_reason(finish);
        }
        let mut chunk = self.envelope("chat.completion.chunk", vec![choice]);
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// Who speaks, before anything else of a choice.
    fn opening(&mut self, choice: usize) -> Option<Value> {
        let begun = std::mem::replace(&mut self.begun[choice], true);
        (!begun).then(|| self.chunk(choice, json!({"role": "assistant", "content": ""}), None, None))
    }

    /// Scores of new tokens, one for each that `usage` counts. Their bytes together are the text, and what a stop text cut off.
    fn log(&self, tokens: &[Scored]) -> Value {
        let of = |token: u32, logprob: f32| {
            let bytes = match self.silent.contains(&token) {
                true => Vec::new(),
                false => self.server.tokenizer().map(|tokenizer| tokenizer.bytes_of(token)).unwrap_or_default(),
            };
            json!({"token": token_text(&self.server, token), "logprob": logprob, "bytes": bytes})
        };
        let content = tokens.iter().map(|scored| {
            let mut entry = of(scored.score.token, scored.score.logprob);
            entry["top_logprobs"] = scored.score.top.iter().map(|&(token, logprob)| of(token, logprob)).collect();
            entry
        });
        json!({"content": content.collect::<Vec<_>>(), "refusal": null})
    }
}

impl Chunks for Shape {
    fn of(&mut self, event: Event) -> Vec<String> {
        let chunks: Vec<Value> = match event {
            Event::Text { choice, text, tokens } => {
                let logprobs = self.logprobs.then(|| self.log(&tokens));
                let opening = self.opening(choice);
                let text = self.chunk(choice, json!({"content": text}), logprobs, None);
                opening.into_iter().chain([text]).collect()
            }
            Event::End { choice, finish, usage } => {
                self.totals.add(choice, self.begun.len(), usage);
                let opening = self.opening(choice);
                opening.into_iter().chain([self.chunk(choice, json!({}), None, Some(&finish))]).collect()
            }
            Event::Prompt { .. } | Event::Failed(_) => Vec::new(),
        };
        chunks.iter().map(Value::to_string).collect()
    }

    fn usage(&mut self) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.envelope("chat.completion.chunk", Vec::new());
            chunk["usage"] = self.totals.usage();
            chunk["timings"] = self.totals.timings();
            chunk
        })
    }
}

const MOST_LOGPROBS: i64 = 20;
