//! The engine's thread: takes requests in, runs pass after pass, gives events out.
//!
//! Whatever is done for one text alone runs in [`alone`]: an error or a panic there ends that text. What is done for several
//! together, a pass, is tried again for each by itself (`pass`). If anything else panics, the texts that run end, and the thread
//! goes on.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

use bitnet_model::tokenizer::Tokenizer;

use super::admission::page_limit;
use super::masks::Masks;
use super::prefix::PrefixCache;
use super::sequence::{Outbox, Sequence, Ticket};
use super::{Command, Event, FAULT, Limits, Places, Shared, Submission};
use crate::engine::{self, Error, LoadedModel, Model, PageCount};

/// Works until there is nobody left to work for.
pub fn run(loaded: &LoadedModel, limits: Limits, commands: Receiver<Command>, shared: Arc<Shared>) {
    // Checked when the server was set up.
    let Ok(tokenizer) = loaded.require_tokenizer() else { return };
    let mut worker = Worker::new(&loaded.model, tokenizer, limits, shared);
    while worker.receive(&commands) {
        worker.round();
    }
    worker.fail_all("the server is shutting down");
    worker.report();
}

/// Runs what concerns one text alone; a panic in it becomes the reason why the text ends.
pub(super) fn alone<T>(work: impl FnOnce() -> engine::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(FAULT.into()),
    }
}

/// What the thread knows.
pub(super) struct Worker<'a> {
    pub model: &'a Model,
    pub tokenizer: &'a Tokenizer,
    pub limits: Limits,
    pub shared: Arc<Shared>,
    pub pages: PageCount,
    pub page_limit: usize,
    /// Choices that wait, request by request.
    pub waiting: VecDeque<VecDeque<Sequence<'a>>>,
    pub running: Vec<Sequence<'a>>,
    /// Texts that have ended, but whose readers have not taken everything.
    pub draining: Vec<(Rc<Ticket>, Outbox)>,
    pub prefix: PrefixCache,
    pub masks: Masks,
    /// What a token of a prompt took lately.
    pub row_seconds: Option<f64>,
    /// Whether the last round did something: if not, nothing can go on by itself.
    progressed: bool,
}

impl<'a> Worker<'a> {
    pub fn new(model: &'a Model, tokenizer: &'a Tokenizer, limits: Limits, shared: Arc<Shared>) -> Self {
        Self {
            model,
            tokenizer,
            pages: PageCount::default(),
            page_limit: page_limit(model, &limits),
            limits,
            shared,
            waiting: VecDeque::new(),
            running: Vec::new(),
            draining: Vec::new(),
            prefix: PrefixCache::default(),
            masks: Masks::default(),
            row_seconds: None,
            progressed: false,
        }
    }

    /// Takes in what has come; waits if there is nothing else to do. Returns whether to go on.
    fn receive(&mut self, commands: &Receiver<Command>) -> bool {
        if !self.progressed {
            let watched = !self.running.is_empty() || !self.waiting.is_empty() || !self.draining.is_empty();
            let wait = if watched { STALL_POLL } else { IDLE_POLL };
            match commands.recv_timeout(wait) {
                Ok(Command::Submit(submission)) => self.accept(submission),
                Ok(Command::Look) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match commands.try_recv() {
                Ok(Command::Submit(submission)) => self.accept(submission),
                Ok(Command::Look) => {}
                Ok(Command::Stop) => return false,
                // The handles are gone, not the requests.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
            }
        }
    }

    /// One look at everything, and one pass.
    pub fn round(&mut self) {
        let whole = catch_unwind(AssertUnwindSafe(|| {
            self.tend();
            self.admit();
            self.step()
        }));
        self.progressed = whole.unwrap_or_else(|_| {
            // Nobody knows by which text.
            self.fail_running(FAULT);
            true
        });
        self.report();
    }

    /// Puts a request into the queue.
    pub fn accept(&mut self, submission: Submission) {
        let Submission { prompts, options, sink, arrived, places, wake } = submission;
        let choices = places.count();
        let ticket = Rc::new(Ticket { options, sink, arrived, taken: Cell::new(None), wake });
        match alone(|| self.sequences(&ticket, prompts, places)) {
            Ok(sequences) => self.waiting.push_back(sequences),
            Err(reason) => self.fail(ticket, Outbox::default(), choices, &reason),
        }
    }

    fn sequences(
        &self,
        ticket: &Rc<Ticket>,
        prompts: Vec<Vec<u32>>,
        mut places: Places,
    ) -> engine::Result<VecDeque<Sequence<'a>>> {
        let choices = ticket.options.choices;
        if choices == 0 || prompts.is_empty() {
            return Err(Error::Input("the request asks for no text".into()));
        }
        let (tokenizer, vocab) = (self.tokenizer, self.model.config().vocab_size);
        let one = |prompt: (usize, Vec<u32>)| {
            Sequence::new(ticket, prompt, places.split(choices), (tokenizer, vocab), self.empty_cache()?)
        };
        prompts.into_iter().enumerate().map(one).collect()
    }

