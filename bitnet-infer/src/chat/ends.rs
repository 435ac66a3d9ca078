//! Which tokens end a turn: found by writing a conversation and looking behind what the assistant says in it.

use bitnet_model::tokenizer::Tokenizer;

use super::template::Template;
use super::{Message, Role};

/// Tokens that end an assistant's turn, in the order of their ids.
///
/// A template may spell its end in pieces, or use the name of a variable for it, so its source does not tell. What it writes
/// does. Only an end that no conversation without tools has is looked for by its spelling.
pub fn of_turns(template: &Template, tokenizer: &Tokenizer, bos: &str, eos: &str) -> Vec<u32> {
    let specials: Vec<(u32, &str)> =
        tokenizer.special_tokens().filter(|(_, text)| !text.is_empty() && *text != bos).collect();
    let mut found: Vec<u32> = specials
        .iter()
        .filter(|(_, text)| UNSEEN_ENDS.contains(text) && template.source().contains(text))
        .map(|(id, _)| *id)
        .collect();
    for messages in conversations() {
        // A template may refuse one of them, and know only the other.
        let Ok(text) = template.render(&messages, false, bos, eos) else { continue };
        for (at, answer) in text.match_indices(ANSWER) {
            let behind = text[at + answer.len()..].trim_start();
            let end = specials.iter().filter(|(_, text)| behind.starts_with(text)).max_by_key(|(_, text)| text.len());
            found.extend(end.map(|(id, _)| *id));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// An answer in the middle and at the end, with and without a system's text.
fn conversations() -> [Vec<Message>; 3] {
    let turn = || [Message::new(Role::User, "Question"), Message::new(Role::Assistant, ANSWER)];
    let system = [Message::new(Role::System, "Rule")];
    [turn().to_vec(), turn().into_iter().chain(turn()).collect(), system.into_iter().chain(turn()).collect()]
}

/// No template writes it by itself.
const ANSWER: &str = "Zqvxanswer";

/// Ends of turns that call tools, or that a template has in a branch for them.
const UNSEEN_ENDS: [&str; 3] = ["<|eom_id|>", "<|call|>", "<|return|>"];
