//! `bitnet-infer serve`.

use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::{RangedU64ValueParser, TypedValueParser};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use bitnet_infer::chat::{BUILT_IN, ChatFormat, GenerationDefaults};
use bitnet_infer::engine::{self, HeadFormat, KvCache, KvType, SamplerConfig};
use bitnet_infer::eval::memory::machine_memory;
use bitnet_infer::server::metrics::Metrics;
use bitnet_infer::server::scheduler::{Engine, Limits, Prefill};
use bitnet_infer::server::{Access, Connections, Parts, Server, serve};

use super::{Opening, output};

/// Serve a model to programs that speak OpenAI's API, and a chat page to people.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model folder, GGUF file, llama2.c file, or hub:OWNER/NAME[@REVISION][:FILE]
    model: PathBuf,
    /// Address to listen on; anything but the loopback lets other machines in
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    host: IpAddr,
    /// Port to listen on (0: any free one)
    #[arg(long, short, default_value_t = 8080, value_name = "PORT")]
    port: u16,
    /// Name by which clients know the model [default: that of the folder or file]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Key that requests must come with; may be given several times
    #[arg(long, value_name = "KEY", env = "BITNET_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// File of such keys, one a line
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Origin whose pages may use the API (`*`: all); may be given several times
    #[arg(long, value_name = "ORIGIN")]
    cors_origin: Vec<String>,
    /// Host name under which the server may be addressed, besides `localhost` and numbers; may be given several times
    #[arg(long, value_name = "NAME")]
    allow_host: Vec<String>,
    /// Template of chats: chatml, llama-3, bitnet, plain, or a file [default: the model's own]
    #[arg(long, value_name = "NAME")]
    chat_template: Option<String>,
    /// Texts that are worked on at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = whole(1, MOST_TEXTS))]
    parallel: usize,
    /// Texts that may wait besides; more are answered with status 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = whole(0, MOST_TEXTS))]
    queue: usize,
    /// Tokens of a prompt and its continuation at most [default: the model's limit]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Memory for keys and values in MiB [default: a full context for each of --parallel, a quarter of the memory at most]
    #[arg(long, value_name = "MIB", value_parser = whole(1, MOST_MIB))]
    kv_memory: Option<usize>,
    /// What keys and values are kept as: f32, f16, int8
    #[arg(long, value_name = "TYPE", default_value_t = KvType::F16)]
    kv: KvType,
    /// Tokens of prompts in a pass: a number, `whole`, or the milliseconds that a pass may take (then 16 to 256)
    #[arg(long, value_name = "N|whole|MSms", default_value = "100ms", value_parser = prefill)]
    prefill: Prefill,
    /// Read every prompt anew, even if it begins as one before
    #[arg(long)]
    no_prefix_cache: bool,
    /// How logits are computed: stored, int8, int4, exact
    #[arg(long, value_name = "FORMAT", default_value_t = HeadFormat::Exact)]
    head: HeadFormat,
    /// Randomness where a request does not say [default: the model's generation_config.json, else 0.8]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Largest body of a request in KiB
    #[arg(long, value_name = "KIB", default_value_t = 4096, value_parser = whole(1, MOST_KIB))]
    body_limit: usize,
    /// Connections at the same time; others wait
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = whole(1, MOST_CONNECTIONS))]
    connections: usize,
    /// Seconds in which the head of a request must arrive
    #[arg(long, value_name = "S", default_value_t = 15, value_parser = whole(1, MOST_SECONDS))]
    head_time: usize,
    /// Seconds that a client may leave what is written to it unread before it is cut off
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = whole(1, MOST_SECONDS))]
    patience: usize,
    /// Seconds that requests have to end in once the server is told to stop
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = whole(0, MOST_SECONDS))]
    grace: usize,
    /// Decides the seeds of requests that name none [default: chance]
    #[arg(long)]
    seed: Option<u64>,
    /// What is logged: error, warn, info, debug; never what requests hold
    #[arg(long, value_name = "LEVEL", env = "BITNET_LOG", default_value = "warn")]
    log: String,
}

