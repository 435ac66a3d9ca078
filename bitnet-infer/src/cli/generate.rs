//! `bitnet-infer generate`.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Result, bail};

use bitnet_infer::chat::GenerationDefaults;
use bitnet_infer::engine::{HeadFormat, KvType, Model, SamplerConfig};
use bitnet_infer::generate::{GenerateOptions, Generation, Generator, StopReason};

use super::{Opening, output};

/// Continue a text: the text streams to stdout, the speed goes to stderr.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model folder, GGUF file, llama2.c file, or hub:OWNER/NAME[@REVISION][:FILE]
    model: PathBuf,
    /// Text to continue; `-` or nothing reads it from stdin, less one newline at its end
    prompt: Option<String>,
    /// New tokens at most
    #[arg(short = 'n', long = "max-tokens", value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Prompt and new tokens at most [default: the model's limit]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// How logits are computed: stored (as the file holds the head), int8, int4, exact (the stored head's tokens at the
    /// cost of int8, where there is a top-k or no randomness)
    #[arg(long, value_name = "FORMAT", default_value_t = HeadFormat::Exact)]
    head: HeadFormat,
    /// Randomness: 0 always takes the most probable token [default: the model's generation_config.json, else 0.8]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Draw from the K most probable tokens (0: all) [default: the model's, else 40]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the most probable tokens that together reach P [default: the model's, else 0.95]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Draw from tokens at least P times as probable as the first [default: the model's, else 0.05]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Make recent tokens less probable (1: off) [default: the model's, else 1]
    #[arg(long, value_name = "X")]
    repeat_penalty: Option<f32>,
    /// How many tokens count as recent [default: 64]
    #[arg(long, value_name = "N")]
    repeat_window: Option<usize>,
    /// Same seed, same text [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Text that ends the generation and is not printed; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// What keys and values are kept as: f32, f16, int8
    #[arg(long, value_name = "TYPE", default_value_t)]
    kv: KvType,
    /// Keep the keys and values of the prompt in this file, and do not read again what it has in common with the next prompt
    #[arg(long, value_name = "FILE")]
    prompt_cache: Option<PathBuf>,
    /// Print one JSON object at the end instead of text
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "The filters apply in this order: repetition penalty, top-k, top-p, min-p, temperature.

Examples:
  bitnet-infer generate model \"Once upon a time\" -n 200 --seed 7
  bitnet-infer generate model --temperature 0 --stop \"The end\" < prompt.txt";

/// Runs the command.
///
/// # Errors
/// If the model does not load or the prompt does not fit.
pub fn run(args: &Args, opening: Opening) -> Result<()> {
    let prompt = args.prompt()?;
    let files = opening.files(&args.model)?;
    let loaded = opening.load(&files)?.with_head(args.head);
    let options = args.options(&GenerationDefaults::of(&files)?);
    args.check(&options.sampler)?;
    let generator = Generator::new(&loaded.model, loaded.require_tokenizer()?);
    let mut closed = None;
    let on_text = |piece: &str| match if args.json { Ok(()) } else { output::print(piece) } {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            closed = Some(error);
            ControlFlow::Break(())
        }
    };
    let generation = generator.run(&prompt, &options, on_text)?;
    if let Some(error) = closed {
        return Err(error.into());
    }
    if args.json {
        return output::print_json(&generation);
    }
    output::print("\n")?;
    writeln!(io::stderr(), "{}", summary(&generation, &loaded.model))?;
    Ok(())
}

impl Args {
    /// Refuses what is given and cannot take effect.
    fn check(&self, sampler: &SamplerConfig) -> Result<()> {
        let (greedy, unpenalized) = (self.temperature == Some(0.0), sampler.repeat_penalty == 1.0);
        for (idle, is_given, name, because) in [
            (greedy, self.top_k.is_some(), "--top-k", "a temperature of 0, which takes the most probable token"),
            (greedy, self.top_p.is_some(), "--top-p", "a temperature of 0, which takes the most probable token"),
            (greedy, self.min_p.is_some(), "--min-p", "a temperature of 0, which takes the most probable token"),
            (greedy, self.seed.is_some(), "--seed", "a temperature of 0, which draws nothing"),
            (unpenalized, self.repeat_window.is_some(), "--repeat-window", "a repetition penalty of 1, which is off"),
        ] {
            if idle && is_given {
                bail!("{name} has no effect with {because}: leave it out, or change that");
            }
        }
        Ok(())
    }

    fn prompt(&self) -> Result<String> {
        match self.prompt.as_deref() {
            Some(text) if text != "-" => Ok(text.to_owned()),
            _ => {
                if io::stdin().is_terminal() {
                    writeln!(io::stderr(), "reading the prompt from the terminal; end it with Ctrl-D")?;
                }
                let mut text = output::read_text(io::stdin().lock(), "stdin")?;
                if text.is_empty() {
                    bail!("stdin: the prompt is empty: give it as an argument or on stdin");
                }
                if text.ends_with('\n') {
                    text.pop();
                    if text.ends_with('\r') {
                        text.pop();
                    }
                }
                Ok(text)
            }
        }
    }

    /// What was asked for, where nothing was what the model asks for.
    fn options(&self, defaults: &GenerationDefaults) -> GenerateOptions {
        let sampler = defaults.over(SamplerConfig::default());
        GenerateOptions {
            max_new_tokens: self.max_tokens,
            end_tokens: defaults.end_tokens().to_vec(),
            stop: self.stop.clone(),
            context: self.context,
            sampler: SamplerConfig {
                temperature: self.temperature.unwrap_or(sampler.temperature),
                top_k: self.top_k.unwrap_or(sampler.top_k),
                top_p: self.top_p.unwrap_or(sampler.top_p),
                min_p: self.min_p.unwrap_or(sampler.min_p),
                repeat_penalty: self.repeat_penalty.unwrap_or(sampler.repeat_penalty),
                repeat_window: self.repeat_window.unwrap_or(64),
                seed: self.seed.unwrap_or(0),
                ..sampler
            },
            kv: self.kv,
            prompt_cache: self.prompt_cache.clone(),
        }
    }
}

fn summary(generation: &Generation, model: &Model) -> String {
    let ternary = model.ternary().map_or_else(String::new, |choice| format!(", ternary {}", choice.ternary.name()));
    let reason = match generation.stop_reason {
        StopReason::EndOfText => "the model ended the text",
        StopReason::StopText => "a stop text came up",
        StopReason::MaxTokens => "the number of tokens asked for",
        StopReason::ContextFull => "the context is full: a longer --context or a shorter prompt leaves more room",
        StopReason::Cancelled => "cancelled",
    };
    let cached = match generation.cached_tokens {
        0 => String::new(),
        cached => format!(" ({cached} from the prompt cache)"),
    };
    let tokens = generation.tokens.len().max(1) as f64;
    let rescored = generation.rescored_rows.map(|rows| format!(" | {:.1} rows rescored a token", rows as f64 / tokens));
    format!(
        "prompt {} tok{cached} at {:.1} tok/s | {} new tok at {:.1} tok/s | keys and values {}, {} | kernel {}{ternary}, threads {}{} | ended: {reason}",
        generation.prompt_tokens,
        generation.prefill_rate(),
        generation.tokens.len(),
        generation.decode_rate(),
        generation.kv,
        output::bytes(generation.kv_bytes),
        model.kernel().name,
        rayon::current_num_threads(),
        rescored.unwrap_or_default(),
    )
}
