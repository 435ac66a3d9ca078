//! Requests to tokens: one thread that drives the engine, and the queue in front of it.
//!
//! Every pass of the engine takes one token of each text that is being generated and a part of the prompts that are being read
//! (`plan`). What a request gets depends on the request alone: the engine gives each sequence the same numbers in any company,
//! however its prompt is cut, and whether or not part of it was read before (`prefix`); each choice draws from a random
//! stream of its own. And what becomes of a request depends on it alone: an error or a panic at one text ends that text
//! (`worker`), and its places are free again (`places`).

mod admission;
mod drawing;
mod masks;
mod pass;
mod places;
mod plan;
mod prefix;
mod scoring;
mod sequence;
mod worker;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc as events;

use places::Places;

pub use admission::page_limit;

use super::metrics::Metrics;
use super::structured::Constraint;
use crate::engine::{KvType, LoadedModel, SamplerConfig};
use crate::eval::score::TokenScore;

/// How much the engine takes on.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Texts that are worked on at the same time.
    pub parallel: usize,
    /// Texts that wait besides.
    pub queue: usize,
    /// Bytes of keys and values, those kept of texts that have ended included.
    pub kv_bytes: usize,
    /// What keys and values are kept as.
    pub kv_type: KvType,
    /// Tokens of a prompt and its continuation.
    pub context: usize,
    /// How many tokens of prompts a pass takes.
    pub prefill: Prefill,
    /// Whether what was read is kept for texts that begin alike.
    pub prefix_cache: bool,
    /// How long a reader may let its events pile up before its request is cancelled.
    pub patience: Duration,
}

/// How many tokens of prompts a pass takes while texts are generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefill {
    /// As many as take this long, by what passes took lately.
    Within(Duration),
    /// So many.
    Tokens(usize),
    /// All that there are.
    Whole,
}

/// What a request asks for: the same for each of its prompts.
#[derive(Clone, Debug)]
pub struct Options {
    /// Texts for each prompt.
    pub choices: usize,
    /// New tokens at most.
    pub max_tokens: usize,
    /// New tokens before the model may end the text.
    pub min_tokens: usize,
    /// Tokens that end a text; none to go on until `max_tokens`.
    pub end_tokens: Vec<u32>,
    /// Texts that end a text.
    pub stops: Vec<String>,
    /// How tokens are drawn; choice `i` of a request draws from seed `seed + i`.
    pub sampler: SamplerConfig,
    /// Whether new tokens are scored, with how many alternatives.
    pub logprobs: Option<usize>,
    /// Whether tokens of the prompt are scored, with how many alternatives.
    pub prompt_logprobs: Option<usize>,
    /// What each text must be.
    pub constraint: Option<Constraint>,
}

/// What happens to a request, in order for each choice.
#[derive(Clone, Debug)]
pub enum Event {
    /// A prompt has been read.
    Prompt {
        /// Which prompt.
        prompt: usize,
        /// The scores of all its tokens but the first, if they were asked for.
        scores: Vec<TokenScore>,
    },
    /// New text.
    Text {
        /// Which choice.
        choice: usize,
        /// The text; may be empty while a character is incomplete.
        text: String,
        /// The tokens behind it, if they are scored.
        tokens: Vec<Scored>,
    },
    /// A choice is complete.
    End {
        /// Which choice.
        choice: usize,
        /// Why.
        finish: Finish,
        /// Counts and times.
        usage: Usage,
    },
    /// A text of the request failed; what follows of the others is not worth waiting for.
    Failed(String),
}

/// A new token, its score, and where it begins in the new text.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token and its score.
    pub score: TokenScore,
    /// Characters of the new text before it.
    pub offset: usize,
}

/// Why a text ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model gave this token, which ends a text.
    EndToken(u32),
    /// This text came up.
    StopText(String),
    /// What the text had to be is complete.
    Complete,
    /// As many tokens as were asked for.
    Length,
    /// It cannot go on: what it had to be cannot be held to, or the tokenizer failed.
    Broken(String),
}

