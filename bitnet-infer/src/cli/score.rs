//! `bitnet-infer score`.

use std::io::{self, BufReader, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use bitnet_model::files::text;
use serde::{Deserialize, Serialize};

use bitnet_infer::engine::{HeadFormat, KvType, LoadedModel};
use bitnet_infer::eval::score::continuation;

use super::Opening;

/// Log-likelihoods of continuations: JSON Lines in, JSON Lines out.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model folder, GGUF file or llama2.c file
    model: PathBuf,
    /// File of lines `{"context": TEXT, "continuation": TEXT}`, or with lists of token ids in place of texts [default: stdin]
    file: Option<PathBuf>,
    /// What keys and values are kept as: f32, f16, int8
    #[arg(long, value_name = "TYPE", default_value_t)]
    kv: KvType,
}

const EXAMPLES: &str = "Texts are split into tokens as lm-evaluation-harness does it: spaces at the end of a context belong to the continuation, and
what the tokens of both together have beyond those of the context is scored. An empty context is the model's BOS, or its EOS
if it has none. Token ids are taken as they are.

Example:
  echo '{\"context\": \"The sky is\", \"continuation\": \" blue\"}' | bitnet-infer score model";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    context: Side,
    continuation: Side,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Side {
    Text(String),
    Tokens(Vec<u32>),
}

#[derive(Serialize)]
struct Scored {
    /// Sum of the log-probabilities, added in f64 in order.
    logprob: f64,
    /// Whether every token is the most probable one in its place.
    greedy: bool,
    tokens: Vec<u32>,
    /// As the server writes them: each an f32, in as many digits as it takes.
    token_logprobs: Vec<f64>,
}

/// Runs the command.
///
/// # Errors
/// If the model does not load, or a line is not what it should be.
pub fn run(args: &Args, opening: Opening) -> Result<()> {
    let loaded = opening.open(&args.model)?.with_head(HeadFormat::Stored);
    let (origin, source): (String, Box<dyn Read>) = match &args.file {
        Some(path) => {
            let origin = path.display().to_string();
            let file = std::fs::File::open(path).with_context(|| format!("{origin}: cannot open"))?;
            (origin, Box::new(file))
        }
        None => ("stdin".into(), Box::new(io::stdin().lock())),
    };
    let mut out = io::stdout().lock();
    text::each_line(BufReader::new(source), &origin, LONGEST_LINE, |number, line| {
        let place = || format!("{origin}:{number}");
        let item: Item =
            serde_json::from_str(line).map_err(|e| anyhow!("{}: {}", place(), text::json_fault_in_line(&e)))?;
        let scored = score(&loaded, item, args.kv).with_context(place)?;
        serde_json::to_writer(&mut out, &scored)?;
        out.write_all(b"\n")?;
        anyhow::Ok(())
    })?;
    Ok(out.flush()?)
}

fn score(loaded: &LoadedModel, item: Item, kv: KvType) -> Result<Scored> {
    let (context, tokens) = split(loaded, item)?;
    let longest = loaded.model.config().max_position_embeddings;
    if context.len() + tokens.len() > longest + 1 {
        bail!("has {} tokens, which do not fit the context of {longest}", context.len() + tokens.len());
    }
    let scores = continuation(&loaded.model, &context, &tokens, (1, kv))?;
    Ok(Scored {
        logprob: scores.iter().map(|score| f64::from(score.logprob)).sum(),
        greedy: scores.iter().all(|score| score.top.iter().all(|&(_, best)| best == score.logprob)),
        tokens,
        token_logprobs: scores.into_iter().map(|score| score.logprob.into()).collect(),
    })
}

/// Context and continuation in tokens.
fn split(loaded: &LoadedModel, item: Item) -> Result<(Vec<u32>, Vec<u32>)> {
    let config = loaded.model.config();
    match (item.context, item.continuation) {
        (Side::Tokens(context), Side::Tokens(continuation)) => {
            let vocab = config.vocab_size;
            if let Some(token) = context.iter().chain(&continuation).find(|&&token| token as usize >= vocab) {
                bail!("has the token {token}, expected ids below {vocab}");
            }
            Ok((context, continuation))
        }
        (Side::Text(context), Side::Text(continuation)) => {
            let tokenizer = loaded.require_tokenizer()?;
            let trimmed = context.trim_end();
            let moved = format!("{}{continuation}", &context[trimmed.len()..]);
            if trimmed.is_empty() {
                let first = config.bos_token_id.or(config.eos_token_ids.first().copied());
                let first = first.context("has no context, and the model has no token to begin with")?;
                return Ok((vec![first], tokenizer.encode(&moved)?));
            }
            let before = tokenizer.encode(trimmed)?;
            let mut whole = tokenizer.encode(&format!("{trimmed}{moved}"))?;
            let after = whole.split_off(before.len().min(whole.len()));
            Ok((before, after))
        }
        _ => bail!("has a text and token ids, expected two texts or two lists"),
    }
}

/// More than any context takes.
const LONGEST_LINE: u64 = 16 << 20;