const EXAMPLES: &str = "Examples:
  bitnet-infer serve model                     # then open http://127.0.0.1:8080
  bitnet-infer serve model --port 9000 --api-key secret --parallel 32 --log info
  bitnet-infer serve model --chat-template chatml --kv int8 --kv-memory 2048
  curl -H 'content-type: application/json' http://127.0.0.1:8080/v1/completions \\
    -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 32}'";

/// Runs the command until it is told to stop (Ctrl-C, SIGTERM).
///
/// # Errors
/// If the model does not load, cannot be served as asked, or the address is taken.
pub fn run(args: &Args, opening: Opening) -> Result<()> {
    log_to_stderr(&args.log)?;
    let files = opening.files(&args.model)?;
    let loaded = opening.load(&files)?.with_head(args.head);
    let config = loaded.model.config().clone();
    let tokenizer = loaded.require_tokenizer()?;
    let chat = ChatFormat::of(&files, &config, tokenizer, args.chat_template.as_deref())?;
    let defaults = GenerationDefaults::of(&files)?;
    let sampler = defaults.over(SamplerConfig::default());
    let sampler = SamplerConfig { temperature: args.temperature.unwrap_or(sampler.temperature), ..sampler };
    engine::Sampler::new(sampler.clone())?;
    let limits = args.limits(&config)?;

    let metrics = Arc::new(Metrics::new());
    let loaded = Arc::new(loaded);
    let (engine, thread) = Engine::start(Arc::clone(&loaded), limits.clone(), Arc::clone(&metrics))
        .context("cannot start the engine's thread")?;
    let server = Server::new(Parts {
        engine,
        loaded,
        chat,
        name: args.name.clone().unwrap_or_else(|| super::name_of(&args.model)),
        sampler,
        end_tokens: defaults.end_tokens().to_vec(),
        limits,
        body_limit: args.body_limit << 10,
        seed: args.seed.unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)),
    })?;
    let keys = args.keys()?;
    let access = Access::new(&keys, &args.allow_host, &args.cors_origin).map_err(anyhow::Error::msg)?;
    let connections = Connections {
        most: args.connections,
        head_time: seconds(args.head_time),
        write_time: seconds(args.patience),
        grace: seconds(args.grace),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(HTTP_THREADS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("cannot start the threads of the server")?;
    runtime.block_on(async {
        let listener = TcpListener::bind((args.host, args.port)).await.with_context(|| {
            format!("cannot listen on {}:{}: choose another --port or --host", args.host, args.port)
        })?;
        let address = listener.local_addr().context("cannot read the address that is listened on")?;
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let server = Arc::new(server);
        announce(&server, &format!("http://{address}"), !keys.is_empty(), args.host)?;
        let stop = async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            let _ =
                writeln!(io::stderr(), "stopping: requests that run have the grace time to end; again ends them now");
            tokio::spawn(async move {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
                std::process::exit(130);
            });
        };
        serve(listener, server, metrics, access, connections, stop).await;
        Ok::<(), anyhow::Error>(())
    })?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    // It ends after its present pass.
    let _ = thread.join();
    Ok(())
}

impl Args {
    fn limits(&self, config: &bitnet_model::ModelConfig) -> Result<Limits> {
        let context = self.context.unwrap_or(config.max_position_embeddings);
        let cache = KvCache::with_type(config, context, self.kv)?;
        let full = context.div_ceil(engine::PAGE_TOKENS).saturating_mul(cache.page_bytes());
        let kv_bytes = match self.kv_memory {
            Some(mib) => mib << 20,
            None => self
                .parallel
                .saturating_mul(full)
                .min(machine_memory().map_or(usize::MAX, |bytes| usize::try_from(bytes / 4).unwrap_or(usize::MAX))),
        };
        if kv_bytes < 2 * cache.page_bytes() {
            let least = (2 * cache.page_bytes()).div_ceil(1 << 20);
            bail!("--kv-memory of {} MiB holds no text of this model: at least {least} MiB are needed", kv_bytes >> 20);
        }
        Ok(Limits {
            parallel: self.parallel,
            queue: self.queue,
            kv_bytes,
            kv_type: self.kv,
            context,
            prefill: self.prefill,
            prefix_cache: !self.no_prefix_cache,
            patience: seconds(self.patience),
        })
    }

