//! `bitnet-infer perplexity`.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};

use bitnet_infer::engine::{HeadFormat, KvCache, KvType, LogitsFor, Model};
use bitnet_infer::eval::perplexity::{self, Convention, Perplexity, PerplexityOptions, Tail};

use bitnet_model::files;

use super::{Opening, output};

/// Measure how well a model predicts a text.
///
/// Conventions: `windows` cuts the text into windows that do not overlap and scores every token, the last window being shorter
/// (with --strict it leaves that one out: what training's validation loss means); `llama` does what llama-perplexity does: BOS first, only the second half of every window is scored.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model folder, GGUF file, llama2.c file, or hub:OWNER/NAME[@REVISION][:FILE]
    model: PathBuf,
    /// UTF-8 text file
    file: PathBuf,
    /// Tokens of a window [default: 512, or the model's limit if that is less]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// How windows are cut and scored: windows, llama
    #[arg(long, value_name = "NAME", default_value = "windows")]
    convention: Convention,
    /// Score whole windows alone, as training validates; a text shorter than one is then an error
    #[arg(long)]
    strict: bool,
    /// What keys and values are kept as: f32, f16, int8
    #[arg(long, value_name = "TYPE", default_value_t)]
    kv: KvType,
    /// How logits are computed: stored (as the file holds the head), int8, int4, exact (here the same as stored)
    #[arg(long, value_name = "FORMAT", default_value_t)]
    head: HeadFormat,
    /// Also write all logits here: f32, little-endian, of each window of the convention `windows` and each token the whole
    /// vocabulary
    #[arg(long, value_name = "FILE")]
    logits: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  bitnet-infer perplexity model valid.txt
  bitnet-infer perplexity model wiki.test.raw --convention llama --context 512 --json";

/// Runs the command.
///
/// # Errors
/// If the model does not load or the file is no text, or too short.
pub fn run(args: &Args, opening: Opening) -> Result<()> {
    ensure!(
        !args.strict || args.convention == Convention::Windows,
        "--strict belongs to the convention `windows`: `llama` never scores a window that is not whole"
    );
    let text = output::read_text_file(&args.file)?;
    let loaded = opening.open(&args.model)?.with_head(args.head);
    let tokenizer = loaded.require_tokenizer()?;
    let context = args.context.unwrap_or(loaded.model.config().max_position_embeddings.min(512));
    let tail = if args.strict { Tail::Dropped } else { Tail::Scored };
    let options = PerplexityOptions { convention: args.convention, context, tail, kv: args.kv };
    // Draws nothing unless stderr is a terminal.
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} windows, {eta} left")?);
    let measured = perplexity::of_text(&loaded.model, tokenizer, &text, options, |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })
    .with_context(|| args.file.display().to_string())?;
    bar.finish_and_clear();
    if let Some(path) = &args.logits {
        write_logits(path, &loaded.model, &tokenizer.encode(&text)?, options)?;
    }
    if args.json {
        return output::print_json(&measured);
    }
    Ok(output::print(&report(&measured))?)
}

impl Args {
    /// Whether a file comes of it, besides what is printed.
    pub fn writes_a_file(&self) -> bool {
        self.logits.is_some()
    }
}

/// The logits of every window that [`Convention::Windows`] cuts `tokens` into: of each token but the last.
fn write_logits(path: &Path, model: &Model, tokens: &[u32], options: PerplexityOptions) -> Result<()> {
    let mut cache = KvCache::with_type(model.config(), options.context, options.kv)?;
    let predicted = tokens.len().saturating_sub(1);
    let end = if options.tail == Tail::Dropped { predicted / options.context * options.context } else { predicted };
    Ok(files::write_atomic_with(path, |file| {
        for tokens in tokens[..end].chunks(options.context) {
            cache.reset();
            let logits = model.forward(tokens, &mut cache, LogitsFor::All).map_err(io::Error::other)?;
            for logits in logits.chunks(1 << 16) {
                file.write_all(&logits.iter().flat_map(|logit| logit.to_le_bytes()).collect::<Vec<u8>>())?;
            }
        }
        Ok(())
    })?)
}

fn report(measured: &Perplexity) -> String {
    let Perplexity { convention, context, kv, windows, tokens_scored, loss_nats, perplexity, standard_error, .. } =
        measured;
    let mut text = format!(
        "perplexity      {perplexity:.4} +/- {standard_error:.4}\n\
         loss            {loss_nats:.5} nats per token\n"
    );
    if let (Some(bits), Some(bytes)) = (measured.bits_per_byte, measured.bytes_scored) {
        text += &format!("bits per byte   {bits:.5} (over {bytes} bytes)\n");
    }
    text + &format!(
        "scored          {tokens_scored} tokens in {windows} windows of {context}, convention {convention}\n\
         keys, values    {kv}, {} a window\n",
        output::bytes(measured.kv_bytes)
    )
}
