//! What all requests see.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use bitnet_model::rng::{Stream, generator};
use bitnet_model::tokenizer::Tokenizer;
use rand::RngCore;
use tokio::sync::Semaphore;

use super::error::ApiError;
use super::scheduler::{Engine, Limits};
use super::structured::Structured;
use crate::chat::ChatFormat;
use crate::engine::{Error, KvCache, LoadedModel, Result, SamplerConfig};

/// The model, the engine's handle, and the settings.
pub struct Server {
    /// The engine.
    pub engine: Engine,
    /// The model and its tokenizer.
    pub loaded: Arc<LoadedModel>,
    /// How conversations are written, if the model knows any.
    pub chat: Option<ChatFormat>,
    /// The name by which clients know the model.
    pub name: String,
    /// How tokens are drawn where a request does not say.
    pub sampler: SamplerConfig,
    /// Tokens that end a text.
    pub end_tokens: Vec<u32>,
    /// What the engine takes on.
    pub limits: Limits,
    /// Largest body of a request, in bytes.
    pub body_limit: usize,
    /// Most prompts of one request.
    pub most_prompts: usize,
    /// When it was started, in seconds since 1970.
    pub created: u64,
    /// Places for requests that take a while to be understood.
    pub large_requests: Semaphore,
    longest_token: OnceLock<usize>,
    /// What holds texts to JSON.
    pub structured: Structured,
    seed: u64,
    count: AtomicU64,
}

/// What a server is made of.
pub struct Parts {
    /// The engine.
    pub engine: Engine,
    /// The model and its tokenizer.
    pub loaded: Arc<LoadedModel>,
    /// How conversations are written, if the model knows any.
    pub chat: Option<ChatFormat>,
    /// The name by which clients know the model.
    pub name: String,
    /// How tokens are drawn where a request does not say.
    pub sampler: SamplerConfig,
    /// Tokens that end a text besides the configuration's.
    pub end_tokens: Vec<u32>,
    /// What the engine takes on.
    pub limits: Limits,
    /// Largest body of a request, in bytes.
    pub body_limit: usize,
    /// Decides the seeds of requests that name none.
    pub seed: u64,
}

