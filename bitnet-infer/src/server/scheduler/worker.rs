//! The engine's thread: takes requests in, runs pass after pass, gives events out.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use bitnet_model::tokenizer::Tokenizer;

use super::plan::plan;
use super::prefix::PrefixCache;
use super::scoring::score_prompt;
use super::sequence::{Outbox, Sequence, Text, Ticket};
use super::{Command, Event, Finish, Limits, Prefill, Shared, Submission};
use crate::engine::{self, KvCache, LoadedModel, LogitsFor, Model, NextLogits, PageCount, Profile, Sampler, Wanted};
use crate::eval::score::score;

/// Works until there is nobody left to work for.
pub fn run(loaded: &LoadedModel, limits: Limits, commands: Receiver<Command>, shared: Arc<Shared>) {
    // Checked when the server was set up.
    let Ok(tokenizer) = loaded.require_tokenizer() else { return };
    let mut worker = Worker {
        model: &loaded.model,
        tokenizer,
        pages: PageCount::default(),
        page_limit: page_limit(&loaded.model, &limits),
        limits,
        shared,
        waiting: VecDeque::new(),
        running: Vec::new(),
        draining: Vec::new(),
        prefix: PrefixCache::default(),
        row_seconds: None,
        progressed: false,
    };
    while worker.receive(&commands) {
        worker.tend();
        worker.admit();
        worker.progressed = worker.step();
        worker.report();
    }
    worker.fail_all("the server is shutting down");
    worker.report();
}

/// Pages that fit the memory for keys and values.
pub fn page_limit(model: &Model, limits: &Limits) -> usize {
    let cache = KvCache::with_type(model.config(), 1, limits.kv_type);
    cache.map_or(0, |cache| limits.kv_bytes / cache.page_bytes().max(1))
}

struct Worker<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    limits: Limits,
    shared: Arc<Shared>,
    pages: PageCount,
    page_limit: usize,
    /// Choices that wait, request by request.
    waiting: VecDeque<VecDeque<Sequence<'a>>>,
    running: Vec<Sequence<'a>>,
    /// Texts that have ended, but whose readers have not taken everything.
    draining: Vec<(Rc<Ticket>, Outbox)>,
    prefix: PrefixCache,
    /// What a token of a prompt took lately.
    row_seconds: Option<f64>,
    /// Whether the last round ran a pass: if not, nothing can go on by itself.
    progressed: bool,
}

