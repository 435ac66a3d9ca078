//! Events of the engine as the answers that clients know.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::mpsc::Receiver;

use crate::eval::score::TokenScore;
use crate::server::error::ApiError;
use crate::server::scheduler::{Event, Finish, Scored, Usage};
use crate::server::state::Server;

/// A choice as a whole.
#[derive(Default)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Its scored tokens.
    pub tokens: Vec<Scored>,
    /// Why it ended, with counts and times.
    pub end: Option<(Finish, Usage)>,
}

/// Everything that a request gave.
pub struct Answer {
    /// In the order of prompts and choices.
    pub choices: Vec<Choice>,
    /// Scores of each prompt.
    pub prompts: Vec<Vec<TokenScore>>,
}

impl Answer {
    /// Waits for all of it.
    ///
    /// # Errors
    /// If the engine fails.
    pub async fn collect(mut events: Receiver<Event>, prompts: usize, choices: usize) -> Result<Self, ApiError> {
        let mut answer =
            Self { choices: (0..choices).map(|_| Choice::default()).collect(), prompts: vec![Vec::new(); prompts] };
        let mut open = choices;
        while open > 0 {
            match events.recv().await {
                Some(Event::Prompt { prompt, scores }) => answer.prompts[prompt] = scores,
                Some(Event::Text { choice, text, tokens }) => {
                    answer.choices[choice].text.push_str(&text);
                    answer.choices[choice].tokens.extend(tokens);
                }
                Some(Event::End { choice, finish, usage }) => {
                    answer.choices[choice].end = Some((finish, usage));
                    open -= 1;
                }
                Some(Event::Failed(message)) => return Err(ApiError::internal(message)),
                None => return Err(ApiError::internal("the server stopped before the answer was complete")),
            }
        }
        Ok(answer)
    }
}

/// Counts over the choices of a request; `choices` of them belong to each prompt.
#[derive(Default)]
pub struct Totals {
    prompt: usize,
    cached: usize,
    completion: usize,
    first: Option<Usage>,
}

impl Totals {
    /// Adds a choice; a prompt counts once, with its first choice.
    pub fn add(&mut self, choice: usize, choices_per_prompt: usize, usage: Usage) {
        if choice.is_multiple_of(choices_per_prompt) {
            self.prompt += usage.prompt_tokens;
            self.cached += usage.cached_tokens;
        }
        self.completion += usage.completion_tokens;
        if choice == 0 {
            self.first = Some(usage);
        }
    }

    /// The `usage` object.
    pub fn usage(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }

    /// The `timings` object, as llama.cpp's server has it, of the first choice.
    pub fn timings(&self) -> Value {
        let usage = self.first.unwrap_or_default();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let rate = |tokens: usize, time: Duration| match time.as_secs_f64() {
            seconds if seconds > 0.0 => tokens as f64 / seconds,
            _ => 0.0,
        };
        let read = usage.prompt_tokens - usage.cached_tokens;
        json!({
            "queue_ms": ms(usage.queued),
            "cache_n": usage.cached_tokens,
            "prompt_n": read,
            "prompt_ms": ms(usage.prefill),
            "prompt_per_second": rate(read, usage.prefill),
            "predicted_n": usage.completion_tokens,
            "predicted_ms": ms(usage.decode),
            // The first token came with the prompt.
            "predicted_per_second": rate(usage.completion_tokens.saturating_sub(1), usage.decode),
        })
    }
}

/// The word for why a choice ended.
pub fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::EndToken(_) | Finish::StopText(_) | Finish::Complete => "stop",
        // A broken text is a failure and never gets here.
        Finish::Length | Finish::Broken(_) => "length",
    }
}

/// What a choice was ended by: a stop text, the id of a token, or null.
pub fn stop_reason(finish: &Finish) -> Value {
    match finish {
        Finish::StopText(text) => json!(text),
        Finish::EndToken(token) => json!(token),
        Finish::Complete | Finish::Length | Finish::Broken(_) => Value::Null,
    }
}

/// The text of a token; bytes that are no whole characters become U+FFFD.
pub fn token_text(server: &Server, token: u32) -> String {
    server
        .tokenizer()
        .map_or_else(|_| String::new(), |tokenizer| String::from_utf8_lossy(&tokenizer.bytes_of(token)).into_owned())
}

/// What makes the objects of a stream out of events.
pub trait Chunks: Send + 'static {
    /// The objects that an event becomes, in order, as JSON.
    fn of(&mut self, event: Event) -> Vec<String>;

    /// The object with the counts, if it was asked for.
    fn usage(&mut self) -> Option<Value>;
}

/// Streams a request: the first event is waited for, so that a failure before it is an HTTP error.
///
/// # Errors
/// If the engine fails before the first event.
pub async fn stream(
    mut events: Receiver<Event>,
    choices: usize,
    mut chunks: impl Chunks,
) -> Result<Response, ApiError> {
    let first = match events.recv().await {
        Some(Event::Failed(message)) => return Err(ApiError::internal(message)),
        Some(event) => event,
        None => return Err(ApiError::internal("the server stopped before the answer was complete")),
    };
    let mut ready: VecDeque<String> = VecDeque::new();
    let mut open = choices;
    take(first, &mut chunks, &mut open, &mut ready);
    let state = (events, chunks, open, ready, false);
    let stream = stream::unfold(state, |(mut events, mut chunks, mut open, mut ready, mut done)| async move {
        loop {
            if let Some(data) = ready.pop_front() {
                let event = Ok::<_, Infallible>(SseEvent::default().data(data));
                return Some((event, (events, chunks, open, ready, done)));
            }
            if done {
                return None;
            }
            if open == 0 {
                ready.extend(chunks.usage().map(|usage| usage.to_string()));
                ready.push_back("[DONE]".into());
                done = true;
                continue;
            }
            match events.recv().await {
                Some(Event::Failed(message)) => {
                    ready.push_back(ApiError::internal(message).to_json().to_string());
                    done = true;
                }
                Some(event) => take(event, &mut chunks, &mut open, &mut ready),
                // The request was given up: a stream that just ended would look complete.
                None => {
                    let message = "the request was cancelled, because the client did not read its answer";
                    ready.push_back(ApiError::internal(message).to_json().to_string());
                    done = true;
                }
            }
        }
    });
    let keep_alive = KeepAlive::new().interval(PING).text("ping");
    let mut response = Sse::new(stream).keep_alive(keep_alive).into_response();
    // nginx would hold a stream back.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    Ok(response)
}

fn take(event: Event, chunks: &mut impl Chunks, open: &mut usize, ready: &mut VecDeque<String>) {
    *open -= usize::from(matches!(event, Event::End { .. }));
    ready.extend(chunks.of(event));
}

/// Between signs of life in a stream that has nothing to say.
const PING: Duration = Duration::from_secs(15);
