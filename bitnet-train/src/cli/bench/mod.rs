//! `bitnet-train bench`: how fast a model trains here, and where the time goes.

mod measure;
mod sizes;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow, ensure};
use bitnet_train::config::Run;
use bitnet_train::data::TokenizerConfig;
use clap::Args;

use self::measure::{Measured, measure};
use self::sizes::SIZES;
use super::{environment, run::start_threads};

/// Arguments of `bench`.
#[derive(Args)]
#[command(after_help = "Examples:
  bitnet-train bench --size A
  bitnet-train bench --size B --set train.precision=bf16 --json
  bitnet-train bench configs/dickens.toml --set quantization.weight=none")]
pub struct BenchArgs {
    /// A config file; its text is not read, tokens are random.
    #[arg(required_unless_present = "size", conflicts_with = "size")]
    config: Option<PathBuf>,
    /// A model of known size instead: A (6.2 M parameters) or B (29.4 M), 4,096 tokens a step.
    #[arg(long)]
    size: Option<String>,
    /// Changes one key of the config, such as `run.threads=1`; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// Steps that are timed.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Entries of the vocabulary, where the config's tokenizer does not say.
    #[arg(long)]
    vocabulary: Option<usize>,
    /// Prints everything as JSON.
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    /// Measures and prints.
    ///
    /// # Errors
    /// If the config is wrong or a step fails.
    pub fn run(self) -> Result<ExitCode> {
        ensure!(self.steps > 0, "`--steps` is 0, expected at least 1");
        let (run, known) = match (&self.size, &self.config) {
            (Some(name), _) => {
                let size = SIZES.iter().find(|size| size.name == name);
                let size = size.ok_or_else(|| anyhow!("`--size` is `{name}`, expected A or B"))?;
                (Run::parse(size.config, format!("size {name}"), &self.assignments)?, Some(size.vocabulary))
            }
            (None, Some(path)) => (Run::read(path, &self.assignments)?, None),
            (None, None) => unreachable!("one of them is required"),
        };
        let named = match &run.config.tokenizer {
            TokenizerConfig::Bpe { vocab_size, .. } => Some(*vocab_size),
            _ => None,
        };
        let vocabulary = self.vocabulary.or(known).or(named);
        let vocabulary =
            vocabulary.ok_or_else(|| anyhow!("the tokenizer's size is in no config: give `--vocabulary`"))?;
        environment::settle(run.config.run.threads)?;
        start_threads(run.config.run.threads)?;
        let measured = measure(&run, vocabulary, self.steps)?;
        let text = if self.json { serde_json::to_string_pretty(&measured)? + "\n" } else { table(&measured) };
        std::io::stdout().lock().write_all(text.as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn table(m: &Measured) -> String {
    let mut lines = vec![
        format!(
            "{}: {:.2} M parameters, {} weights, {} ops, products in {}, {} threads of {}",
            m.name,
            m.parameters as f64 / 1e6,
            m.weights,
            m.ops,
            m.precision,
            m.threads,
            m.cpu
        ),
        format!(
            "{:.0} tokens/s: {:.1} ms a step of {} tokens (median of {})",
            m.tokens_per_second, m.step_ms, m.tokens_per_step, m.steps
        ),
        format!(
            "data {:.1} ms, forward {:.1}, backward {:.1}, optimizer {:.1}",
            m.data_ms, m.forward_ms, m.backward_ms, m.optimizer_ms
        ),
        format!(
            "{:.1} GFLOP a step: {:.0} % of the f32 peak ({:.0} GFLOP/s, {}), {:.0} % of the bf16 peak ({:.0}, {})",
            m.gflop_per_step,
            m.utilisation_f32 * 100.0,
            m.peak_f32_gflops,
            m.tiles[0],
            m.utilisation_bf16 * 100.0,
            m.peak_bf16_gflops,
            m.tiles[1]
        ),
        format!(
            "peak memory {}{}, loss {:.4}",
            m.peak_memory_mb.map_or("unknown".into(), |mb| format!("{mb:.0} MB")),
            m.estimated_memory_mb.map_or(String::new(), |mb| format!(" (estimated {mb:.0} MB)")),
            m.loss
        ),
    ];
    if !m.profile.is_empty() {
        lines.push(format!("{:<20} {:>9} {:>7} {:>9}", "", "ms", "share", "GFLOP/s"));
    }
    for op in &m.profile {
        let rate = if op.gflops > 0.0 { format!("{:.0}", op.gflops) } else { String::new() };
        lines.push(format!("{:<20} {:>9.2} {:>6.1}% {rate:>9}", op.op, op.ms, op.share * 100.0));
    }
    lines.join("\n") + "\n"
}