    fn keys(&self) -> Result<Vec<String>> {
        let mut keys = self.api_key.clone();
        if let Some(path) = &self.api_key_file {
            let text = output::read_text_file(path)?;
            keys.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        }
        if keys.iter().any(String::is_empty) {
            bail!("--api-key is empty");
        }
        if self.api_key_file.is_some() && keys.is_empty() {
            bail!("--api-key-file holds no key");
        }
        Ok(keys)
    }
}

fn announce(server: &Server, url: &str, has_keys: bool, host: IpAddr) -> io::Result<()> {
    let (limits, model) = (&server.limits, &server.loaded.model);
    let tokens = server.page_limit() * engine::PAGE_TOKENS;
    let chat = server.chat.as_ref().map_or_else(
        || {
            format!(
                "none: only /v1/completions (--chat-template: {})",
                BUILT_IN.map(|built_in| built_in.name).join(", ")
            )
        },
        |format| format.name().to_owned(),
    );
    let mut err = io::stderr().lock();
    writeln!(
        err,
        "model      {}, context {}, kernel {}, {} threads",
        server.name,
        limits.context,
        model.kernel().name,
        rayon::current_num_threads()
    )?;
    writeln!(
        err,
        "memory     {} for keys and values ({}): {tokens} tokens",
        output::bytes(limits.kv_bytes),
        limits.kv_type
    )?;
    writeln!(err, "requests   {} at a time, {} more may wait", limits.parallel, limits.queue)?;
    writeln!(err, "chat       template: {chat}")?;
    if !host.is_loopback() && !has_keys {
        writeln!(err, "warning    other machines can reach this server, and it asks for no key: see --api-key")?;
    }
    writeln!(err, "listening on {url}")
}

/// `whole`, a number of tokens, or a time as `100ms`.
fn prefill(text: &str) -> Result<Prefill, String> {
    if text == "whole" {
        return Ok(Prefill::Whole);
    }
    let expected = || format!("is `{text}`, expected `whole`, a number of tokens, or a time such as `100ms`");
    let positive = |digits: &str| digits.parse::<u32>().ok().filter(|&n| n > 0).ok_or_else(expected);
    match text.strip_suffix("ms") {
        Some(digits) => Ok(Prefill::Within(Duration::from_millis(positive(digits)?.into()))),
        None => Ok(Prefill::Tokens(positive(text)? as usize)),
    }
}

fn log_to_stderr(level: &str) -> Result<()> {
    let level = match level {
        "error" => tracing::Level::ERROR,
        "warn" => tracing::Level::WARN,
        "info" => tracing::Level::INFO,
        "debug" => tracing::Level::DEBUG,
        _ => bail!("--log is `{level}`, expected error, warn, info or debug"),
    };
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr).with_ansi(colours).init();
    Ok(())
}

/// A whole number within a range: others would overflow what is made of them.
fn whole(least: usize, most: usize) -> impl TypedValueParser<Value = usize> {
    RangedU64ValueParser::<usize>::new().range(least as u64..=most as u64)
}

fn seconds(count: usize) -> Duration {
    Duration::from_secs(count as u64)
}

/// Bounds of options, far beyond what a machine can do: texts, connections, a day, 4 GiB of a body, 4 PiB of memory.
const MOST_TEXTS: usize = 1 << 20;
const MOST_CONNECTIONS: usize = 1 << 20;
const MOST_SECONDS: usize = 86_400;
const MOST_KIB: usize = 4 << 20;
const MOST_MIB: usize = 4 << 30;

/// The engine has the cores; these wait most of the time.
const HTTP_THREADS: usize = 2;
const BLOCKING_THREADS: usize = 4;
