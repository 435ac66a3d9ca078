//! From what a file says to what will happen: names looked up, divisibility proved, numbers checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use bitnet_infer::kernels::MAX_COLS;
use bitnet_model::ModelConfig;
use bitnet_model::config::{Quantization, Storage};
use bitnet_model::{files, quant};

use super::{RunConfig, overrides};
use crate::data::TokenizerConfig;
use crate::nn::estimator::{self, Estimator};
use crate::ops::{self, Backward, FusedSettings, MOST_INT8_LAYERS, Ops};

/// A run whose config has been checked.
///
/// Invariant: every check that needs no data has passed; [`Run::model_config`] does the rest once the vocabulary is known.
pub struct Run {
    /// The whole config, defaults filled in.
    pub config: RunConfig,
    /// The gradient of the weight quantizer.
    pub estimator: &'static dyn Estimator,
    /// How the network is computed.
    pub ops: Arc<dyn Ops>,
    quantization: Quantization,
    /// The file, for messages.
    origin: String,
}

impl Run {
    /// Reads a config file, applies `--set` assignments and checks everything that can be checked without data.
    ///
    /// # Errors
    /// One line: the file, the key and the reason.
    pub fn read(path: &Path, assignments: &[String]) -> Result<Self> {
        let origin = path.display().to_string();
        let text = files::text::owned(files::read_bounded(path, 1 << 20)?, &origin)?;
        Self::parse(&text, origin, assignments)
    }

    /// The same for a text that is there already; `origin` names it in messages.
    ///
    /// # Errors
    /// As [`Run::read`].
    pub fn parse(text: &str, origin: String, assignments: &[String]) -> Result<Self> {
        let mut table: toml::Table = text.parse().map_err(|e| toml_error(&origin, text, true, &e))?;
        for assignment in assignments {
            overrides::apply(&mut table, assignment).map_err(|e| anyhow!(e))?;
        }
        // Through text again where it was changed, so that an error has a line to show.
        let (text, numbered) = match assignments {
            [] => (text.to_owned(), true),
            _ => (toml::to_string(&table).context("a parsed TOML file prints")?, false),
        };
        let config: RunConfig = toml::from_str(&text).map_err(|e| {
            let place = if numbered { origin.clone() } else { format!("{origin} with --set") };
            toml_error(&place, &text, numbered, &e)
        })?;
        Self::resolve(config, origin)
    }

