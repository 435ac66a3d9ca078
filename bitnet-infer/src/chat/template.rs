//! Chat templates as Hugging Face's libraries run them, within limits.

use std::fmt;
use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind};

use super::{Message, json};

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
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.add_template_owned(NAME, source.clone()).map_err(|e| TemplateError(one_line(&e)))?;
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
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64));
        let template = environment.get_template(NAME).map_err(|e| TemplateError(one_line(&e)))?;
        let message = |message: &Message| {
            Value::from_pairs([("role", message.role.name()), ("content", message.content.as_str())])
        };
        let context = minijinja::context! {
            messages => messages.iter().map(message).collect::<Vec<Value>>(), add_generation_prompt => add_generation_prompt,
            bos_token => bos_token, eos_token => eos_token,
        };
        let limit = LONGEST_OVERHEAD + bytes.saturating_mul(2) + messages.len() * OVERHEAD_PER_MESSAGE;
        let mut out = Bounded { bytes: Vec::new(), limit };
        match template.render_captured_to(context, &mut out) {
            Ok(_) => String::from_utf8(out.bytes).map_err(|_| TemplateError("writes no UTF-8".into())),
            Err(e) => Err(TemplateError(one_line(&e))),
        }
    }
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

/// Unlike the one that comes with the engine, which escapes for HTML.
fn tojson(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other arguments change nothing that a template of ours may see.
    for name in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(name)?;
    }
    options.assert_all_used()?;
    let refused = |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    json::python(value, indent).map_err(refused)
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
