//! `bitnet-infer chat`.

use std::fs;
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use bitnet_infer::chat::{ChatFormat, Ending, GenerationDefaults, Message, Role};
use bitnet_infer::engine::{self, HeadFormat, KvCache, KvType, LoadedModel, SamplerConfig};
use bitnet_infer::generate::{GenerateOptions, Generation, Generator, StopReason};
use bitnet_infer::tell;
use bitnet_model::files::write_atomic;

use super::{Opening, output};

/// Talk with a model in the terminal.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model folder, GGUF file, llama2.c file, or hub:OWNER/NAME[@REVISION][:FILE]
    model: PathBuf,
    /// What the model is to be
    #[arg(long, short, value_name = "TEXT")]
    system: Option<String>,
    /// Template of chats: chatml, llama-3, bitnet, plain, or a file [default: the model's own]
    #[arg(long, value_name = "NAME")]
    chat_template: Option<String>,
    /// Tokens of an answer at most
    #[arg(short = 'n', long = "max-tokens", value_name = "N", default_value_t = 1024)]
    max_tokens: usize,
    /// Tokens of the conversation at most [default: the model's limit]
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// Randomness [default: the model's generation_config.json, else 0.8]
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Same seed and same words, same conversation
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What keys and values are kept as: f32, f16, int8
    #[arg(long, value_name = "TYPE", default_value_t = KvType::F16)]
    kv: KvType,
    /// How logits are computed: stored, int8, int4, exact
    #[arg(long, value_name = "FORMAT", default_value_t = HeadFormat::Exact)]
    head: HeadFormat,
    /// Keep what was typed in this file [default: bitnet-infer/history in the folder of state]
    #[arg(long, value_name = "FILE", conflicts_with = "no_history")]
    history: Option<PathBuf>,
    /// Keep nothing of what was typed
    #[arg(long)]
    no_history: bool,
}

const EXAMPLES: &str =
    "Commands within the chat begin with a slash: /help lists them. A line that ends with a backslash goes on
in the next. Ctrl-C stops an answer that has begun, Ctrl-D ends the chat.

Examples:
  bitnet-infer chat model --system \"You answer in one sentence.\"
  bitnet-infer chat model.gguf --temperature 0
  printf 'Hello\\nAnd now?\\n' | bitnet-infer chat model --chat-template plain";

const HELP: &str = "\
/help                 this list
/system [TEXT]        what the model is to be; without a text: nothing special
/regen                another answer to the last message
/undo                 take the last message and its answer back
/reset                begin anew (the system text stays)
/set [NAME VALUE]     temperature, top-k, top-p, min-p, repeat-penalty, seed, max-tokens; alone: how they are set
/stats                counts and speed of the last answer
/save FILE            write the conversation as JSON
/load FILE            go on with one
/exit                 end the chat (or Ctrl-D)";

/// Runs the command.
///
/// # Errors
/// If the model does not load or knows no chats.
pub fn run(args: &Args, opening: Opening) -> Result<()> {
    let files = opening.files(&args.model)?;
    let loaded = opening.load(&files)?.with_head(args.head);
    let (config, tokenizer) = (loaded.model.config(), loaded.require_tokenizer()?);
    let Some(format) = ChatFormat::of(&files, config, tokenizer, args.chat_template.as_deref())? else {
        bail!("{}: has no chat template: name one with --chat-template (plain suits most)", args.model.display());
    };
    let defaults = GenerationDefaults::of(&files)?;
    let sampler = defaults.over(SamplerConfig { seed: args.seed, ..SamplerConfig::default() });
    let options = GenerateOptions {
        max_new_tokens: args.max_tokens,
        end_tokens: defaults.end_tokens().iter().chain(format.end_tokens()).copied().collect(),
        stop: format.stops().to_vec(),
        context: args.context,
        sampler: SamplerConfig { temperature: args.temperature.unwrap_or(sampler.temperature), ..sampler },
        kv: args.kv,
        prompt_cache: None,
    };
    engine::Sampler::new(options.sampler.clone())?;
    let interrupted = Arc::new(AtomicBool::new(false));
    listen_for_interrupts(Arc::clone(&interrupted))?;
    let cache = Generator::new(&loaded.model, tokenizer).cache(&options)?;
    let messages = args.system.iter().map(|text| Message::new(Role::System, text)).collect();
    let mut chat = Chat {
        loaded: &loaded,
        name: super::name_of(&args.model),
        format,
        options,
        messages,
        cache,
        known: Vec::new(),
        last: None,
        interrupted,
    };
    chat.talk(args.history_file().as_deref())
}

/// Raises `flag` at every Ctrl-C. No other signal is taken: a chat that is told to end (SIGTERM, SIGHUP of a terminal that is
/// closed) ends at once, whatever it waits for.
fn listen_for_interrupts(flag: Arc<AtomicBool>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("cannot start a thread")?;
    let mut interrupts = {
        let _within = runtime.enter();
        signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            while interrupts.recv().await.is_some() {
                flag.store(true, Ordering::Relaxed);
            }
        });
    });
    Ok(())
}

