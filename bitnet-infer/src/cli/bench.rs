//! `bitnet-infer bench`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use serde::Serialize;

use bitnet_infer::engine::{HeadFormat, KvCache, Model, RandomModel, Sequence, Wanted, argmax};
use bitnet_infer::kernels::Kernel;
use bitnet_model::config::{Quantization, Storage};
use bitnet_model::files::hugging_face;
use bitnet_model::weights::FloatType;

use super::output;

/// Measure prefill and decode speed, with random weights of a shape or with a model.
///
/// Speed does not depend on the values of weights.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  bitnet-infer bench --shape 2b-4t --prompt 256 --generate 32
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
    #[arg(long, value_name = "FORMAT", default_value_t)]
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
    /// Tokens read at once
    #[arg(long, value_name = "N", default_value_t = 128)]
    prompt: usize,
    /// Tokens generated one by one behind the prompt
    #[arg(long, value_name = "N", default_value_t = 64)]
    generate: usize,
    /// Measurements, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeats: usize,
    /// Write the random model to this folder instead of measuring it
    #[arg(long, value_name = "DIR")]
    write: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    model: String,
    weights: String,
    parameters: u64,
    kernel: &'static str,
    cpu: String,
    threads: usize,
    load_seconds: f64,
    weight_bytes_per_token: usize,
    head: HeadFormat,
    rescored_rows_per_token: Option<f64>,
    peak_memory_bytes: Option<usize>,
    prompt_tokens: usize,
    generated_tokens: usize,
    prefill_tok_per_s: f64,
    prefill_gmac_per_s: f64,
    decode_tok_per_s: f64,
    decode_gmac_per_s: f64,
    decode_gb_per_s: f64,
}

/// Runs the command.
///
/// # Errors
/// If the shape cannot be or the model does not load.
pub fn run(args: &Args, kernel: &'static Kernel) -> Result<()> {
    if args.prompt == 0 || args.generate == 0 || args.repeats == 0 {
        bail!("--prompt, --generate and --repeats must be at least 1");
    }
    if let Some(folder) = &args.write {
        return Ok(hugging_face::write(folder, &args.random()?.parts()?)?);
    }
    let started = Instant::now();
    let model = match &args.model {
        Some(folder) => super::open(folder, kernel)?.model,
        None => args.random()?.build(kernel)?,
    };
    let model = model.with_head(args.head);
    let report = args.measure(&model, started.elapsed().as_secs_f64())?;
    if args.json {
        return output::print_json(&report);
    }
    Ok(output::print(&report.text())?)
}

impl Args {
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
        let Some(positions) = self.prompt.checked_add(self.generate).filter(|&positions| positions < 1 << 24) else {
            bail!("--prompt and --generate: {} and {} tokens are too many", self.prompt, self.generate);
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
        let (mut prefill, mut decode, mut rescored) = (Vec::new(), Vec::new(), None);
        for _ in 0..self.repeats {
            let mut cache = KvCache::new(config, self.prompt + self.generate)?;
            let prompt: Vec<u32> = (0..self.prompt).map(|i| (i * 7919 % config.vocab_size) as u32).collect();
            let started = Instant::now();
            let mut token = greedy(model, &prompt, &mut cache)?.0;
            prefill.push(self.prompt as f64 / started.elapsed().as_secs_f64());
            let started = Instant::now();
            for _ in 0..self.generate {
                let (next, rows) = greedy(model, &[token], &mut cache)?;
                (token, rescored) = (next, rows.map(|rows| rescored.unwrap_or(0) + rows));
            }
            decode.push(self.generate as f64 / started.elapsed().as_secs_f64());
        }
        let (prefill_rate, decode_rate) = (median(prefill), median(decode));
        let projection_macs = config.projection_parameters() as f64;
        let head_macs = config.vocab_size as f64 * config.hidden_size as f64;
        let bytes = model.weight_bytes_per_token();
        Ok(Report {
            model: self.model.as_ref().map_or_else(|| format!("random, {}", self.shape), |m| m.display().to_string()),
            weights: format!("{:?}", config.quantization),
            parameters: config.parameters(),
            kernel: model.kernel().name,
            cpu: cpu_name(),
            threads: rayon::current_num_threads(),
            load_seconds,
            weight_bytes_per_token: bytes,
            head: model.head_format(),
            rescored_rows_per_token: rescored.map(|rows: usize| rows as f64 / (self.repeats * self.generate) as f64),
            peak_memory_bytes: peak_memory_bytes(),
            prompt_tokens: self.prompt,
            generated_tokens: self.generate,
            prefill_tok_per_s: prefill_rate,
            // Only the last token of a prompt goes through the head.
            prefill_gmac_per_s: (projection_macs + head_macs / self.prompt as f64) * prefill_rate / 1e9,
            decode_tok_per_s: decode_rate,
            decode_gmac_per_s: (projection_macs + head_macs) * decode_rate / 1e9,
            decode_gb_per_s: bytes as f64 * decode_rate / 1e9,
        })
    }
}

impl Report {
    fn text(&self) -> String {
        format!(
            "model     {} ({} parameters), {}, ready in {:.1} s\n\
             machine   {}, threads {}, kernel {}\n\
             weights   {} read for every decoded token, head {}{}\n\
             memory    {}\n\
             prefill   {:.1} tok/s over {} tokens ({:.1} GMAC/s)\n\
             decode    {:.1} tok/s over {} tokens ({:.1} GMAC/s, {:.1} GB/s of weights)\n",
            self.model,
            output::count(self.parameters),
            self.weights,
            self.load_seconds,
            self.cpu,
            self.threads,
            self.kernel,
            output::bytes(self.weight_bytes_per_token),
            self.head,
            self.rescored_rows_per_token.map(|rows| format!(", {rows:.1} rows rescored")).unwrap_or_default(),
            self.peak_memory_bytes.map_or("unknown".to_owned(), |bytes| output::bytes(bytes) + " at most so far"),
            self.prefill_tok_per_s,
            self.prompt_tokens,
            self.prefill_gmac_per_s,
            self.decode_tok_per_s,
            self.generated_tokens,
            self.decode_gmac_per_s,
            self.decode_gb_per_s,
        )
    }
}

/// The most probable next token, and how many rows of the stored head were needed besides the codes.
fn greedy(model: &Model, tokens: &[u32], cache: &mut KvCache) -> Result<(u32, Option<usize>)> {
    let hidden_th = model.hidden_states(&mut [Sequence { tokens, cache }])?;
    let last = hidden_th.len() - model.config().hidden_size;
    let next = model.next_logits(&hidden_th[last..], &Wanted::Largest { count: 1, also: Vec::new() });
    Ok((argmax(&next.logits), next.rescored))
}

/// The most memory that this process has had, where the system tells it.
fn peak_memory_bytes() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? << 10)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// The CPU's own name, where the system tells it.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| format!("unknown {} CPU", std::env::consts::ARCH), |(_, name)| name.trim().to_owned())
}
