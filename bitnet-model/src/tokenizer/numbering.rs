//! The ids of added tokens: those that a `tokenizer.json` states.
//!
//! The library numbers the added tokens that are not in the vocabulary itself, one after the other behind it, whatever the file
//! says. A model was trained with the ids of the file. So where the two differ, the added tokens are put into the vocabulary,
//! whose ids the library keeps.

use serde::Deserialize;
use serde_json::Value as Json;
use tokenizers::{Model as _, Tokenizer as Library};

#[derive(Deserialize)]
struct Stated {
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
}

/// The library's tokenizer of a `tokenizer.json`, with the ids that the file states.
///
/// # Errors
/// If it does not load, or states the ids of added tokens in a way that cannot be followed.
pub(super) fn load(json: &[u8]) -> Result<Library, String> {
    let load = |json: &[u8]| Library::from_bytes(json).map_err(|e| format!("does not load: {e}"));
    let library = load(json)?;
    let stated: Stated = serde_json::from_slice(json).map_err(|e| format!("does not load: {e}"))?;
    // The library passes over a token without a text.
    let stated: Vec<Added> = stated.added_tokens.into_iter().filter(|added| !added.content.is_empty()).collect();
    check(&library, &stated)?;
    if stated.iter().all(|added| library.token_to_id(&added.content) == Some(added.id)) {
        return Ok(library);
    }
    let mut whole: Json = serde_json::from_slice(json).map_err(|e| format!("does not load: {e}"))?;
    let vocab = whole["model"]["vocab"].as_object_mut().ok_or_else(|| {
        let first = stated.iter().find(|added| library.token_to_id(&added.content) != Some(added.id));
        let (content, id) = first.map_or(("", 0), |added| (&added.content, added.id));
        let content = content.escape_debug();
        format!("has the added token `{content}` with id {id}, which does not follow its vocabulary: supported for BPE, WordPiece and WordLevel only")
    })?;
    vocab.extend(stated.into_iter().map(|added| (added.content, added.id.into())));
    load(whole.to_string().as_bytes())
}

/// Refuses a token that the file gives two ids, and an id that it gives two tokens.
fn check(library: &Library, stated: &[Added]) -> Result<(), String> {
    let model = library.get_model();
    let mut by_id: Vec<&Added> = stated.iter().collect();
    by_id.sort_by(|a, b| (a.id, &a.content).cmp(&(b.id, &b.content)));
    let same_id = by_id.windows(2).find(|pair| pair[0].id == pair[1].id && pair[0].content != pair[1].content);
    let twice = same_id.map(|pair| (pair[1], pair[0].content.clone()));
    let other_token = |added: &Added| model.id_to_token(added.id).filter(|other| *other != added.content);
    let in_vocab = || stated.iter().find_map(|added| Some((added, other_token(added)?)));
    if let Some((added, other)) = twice.or_else(in_vocab) {
        let (content, other) = (added.content.escape_debug(), other.escape_debug());
        return Err(format!("has the added token `{content}` with id {}, which is the id of `{other}` too", added.id));
    }
    let mut by_text = by_id;
    by_text.sort_by(|a, b| (&a.content, a.id).cmp(&(&b.content, b.id)));
    let same_text = by_text.windows(2).find(|pair| pair[0].content == pair[1].content && pair[0].id != pair[1].id);
    let twice = same_text.map(|pair| (pair[1], pair[0].id));
    let other_id = |added: &Added| model.token_to_id(&added.content).filter(|other| *other != added.id);
    let in_vocab = || stated.iter().find_map(|added| Some((added, other_id(added)?)));
    if let Some((added, other)) = twice.or_else(in_vocab) {
        let (content, id) = (added.content.escape_debug(), added.id);
        return Err(format!("has the added token `{content}` with the ids {other} and {id}, expected one"));
    }
    Ok(())
}
