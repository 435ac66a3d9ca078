//! Which tokens a tokenizer puts around a text by itself, and how a `tokenizer.json` says so: in its `post_processor`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::hugging_face::{GENERATION_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE};
use super::text;
use crate::error::{Error, Result};

/// What the files of a tokenizer say about the tokens around a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddedTokens {
    /// The token that begins a text, whether it is added or not.
    pub bos: Option<u32>,
    /// Whether it is put in front of every text; `None` where nothing says so.
    pub add_bos: Option<bool>,
    /// Whether an end token is put behind every text; `None` where nothing says so.
    pub add_eos: Option<bool>,
}

impl AddedTokens {
    /// What the tokenizer of a Hugging Face folder says: `add_bos_token` and `add_eos_token` of its `tokenizer_config.json`, else
    /// the template of its `tokenizer.json`. `bos` is that of the `config.json`.
    ///
    /// # Errors
    /// If one of the files is there and is no JSON, or a flag is neither true nor false.
    pub fn of_folder(folder: &Path, bos: Option<u32>) -> Result<Self> {
        let mut added = Self { bos, ..Self::default() };
        let path = folder.join(TOKENIZER_CONFIG_FILE);
        if path.exists() {
            let origin = path.display().to_string();
            let bytes = super::read_ordinary(&path, LARGEST_CONFIG)?;
            let flags: Flags = serde_json::from_slice(text::content(&bytes, &origin)?)
                .map_err(|e| Error::format(&origin, format!("is not a tokenizer's configuration: {e}")))?;
            (added.add_bos, added.add_eos) = (flags.add_bos_token, flags.add_eos_token);
        }
        let path = folder.join(TOKENIZER_FILE);
        if (added.add_bos.is_none() || added.add_eos.is_none()) && path.exists() {
            let origin = path.display().to_string();
            let bytes = super::read_ordinary(&path, LARGEST_TOKENIZER)?;
            let whole: PostProcessed = serde_json::from_slice(text::content(&bytes, &origin)?)
                .map_err(|e| Error::Tokenizer { origin, reason: format!("does not load: {e}") })?;
            if let Some([front, behind]) = around(&whole.post_processor) {
                added.bos = added.bos.or(front);
                // A token in front that is not the model's BOS is another matter.
                added.add_bos = added.add_bos.or(Some(front.is_some() && front == added.bos));
                added.add_eos = added.add_eos.or(Some(behind.is_some()));
            }
        }
        Ok(added)
    }
}

#[derive(Deserialize)]
struct Flags {
    #[serde(default)]
    add_bos_token: Option<bool>,
    #[serde(default)]
    add_eos_token: Option<bool>,
}

#[derive(Deserialize)]
struct PostProcessed {
    #[serde(default)]
    post_processor: Json,
}

