//! `bitnet-infer inspect`.

use std::path::PathBuf;

use anyhow::Result;

use super::{Opening, output};
use bitnet_infer::eval::inspect::{self, Inspection};

/// Show what a model holds, after checking all of it.
///
/// Codes that cannot be and a tokenizer that does not fit are warnings here, and errors where the model is run.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  bitnet-infer inspect model --tensors")]
pub struct Args {
    /// Model folder, GGUF file, llama2.c file, or hub:OWNER/NAME[@REVISION][:FILE]
    model: PathBuf,
    /// List every tensor of the files, and every projection as it is read (JSON has them anyway)
    #[arg(long, conflicts_with = "json")]
    tensors: bool,
    /// Print one JSON object (with every projection)
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// If the model would not load.
pub fn run(args: &Args, opening: Opening) -> Result<()> {
    let found = inspect::inspect_files(&opening.files(&args.model)?)?;
    if args.json {
        return output::print_json(&found);
    }
    let mut text = report(&found);
    if args.tensors {
        text += &file_table(&found);
        text += &table(&found);
    }
    text.extend(found.notes.iter().map(|note| format!("note: {note}\n")));
    text.extend(found.warnings.iter().map(|warning| format!("warning: {warning}\n")));
    Ok(output::print(&text)?)
}

fn report(found: &Inspection) -> String {
    let key = |key: &str| found.config[key].to_string();
    let mut lines = vec![
        ("architecture", found.architecture.to_owned()),
        (
            "shape",
            format!(
                "{} layers, hidden {}, feed-forward {}, {} heads ({} key-value), head {}, vocabulary {}, context {}",
                key("num_hidden_layers"),
                key("hidden_size"),
                key("intermediate_size"),
                key("num_attention_heads"),
                key("num_key_value_heads"),
                key("head_dim"),
                key("vocab_size"),
                key("max_position_embeddings"),
            ),
        ),
        ("quantizers", format!("{} weights, {} activations", found.weight_scheme, found.activation_scheme)),
        ("stored as", format!("{}: {}, {}", found.format, found.storage, output::bytes(found.file_bytes))),
        (
            "parameters",
            format!(
                "{} ({} in projections, {} in embedding and head)",
                output::count(found.parameters),
                output::count(found.projection_parameters),
                output::count(found.embedding_parameters)
            ),
        ),
        (
            "projections",
            format!(
                "{}, {:.3} bits per weight, compression {:.2} against f16",
                output::bytes(found.projection_bytes),
                found.projection_bits_per_weight,
                found.projection_compression
            ),
        ),
        (
            "whole model",
            format!(
                "{}, {:.3} bits per weight, compression {:.2} against f16",
                output::bytes(found.model_bytes),
                found.model_bits_per_weight,
                found.model_compression
            ),
        ),
    ];
    if let Some(shares) = found.code_shares {
        lines.push(("codes", format!("{} (negative, zero, positive)", percent(shares))));
    }
    let energy = &found.energy;
    lines.push((
        "energy",
        format!(
            "{:.3} uJ a token in projections against {:.3} in f16, {:.3} in the head: estimated, arithmetic alone at 7 nm",
            energy.projections_uj, energy.projections_f16_uj, energy.head_f16_uj
        ),
    ));
    let tokenizer = found.tokenizer_tokens.map_or("none".to_owned(), |tokens| format!("{tokens} tokens"));
    lines.push(("tokenizer", tokenizer));
    lines.into_iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}

fn file_table(found: &Inspection) -> String {
    let width = found.file_tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
    let mut text =
        format!("\n{:<width$}  {:<6} {:>18}  {:>12}  {:>14}\n", "in the file", "type", "shape", "bytes", "offset");
    for tensor in &found.file_tensors {
        let shape = tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
        let (name, kind) = (tensor.name.escape_debug().to_string(), &tensor.kind);
        text += &format!("{name:<width$}  {kind:<6} {shape:>18}  {:>12}  {:>14}\n", tensor.bytes, tensor.offset);
    }
    text
}

fn table(found: &Inspection) -> String {
    let width = found.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
    let mut text =
        format!("\n{:<width$}  {:>15}  {:>12}  {:<24} mean scale\n", "tensor", "shape", "bytes", "-1 / 0 / +1");
    for tensor in &found.tensors {
        let shape = format!("{} x {}", tensor.rows, tensor.cols);
        let shares = tensor.code_shares.map_or("-".to_owned(), percent);
        let scale = tensor.mean_scale.map_or("-".to_owned(), |scale| format!("{scale:.6}"));
        text += &format!("{:<width$}  {shape:>15}  {:>12}  {shares:<24} {scale}\n", tensor.name, tensor.bytes);
    }
    text
}

fn percent(shares: [f64; 3]) -> String {
    let [negative, zero, positive] = shares.map(|share| share * 100.0);
    format!("{negative:.1} / {zero:.1} / {positive:.1} %")
}