impl Args {
    fn history_file(&self) -> Option<PathBuf> {
        if self.no_history || !io::stdin().is_terminal() {
            return None;
        }
        let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let state = || folder("XDG_STATE_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/state")));
        self.history.clone().or_else(|| state().map(|state| state.join("bitnet-infer/history")))
    }
}

/// A conversation, and what the engine knows of it.
///
/// Invariant: `cache` holds `known`.
struct Chat<'a> {
    loaded: &'a LoadedModel,
    name: String,
    format: ChatFormat,
    options: GenerateOptions,
    messages: Vec<Message>,
    cache: KvCache,
    known: Vec<u32>,
    last: Option<Generation>,
    interrupted: Arc<AtomicBool>,
}

impl Chat<'_> {
    fn talk(&mut self, history: Option<&std::path::Path>) -> Result<()> {
        let mut editor = DefaultEditor::new().context("cannot open the terminal")?;
        if let Some(path) = history {
            if let Some(folder) = path.parent() {
                // Without the folder there is no history, and the chat goes on.
                let _ = fs::create_dir_all(folder);
            }
            // There is none the first time.
            let _ = editor.load_history(path);
        }
        let is_terminal = io::stdin().is_terminal();
        if is_terminal {
            tell!(
                "{}, {} tokens of context, template: {} — /help lists commands, /exit or Ctrl-D ends the chat",
                self.name,
                self.cache.capacity(),
                self.format.name()
            );
        }
        let colours = is_terminal && std::env::var_os("NO_COLOR").is_none();
        let prompt = match (is_terminal, colours) {
            (true, true) => "\x1b[1m> \x1b[0m",
            (true, false) => "> ",
            (false, _) => "",
        };
        loop {
            let line = match read_lines(&mut editor, prompt) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => break,
                Err(error) => return Err(error).context("cannot read from the terminal"),
            };
            let line = line.trim();
            if line.is_empty() {
                continue;
            }
            // A history that cannot grow is no reason to stop; it grows now, for a signal may end the chat at any time.
            let _ = editor.add_history_entry(line);
            let _ = history.map(|path| editor.append_history(path));
            let outcome = match line.strip_prefix('/') {
                Some("exit" | "quit") => break,
                Some(command) => self.command(command),
                None => self.say(line),
            };
            if let Err(error) = outcome {
                if super::is_closed_pipe(&error) {
                    return Ok(());
                }
                // A line that does not work is no reason to leave; one in a script is.
                if !is_terminal {
                    return Err(error);
                }
                tell!("{error:#}");
            }
        }
        Ok(())
    }

    fn say(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::new(Role::User, text));
        if let Err(error) = self.answer() {
            self.messages.pop();
            return Err(error);
        }
        Ok(())
    }

    fn answer(&mut self) -> Result<()> {
        let tokenizer = self.loaded.require_tokenizer()?;
        let tokens = self.format.encode(tokenizer, &self.messages, Ending::Reply)?;
        let common = self.known.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
        self.cache.truncate(common.min(tokens.len() - 1));
        self.known.truncate(self.cache.len());
        self.interrupted.store(false, Ordering::Relaxed);
        let mut closed = None;
        let on_text = |piece: &str| {
            if self.interrupted.load(Ordering::Relaxed) {
                return ControlFlow::Break(());
            }
            match output::print(piece) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    closed = Some(error);
                    ControlFlow::Break(())
                }
            }
        };
        let generator = Generator::new(&self.loaded.model, tokenizer);
        let result = generator.continue_tokens(tokens.clone(), &mut self.cache, &self.options, on_text);
        if let Some(error) = closed {
            return Err(error.into());
        }
        let generation = match result {
            Ok(generation) => generation,
            Err(error) => {
                self.forget();
                return Err(error.into());
            }
        };
        output::print("\n")?;
        match generation.stop_reason {
            StopReason::ContextFull => tell!(
                "(the context is full: /undo takes the last turn back, /reset begins anew, --context N makes it longer)"
            ),
            StopReason::MaxTokens => tell!("(cut off after {} tokens: /set max-tokens N)", generation.tokens.len()),
            StopReason::Cancelled => tell!("(stopped)"),
            StopReason::EndOfText | StopReason::StopText => {}
        }
        self.known = tokens;
        self.known.extend(&generation.tokens);
        self.known.truncate(self.cache.len());
        self.messages.push(Message::new(Role::Assistant, generation.text.trim()));
        self.last = Some(generation);
        // Another answer to the same words should be another one.
        self.options.sampler.seed = self.options.sampler.seed.wrapping_add(1);
        Ok(())
    }

    fn forget(&mut self) {
        self.cache.reset();
        self.known.clear();
    }

    fn command(&mut self, line: &str) -> Result<()> {
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match name {
            "help" => tell!("{HELP}"),
            "reset" => {
                self.messages.retain(|message| message.role == Role::System);
                let kept = if self.messages.is_empty() { "" } else { "; the system text stays" };
                tell!("(begun anew{kept})");
            }
            "system" => {
                self.messages.retain(|message| message.role != Role::System);
                if rest.is_empty() {
                    tell!("(no system text from now on)");
                } else {
                    self.messages.insert(0, Message::new(Role::System, rest));
                    tell!("(the system text from now on: {})", beginning(rest));
                }
            }
            "undo" => {
                let taken = self.messages.split_off(self.last_question()?);
                tell!("(took back {}; {} left)", beginning(taken[0].text()), messages(self.messages.len()));
            }
            "regen" => {
                let taken = self.messages.split_off(self.last_question()? + 1);
                if let Err(error) = self.answer() {
                    self.messages.extend(taken);
                    return Err(error);
                }
            }
            "set" if rest.is_empty() => self.show_settings(),
            "set" => self.set(rest)?,
            "stats" => self.show_stats()?,
            "save" => {
                let path = PathBuf::from(file_name(rest)?);
                let text = serde_json::to_string_pretty(&self.messages)? + "\n";
                write_atomic(&path, text.as_bytes())?;
                tell!("(wrote {} to {})", messages(self.messages.len()), path.display());
            }
            "load" => {
                let path = PathBuf::from(file_name(rest)?);
                let text = output::read_text_file(&path)?;
                self.messages = conversation(&text).with_context(|| path.display().to_string())?;
                tell!("(read {} from {})", messages(self.messages.len()), path.display());
            }
            _ => bail!("there is no command /{name}: /help lists them"),
        }
        Ok(())
    }

    fn set(&mut self, rest: &str) -> Result<()> {
        let (name, value) = rest.split_once(char::is_whitespace).context("expected /set NAME VALUE")?;
        let value = value.trim();
        let number = || value.parse::<f32>().with_context(|| format!("{name} is `{value}`, expected a number"));
        let whole = || value.parse::<u64>().with_context(|| format!("{name} is `{value}`, expected a whole number"));
        let mut options = self.options.clone();
        match name {
            "temperature" => options.sampler.temperature = number()?,
            "top-k" => options.sampler.top_k = usize::try_from(whole()?)?,
            "top-p" => options.sampler.top_p = number()?,
            "min-p" => options.sampler.min_p = number()?,
            "repeat-penalty" => options.sampler.repeat_penalty = number()?,
            "seed" => options.sampler.seed = whole()?,
            "max-tokens" => options.max_new_tokens = usize::try_from(whole()?)?,
            _ => bail!("there is no setting `{name}`: /help lists them"),
        }
        engine::Sampler::new(options.sampler.clone())?;
        self.options = options;
        tell!("({name} is {value} from now on)");
        Ok(())
    }

    /// Where the last message of the person is.
    fn last_question(&self) -> Result<usize> {
        self.messages.iter().rposition(|message| message.role == Role::User).context("nothing was said yet")
    }

    fn show_settings(&self) {
        let SamplerConfig { temperature, top_k, top_p, min_p, repeat_penalty, seed, .. } = &self.options.sampler;
        tell!(
            "temperature {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}, repeat-penalty {repeat_penalty}"
        );
        tell!("seed {seed}, max-tokens {}", self.options.max_new_tokens);
    }

    fn show_stats(&self) -> Result<()> {
        let last = self.last.as_ref().context("nothing was said yet")?;
        tell!(
            "{} tokens read ({} known) at {:.1} tok/s, {} written at {:.1} tok/s; the conversation has {} of {} tokens, {} of keys and values",
            last.prompt_tokens - last.cached_tokens,
            last.cached_tokens,
            last.prefill_rate(),
            last.tokens.len(),
            last.decode_rate(),
            self.cache.len(),
            self.cache.capacity(),
            output::bytes(self.cache.byte_count()),
        );
        Ok(())
    }
}

