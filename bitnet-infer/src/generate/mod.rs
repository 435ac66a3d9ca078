//! Text in, text out: where token ids become text.

mod stop;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use bitnet_model::tokenizer::{TextStream, Tokenizer};

pub use stop::StopFilter;

use crate::engine::{
    Error, KvCache, KvType, Model, NextLogits, Profile, Result, Sampler, SamplerConfig, SavedPrompt, Sequence,
    save_prompt,
};

/// What to generate.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// New tokens at most.
    pub max_new_tokens: usize,
    /// Tokens that end the generation besides those of the model's configuration.
    pub end_tokens: Vec<u32>,
    /// Texts that end the generation; none of them, nor any part of one that led to the end, is given out.
    pub stop: Vec<String>,
    /// Prompt and new tokens at most; `None` for the model's own limit.
    pub context: Option<usize>,
    /// How tokens are drawn.
    pub sampler: SamplerConfig,
    /// What keys and values are kept as.
    pub kv: KvType,
    /// A file of [`save_prompt`]: what the prompt has in common with it is not read again. It is written if it does not exist,
    /// and replaced if the prompt is longer than what it holds.
    pub prompt_cache: Option<PathBuf>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 128,
            end_tokens: Vec::new(),
            stop: Vec::new(),
            context: None,
            sampler: SamplerConfig::default(),
            kv: KvType::default(),
            prompt_cache: None,
        }
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model gave one of its end tokens.
    EndOfText,
    /// A stop text came up.
    StopText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// No more tokens fit the context.
    ContextFull,
    /// The caller did not want more.
    Cancelled,
}

/// What was generated, and how fast.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Generation {
    /// The new text, without prompt and stop text.
    pub text: String,
    /// The new tokens, the last one included whatever it was.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt, BOS included.
    pub prompt_tokens: usize,
    /// How many of them were in the prompt cache.
    pub cached_tokens: usize,
    /// Seconds until the prompt was read.
    pub prefill_seconds: f64,
    /// Seconds for the new tokens after that.
    pub decode_seconds: f64,
    /// Forward passes behind `decode_seconds`: the last token needs none.
    pub decode_steps: usize,
    /// What keys and values were kept as.
    pub kv: KvType,
    /// Bytes of all of them at the end.
    pub kv_bytes: usize,
    /// Why it ended.
    pub stop_reason: StopReason,
    /// Rows of the stored head that were read for all new tokens together, where [`HeadFormat::Exact`] chose them.
    ///
    /// [`HeadFormat::Exact`]: crate::engine::HeadFormat::Exact
    pub rescored_rows: Option<usize>,
}

impl Generation {
    /// Tokens of the prompt read per second, without those from the prompt cache.
    pub fn prefill_rate(&self) -> f64 {
        (self.prompt_tokens - self.cached_tokens) as f64 / self.prefill_seconds.max(1e-9)
    }

    /// New tokens per second after the first.
    pub fn decode_rate(&self) -> f64 {
        self.decode_steps as f64 / self.decode_seconds.max(1e-9)
    }
}

/// Generates text with one model.
pub struct Generator<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
}

impl<'a> Generator<'a> {
    /// A generator; the tokenizer must fit the model, as loading has checked.
    pub fn new(model: &'a Model, tokenizer: &'a Tokenizer) -> Self {
        Self { model, tokenizer }
    }