    /// What messages call the config: its file.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Checks a config that did not come from a file as it stands; `origin` names it in messages.
    ///
    /// # Errors
    /// One line: the key and the reason.
    pub fn resolve(config: RunConfig, origin: String) -> Result<Self> {
        let fail = |key: &str, reason: String| anyhow!("{origin}: `{key}` {reason}");
        let name = &config.run.name;
        if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
            return Err(fail("run.name", format!("is `{name}`, expected a plain folder name")));
        }
        let settings = FusedSettings {
            precision: config.train.precision,
            recompute: config.train.gradient_checkpointing,
            backward: config.train.backward,
            seed: config.run.seed,
        };
        let ops = ops::with_settings(&config.run.ops, settings).map_err(|e| fail("run.ops", e))?;
        let estimator =
            estimator::by_name(&config.quantization.estimator).map_err(|e| fail("quantization.estimator", e))?;
        let activation = match (config.quantization.activation.as_str(), config.quantization.weight.as_str()) {
            ("auto", quant::NONE) => quant::NONE,
            ("auto", _) => "int8",
            (name, _) => name,
        };
        let quantization =
            Quantization::by_name(&config.quantization.weight, activation).map_err(|e| fail("quantization", e))?;
        if quantization.weight.is_some_and(|scheme| scheme.granularity().group_cols().is_some()) {
            let known: Vec<_> = quant::WEIGHT_SCHEMES.iter().map(|scheme| scheme.name()).collect();
            let weight = &config.quantization.weight;
            let reason = format!(
                "is `{weight}`, a scheme of post-training quantizers, expected one of: {}, {}",
                quant::NONE,
                known.join(", ")
            );
            return Err(fail("quantization.weight", reason));
        }
        if config.train.backward == Backward::Int8 {
            if quantization.weight.is_none() || quantization.activation.is_none() {
                return Err(fail("train.backward", "is `int8`, which needs quantized weights and activations".into()));
            }
            let tokens = config.train.batch_size.saturating_mul(config.train.sequence_length);
            if tokens > MAX_COLS {
                let reason = format!("is `int8`, which takes at most {MAX_COLS} tokens in a batch, not {tokens}");
                return Err(fail("train.backward", reason));
            }
            // Gradients of inputs are sums over the rows of stacked projections.
            let model = &config.model;
            let or_else = |value: usize, default: usize| if value == 0 { default } else { value };
            let kv_heads = or_else(model.num_key_value_heads, model.num_attention_heads);
            let heads = model.num_attention_heads.saturating_add(kv_heads.saturating_mul(2));
            let head_dim = or_else(model.head_dim, model.hidden_size / model.num_attention_heads.max(1));
            let widest = heads.saturating_mul(head_dim).max(model.intermediate_size.saturating_mul(2));
            if widest > MAX_COLS || model.num_hidden_layers >= MOST_INT8_LAYERS {
                let reason = format!(
                    "is `int8`, which takes at most {MAX_COLS} rows of stacked projections and fewer than \
                     {MOST_INT8_LAYERS} layers; the model has {widest} and {}",
                    model.num_hidden_layers
                );
                return Err(fail("train.backward", reason));
            }
        }
        for (key, value) in [
            ("train.steps", config.train.steps),
            ("train.batch_size", config.train.batch_size as u64),
            ("train.sequence_length", config.train.sequence_length as u64),
            ("train.gradient_accumulation", u64::from(config.train.gradient_accumulation)),
            ("train.log_every", config.train.log_every),
            ("checkpoint.keep_last", config.checkpoint.keep_last as u64),
            ("model.num_attention_heads", config.model.num_attention_heads as u64),
        ] {
            if value == 0 {
                return Err(fail(key, "is 0, expected at least 1".into()));
            }
        }
        for (key, value, limit) in [
            ("train.steps", config.train.steps, 1 << 36),
            ("train.batch_size", config.train.batch_size as u64, 8193),
            ("train.gradient_accumulation", u64::from(config.train.gradient_accumulation), 1 << 16),
        ] {
            if value >= limit {
                return Err(fail(key, format!("is {value}, expected less than {limit}")));
            }
        }
        if let TokenizerConfig::Bpe { vocab_size, .. } = &config.tokenizer
            && *vocab_size >= 1 << 24
        {
            return Err(fail("tokenizer.vocab_size", format!("is {vocab_size}, expected less than {}", 1 << 24)));
        }
        let optimizer = &config.optimizer;
        for (key, value, low, high) in [
            ("optimizer.learning_rate", optimizer.learning_rate, 0.0, 10.0),
            ("optimizer.betas[0]", optimizer.betas[0], 0.0, 0.999_999),
            ("optimizer.betas[1]", optimizer.betas[1], 0.0, 0.999_999),
            ("optimizer.eps", optimizer.eps, 1e-16, 1.0),
            ("optimizer.weight_decay", optimizer.weight_decay, 0.0, 10.0),
            ("optimizer.weight_decay_until", optimizer.weight_decay_until, 0.0, 1.0),
            ("optimizer.clip_norm", optimizer.clip_norm, 0.0, f64::MAX),
            ("model.init_std", config.model.init_std, 1e-9, 100.0),
            ("evaluation.temperature", f64::from(config.evaluation.temperature), 0.0, 100.0),
        ] {
            if !(low..=high).contains(&value) {
                return Err(fail(key, format!("is {value}, expected {low} to {high}")));
            }
        }
        config.schedule.check(config.train.steps).map_err(|(key, reason)| fail(key, reason))?;
        let longest = config.model.max_position_embeddings;
        if longest != 0 && longest < config.train.sequence_length {
            let reason = format!("is {longest}, less than train.sequence_length = {}", config.train.sequence_length);
            return Err(fail("model.max_position_embeddings", reason));
        }
        let run = Self { config, estimator, ops, quantization, origin };
        // The vocabulary is not known yet; every other field can be refused now. Any size stands in for it.
        run.model_config(1 << 16, None)?;
        Ok(run)
    }

    /// The network's configuration, once the tokenizer has said how many tokens there are.
    ///
    /// # Errors
    /// The key of `[model]` that cannot be, and why.
    pub fn model_config(&self, vocab_size: usize, eos: Option<u32>) -> Result<ModelConfig> {
        let model = &self.config.model;
        let (heads, hidden) = (model.num_attention_heads, model.hidden_size);
        let head_dim = match model.head_dim {
            0 if hidden.is_multiple_of(heads) => hidden / heads,
            0 => bail!(
                "{}: `model.num_attention_heads` is {heads}, which does not divide hidden_size = {hidden}",
                self.origin
            ),
            dim => dim,
        };
        let or = |value: usize, default: usize| if value == 0 { default } else { value };
        let config = ModelConfig {
            vocab_size,
            hidden_size: hidden,
            intermediate_size: model.intermediate_size,
            num_hidden_layers: model.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: or(model.num_key_value_heads, heads),
            head_dim,
            hidden_act: model.hidden_act,
            max_position_embeddings: or(model.max_position_embeddings, self.config.train.sequence_length),
            rms_norm_eps: model.rms_norm_eps as f32,
            rope_theta: model.rope_theta as f32,
            rope_scaling: None,
            tie_word_embeddings: model.tie_word_embeddings,
            sub_norms: model.sub_norms,
            quantization: self.quantization,
            storage: Storage::Float,
            bos_token_id: None,
            eos_token_ids: eos.into_iter().collect(),
        };
        config.validate(&format!("{}: [model]", self.origin))?;
        if let Some((name, _, cols)) = config.projections().into_iter().find(|(_, _, cols)| *cols > MAX_COLS) {
            bail!("{}: [model]: {name} would read {cols} features, expected at most {MAX_COLS}", self.origin);
        }
        Ok(config)
    }

    /// The folder of this run.
    pub fn folder(&self) -> PathBuf {
        self.config.run.dir.join(&self.config.run.name)
    }

    /// Tokens that one optimizer step sees.
    pub fn tokens_per_step(&self) -> u64 {
        let train = &self.config.train;
        train.batch_size as u64 * train.sequence_length as u64 * u64::from(train.gradient_accumulation)
    }
}

/// A TOML error in one line: the file, the line's number where it is the file's own, the key with dots for nesting (the
/// line itself where there is none, as in an error of the syntax), the reason.
fn toml_error(origin: &str, text: &str, numbered: bool, error: &toml::de::Error) -> anyhow::Error {
    let message = error.message().replace('\n', ", ");
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map(|before| before.matches('\n').count());
    let number = line.filter(|_| numbered).map_or(String::new(), |line| format!(", line {}", line + 1));
    let place = key_of(error).or_else(|| Some(text.lines().nth(line?)?.trim().to_owned()));
    match place {
        Some(place) => anyhow!("{origin}{number}, `{place}`: {message}"),
        None => anyhow!("{origin}{number}: {message}"),
    }
}

/// The dotted key that a TOML error is about. The library tells it only at the end of an error printed without its text.
fn key_of(error: &toml::de::Error) -> Option<String> {
    let mut bare = error.clone();
    bare.set_input(None);
    let printed = bare.to_string();
    Some(printed.lines().last()?.strip_prefix("in `")?.strip_suffix('`')?.to_owned())
}
