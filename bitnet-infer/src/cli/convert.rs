//! `bitnet-infer convert`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use bitnet_infer::convert::{
    Agreement, Conversion, ConvertOptions, HeadType, Target, Verification, check_positions, convert_checked, verify,
};
use bitnet_infer::engine::ModelFiles;
use bitnet_infer::eval::memory::peak_memory;

use bitnet_model::files::gguf::{GgufOptions, I2sLayout};
use bitnet_model::files::source::WARNING;

use super::{Opening, output};

/// Convert a model to another format, and check that it computes the same.
///
/// The source may be a Hugging Face folder (one file or shards), a GGUF file, a .bin of llama2.c, or hub:OWNER/NAME[@REVISION][:FILE];
/// what it is is found out from its contents. Codes never change; where a format holds a scale in fewer bits, the report says
/// how much that changed it.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model to convert
    source: PathBuf,
    /// Folder or file to write
    destination: PathBuf,
    /// Format: hf, hf-packed, universal, gguf-tq1, gguf-tq2, gguf-q2, gguf-q1, gguf-i2s, gguf-f16, bitnet
    #[arg(long, value_name = "FORMAT")]
    to: Target,
    /// Type of the head, and of the embedding where they are one: f16, q8_0, q6_k (GGUF), int8 (`bitnet`) [default: f16 in GGUF, else as it
    /// is]
    #[arg(long, value_name = "TYPE")]
    head: Option<HeadType>,
    /// Quantize float weights by this scheme: int8, int4, int8-g32, int4-g32 (or -g64, -g128), ternary, binary. Without
    /// training, ternary and binary destroy a model
    #[arg(long, value_name = "SCHEME")]
    quantize: Option<String>,
    /// Activations of a model that is quantized: int8, none
    #[arg(long, value_name = "SCHEME", default_value = "int8", requires = "quantize")]
    activations: String,
    /// Positions to compare source and result on (0: none)
    #[arg(long, value_name = "N", default_value_t = 128)]
    verify: usize,
    /// Replace what is at the destination
    #[arg(long)]
    force: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "Examples:
  bitnet-infer convert model model.gguf --to gguf-tq2 --head q6_k
  bitnet-infer convert ggml-model-i2_s.gguf model --to hf-packed
  bitnet-infer convert hub:microsoft/bitnet-b1.58-2B-4T-bf16 packed --to bitnet
  bitnet-infer convert llama int8 --to bitnet --quantize int8 --activations none";

/// What `--json` prints.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    conversion: Conversion,
    seconds: f64,
    /// The most memory that the process had taken when all was written, before anything was run.
    peak_memory_bytes: Option<u64>,
    verification: Option<Verification>,
}

/// Runs the command.
///
/// # Errors
/// If the conversion fails, or the result differs by more than its format explains.
pub fn run(args: &Args, opening: Opening) -> Result<()> {
    let files = opening.files(&args.source)?;
    let options = ConvertOptions {
        target: args.to,
        head: args.head,
        quantize: args.quantize.clone().map(|weight| (weight, args.activations.clone())),
        force: args.force,
    };
    if args.verify > 0 {
        check_positions(&files, args.verify)?;
    }
    let started = Instant::now();
    // Draws nothing unless stderr is a terminal.
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}, {binary_bytes_per_sec}, {eta} left")?);
    let (mut verification, mut seconds, mut peak) = (None, 0.0, None);
    // Before the result gets its name, so that a wrong one replaces nothing. What was written has the layout that is written.
    let mut check = |written: &Path| {
        bar.finish_and_clear();
        (seconds, peak) = (started.elapsed().as_secs_f64(), peak_memory());
        if args.verify > 0 {
            let converted = ModelFiles::open(written, GgufOptions { i2s: Some(I2sLayout::Group128) })?;
            verification = Some(verify(&files, &converted, &options, args.verify, opening.arrangement)?);
        }
        Ok(())
    };
    let mut progress = |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let conversion = convert_checked(&files, &args.destination, &options, &mut progress, &mut check)?;
    let outcome = Outcome { conversion, seconds, peak_memory_bytes: peak, verification };
    if args.json {
        return output::print_json(&outcome);
    }
    Ok(output::print(&report(args, files.format(), &outcome))?)
}

fn report(args: &Args, format: &str, outcome: &Outcome) -> String {
    let Outcome { conversion, seconds, peak_memory_bytes, verification } = outcome;
    let rate = conversion.bytes_read.max(conversion.bytes_written) as f64 / 1e6 / seconds.max(1e-9);
    let mut text = format!(
        "converted     {} ({format}) to {} ({})\n\
         read          {}, written {}, in {seconds:.1} s ({rate:.0} MB/s){}\n",
        args.source.display(),
        args.destination.display(),
        conversion.target,
        output::bytes(conversion.bytes_read),
        output::bytes(conversion.bytes_written),
        peak_memory_bytes.map_or(String::new(), |bytes| format!(", peak memory {}", output::bytes(bytes as usize))),
    );
    text += &match (conversion.coded_projections, conversion.largest_scale_error) {
        (0, _) => "weights       floats\n".to_owned(),
        (n, 0.0) => format!("weights       the codes and scales of {n} projections, to the bit\n"),
        (n, error) => format!("weights       the codes of {n} projections, their scales to {error:.1e}\n"),
    };
    if let Some(Verification { codes, agreement, allowed_rms, price }) = verification {
        if codes.projections > 0 {
            text += &format!("verified      the codes of {} projections, read back\n", codes.projections);
        }
        let limit = format!(" (allowed {allowed_rms:.1e})");
        text += &format!("verified      {}\n", distance(agreement, &limit));
        text.extend(
            price.as_ref().map(|price| format!("price         {}\n", distance(price, " from the source as it is"))),
        );
    }
    text.extend(conversion.notes.iter().map(|note| match note.strip_prefix(WARNING) {
        Some(warning) => format!("warning: {warning}\n"),
        None => format!("note: {note}\n"),
    }));
    text
}

fn distance(found: &Agreement, aside: &str) -> String {
    format!(
        "{} positions: largest difference of a logit {:.2e}, rms {:.2e} of their deviation{aside}, KL divergence {:.2e} nats, same \
         first token {:.1} %",
        found.positions,
        found.largest_difference,
        found.relative_rms,
        found.divergence,
        found.same_first * 100.0
    )
}