    /// Hands out events that are behind, and lets go of requests whose readers are gone or too slow.
    fn tend(&mut self) {
        let patience = self.limits.patience;
        let metrics = &self.shared.metrics;
        let is_lost = |ticket: &Ticket, outbox: &mut Outbox| {
            // What a reader does when it is woken is none of the others' business.
            if alone(|| {
                outbox.flush(ticket);
                Ok(())
            })
            .is_err()
            {
                return true;
            }
            let stuck = outbox.full_since().is_some_and(|since| since.elapsed() > patience);
            // A request of several texts is slow only if its reader takes nothing of any of them.
            let slow = stuck && ticket.taken.get().is_none_or(|taken| taken.elapsed() > patience);
            if slow {
                metrics.count_rejected("slow_reader");
            }
            slow || ticket.sink.is_closed()
        };
        let keeps = |sequence: &mut Sequence| {
            let lost = is_lost(&sequence.ticket, &mut sequence.outbox);
            if lost {
                (0..sequence.places.count()).for_each(|_| metrics.count_finished("cancelled"));
            }
            !lost
        };
        self.running.retain_mut(keeps);
        for request in &mut self.waiting {
            request.retain_mut(keeps);
        }
        self.waiting.retain(|request| !request.is_empty());
        self.draining.retain_mut(|(ticket, outbox)| !is_lost(ticket, outbox) && !outbox.is_empty());
    }

    /// Tells the reader of a text that has failed, and counts its choices.
    pub fn fail(&mut self, ticket: Rc<Ticket>, mut outbox: Outbox, choices: usize, reason: &str) {
        (0..choices).for_each(|_| self.shared.metrics.count_finished("error"));
        outbox.push(Event::Failed(reason.to_owned()));
        let told = alone(|| {
            outbox.flush(&ticket);
            Ok(())
        });
        if told.is_ok() && !outbox.is_empty() {
            self.draining.push((ticket, outbox));
        }
    }

    pub fn fail_sequence(&mut self, sequence: Sequence<'a>, reason: &str) {
        let Sequence { ticket, outbox, places, .. } = sequence;
        self.fail(ticket, outbox, places.count(), reason);
    }

    fn fail_running(&mut self, reason: &str) {
        // What a failed pass has left in caches is not known.
        self.prefix.clear();
        std::mem::take(&mut self.running).into_iter().for_each(|sequence| self.fail_sequence(sequence, reason));
    }

    fn fail_all(&mut self, reason: &str) {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().flatten().for_each(|sequence| self.fail_sequence(sequence, reason));
        self.fail_running(reason);
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

/// How often a worker without work looks around.
const IDLE_POLL: Duration = Duration::from_secs(1);

/// How often it looks whether a slow reader has taken something.
const STALL_POLL: Duration = Duration::from_millis(5);