/// Counts and times of a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, how many were not read again.
    pub cached_tokens: usize,
    /// New tokens.
    pub completion_tokens: usize,
    /// In the queue.
    pub queued: Duration,
    /// From there to the first new token.
    pub prefill: Duration,
    /// From there to the last.
    pub decode: Duration,
}

/// Why a request is not taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Too many wait already.
    QueueFull,
    /// The server is shutting down.
    ShuttingDown,
}

/// What the rest of the server has of the engine. Clones speak to the same engine.
#[derive(Clone)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

/// What both sides see.
struct Shared {
    /// Choices that wait.
    waiting: AtomicUsize,
    /// Choices that wait or run.
    active: AtomicUsize,
    closed: AtomicBool,
    queue: usize,
    parallel: usize,
    metrics: Arc<Metrics>,
}

enum Command {
    Submit(Submission),
    /// Something that the engine did not wait for is ready.
    Look,
    Stop,
}

struct Submission {
    prompts: Vec<Vec<u32>>,
    options: Arc<Options>,
    sink: events::Sender<Event>,
    arrived: Instant,
    places: Places,
    /// Wakes the engine's thread.
    wake: mpsc::Sender<Command>,
}

impl Engine {
    /// Starts the engine's thread. It ends after [`Engine::stop`], or when the last handle is gone.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(
        loaded: Arc<LoadedModel>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (commands, receiver) = mpsc::channel();
        let shared = Arc::new(Shared {
            waiting: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            queue: limits.queue,
            parallel: limits.parallel,
            metrics,
        });
        let own = Arc::clone(&shared);
        let work = move || {
            // However this ends, nobody may think that it goes on.
            let _closing = Closing(Arc::clone(&own));
            worker::run(&loaded, limits, receiver, own);
        };
        let thread = std::thread::Builder::new().name("engine".into()).spawn(work)?;
        Ok((Self { commands, shared }, thread))
    }

    /// Hands a request over. Dropping the receiver cancels it, wherever it is.
    ///
    /// # Errors
    /// If it is not taken on: nothing of it is then in the queue.
    pub fn submit(&self, prompts: Vec<Vec<u32>>, options: Options) -> Result<events::Receiver<Event>, Rejection> {
        let shared = &self.shared;
        let choices = prompts.len().saturating_mul(options.choices);
        if shared.closed.load(Ordering::Relaxed) {
            return Err(Rejection::ShuttingDown);
        }
        let places = Places::take(shared, choices).ok_or(Rejection::QueueFull)?;
        let (sink, receiver) = events::channel(EVENTS_HELD.max(choices.saturating_mul(2)));
        let (options, wake) = (Arc::new(options), self.commands.clone());
        let submission = Submission { prompts, options, sink, arrived: Instant::now(), places, wake };
        // If the thread has ended, the places go with the submission.
        self.commands.send(Command::Submit(submission)).map_err(|_| Rejection::ShuttingDown)?;
        Ok(receiver)
    }

    /// Takes no more requests.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }

    /// Ends what is still running, and the thread.
    pub fn stop(&self) {
        self.close();
        // If the thread has ended, so has everything else.
        let _ = self.commands.send(Command::Stop);
    }

    /// Choices that wait or run.
    pub fn active(&self) -> usize {
        self.shared.active.load(Ordering::Relaxed)
    }

    /// Whether requests are taken.
    pub fn is_open(&self) -> bool {
        !self.shared.closed.load(Ordering::Relaxed)
    }

    /// What is counted and timed.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }
}

/// Takes no more requests once it is dropped.
struct Closing(Arc<Shared>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.closed.store(true, Ordering::Relaxed);
    }
}

/// What a reader is told of a panic.
const FAULT: &str = "this text made the server fail; this is a fault of the server";

/// Events that a reader may be behind before its request stands still.
const EVENTS_HELD: usize = 256;
