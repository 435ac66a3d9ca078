//! Chat templates as Hugging Face's libraries run them, within limits.

mod python;
mod syntax;

use std::fmt;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, ErrorKind};

use super::message::Message;

/// A chat template, checked to be one. It runs in a language that knows neither files nor a network, for a bounded number of
/// steps, and writes a bounded text.
pub struct Template {
    environment: Environment<'static>,
    source: String,
}

/// What is wrong with a template, or what it says of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError(String);

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// Where it is not one.
    pub fn new(source: String) -> Result<Self, TemplateError> {
        // Jinja writes one kind of line end, whatever the template has.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let mut environment = Environment::new();
        // transformers.utils.chat_template_utils: `trim_blocks=True, lstrip_blocks=True`, loop controls.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| TemplateError(one_line(&e)))?);
        environment.set_recursion_limit(MOST_DEPTH);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        python::install(&mut environment);
        let translated = syntax::translated(&source).map_err(|message| TemplateError(message.into()))?;
        environment.add_template_owned(NAME, translated).map_err(|e| TemplateError(one_line(&e)))?;
        Ok(Self { environment, source })
    }

    /// Its text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Writes a conversation.
    ///
    /// # Errors
    /// If the template raises an exception (then its words), fails, or goes beyond the limits.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        bos_token: &str,
        eos_token: &str,
    ) -> Result<String, TemplateError> {
        let bytes: usize = messages.iter().map(Message::bytes).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64));
        let template = environment.get_template(NAME).map_err(|e| TemplateError(one_line(&e)))?;
        let context = minijinja::context! {
            messages => messages.iter().map(seen).collect::<Vec<Value>>(), add_generation_prompt => add_generation_prompt,
            bos_token => bos_token, eos_token => eos_token, tools => (), documents => (),
        };
        let limit = LONGEST_OVERHEAD + bytes.saturating_mul(2) + messages.len() * OVERHEAD_PER_MESSAGE;
        let mut out = Bounded { bytes: Vec::new(), limit };
        match template.render_captured_to(context, &mut out) {
            Ok(_) => String::from_utf8(out.bytes).map_err(|_| TemplateError("writes no UTF-8".into())),
            Err(e) => Err(TemplateError(one_line(&e))),
        }
    }
}

/// A message as transformers shows it to a template: what is null is not there, and a model's reasoning has each of its names.
fn seen(message: &Message) -> Value {
    let own =
        [("role", Some(Value::from(message.role.name()))), ("content", message.content.as_deref().map(Value::from))];
    let own = own.into_iter().filter_map(|(key, value)| Some((key, value?)));
    let more = message.more.iter().filter(|(_, value)| !value.is_null());
    let more = more.map(|(key, value)| (key.as_str(), Value::from(Serde(value))));
    let mut pairs: Vec<(&str, Value)> = own.chain(more).collect();
    let of = |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
    if let Some(reasoning) = ["reasoning_content", "thinking", "reasoning"].into_iter().find_map(of) {
        if of("thinking").is_none() {
            pairs.insert(0, ("thinking", reasoning.clone()));
        }
        pairs.retain(|(key, _)| *key != "reasoning_content");
        pairs.push(("reasoning_content", reasoning));
    }
    Value::from_pairs(pairs)
}

/// Output that ends with an error instead of filling the memory.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(io::Error::other(format!("writes more than {} bytes", self.limit)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's `datetime.now().strftime(format)`.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    use fmt::Write;
    let mut text = String::new();
    let refused =
        |_| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: `{format}` is no format"));
    write!(text, "{}", chrono::Local::now().format(format)).map_err(refused)?;
    Ok(text)
}

/// The message of a template's own exception alone; else what happened and where.
fn one_line(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    let mut text = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if error.kind() == ErrorKind::OutOfFuel {
        text = "takes too many steps".into();
    }
    if let Some(cause) = std::error::Error::source(error) {
        text = format!("{text}: {cause}");
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ") + &line
}

const NAME: &str = "chat";

/// Steps of the template's machine: real templates take some tens for each message.
const FUEL: u64 = 200_000;
const FUEL_PER_MESSAGE: u64 = 5_000;

/// Bytes written besides the messages.
const LONGEST_OVERHEAD: usize = 256 << 10;
const OVERHEAD_PER_MESSAGE: usize = 4 << 10;

const MOST_DEPTH: usize = 64;
