//! One text on its way: what was read and generated of it, and what its reader has not taken yet.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bitnet_model::tokenizer::{TextStream, Tokenizer};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::{Constraint, Event, Finish, Options, Scored, Usage};
use crate::engine::{self, KvCache, Sampler};
use crate::eval::score::TokenScore;
use crate::generate::StopFilter;

/// What the choices of a request share.
pub struct Ticket {
    pub options: Arc<Options>,
    pub sink: Sender<Event>,
    pub arrived: Instant,
    /// When the reader last took something.
    pub taken: Cell<Option<Instant>>,
}

/// A prompt being read, or a text being generated.
///
/// Invariant: `cache` holds the first `cache.len()` of `tokens`, and at least the last one is missing.
pub struct Sequence<'a> {
    pub ticket: Rc<Ticket>,
    pub prompt: usize,
    pub choice: usize,
    /// Choices that go their own ways once the prompt is read.
    pub forks: usize,
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    pub cache: KvCache,
    pub sampler: Sampler,
    pub constraint: Option<Constraint>,
    /// Scores of the prompt so far, if they are wanted.
    pub scores: Option<Vec<TokenScore>>,
    pub text: Text<'a>,
    pub outbox: Outbox,
    pub cached_tokens: Option<usize>,
    pub admitted: Option<Instant>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
}

impl<'a> Sequence<'a> {
    /// Tokens before the next one can be drawn.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// New tokens.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Whether positions of the prompt are still to be scored.
    pub fn is_scoring(&self) -> bool {
        self.scores.as_ref().is_some_and(|scores| scores.len() + 1 < self.prompt_tokens)
    }

    /// Forbids the tokens that end a text as long as it is too short to end.
    pub fn forbid_ends(&mut self) {
        let options = &self.ticket.options;
        if options.min_tokens > 0 {
            let early = self.generated() < options.min_tokens;
            self.sampler.forbid(if early { &options.end_tokens } else { &[] });
        }
    }

    /// The choice `nth` of the same prompt, at the point where they part.
    ///
    /// # Errors
    /// If a setting of the sampler is out of its range.
    pub fn fork(&self, nth: usize) -> engine::Result<Self> {
        let mut config = self.ticket.options.sampler.clone();
        let choice = self.choice + nth;
        config.seed = config.seed.wrapping_add(choice as u64);
        let mut fork = Self {
            ticket: Rc::clone(&self.ticket),
            prompt: self.prompt,
            choice,
            forks: 0,
            tokens: self.tokens.clone(),
            prompt_tokens: self.prompt_tokens,
            cache: self.cache.clone(),
            sampler: Sampler::new(config)?.after_prompt(self.prompt_tokens),
            constraint: self.constraint.clone(),
            scores: None,
            text: self.text.clone(),
            outbox: Outbox::default(),
            cached_tokens: self.cached_tokens,
            admitted: self.admitted,
            first_token: None,
            last_token: None,
        };
        fork.forbid_ends();
        Ok(fork)
    }

    /// Draws the next token; the error is why the constraint cannot be held to.
    pub fn draw(&mut self, logits: &[f32]) -> Result<u32, String> {
        let Some(constraint) = &mut self.constraint else { return Ok(self.sampler.sample(logits, &self.tokens)) };
        let mut allowed = logits.to_vec();
        constraint.mask(&mut allowed)?;
        Ok(self.sampler.sample(&allowed, &self.tokens))
    }