/// The tokens that end a text by the `generation_config.json` of a folder; none if it has no such file.
///
/// # Errors
/// If the file is no JSON, or a token no number.
pub fn ends_of_generation(folder: &Path) -> Result<Vec<u32>> {
    let path = folder.join(GENERATION_FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let origin = path.display().to_string();
    let json: Json = text::read_json(&path, LARGEST_CONFIG)?;
    let ids = match &json["eos_token_id"] {
        Json::Null => &[],
        Json::Array(ids) => ids.as_slice(),
        id => std::slice::from_ref(id),
    };
    let token = |id: &Json| {
        let found = id.as_u64().and_then(|id| u32::try_from(id).ok());
        found.ok_or_else(|| Error::config(&origin, "eos_token_id", format!("is {id}, expected a token")))
    };
    ids.iter().map(token).collect()
}

/// The token in front of a text and the one behind it by a `post_processor`; `None` if there is none.
pub(super) fn around(post_processor: &Json) -> Option<[Option<u32>; 2]> {
    let parts = match post_processor["type"].as_str()? {
        "Sequence" => post_processor["processors"].as_array().map(Vec::as_slice).unwrap_or_default(),
        _ => std::slice::from_ref(post_processor),
    };
    let Some(template) = parts.iter().find(|part| part["type"] == "TemplateProcessing") else {
        return Some([None, None]);
    };
    let single = template["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    let id = |piece: Option<&Json>| {
        let name = piece?["SpecialToken"]["id"].as_str()?;
        u32::try_from(template["special_tokens"][name]["ids"][0].as_u64()?).ok()
    };
    Some([id(single.first()), id(single.last().filter(|_| single.len() > 1))])
}

/// The `post_processor` that puts tokens (each an id and a spelling) around a text; null for none.
pub(super) fn template(front: Option<(u32, &str)>, behind: Option<(u32, &str)>) -> Json {
    if front.is_none() && behind.is_none() {
        return Json::Null;
    }
    let special = |token: Option<(u32, &str)>, of: u32| {
        token.map(|(_, name)| json!({ "SpecialToken": { "id": name, "type_id": of } }))
    };
    let text = |name: &str, of: u32| {
        let sequence = json!({ "Sequence": { "id": name, "type_id": of } });
        [special(front, of), Some(sequence), special(behind, of)].into_iter().flatten()
    };
    let tokens: serde_json::Map<String, Json> = [front, behind]
        .into_iter()
        .flatten()
        .map(|(id, name)| (name.to_owned(), json!({ "id": name, "ids": [id], "tokens": [name] })))
        .collect();
    json!({
        "type": "TemplateProcessing",
        "single": text("A", 0).collect::<Vec<_>>(),
        "pair": text("A", 0).chain(text("B", 1)).collect::<Vec<_>>(),
        "special_tokens": tokens,
    })
}

const LARGEST_CONFIG: u64 = 16 << 20;
const LARGEST_TOKENIZER: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_written_as_they_are_read() {
        for front in [None, Some((1, "<s>"))] {
            for behind in [None, Some((2, "</s>"))] {
                let written = template(front, behind);
                let found = around(&written);
                let expected = [front, behind].map(|token| token.map(|(id, _)| id));
                assert_eq!(found.unwrap_or_default(), expected);
                let nested = json!({ "type": "Sequence", "processors": [{ "type": "ByteLevel" }, written] });
                assert_eq!(around(&nested), Some(expected));
            }
        }
        assert_eq!(around(&json!({ "type": "ByteLevel" })), Some([None, None]), "this one says that nothing is added");
        assert_eq!(around(&Json::Null), None, "this one says nothing");
    }

    #[test]
    fn a_folder_says_what_is_added() {
        let bos = Some(1);
        for (config, tokenizer, expected) in [
            (None, json!(null), [None, None]),
            (None, template(Some((1, "<s>")), None), [Some(true), Some(false)]),
            (None, template(Some((7, "[CLS]")), Some((8, "[SEP]"))), [Some(false), Some(true)]),
            (None, json!({ "type": "ByteLevel" }), [Some(false), Some(false)]),
            (Some(r#"{"add_bos_token": true}"#), json!({ "type": "ByteLevel" }), [Some(true), Some(false)]),
            (Some(r#"{"add_bos_token": false}"#), template(Some((1, "<s>")), None), [Some(false), Some(false)]),
            (Some(r#"{"add_bos_token": null, "add_eos_token": true}"#), json!(null), [None, Some(true)]),
        ] {
            let folder = tempfile::tempdir().expect("temp dir");
            if let Some(config) = config {
                std::fs::write(folder.path().join(TOKENIZER_CONFIG_FILE), config).expect("written");
            }
            let whole = json!({ "version": "1.0", "post_processor": tokenizer, "model": {} }).to_string();
            std::fs::write(folder.path().join(TOKENIZER_FILE), whole).expect("written");
            let added = AddedTokens::of_folder(folder.path(), bos).expect("reads");
            assert_eq!([added.add_bos, added.add_eos], expected, "{config:?} {tokenizer}");
            assert_eq!(added.bos, bos);
        }
        let folder = tempfile::tempdir().expect("temp dir");
        std::fs::write(folder.path().join(TOKENIZER_CONFIG_FILE), r#"{"add_bos_token": 1}"#).expect("written");
        let message = AddedTokens::of_folder(folder.path(), bos).expect_err("no flag").to_string();
        assert!(
            message.contains("tokenizer_config.json: is not a tokenizer's configuration: invalid type"),
            "{message}"
        );
    }

    #[test]
    fn generation_may_end_at_several_tokens() {
        let folder = tempfile::tempdir().expect("temp dir");
        assert_eq!(ends_of_generation(folder.path()).expect("no file"), Vec::<u32>::new());
        for (text, expected) in [
            (r#"{"eos_token_id": [5, 6]}"#, Some(vec![5, 6])),
            (r#"{"eos_token_id": 5}"#, Some(vec![5])),
            (r#"{"eos_token_id": null}"#, Some(vec![])),
            (r#"{"eos_token_id": [-1]}"#, None),
        ] {
            std::fs::write(folder.path().join(GENERATION_FILE), text).expect("written");
            assert_eq!(ends_of_generation(folder.path()).ok(), expected, "{text}");
        }
    }
}