    /// The tokens of a prompt: the model's BOS, if it has one and the text does not begin with it, then the text's.
    ///
    /// # Errors
    /// If the text cannot be encoded, or is empty and the model has no BOS to begin with.
    pub fn encode(&self, prompt: &str) -> Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode(prompt)?;
        if let Some(bos) = self.model.config().bos_token_id
            && tokens.first() != Some(&bos)
        {
            tokens.insert(0, bos);
        }
        if tokens.is_empty() {
            return Err(Error::Input("the prompt is empty, and this model has no token to begin a text with".into()));
        }
        Ok(tokens)
    }

    /// Continues `prompt`, giving each piece of text to `on_text` as soon as it is certain (perhaps
    /// none: it is asked for every token whether it wants more).
    ///
    /// # Errors
    /// If the prompt cannot be encoded or does not fit the context, a setting is out of its range, or the prompt cache cannot
    /// be read or written.
    pub fn run(
        &self,
        prompt: &str,
        options: &GenerateOptions,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        let tokens = self.encode(prompt)?;
        let mut cache = self.cache(options)?;
        let Some(path) = &options.prompt_cache else {
            return self.continue_tokens(tokens, &mut cache, options, on_text);
        };
        let saved = if path.exists() { Some(SavedPrompt::read(path, self.model, options.kv)?) } else { None };
        if let Some(saved) = &saved {
            saved.restore(&tokens[..tokens.len().min(cache.capacity())], &mut cache);
        }
        let is_longer = saved.is_none_or(|saved| saved.tokens().len() < tokens.len());
        let save = |tokens: &[u32], cache: &KvCache| match is_longer {
            true => save_prompt(path, self.model, tokens, cache),
            false => Ok(()),
        };
        self.generate(tokens, &mut cache, options, save, on_text)
    }

    /// An empty cache for these options.
    ///
    /// # Errors
    /// If the context is not one that the model has.
    pub fn cache(&self, options: &GenerateOptions) -> Result<KvCache> {
        let longest = self.model.config().max_position_embeddings;
        KvCache::with_type(self.model.config(), options.context.unwrap_or(longest), options.kv)
    }

    /// Continues a prompt of tokens, the first of which are in `cache` already (not all of them). Afterwards the cache holds the
    /// prompt and all new tokens but the last. The prompt cache of the options plays no part.
    ///
    /// # Errors
    /// As [`Generator::run`].
    ///
    /// # Panics
    /// If the cache holds as many tokens as the prompt has, or more.
    pub fn continue_tokens(
        &self,
        prompt: Vec<u32>,
        cache: &mut KvCache,
        options: &GenerateOptions,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        self.generate(prompt, cache, options, |_, _| Ok(()), on_text)
    }

    fn generate(
        &self,
        mut history: Vec<u32>,
        cache: &mut KvCache,
        options: &GenerateOptions,
        on_prompt: impl FnOnce(&[u32], &KvCache) -> Result<()>,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Generation> {
        assert!(cache.len() < history.len(), "at least one token is to be read");
        let prompt_tokens = history.len();
        let mut sampler = Sampler::new(options.sampler.clone())?.after_prompt(prompt_tokens);
        if prompt_tokens > cache.capacity() {
            let capacity = cache.capacity();
            return Err(Error::Input(format!(
                "the prompt has {prompt_tokens} tokens, which do not fit the context of {capacity}: shorten it"
            )));
        }
        let mut text_stream = TextStream::new(self.tokenizer, &history)?;
        let mut stops = StopFilter::new(&options.stop);
        let mut text = String::new();

        let started = Instant::now();
        let cached_tokens = cache.len();
        let mut next = self.next(&history[cached_tokens..], cache, &sampler, &history)?;
        let prefill_seconds = started.elapsed().as_secs_f64();
        on_prompt(&history, cache)?;
        let (started, mut decode_steps, mut rescored) = (Instant::now(), 0, None);
        let mut stop_reason = loop {
            if history.len() - prompt_tokens == options.max_new_tokens {
                break StopReason::MaxTokens;
            }
            let token = sampler.sample(&next.logits, &history);
            rescored = next.rescored.map(|rows| rescored.unwrap_or(0) + rows);
            history.push(token);
            if self.model.config().eos_token_ids.contains(&token) || options.end_tokens.contains(&token) {
                break StopReason::EndOfText;
            }
            let piece = stops.push(&text_stream.push(token)?);
            // Asked for every token, so that a caller can stop while text is held back.
            if on_text(&piece).is_break() {
                break StopReason::Cancelled;
            }
            text.push_str(&piece);
            if stops.stopped().is_some() {
                break StopReason::StopText;
            }
            if history.len() - prompt_tokens == options.max_new_tokens {
                break StopReason::MaxTokens;
            }
            if cache.len() == cache.capacity() {
                break StopReason::ContextFull;
            }
            next = self.next(&[token], cache, &sampler, &history)?;
            decode_steps += 1;
        };
        let decode_seconds = started.elapsed().as_secs_f64();
        if !matches!(stop_reason, StopReason::Cancelled | StopReason::StopText) {
            let rest = stops.end(&text_stream.finish());
            if stops.stopped().is_some() {
                stop_reason = StopReason::StopText;
            }
            text.push_str(&rest);
            // It has ended anyway: whether the caller wants more does not matter.
            if !rest.is_empty() {
                let _ = on_text(&rest);
            }
        }
        let tokens = history.split_off(prompt_tokens);
        let (kv, kv_bytes) = (options.kv, cache.byte_count());
        Ok(Generation {
            text,
            tokens,
            prompt_tokens,
            cached_tokens,
            prefill_seconds,
            decode_seconds,
            decode_steps,
            kv,
            kv_bytes,
            stop_reason,
            rescored_rows: rescored,
        })
    }

    /// Runs `tokens` and computes what the sampler wants to see of the logits behind the last.
    fn next(&self, tokens: &[u32], cache: &mut KvCache, sampler: &Sampler, history: &[u32]) -> Result<NextLogits> {
        let last_h = self.model.last_states(&mut [Sequence { tokens, cache }], &mut Profile::default())?;
        Ok(self.model.next_logits(&last_h, &sampler.wanted(history)))
    }
}