impl Server {
    /// Puts a server together.
    ///
    /// # Errors
    /// If the model has no tokenizer.
    pub fn new(parts: Parts) -> Result<Self> {
        let Parts { engine, loaded, chat, name, sampler, end_tokens, limits, body_limit, seed } = parts;
        loaded.require_tokenizer()?;
        let mut ends = loaded.model.config().eos_token_ids.clone();
        ends.extend(end_tokens);
        ends.sort_unstable();
        ends.dedup();
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let count = AtomicU64::new(0);
        let most_prompts = limits.queue.saturating_add(limits.parallel);
        Ok(Self {
            engine,
            loaded,
            chat,
            name,
            sampler,
            end_tokens: ends,
            limits,
            body_limit,
            most_prompts,
            created,
            structured: Structured::default(),
            large_requests: Semaphore::new(LARGE_AT_ONCE),
            longest_token: OnceLock::new(),
            seed,
            count,
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.loaded.require_tokenizer()
    }

    /// Tokens that the model has embeddings for.
    pub fn vocab_size(&self) -> usize {
        self.loaded.model.config().vocab_size
    }

    /// Tokens of a prompt and its continuation.
    pub fn context(&self) -> usize {
        self.limits.context
    }

    /// The seed of a request that names none.
    pub fn fresh_seed(&self) -> u64 {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        generator(self.seed.wrapping_add(count), Stream::Serving).next_u64()
    }

    /// A name for an answer.
    pub fn fresh_id(&self, prefix: &str) -> String {
        format!("{prefix}-{:016x}{:08x}", self.fresh_seed(), self.created & 0xffff_ffff)
    }

    /// Refuses a request for another model.
    ///
    /// # Errors
    /// The name of the one that is served.
    pub fn check_model(&self, asked: Option<String>) -> Result<(), ApiError> {
        match asked {
            Some(asked) if asked != self.name => Err(self.unknown_model(&asked)),
            _ => Ok(()),
        }
    }

    /// The answer to a request for another model.
    pub fn unknown_model(&self, asked: &str) -> ApiError {
        let asked: String = asked.chars().take(80).collect();
        let message = format!("unknown model `{}`: this server has only `{}`", asked.escape_debug(), self.name);
        ApiError { param: Some("model".into()), ..ApiError::with(StatusCode::NOT_FOUND, "model_not_found", message) }
    }

    /// Refuses a number of tokens that the context does not hold.
    ///
    /// # Errors
    /// Both numbers.
    pub fn check_length(&self, tokens: usize) -> Result<(), ApiError> {
        let context = self.context();
        if tokens <= context {
            return Ok(());
        }
        let message = format!("this model's context is {context} tokens, the prompt has {tokens}: shorten it");
        Err(ApiError::invalid(message).coded("context_length_exceeded"))
    }

    /// Refuses a text of so many bytes that cannot fit the context even if it were made of the longest tokens: before it is worked on.
    ///
    /// # Errors
    /// How long it may be.
    pub fn check_text(&self, bytes: usize) -> Result<(), ApiError> {
        let longest = *self.longest_token.get_or_init(|| {
            let tokens = 0..u32::try_from(self.vocab_size()).unwrap_or(u32::MAX);
            let lengths = self.tokenizer().map(|tokenizer| tokens.map(|id| tokenizer.bytes_of(id).len()).max());
            lengths.ok().flatten().unwrap_or(1).max(LEAST_LONGEST)
        });
        let most = self.context().saturating_mul(longest);
        if bytes <= most {
            return Ok(());
        }
        let context = self.context();
        let message = format!(
            "this model's context is {context} tokens, which hold {most} bytes at most, the text has {bytes}: shorten it"
        );
        Err(ApiError::invalid(message).coded("context_length_exceeded"))
    }

    /// Refuses a text that would not fit the memory for keys and values even alone.
    ///
    /// # Errors
    /// The longest that does.
    pub fn check_memory(&self, tokens: usize) -> Result<(), ApiError> {
        let pages = self.page_limit();
        let most = pages * crate::engine::PAGE_TOKENS;
        if tokens <= most {
            return Ok(());
        }
        Err(ApiError::invalid(format!(
            "{tokens} tokens do not fit the memory for keys and values, which holds {most}: shorten the prompt or ask for fewer"
        ))
        .coded("context_length_exceeded"))
    }

    /// Pages of keys and values that there is memory for.
    pub fn page_limit(&self) -> usize {
        super::scheduler::page_limit(&self.loaded.model, &self.limits)
    }

    /// Bytes of keys and values of one token.
    pub fn bytes_per_token(&self) -> usize {
        let cache = KvCache::with_type(self.loaded.model.config(), 1, self.limits.kv_type);
        cache.map_or(0, |cache| cache.bytes_per_token())
    }

    /// The format of conversations.
    ///
    /// # Errors
    /// If the model has none.
    pub fn chat(&self) -> Result<&ChatFormat, ApiError> {
        self.chat.as_ref().ok_or_else(|| {
            ApiError::invalid(
                "this model has no chat template: start the server with --chat-template NAME, or use /v1/completions",
            )
            .coded("no_chat_template")
        })
    }
}

/// Large requests that are prepared at the same time.
const LARGE_AT_ONCE: usize = 2;

/// Bytes that a token may stand for whatever the vocabulary says: normalizers may shorten a text.
const LEAST_LONGEST: usize = 16;

impl From<Error> for ApiError {
    /// What the engine or the tokenizer says of a request's own text.
    fn from(error: Error) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<bitnet_model::Error> for ApiError {
    fn from(error: bitnet_model::Error) -> Self {
        Self::invalid(error.to_string())
    }
}