/// A conversation as /save writes it, or as programs that speak OpenAI's API have it: a list, or an object with it.
fn conversation(text: &str) -> Result<Vec<Message>> {
    let expected = "expected a list of messages with `role` and `content`, as /save writes it";
    let value: serde_json::Value = serde_json::from_str(text).context(expected)?;
    let list = value.get("messages").unwrap_or(&value);
    let list = list.as_array().with_context(|| format!("is no list: {expected}"))?;
    let message = |(index, value): (usize, &serde_json::Value)| {
        Message::deserialize(value).with_context(|| format!("message {}", index + 1))
    };
    list.iter().enumerate().map(message).collect()
}

fn messages(count: usize) -> String {
    if count == 1 { "1 message".into() } else { format!("{count} messages") }
}

/// The first words of a text.
fn beginning(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("\u{201c}{}…\u{201d}", &line[..end]),
        None => format!("\u{201c}{line}\u{201d}"),
    }
}

/// Characters of a message that are shown again.
const SHOWN: usize = 60;

fn file_name(rest: &str) -> Result<&str> {
    if rest.is_empty() {
        bail!("expected the name of a file");
    }
    Ok(rest)
}

/// A line, and those behind it as long as they end with a backslash.
fn read_lines(editor: &mut DefaultEditor, prompt: &str) -> rustyline::Result<String> {
    let mut text = editor.readline(prompt)?;
    while let Some(open) = text.strip_suffix('\\') {
        let more = if prompt.is_empty() { "" } else { ". " };
        text = format!("{open}\n{}", editor.readline(more)?);
    }
    Ok(text)
}
