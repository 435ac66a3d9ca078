//! `bitnet-infer bench`.

mod machine;
mod measure;
mod report;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};

use bitnet_infer::engine::{HeadFormat, KvType, Model, RandomModel};
use bitnet_infer::eval::memory::peak_memory;
use bitnet_model::config::{Quantization, Storage};
use bitnet_model::files::hugging_face;
use bitnet_model::weights::FloatType;

use machine::Machine;
use report::Report;

use super::{Opening, output};

/// Measure prefill and decode speed, with random weights of a shape or with a model.
///
/// Speed does not depend on the values of weights. Each test is told as a share of what this machine can do, measured in
/// the same run: reading memory, which bounds decode, and the kernel on weights in cache, which bounds prefill.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bitnet-infer bench --shape 2b-4t --prompt 128,512 --generate 64
  bitnet-infer bench --shape 2b-4t --batch 1,4,16,32 --threads 2
  bitnet-infer bench --shape tiny --hidden 1024 --layers 8 --weights int8 --threads 1
  bitnet-infer bench --model model --json")]
pub struct Args {
    /// Named shape: 2b-4t, 700m, 125m, 30m, tiny
    #[arg(long, value_name = "NAME", default_value = "125m")]
    shape: String,
    /// Measure this model folder instead of random weights
    #[arg(long, value_name = "DIR", conflicts_with_all = ["shape", "weights", "floats", "hidden", "write", "layers", "ffn", "heads", "kv_heads", "vocab"])]
    model: Option<PathBuf>,
    /// Weights: ternary, binary, int8, int4, or none for floats (then activations are floats too)
    #[arg(long, value_name = "SCHEME", default_value = "ternary")]
    weights: String,
    /// Type of embedding, head and float weights: f16, bf16, f32
    #[arg(long, value_name = "TYPE", default_value = "f16", value_parser = ["f16", "bf16", "f32"])]
    floats: String,
    /// How logits are computed: stored (as the type of the head), int8, int4, exact
    #[arg(long, value_name = "FORMAT", default_value_t = HeadFormat::Exact)]
    head: HeadFormat,
    /// Replaces the shape's hidden size
    #[arg(long, value_name = "N")]
    hidden: Option<usize>,
    /// Replaces the shape's number of layers
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Replaces the shape's feed-forward width
    #[arg(long, value_name = "N")]
    ffn: Option<usize>,
    /// Replaces the shape's number of heads
    #[arg(long, value_name = "N")]
    heads: Option<usize>,
    /// Replaces the shape's number of key-value heads
    #[arg(long, value_name = "N")]
    kv_heads: Option<usize>,
    /// Replaces the shape's vocabulary size
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// Tokens of a prompt read at once; several, separated by commas, for several tests
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "128")]
    prompt: Vec<usize>,
    /// Tokens generated one by one behind the first prompt
    #[arg(long, value_name = "N", default_value_t = 64)]
    generate: usize,
    /// Sequences that generate together; several, separated by commas, for several tests
    #[arg(long, value_name = "N,N", value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// What keys and values are kept as: f32, f16, int8
    #[arg(long, value_name = "TYPE", default_value_t)]
    kv: KvType,
    /// Measurements, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeats: usize,
    /// Write the random model to this folder instead of measuring it
    #[arg(long, value_name = "DIR", conflicts_with_all = ["head", "batch", "kv", "repeats", "json"])]
    write: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the shape cannot be or the model does not load.
pub fn run(args: &Args, opening: Opening) -> Result<()> {
    if [&args.prompt[..], &args.batch, &[args.generate, args.repeats]].concat().contains(&0) {
        bail!("--prompt, --generate, --batch and --repeats must be at least 1");
    }
    for (option, value) in [("--batch", most(&args.batch)), ("--repeats", args.repeats)] {
        if value > MOST_AT_ONCE {
            bail!("{option} is {value}, expected at most {MOST_AT_ONCE}");
        }
    }
    if let Some(folder) = &args.write {
        return Ok(hugging_face::write(folder, &args.random()?.parts()?)?);
    }
    let started = Instant::now();
    let model = match &args.model {
        Some(folder) => opening.open(folder)?.model,
        None => args.random()?.build(opening.arrangement)?,
    };
    let model = model.with_head(args.head);
    let report = args.measure(&model, started.elapsed().as_secs_f64())?;
    if args.json {
        return output::print_json(&report);
    }
    Ok(output::print(&report.text())?)
}

fn most(values: &[usize]) -> usize {
    values.iter().copied().max().unwrap_or(0)
}

/// Sequences that generate together, and measurements.
const MOST_AT_ONCE: usize = 65_536;

impl Args {
    /// Whether a model comes of it in place of measurements.
    pub fn writes_a_file(&self) -> bool {
        self.write.is_some()
    }

    fn random(&self) -> Result<RandomModel> {
        let mut random = RandomModel::named(&self.shape)?;
        let config = &mut random.config;
        config.hidden_size = self.hidden.unwrap_or(config.hidden_size);
        config.num_hidden_layers = self.layers.unwrap_or(config.num_hidden_layers);
        config.intermediate_size = self.ffn.unwrap_or(config.intermediate_size);
        config.num_attention_heads = self.heads.unwrap_or(config.num_attention_heads);
        config.num_key_value_heads =
            self.kv_heads.unwrap_or(config.num_key_value_heads.min(config.num_attention_heads));
        config.vocab_size = self.vocab.unwrap_or(config.vocab_size);
        if self.hidden.is_some() || self.heads.is_some() {
            let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
            if heads == 0 || !hidden.is_multiple_of(heads) {
                bail!("--heads: {heads} heads do not divide a hidden size of {hidden}");
            }
            config.head_dim = hidden / heads;
        }
        let longest = most(&self.prompt);
        let Some(positions) = longest.checked_add(self.generate).filter(|&positions| positions < 1 << 24) else {
            bail!("--prompt and --generate: {longest} and {} tokens are too many", self.generate);
        };
        config.max_position_embeddings = config.max_position_embeddings.max(positions);
        let activations = if self.weights == "none" { "none" } else { "int8" };
        config.quantization = Quantization::by_name(&self.weights, activations).map_err(anyhow::Error::msg)?;
        config.storage = if self.weights == "none" { Storage::Float } else { Storage::Packed };
        random.float_type = match self.floats.as_str() {
            "f32" => FloatType::F32,
            "bf16" => FloatType::Bf16,
            _ => FloatType::F16,
        };
        Ok(random)
    }

    fn measure(&self, model: &Model, load_seconds: f64) -> Result<Report> {
        let config = model.config();
        let mut rows = Vec::new();
        for &tokens in &self.prompt {
            rows.push(measure::prefill(model, self.kv, tokens, self.repeats)?);
        }
        for &batch in &self.batch {
            rows.push(measure::decode(model, self.kv, [batch, self.prompt[0], self.generate], self.repeats)?);
        }
        Ok(Report {
            model: self.model.as_ref().map_or_else(|| format!("random, {}", self.shape), |m| m.display().to_string()),
            weights: format!("{:?}", config.quantization),
            parameters: config.parameters(),
            weight_bytes_per_token: model.weight_bytes_per_token(),
            ternary: model.ternary().map(|choice| choice.to_string()),
            kv: self.kv,
            load_seconds,
            head: model.head_format(),
            peak_memory_bytes: peak_memory().map(|bytes| bytes as usize),
            machine: Machine::measure(model)?,
            rows,
        })
    }
}