    /// Takes the next token: its text goes to the reader. Returns why the text has ended, if it has.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn push(&mut self, token: u32, score: Option<TokenScore>, context: usize) -> engine::Result<Option<Finish>> {
        self.tokens.push(token);
        let options = Arc::clone(&self.ticket.options);
        let ends = options.end_tokens.contains(&token) && self.generated() > options.min_tokens;
        let (mut text, mut tokens) = self.text.push(token, score, ends)?;
        let complete = self.constraint.as_mut().map(|constraint| constraint.push(token));
        let mut finish = if ends {
            Some(Finish::EndToken(token))
        } else if let Some(Err(reason)) = complete {
            Some(Finish::Broken(reason))
        } else if complete == Some(Ok(true)) {
            Some(Finish::Complete)
        } else if let Some(stop) = self.text.stopped() {
            Some(Finish::StopText(stop))
        } else if self.generated() >= options.max_tokens || self.tokens.len() >= context {
            Some(Finish::Length)
        } else {
            None
        };
        if finish.is_some() {
            let (rest, held) = self.text.finish();
            text.push_str(&rest);
            tokens.extend(held);
        }
        // The last of a text, which is held back while a character is incomplete, may be a stop text too.
        if let (Some(Finish::EndToken(_) | Finish::Length), Some(stop)) = (&finish, self.text.stopped()) {
            finish = Some(Finish::StopText(stop));
        }
        if !text.is_empty() || !tokens.is_empty() {
            self.send(Event::Text { choice: self.choice, text, tokens });
        }
        Ok(finish)
    }

    pub fn send(&mut self, event: Event) {
        self.outbox.push(event);
        self.outbox.flush(&self.ticket);
    }

    pub fn usage(&self) -> Usage {
        let since = |from: Option<Instant>, to: Option<Instant>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_duration_since(from),
            _ => std::time::Duration::ZERO,
        };
        Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.generated(),
            queued: since(Some(self.ticket.arrived), self.admitted),
            prefill: since(self.admitted, self.first_token),
            decode: since(self.first_token, self.last_token),
        }
    }
}

/// Events that the reader has not taken.
#[derive(Default)]
pub struct Outbox {
    events: VecDeque<Event>,
    full_since: Option<Instant>,
}

impl Outbox {
    /// Adds an event behind the others.
    pub fn push(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Gives the reader what it takes.
    pub fn flush(&mut self, ticket: &Ticket) {
        while let Some(event) = self.events.pop_front() {
            match ticket.sink.try_send(event) {
                Ok(()) => {
                    self.full_since = None;
                    ticket.taken.set(Some(Instant::now()));
                }
                Err(TrySendError::Full(event)) => {
                    self.events.push_front(event);
                    self.full_since.get_or_insert_with(Instant::now);
                    return;
                }
                // The reader is gone, which the worker will see by itself.
                Err(TrySendError::Closed(_)) => self.events.clear(),
            }
        }
        self.full_since = None;
    }

    /// Since when the reader has not kept up.
    pub fn full_since(&self) -> Option<Instant> {
        self.full_since
    }

    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// The text of a sequence as its reader sees it.
#[derive(Clone)]
pub struct Text<'a> {
    stream: TextStream<'a>,
    stops: StopFilter,
    /// Characters decoded.
    decoded: usize,
    /// Characters given out.
    given: usize,
    held: VecDeque<Scored>,
}

impl<'a> Text<'a> {
    pub fn new(tokenizer: &'a Tokenizer, before: &[u32], stops: &[String]) -> engine::Result<Self> {
        let stream = TextStream::new(tokenizer, before)?;
        Ok(Self { stream, stops: StopFilter::new(stops), decoded: 0, given: 0, held: VecDeque::new() })
    }

    /// The text that became certain, and the scored tokens that begin in it.
    fn push(&mut self, token: u32, score: Option<TokenScore>, is_end: bool) -> engine::Result<(String, Vec<Scored>)> {
        if let Some(score) = score {
            self.held.push_back(Scored { score, offset: self.decoded });
        }
        let fresh = if is_end { String::new() } else { self.stream.push(token)? };
        self.decoded += fresh.chars().count();
        let text = self.stops.push(&fresh);
        self.given += text.chars().count();
        Ok((text, self.release()))
    }

    /// Tokens whose beginning has been given out. One behind all text waits: it may be part of a stop text.
    fn release(&mut self) -> Vec<Scored> {
        let mut out = Vec::new();
        while self.held.front().is_some_and(|scored| scored.offset < self.given) {
            out.extend(self.held.pop_front());
        }
        out
    }

    /// The stop text that came up.
    fn stopped(&self) -> Option<String> {
        self.stops.stopped().map(str::to_owned)
    }

    /// What was held back, now that the text has ended: of a text that was stopped, nothing that belongs to the stop text.
    fn finish(&mut self) -> (String, Vec<Scored>) {
        let ended = self.stops.stopped().is_none().then(|| self.stops.end(&self.stream.finish()));
        let (text, stopped) = (ended.unwrap_or_default(), self.stops.stopped().is_some());
        self.given += text.chars().count();
        let given = self.given;
        let held = std::mem::take(&mut self.held);
        (text, held.into_iter().filter(|scored| !stopped || scored.offset < given).collect())
    }
}