impl<'a> Worker<'a> {
    /// Takes in what has come; waits if there is nothing else to do. Returns whether to go on.
    fn receive(&mut self, commands: &Receiver<Command>) -> bool {
        if !self.progressed {
            let watched = !self.running.is_empty() || !self.waiting.is_empty() || !self.draining.is_empty();
            let wait = if watched { STALL_POLL } else { IDLE_POLL };
            match commands.recv_timeout(wait) {
                Ok(Command::Submit(submission)) => self.accept(submission),
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        loop {
            match commands.try_recv() {
                Ok(Command::Submit(submission)) => self.accept(submission),
                Ok(Command::Stop) => return false,
                // The handles are gone, not the requests.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
    }

    fn accept(&mut self, submission: Submission) {
        let Submission { prompts, options, sink, arrived } = submission;
        let choices = prompts.len() * options.choices;
        let ticket = Rc::new(Ticket { options: Arc::clone(&options), sink, arrived, taken: Cell::new(None) });
        let sequences = prompts.into_iter().enumerate();
        let made: engine::Result<VecDeque<Sequence>> =
            sequences.map(|(prompt, tokens)| self.sequence(&ticket, prompt, tokens)).collect();
        match made {
            Ok(sequences) => self.waiting.push_back(sequences),
            Err(error) => {
                let mut outbox = Outbox::default();
                fail(&ticket, &mut outbox, &error.to_string());
                self.draining.push((ticket, outbox));
                self.shared.waiting.fetch_sub(choices, Ordering::Relaxed);
                self.shared.active.fetch_sub(choices, Ordering::Relaxed);
            }
        }
    }

    fn sequence(&self, ticket: &Rc<Ticket>, prompt: usize, tokens: Vec<u32>) -> engine::Result<Sequence<'a>> {
        let options = &ticket.options;
        let choice = prompt * options.choices;
        let mut config = options.sampler.clone();
        config.seed = config.seed.wrapping_add(choice as u64);
        let mut sequence = Sequence {
            ticket: Rc::clone(ticket),
            prompt,
            choice,
            forks: options.choices - 1,
            prompt_tokens: tokens.len(),
            cache: self.empty_cache()?,
            sampler: Sampler::new(config)?.after_prompt(tokens.len()),
            constraint: options.constraint.clone(),
            scores: options.prompt_logprobs.map(|_| Vec::new()),
            text: Text::new(self.tokenizer, &tokens, &options.stops)?,
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

    fn empty_cache(&self) -> engine::Result<KvCache> {
        let cache = KvCache::with_type(self.model.config(), self.limits.context, self.limits.kv_type)?;
        Ok(cache.counted_by(&self.pages))
    }

    /// Hands out events that are behind, and lets go of requests whose readers are gone or too slow.
    fn tend(&mut self) {
        let patience = self.limits.patience;
        let shared = Arc::clone(&self.shared);
        let is_lost = |ticket: &Ticket, outbox: &Outbox| {
            let stuck = outbox.full_since().is_some_and(|since| since.elapsed() > patience);
            // A request of several texts is slow only if its reader takes nothing of any of them.
            let slow = stuck && ticket.taken.get().is_none_or(|taken| taken.elapsed() > patience);
            if slow {
                shared.metrics.count_rejected("slow_reader");
            }
            slow || ticket.sink.is_closed()
        };
        let gone = |choices: usize, waiting: bool| {
            shared.active.fetch_sub(choices, Ordering::Relaxed);
            if waiting {
                shared.waiting.fetch_sub(choices, Ordering::Relaxed);
            }
            (0..choices).for_each(|_| shared.metrics.count_finished("cancelled"));
        };
        self.running.retain_mut(|sequence| {
            sequence.outbox.flush(&sequence.ticket);
            let lost = is_lost(&sequence.ticket, &sequence.outbox);
            if lost {
                gone(1 + sequence.forks, false);
            }
            !lost
        });
        for request in &mut self.waiting {
            request.retain_mut(|sequence| {
                sequence.outbox.flush(&sequence.ticket);
                let lost = is_lost(&sequence.ticket, &sequence.outbox);
                if lost {
                    gone(1 + sequence.forks, true);
                }
                !lost
            });
        }
        self.waiting.retain(|request| !request.is_empty());
        self.draining.retain_mut(|(ticket, outbox)| {
            outbox.flush(ticket);
            !outbox.is_empty() && !is_lost(ticket, outbox)
        });
    }

    /// Begins with texts that wait, request after request in turn, as long as there is room.
    fn admit(&mut self) {
        while let Some(mut request) = self.waiting.pop_front() {
            let Some(mut sequence) = request.pop_front() else { continue };
            let choices = 1 + sequence.forks;
            let taken: usize = self.running.iter().map(|other| 1 + other.forks).sum();
            let crowded = !self.running.is_empty() && taken + choices > self.limits.parallel;
            if crowded || !self.make_room_for(&mut sequence) {
                request.push_front(sequence);
                self.waiting.push_front(request);
                return;
            }
            let now = Instant::now();
            if sequence.admitted.is_none() {
                sequence.admitted = Some(now);
                let metrics = &self.shared.metrics;
                metrics.queue_seconds.observe(now.duration_since(sequence.ticket.arrived).as_secs_f64());
                metrics.cached_tokens.inc_by(sequence.cache.len() as u64);
                metrics.prompt_tokens.inc_by(sequence.prompt_tokens as u64);
                sequence.cached_tokens = Some(sequence.cache.len());
            }
            self.shared.waiting.fetch_sub(choices, Ordering::Relaxed);
            self.running.push(sequence);
            if !request.is_empty() {
                self.waiting.push_back(request);
            }
        }
    }

    /// Gives a text that waits what is known of its beginning; says whether the rest of it fits the memory beside the others.
    fn make_room_for(&mut self, sequence: &mut Sequence) -> bool {
        // Positions that are scored must be computed.
        if self.limits.prefix_cache && !sequence.is_scoring() {
            self.prefix.restore(&sequence.tokens, &mut sequence.cache);
        }
        let promised: usize = self.running.iter().map(|other| other.cache.pages_to_make(other.pending() + 1)).sum();
        let needed = promised + sequence.cache.pages_to_make(sequence.pending() + 1);
        let free = self.page_limit.saturating_sub(self.pages.now()) + self.prefix.evictable();
        if needed <= free || self.running.is_empty() {
            return true;
        }
        if let Ok(empty) = self.empty_cache() {
            sequence.cache = empty;
        }
        false
    }

    /// Runs one pass, if there is something to run; says whether there was. A failure ends the requests in it, not the server.
    fn step(&mut self) -> bool {
        let ready = |sequence: &Sequence| sequence.outbox.full_since().is_none();
        let chunks = self.chunks(ready);
        if chunks.iter().all(|&chunk| chunk == 0) {
            return false;
        }
        let started = Instant::now();
        let rows: usize = chunks.iter().sum();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.pass(&chunks)));
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.fail_running(&error.to_string()),
            Err(_) => self.fail_running("the engine failed; this is a fault of the server"),
        }
        let seconds = started.elapsed().as_secs_f64();
        self.shared.metrics.passes.inc();
        self.shared.metrics.pass_tokens.inc_by(rows as u64);
        if rows > self.running.len() && rows >= super::plan::LEAST_PROMPT {
            let now = seconds / rows as f64;
            self.row_seconds = Some(self.row_seconds.map_or(now, |before| 0.7 * before + 0.3 * now));
        }
        true
    }

    /// Tokens of each running sequence for the next pass, for which there is memory.
    fn chunks(&mut self, ready: impl Fn(&Sequence) -> bool) -> Vec<usize> {
        loop {
            let places: Vec<usize> = (0..self.running.len()).filter(|&i| ready(&self.running[i])).collect();
            let pending: Vec<usize> = places.iter().map(|&i| self.running[i].pending()).collect();
            let mut chunks = vec![0; self.running.len()];
            places.iter().zip(plan(&pending, self.budget())).for_each(|(&i, chunk)| chunks[i] = chunk);
            let needed = |worker: &Self| -> usize {
                worker.running.iter().zip(&chunks).map(|(sequence, &chunk)| sequence.cache.pages_to_make(chunk)).sum()
            };
            while self.pages.now() + needed(self) > self.page_limit && self.prefix.evict() {
                self.shared.metrics.evictions.inc();
            }
            if self.pages.now() + needed(self) <= self.page_limit || self.running.len() <= 1 {
                return chunks;
            }
            self.put_off_the_last();
        }
    }

    /// The youngest text gives its memory back and waits; what it has is computed again later, to the same bits.
    fn put_off_the_last(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        if let Ok(empty) = self.empty_cache() {
            sequence.cache = empty;
        }
        self.shared.metrics.preemptions.inc();
        self.shared.waiting.fetch_add(1 + sequence.forks, Ordering::Relaxed);
        self.waiting.push_front(VecDeque::from([sequence]));
    }

    fn budget(&self) -> usize {
        let streams = self.running.iter().any(|sequence| sequence.pending() == 1);
        match self.limits.prefill {
            // Nobody waits for the pass to end.
            Prefill::Within(_) if !streams && self.running.len() == 1 => MOST_ROWS,
            Prefill::Whole => usize::MAX,
            Prefill::Tokens(tokens) => tokens,
            Prefill::Within(time) => match self.row_seconds {
                Some(seconds) => ((time.as_secs_f64() / seconds) as usize).clamp(LEAST_ROWS, MOST_ROWS),
                None => LEAST_ROWS,
            },
        }
    }

    fn pass(&mut self, chunks: &[usize]) -> engine::Result<()> {
        let (h, vocab) = (self.model.config().hidden_size, self.model.config().vocab_size);
        let mut batch = Vec::new();
        let mut wants = Vec::new();
        // Of each sequence in the pass: its place, its first position, and how many states come back.
        let mut places = Vec::new();
        for (place, (sequence, &chunk)) in self.running.iter_mut().zip(chunks).enumerate().filter(|(_, (_, c))| **c > 0)
        {
            let start = sequence.cache.len();
            let (states, want) = match () {
                () if sequence.is_scoring() => (chunk, LogitsFor::All),
                () if chunk == sequence.pending() => (1, LogitsFor::Last),
                () => (0, LogitsFor::None),
            };
            places.push((place, start, states));
            wants.push(want);
            batch.push(engine::Sequence { tokens: &sequence.tokens[start..start + chunk], cache: &mut sequence.cache });
        }
        let states_nh = self.model.states_for(&mut batch, &wants, &mut Profile::default())?;
        drop(batch);

        let mut rest = states_nh.as_slice();
        let mut last_nh = Vec::new();
        let mut drawing = Vec::new();
        for (place, start, states) in places {
            let (own, later) = rest.split_at(states * h);
            rest = later;
            let sequence = &mut self.running[place];
            score_prompt(self.model, sequence, start, own, vocab);
            if sequence.pending() == 0 {
                last_nh.extend_from_slice(&own[own.len() - h..]);
                drawing.push(place);
            }
        }
        if drawing.is_empty() {
            return Ok(());
        }
        let wanted: Vec<Wanted> = drawing.iter().map(|&place| wanted(&self.running[place])).collect();
        let next = self.model.next_logits_of(&last_nh, &wanted);
        let mut ended = Vec::new();
        for (place, next) in drawing.into_iter().zip(next) {
            ended.extend(self.draw(place, &next)?);
        }
        // From the back, so that the places before stay what they are.
        ended.sort_unstable_by_key(|(place, _)| std::cmp::Reverse(*place));
        for (place, finish) in ended {
            self.end(place, finish);
        }
        Ok(())
    }

    /// Draws the next token of the sequence at `place`, and of the choices that part from it. Returns those that have ended.
    fn draw(&mut self, place: usize, next: &NextLogits) -> engine::Result<Vec<(usize, Finish)>> {
        let forks = std::mem::take(&mut self.running[place].forks);
        let mut places = vec![place];
        if self.running[place].generated() == 0 {
            self.deliver_prompt(place);
            for nth in 1..=forks {
                let fork = self.running[place].fork(nth).inspect_err(|_| {
                    // Those that were not made yet end with the others.
                    self.running[place].forks = forks + 1 - nth;
                })?;
                places.push(self.running.len());
                self.running.push(fork);
            }
        }
        let mut ended = Vec::new();
        for place in places {
            let sequence = &mut self.running[place];
            let options = Arc::clone(&sequence.ticket.options);
            if options.max_tokens == 0 {
                ended.push((place, Finish::Length));
                continue;
            }
            let token = match sequence.draw(&next.logits) {
                Ok(token) => token,
                Err(reason) => {
                    ended.push((place, Finish::Broken(reason)));
                    continue;
                }
            };
            let scored = options.logprobs.map(|top| score(&next.logits, token, top));
            let pushed = sequence.push(token, scored, self.limits.context);
            let finish = pushed.unwrap_or_else(|e| Some(Finish::Broken(e.to_string())));
            sequence.forbid_ends();
            let now = Instant::now();
            let metrics = &self.shared.metrics;
            metrics.generated_tokens.inc();
            match sequence.last_token {
                None => metrics.first_token_seconds.observe((now - sequence.ticket.arrived).as_secs_f64()),
                Some(before) => metrics.between_tokens_seconds.observe((now - before).as_secs_f64()),
            }
            sequence.first_token.get_or_insert(now);
            sequence.last_token = Some(now);
            ended.extend(finish.map(|finish| (place, finish)));
        }
        Ok(ended)
    }

    /// The prompt of the sequence at `place` has been read.
    fn deliver_prompt(&mut self, place: usize) {
        let sequence = &mut self.running[place];
        let scores = sequence.scores.take().unwrap_or_default();
        sequence.send(Event::Prompt { prompt: sequence.prompt, scores });
        if self.limits.prefix_cache {
            self.prefix.keep(&sequence.tokens, &sequence.cache, false);
        }
    }

    fn end(&mut self, place: usize, finish: Finish) {
        let mut sequence = self.running.remove(place);
        if self.limits.prefix_cache {
            self.prefix.keep(&sequence.tokens, &sequence.cache, true);
        }
        let reason = match finish {
            Finish::EndToken(_) | Finish::StopText(_) | Finish::Complete => "stop",
            Finish::Length => "length",
            Finish::Broken(_) => "error",
        };
        let usage = sequence.usage();
        sequence.send(match finish {
            Finish::Broken(reason) => Event::Failed(format!("the text cannot go on: {reason}")),
            finish => Event::End { choice: sequence.choice, finish, usage },
        });
        self.shared.metrics.count_finished(reason);
        self.shared.active.fetch_sub(1, Ordering::Relaxed);
        if !sequence.outbox.is_empty() {
            self.draining.push((sequence.ticket, sequence.outbox));
        }
    }

    fn fail_running(&mut self, message: &str) {
        // What a failed pass has left in caches is not known.
        self.prefix.clear();
        for mut sequence in std::mem::take(&mut self.running) {
            self.shared.active.fetch_sub(1 + sequence.forks, Ordering::Relaxed);
            self.shared.metrics.count_finished("error");
            fail(&sequence.ticket, &mut sequence.outbox, message);
            self.draining.push((sequence.ticket, sequence.outbox));
        }
    }

    fn fail_all(&mut self, message: &str) {
        for mut sequence in std::mem::take(&mut self.waiting).into_iter().flatten() {
            self.shared.active.fetch_sub(1 + sequence.forks, Ordering::Relaxed);
            self.shared.waiting.fetch_sub(1 + sequence.forks, Ordering::Relaxed);
            fail(&sequence.ticket, &mut sequence.outbox, message);
        }
        self.fail_running(message);
        self.draining.clear();
    }

    fn report(&self) {
        let metrics = &self.shared.metrics;
        metrics.rounds.inc();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        metrics.running.set(count(self.running.len()));
        metrics.waiting.set(count(self.shared.waiting.load(Ordering::Relaxed)));
        metrics.kv_pages.set(count(self.pages.now()));
        metrics.prefix_pages.set(count(self.prefix.pages()));
    }
}

fn fail(ticket: &Ticket, outbox: &mut Outbox, message: &str) {
    outbox.push(Event::Failed(message.to_owned()));
    outbox.flush(ticket);
}

/// What of the next logits the draw, and the scores that were asked for, depend on.
fn wanted(sequence: &Sequence) -> Wanted {
    let all = sequence.ticket.options.logprobs.is_some() || sequence.constraint.is_some();
    if all { Wanted::All } else { sequence.sampler.wanted(&sequence.tokens) }
}

/// How often a worker without work looks around.
const IDLE_POLL: Duration = Duration::from_secs(1);

/// How often it looks whether a slow reader has taken something.
const STALL_POLL: Duration = Duration::from_millis(5);

/// Bounds on the tokens of prompts in a pass, if a time is given.
const LEAST_ROWS: usize = 16;
const MOST_ROWS: usize = 256;
