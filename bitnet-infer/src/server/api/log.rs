//! Log-probabilities of completions: four lists, as OpenAI's API for completions has them.

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use serde_json::{Map, Value, json};

use super::answer::token_text;
use super::completions::Prompt;
use crate::eval::score::TokenScore;
use crate::server::scheduler::Scored;
use crate::server::state::Server;

/// The four lists.
#[derive(Default)]
pub struct Log {
    tokens: Vec<Value>,
    logprobs: Vec<Value>,
    top: Vec<Value>,
    offsets: Vec<usize>,
}

impl Log {
    /// Adds a prompt. Nothing is known of the first token: nothing stands before it.
    pub fn prompt(&mut self, server: &Server, prompt: &Prompt, scores: &[TokenScore]) {
        let Some(&first) = prompt.tokens.first() else { return };
        self.tokens.push(token_text(server, first).into());
        self.logprobs.push(Value::Null);
        self.top.push(Value::Null);
        self.offsets.push(0);
        for (score, &offset) in scores.iter().zip(prompt.offsets.iter().skip(1)) {
            self.score(server, score, offset);
        }
    }

    /// Adds new tokens behind `shift` characters.
    pub fn new_tokens(&mut self, server: &Server, tokens: &[Scored], shift: usize) {
        for scored in tokens {
            self.score(server, &scored.score, shift + scored.offset);
        }
    }

    fn score(&mut self, server: &Server, score: &TokenScore, offset: usize) {
        let mut top = Map::new();
        // Tokens may look alike; the more probable one stands for them. The token itself is one of the list.
        for (token, logprob) in score.top.iter().copied().chain([(score.token, score.logprob)]) {
            let text = token_text(server, token);
            if !top.contains_key(&text) {
                top.insert(text, logprob.into());
            }
        }
        self.tokens.push(token_text(server, score.token).into());
        self.logprobs.push(score.logprob.into());
        self.top.push(top.into());
        self.offsets.push(offset);
    }

    /// The object of an answer.
    pub fn object(self) -> Value {
        json!({"tokens": self.tokens, "token_logprobs": self.logprobs, "top_logprobs": self.top, "text_offset": self.offsets})
    }
}

/// The lists of a prompt, which several choices share, and of the new tokens behind it: one object, without a copy.
pub struct Lists<'a> {
    /// Of the prompt.
    pub first: Option<&'a Log>,
    /// Of the new tokens.
    pub own: Log,
}

impl Serialize for Lists<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("logprobs", 4)?;
        let logs = [self.first, Some(&self.own)];
        object.serialize_field("tokens", &Joined(logs.map(|log| log.map_or(&[][..], |log| &log.tokens))))?;
        object.serialize_field("token_logprobs", &Joined(logs.map(|log| log.map_or(&[][..], |log| &log.logprobs))))?;
        object.serialize_field("top_logprobs", &Joined(logs.map(|log| log.map_or(&[][..], |log| &log.top))))?;
        object.serialize_field("text_offset", &Joined(logs.map(|log| log.map_or(&[][..], |log| &log.offsets))))?;
        object.end()
    }
}

/// Two lists as one.
struct Joined<'a, T>([&'a [T]; 2]);

impl<T: Serialize> Serialize for Joined<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.into_iter().flatten())
    }
}
