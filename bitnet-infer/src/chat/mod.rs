//! Conversations: messages to the tokens that a model continues, by the template that it was trained with.
//!
//! What people write is data. A special token that is spelled out in a message stays plain text: it is cut where the tokenizer
//! would see it (`shield`), so no message can end its turn or begin one in another role.

mod builtin;
mod defaults;
mod ends;
mod json;
mod message;
mod shield;
mod template;

use std::path::Path;

use bitnet_model::ModelConfig;
use bitnet_model::files::text;
use bitnet_model::tokenizer::Tokenizer;

use crate::engine::{Error, ModelFiles, Result};

pub use builtin::BUILT_IN;
pub use defaults::GenerationDefaults;
pub use message::{Message, Role};
pub use template::Template;

/// What follows the last message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// The beginning of the assistant's turn.
    #[default]
    Reply,
    /// Nothing: the conversation as it is.
    Closed,
    /// The last message goes on.
    Continue,
}

/// How a model holds conversations.
pub struct ChatFormat {
    template: Template,
    name: String,
    bos: Option<(u32, String)>,
    eos: String,
    specials: Vec<String>,
    end_tokens: Vec<u32>,
    stops: Vec<String>,
}

impl ChatFormat {
    /// The format of a model: the template `named` (one of [`BUILT_IN`] or a file), else the model's own; `None` if it has
    /// none.
    ///
    /// # Errors
    /// If the template cannot be read or is none.
    pub fn of(
        files: &ModelFiles,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
        named: Option<&str>,
    ) -> Result<Option<Self>> {
        let (name, source, stops) = match named {
            Some(named) => named_template(named)?,
            None => match files.chat_template()? {
                Some(source) => ("the model's own".to_owned(), source, Vec::new()),
                None => return Ok(None),
            },
        };
        Self::new(name, source, stops, config, tokenizer).map(Some)
    }

    fn new(
        name: String,
        source: String,
        stops: Vec<String>,
        config: &ModelConfig,
        tokenizer: &Tokenizer,
    ) -> Result<Self> {
        let spelled = |id: u32| tokenizer.text_of(id).unwrap_or_default();
        let specials = tokenizer.special_tokens().map(|(_, text)| text.to_owned()).filter(|text| !text.is_empty());
        let template = Template::new(source).map_err(|e| Error::Input(format!("{name} chat template: {e}")))?;
        let bos = config.bos_token_id.map(|id| (id, spelled(id)));
        let eos = config.eos_token_ids.first().map(|&id| spelled(id)).unwrap_or_default();
        let end_tokens = ends::of_turns(&template, tokenizer, bos.as_ref().map_or("", |(_, text)| text), &eos);
        Ok(Self { template, name, bos, eos, specials: specials.collect(), end_tokens, stops })
    }

    /// The name of the template: a built-in one's, a file's, or that it is the model's own.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of the template.
    pub fn template(&self) -> &str {
        self.template.source()
    }

    /// Tokens that end a turn, besides those that end a text.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// Texts that end a turn where no token does.
    pub fn stops(&self) -> &[String] {
        &self.stops
    }

    /// The text of a conversation, as the template writes it.
    ///
    /// # Errors
    /// If the template refuses the messages (its own words), or takes more than [`Template`] allows.
    pub fn render(&self, messages: &[Message], ending: Ending) -> Result<String> {
        Ok(shield::remove(&self.shielded(messages, ending)?))
    }

    /// The tokens of a conversation, the model's BOS first if it has one.
    ///
    /// # Errors
    /// As [`ChatFormat::render`], and if the tokenizer cannot encode the text.
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message], ending: Ending) -> Result<Vec<u32>> {
        let text = self.shielded(messages, ending)?;
        let mut tokens = Vec::new();
        for part in shield::parts(&text) {
            tokens.extend(tokenizer.encode(part)?);
        }
        if let Some((bos, _)) = &self.bos
            && tokens.first() != Some(bos)
        {
            tokens.insert(0, *bos);
        }
        Ok(tokens)
    }

    fn shielded(&self, messages: &[Message], ending: Ending) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::Input("a conversation needs at least one message".into()));
        }
        let specials: Vec<&str> = self.specials.iter().map(String::as_str).collect();
        let mut messages: Vec<Message> = messages.iter().map(|message| message.shielded(&specials)).collect();
        if ending == Ending::Continue
            && let Some(last) = messages.last_mut()
        {
            // A template may trim what it is given, but not what has an end of its own.
            let mut content = last.text().trim_end().to_owned();
            content.push(shield::END);
            last.content = Some(content);
        }
        let bos = self.bos.as_ref().map_or("", |(_, text)| text);
        let write = |messages: &[Message]| self.template.render(messages, ending == Ending::Reply, bos, &self.eos);
        // The first refusal is the one that says what is wrong.
        let text = write(&messages).or_else(|error| {
            let others = message::spellings(&messages);
            others.iter().find_map(|messages| write(messages).ok()).ok_or(error)
        });
        let mut text = text.map_err(|e| Error::Input(format!("the chat template: {e}")))?;
        if ending == Ending::Continue {
            let end = text.rfind(shield::END).ok_or_else(|| {
                Error::Input("the chat template does not write the last message, so it cannot be continued".into())
            })?;
            text.truncate(end);
        }
        Ok(text)
    }
}

/// The tokens of a text in which special tokens that are spelled out are text like any other.
///
/// # Errors
/// If the tokenizer cannot encode it.
pub fn encode_plain(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let specials: Vec<&str> =
        tokenizer.special_tokens().map(|(_, text)| text).filter(|text| !text.is_empty()).collect();
    let mut tokens = Vec::new();
    for part in shield::parts(&shield::cut(text, &specials)) {
        tokens.extend(tokenizer.encode(part)?);
    }
    Ok(tokens)
}

/// A built-in template, or the text of a file: its name, its source, and the texts that end a turn.
fn named_template(named: &str) -> Result<(String, String, Vec<String>)> {
    if let Some(built_in) = BUILT_IN.iter().find(|built_in| built_in.name == named) {
        let stops = built_in.stops.iter().map(|&stop| stop.to_owned()).collect();
        return Ok((named.to_owned(), built_in.source.to_owned(), stops));
    }
    let path = Path::new(named);
    if !path.is_file() {
        let names: Vec<&str> = BUILT_IN.iter().map(|built_in| built_in.name).collect();
        let names = names.join(", ");
        return Err(Error::Input(format!("chat template `{named}`: expected one of {names}, or a file")));
    }
    Ok((named.to_owned(), text::read(path, LARGEST_TEMPLATE)?, Vec::new()))
}

/// More than any template takes.
const LARGEST_TEMPLATE: u64 = 1 << 20;

#[cfg(test)]
mod tests;
