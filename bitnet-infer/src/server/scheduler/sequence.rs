//! One text on its way: what was read and generated of it, and what its reader has not taken yet.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use bitnet_model::tokenizer::{TextStream, Tokenizer};
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use super::masks::{Guide, Masks};
use super::{Command, Event, Finish, Options, Places, Scored, Usage};
use crate::engine::{self, KvCache, NextLogits, Sampler, check_logits};
use crate::eval::score::TokenScore;
use crate::generate::StopFilter;

/// What the choices of a request share.
pub struct Ticket {
    pub options: Arc<Options>,
    pub sink: Sender<Event>,
    pub arrived: Instant,
    /// When the reader last took something.
    pub taken: Cell<Option<Instant>>,
    /// Wakes the engine's thread.
    pub wake: mpsc::Sender<Command>,
}

/// A prompt being read, or a text being generated.
///
/// Invariant: `cache` holds the first `cache.len()` of `tokens`, and at least the last one is missing unless `next` is there.
pub struct Sequence<'a> {
    pub ticket: Rc<Ticket>,
    pub prompt: usize,
    pub choice: usize,
    /// Its own, and those of choices that go their own ways once the prompt is read.
    pub places: Places,
    pub tokens: Vec<u32>,
    pub prompt_tokens: usize,
    pub cache: KvCache,
    pub sampler: Sampler,
    pub guide: Option<Guide>,
    /// Logits from which no token was drawn yet, because it is not known what may come next. Then nothing is pending.
    pub next: Option<NextLogits>,
    /// Whether a pass with this text and others has failed: it goes on alone until its next token.
    pub suspect: bool,
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
    /// The text of `tokens`, the prompt `prompt` of a request, with an empty cache.
    ///
    /// # Errors
    /// If a token is none of the model's, the prompt is empty or longer than the cache, a setting of the sampler is out of its
    /// range, or the tokenizer's decoder fails.
    pub fn new(
        ticket: &Rc<Ticket>,
        (prompt, tokens): (usize, Vec<u32>),
        places: Places,
        (tokenizer, vocab_size): (&'a Tokenizer, usize),
        cache: KvCache,
    ) -> engine::Result<Self> {
        let options = &ticket.options;
        if let Some((index, &token)) = tokens.iter().enumerate().find(|(_, token)| **token as usize >= vocab_size) {
            return Err(engine::Error::Token { token, index, vocab_size });
        }
        if tokens.is_empty() {
            return Err(engine::Error::Input("the prompt is empty".into()));
        }
        if tokens.len() > cache.capacity() {
            return Err(engine::Error::ContextFull { used: 0, capacity: cache.capacity(), more: tokens.len() });
        }
        let choice = prompt * options.choices;
        let mut config = options.sampler.clone();
        config.seed = config.seed.wrapping_add(choice as u64);
        let mut sequence = Self {
            ticket: Rc::clone(ticket),
            prompt,
            choice,
            places,
            prompt_tokens: tokens.len(),
            cache,
            sampler: Sampler::new(config)?.after_prompt(tokens.len()),
            guide: options.constraint.clone().map(|constraint| Guide::new(constraint, ticket.wake.clone())),
            next: None,
            suspect: false,
            scores: options.prompt_logprobs.map(|_| Vec::new()),
            text: Text::new(tokenizer, &tokens, &options.stops)?,
            tokens,
            outbox: Outbox::default(),
            cached_tokens: None,
            admitted: None,
            first_token: None,
            last_token: None,
        };
        sequence.forbid_ends();
        Ok(sequence)
    }

    /// Forgets what was computed of the text: it is computed again, to the same bits.
    pub fn restart(&mut self, empty: KvCache) {
        (self.cache, self.next) = (empty, None);
    }

    /// Whether it is known which tokens may come next.
    pub fn may_draw(&mut self) -> bool {
        self.guide.as_mut().is_none_or(Guide::is_ready)
    }

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
    /// If a setting of the sampler is out of its range, or it is not known which tokens may come next.
    pub fn fork(&self, nth: usize, places: Places) -> engine::Result<Self> {
        let mut config = self.ticket.options.sampler.clone();
        let choice = self.choice + nth;
        config.seed = config.seed.wrapping_add(choice as u64);
        let mut fork = Self {
            ticket: Rc::clone(&self.ticket),
            prompt: self.prompt,
            choice,
            places,
            tokens: self.tokens.clone(),
            prompt_tokens: self.prompt_tokens,
            cache: self.cache.clone(),
            sampler: Sampler::new(config)?.after_prompt(self.prompt_tokens),
            guide: self.guide.as_ref().map(Guide::fork).transpose()?,
            next: None,
            suspect: false,
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

    /// Draws the next token.
    ///
    /// # Errors
    /// If the constraint cannot be held to, or the logits are not finite.
    pub fn draw(&mut self, logits: &[f32]) -> engine::Result<u32> {
        // Beside the masks below, which hide tokens: what they hide must be finite too.
        let Some(guide) = &self.guide else { return self.sampler.sample(logits, &self.tokens) };
        check_logits(logits)?;
        let mut allowed = logits.to_vec();
        guide.allowed()?.mask(&mut allowed);
        self.sampler.sample(&allowed, &self.tokens)
    }

    /// Takes the next token: its text goes to the reader. Returns why the text has ended, if it has.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails, or the constraint does not allow the token.
    pub fn push(
        &mut self,
        token: u32,
        score: Option<TokenScore>,
        context: usize,
        masks: &mut Masks,
    ) -> engine::Result<Option<Finish>> {
        self.tokens.push(token);
        let options = Arc::clone(&self.ticket.options);
        let ends = options.end_tokens.contains(&token) && self.generated() > options.min_tokens;
        let (mut text, mut tokens) = self.text.push(token, score, ends)?;
        let complete = match &mut self.guide {
            Some(guide) if !ends => guide.push(token, masks)?,
            _ => false,
        };
        let mut finish = if ends {
            Some(Finish::EndToken(token))
        } else if complete {
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

    /// What was held back, now that the text has ended. Tokens of a stop text are new tokens too: they stand at the text's end.
    fn finish(&mut self) -> (String, Vec<Scored>) {
        let ended = self.stops.stopped().is_none().then(|| self.stops.end(&self.stream.finish()));
        let text = ended.unwrap_or_default();
        self.given += text.chars().count();
        let given = self.given;
        let held = std::mem::take(&mut self.held);
        (text, held.into_iter().map(|scored| Scored { offset: scored.offset.min(given), ..scored }).collect())
    }
}
