//! Tokenizers as GGUF's lists, and as the `tokenizer.json` of everybody else: each made from the other.
//!
//! Two kinds exist in both worlds: byte-level BPE (`gpt2`), with a rule for cutting a text into words that GGUF calls by a name,
//! and the BPE of SentencePiece (`llama`), whose merges follow from the scores of its tokens.

use std::collections::HashMap;

use serde_json::{Map, Value as Json, json};

use super::keys::{Keys, shown};
use super::parse::{GgufFile, Value};
use crate::error::{Error, Result};
use crate::files::added_tokens::{AddedTokens, around, template};

/// A tokenizer as GGUF holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLists {
    /// `gpt2` or `llama`.
    pub model: &'static str,
    /// How a text is cut into words, by GGUF's name (`gpt2` only).
    pub pre: Option<&'static str>,
    /// Tokens by id.
    pub tokens: Vec<String>,
    /// Their scores (`llama` only).
    pub scores: Option<Vec<f32>>,
    /// Their kinds: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub types: Vec<i32>,
    /// Pairs that are merged, in this order (`gpt2` only).
    pub merges: Vec<String>,
    /// Whether a space is put before a text (`llama` only).
    pub add_space_prefix: bool,
    /// The token that is put in front of a text, and the one behind it.
    pub around: [Option<u32>; 2],
}

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// A way to cut a text into words: GGUF's name, the names that mean the same, and the `pre_tokenizer` of a `tokenizer.json`.
struct Cutting {
    names: &'static [&'static str],
    pattern: Option<&'static str>,
    digits: bool,
}

const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/// Patterns without the contractions, which they all begin with.
const CUTTINGS: [Cutting; 4] = [
    Cutting { names: &["gpt-2", "gpt2", "mpt", "olmo", "jais", "trillion"], pattern: None, digits: false },
    Cutting {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        pattern: None,
        digits: true,
    },
    Cutting {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"],
        pattern: Some(r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        digits: false,
    },
    Cutting {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"],
        pattern: Some(r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        digits: false,
    },
];

impl Cutting {
    fn json(&self) -> Json {
        let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        if let Some(pattern) = self.pattern {
            let split = json!({"type": "Split", "pattern": {"Regex": format!("{CONTRACTIONS}{pattern}")},
                "behavior": "Isolated", "invert": false});
            return json!({"type": "Sequence", "pretokenizers": [split, byte_level(false)]});
        }
        if self.digits {
            let digits = json!({"type": "Digits", "individual_digits": true});
            return json!({"type": "Sequence", "pretokenizers": [digits, byte_level(true)]});
        }
        byte_level(true)
    }

    /// Whether a `pre_tokenizer` cuts in this way.
    fn is(&self, pre_tokenizer: &Json) -> bool {
        let parts = match pre_tokenizer["type"].as_str() {
            Some("Sequence") => pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default(),
            _ => std::slice::from_ref(pre_tokenizer),
        };
        let byte_level = |part: &Json, use_regex: bool| {
            part["type"] == "ByteLevel"
                && part["add_prefix_space"] == false
                && part["use_regex"].as_bool().unwrap_or(true) == use_regex
        };
        match (parts, self.pattern, self.digits) {
            ([only], None, false) => byte_level(only, true),
            ([digits, last], None, true) => {
                digits["type"] == "Digits" && digits["individual_digits"] == true && byte_level(last, true)
            }
            ([split, last], Some(pattern), _) => {
                let regex = split["pattern"]["Regex"].as_str().unwrap_or_default();
                // The contractions are written in two ways that mean the same.
                let rest = regex.find("|[^").map_or("", |at| &regex[at..]);
                split["type"] == "Split"
                    && split["behavior"] == "Isolated"
                    && regex.starts_with("(?")
                    && rest == pattern
                    && byte_level(last, false)
            }
            _ => false,
        }
    }
}

/// The bytes of the `tokenizer.json` of a GGUF file: the one that it carries, else made of its lists; `None` if it has neither.
///
/// # Errors
/// As [`token_lists`] and [`TokenLists::to_json`].
pub fn tokenizer_json(file: &GgufFile) -> Result<Option<Vec<u8>>> {
    if let Some(json) = Keys::new(file)?.text(HUGGING_FACE_JSON)? {
        return Ok(Some(json.as_bytes().to_vec()));
    }
    token_lists(file)?.map(|lists| lists.to_json(file.origin())).transpose()
}

/// The template of chats of a GGUF file.
///
/// # Errors
/// If it is no text.
pub fn chat_template(file: &GgufFile) -> Result<Option<String>> {
    Ok(Keys::new(file)?.text(CHAT_TEMPLATE)?.map(str::to_owned))
}

/// What a GGUF file says about the tokens around a text.
///
/// # Errors
/// If a key is not what it should be.
pub fn added_tokens(file: &GgufFile) -> Result<AddedTokens> {
    super::keys::added_tokens(&Keys::new(file)?)
}

/// Key of a whole `tokenizer.json`.
pub const HUGGING_FACE_JSON: &str = "tokenizer.huggingface.json";
/// Key of the template of chats.
pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";

/// The lists of a GGUF file; `None` if it has no tokenizer.
///
/// # Errors
/// The key and what was expected of it.
pub fn token_lists(file: &GgufFile) -> Result<Option<TokenLists>> {
    let keys = Keys::new(file)?;
    let (model_key, tokens_key) = ("tokenizer.ggml.model", "tokenizer.ggml.tokens");
    let model = match keys.text(model_key)? {
        Some("gpt2") => "gpt2",
        Some("llama") => "llama",
        None | Some("none" | "no_vocab") => return Ok(None),
        Some(other) => {
            let reason = format!("is `{}`, expected `gpt2` or `llama`", other.escape_debug());
            return Err(keys.fail(model_key, reason));
        }
    };
    let array = |key: &str| match file.value(key) {
        None => Ok(None),
        Some(Value::Array(array)) => Ok(Some(array)),
        Some(other) => Err(keys.fail(key, format!("is {}, expected an array", shown(other)))),
    };
    let texts = |key: &str| -> Result<Option<Vec<String>>> {
        let Some(array) = array(key)? else { return Ok(None) };
        let texts = array.texts().ok_or_else(|| keys.fail(key, "is no array of texts"))?;
        let text = |(i, bytes): (usize, &[u8])| {
            String::from_utf8(bytes.to_vec()).map_err(|_| keys.fail(key, format!("has no UTF-8 at index {i}")))
        };
        texts.enumerate().map(text).collect::<Result<_>>().map(Some)
    };
    let tokens = texts(tokens_key)?.ok_or_else(|| keys.fail(tokens_key, "is missing, expected an array of texts"))?;
    let as_many = |key: &str, len: usize| match len == tokens.len() {
        true => Ok(()),
        false => Err(keys.fail(key, format!("has {len} values for {} tokens", tokens.len()))),
    };
    let scores_key = "tokenizer.ggml.scores";
    let scores: Option<Vec<f32>> = match array(scores_key)? {
        Some(array) => {
            let floats = array.floats().ok_or_else(|| keys.fail(scores_key, "is no array of f32"))?;
            Some(floats.collect())
        }
        None => None,
    };
    scores.iter().try_for_each(|scores| as_many(scores_key, scores.len()))?;
    let types_key = "tokenizer.ggml.token_type";
    let types = match array(types_key)? {
        Some(array) => {
            let integers = array.integers().ok_or_else(|| keys.fail(types_key, "is no array of 32-bit integers"))?;
            let kind = |(id, n): (usize, i64)| match i32::try_from(n) {
                // llama.cpp's number for a token of no kind.
                Ok(0) => Ok(NORMAL),
                Ok(kind @ NORMAL..=BYTE) => Ok(kind),
                _ => Err(keys.fail(types_key, format!("is {n} at index {id}, expected {NORMAL} to {BYTE}"))),
            };
            integers.enumerate().map(kind).collect::<Result<_>>()?
        }
        None => vec![NORMAL; tokens.len()],
    };
    as_many(types_key, types.len())?;
    let pre = match (model, keys.text("tokenizer.ggml.pre")?) {
        ("llama", _) => None,
        // Microsoft's files have none, and the tokenizer of LLaMA 3.
        (_, None) if super::keys::BITNET.contains(&keys.architecture) => Some("llama-bpe"),
        (_, None) => Some("gpt-2"),
        (_, Some(name)) => {
            let cutting = CUTTINGS.iter().find(|cutting| cutting.names.contains(&name));
            let known: Vec<&str> = CUTTINGS.iter().flat_map(|cutting| cutting.names).copied().collect();
            Some(cutting.map(|cutting| cutting.names[0]).ok_or_else(|| {
                let reason = format!("is `{}`, expected one of: {}", name.escape_debug(), known.join(", "));
                keys.fail("tokenizer.ggml.pre", reason)
            })?)
        }
    };
    let merges = texts("tokenizer.ggml.merges")?.unwrap_or_default();
    let add_space_prefix = keys.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(model == "llama");
    if model == "llama" && scores.is_none() {
        return Err(keys.fail(scores_key, "is missing, expected an array of f32"));
    }
    let added = super::keys::added_tokens(&keys)?;
    let end = keys.token("tokenizer.ggml.eos_token_id")?;
    let around = [added.bos.filter(|_| added.add_bos == Some(true)), end.filter(|_| added.add_eos == Some(true))];
    Ok(Some(TokenLists { model, pre, tokens, scores, types, merges, add_space_prefix, around }))
}

impl TokenLists {
    /// The `tokenizer.json` of these lists; `origin` names them in errors.
    ///
    /// # Errors
    /// If two tokens are spelled alike, or a merge is no pair.
    pub fn to_json(&self, origin: &str) -> Result<Vec<u8>> {
        let fail = |reason: String| Error::Tokenizer { origin: origin.into(), reason };
        let mut ids: HashMap<&str, usize> = HashMap::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = ids.insert(token, id) {
                let token = token.escape_debug();
                return Err(fail(format!("has the token `{token}` at {first} and at {id}")));
            }
        }
        let vocab: Map<String, Json> = self.tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect();
        let is_llama = self.model == "llama";
        let added = self.types.iter().enumerate().filter_map(|(id, &kind)| {
            let special = matches!(kind, CONTROL | UNKNOWN);
            (special || kind == USER_DEFINED).then(|| {
                json!({"id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special})
            })
        });
        let added: Vec<Json> = added.collect();
        let merges = if is_llama { self.merges_of_scores(&ids) } else { self.merge_pairs() }.map_err(fail)?;
        let merges: Vec<Json> = merges.into_iter().map(|(a, b)| json!([a, b])).collect();
        let unknown = self.types.iter().position(|&kind| kind == UNKNOWN).filter(|_| is_llama);
        let model = json!({
            "type": "BPE", "dropout": null, "unk_token": unknown.map(|id| &self.tokens[id]),
            "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": is_llama, "byte_fallback": is_llama, "ignore_merges": self.pre == Some("llama-bpe"),
            "vocab": vocab, "merges": merges,
        });
        let (normalizer, pre_tokenizer, decoder) = if is_llama { self.llama_steps() } else { self.gpt2_steps() };
        let spelled = |id: Option<u32>| Some((id?, self.tokens.get(id? as usize)?.as_str()));
        let [front, behind] = self.around.map(spelled);
        let tokenizer = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": template(front, behind), "decoder": decoder, "model": model,
        });
        Ok(tokenizer.to_string().into_bytes())
    }

    fn gpt2_steps(&self) -> (Json, Json, Json) {
        let cutting = CUTTINGS.iter().find(|cutting| Some(cutting.names[0]) == self.pre).unwrap_or(&CUTTINGS[0]);
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        (Json::Null, cutting.json(), decoder)
    }

    fn llama_steps(&self) -> (Json, Json, Json) {
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.add_space_prefix {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let sequence = |name: &str, key: &str, parts: Vec<Json>| json!({"type": name, key: parts});
        (sequence("Sequence", "normalizers", normalizers), Json::Null, sequence("Sequence", "decoders", decoders))
    }

    fn merge_pairs(&self) -> Result<Vec<(&str, &str)>, String> {
        let pair = |(i, merge): (usize, &'_ String)| -> Result<(usize, usize), String> {
            // A part may begin with a space of its own only in broken lists.
            let at = merge.find(' ').filter(|&at| at > 0 && at + 1 < merge.len());
            at.map(|at| (i, at))
                .ok_or_else(|| format!("has a merge at {i} that is no pair: `{}`", merge.escape_debug()))
        };
        let places = self.merges.iter().enumerate().map(pair).collect::<Result<Vec<_>, _>>()?;
        Ok(places.into_iter().map(|(i, at)| (&self.merges[i][..at], &self.merges[i][at + 1..])).collect())
    }

    /// The merges that SentencePiece's rule (the pair whose token has the highest score first) amounts to: every way to make a
    /// token of two others, by falling score.
    ///
    /// Real vocabularies have two or three such ways a token; one made to have hundreds is refused before it fills the memory.
    fn merges_of_scores<'t>(&'t self, ids: &HashMap<&str, usize>) -> Result<Vec<(&'t str, &'t str)>, String> {
        let vocabulary: usize = self.tokens.iter().map(String::len).sum();
        let mut budget = MERGE_BYTES * vocabulary;
        let scores = self.scores.as_deref().unwrap_or_default();
        let mut merges: Vec<(f32, usize, usize, (&str, &str))> = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if !matches!(self.types[id], NORMAL | USER_DEFINED) || token.len() > LONGEST_PIECE {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                    budget = budget.checked_sub(token.len()).ok_or_else(|| {
                        format!("has tokens that are made of others in too many ways, more than {MERGE_BYTES} times {vocabulary} bytes")
                    })?;
                    merges.push((scores[id], l, r, (left, right)));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        Ok(merges.into_iter().map(|(.., pair)| pair).collect())
    }

    /// The lists of a `tokenizer.json` for a model of `vocab_size` tokens; `origin` names it in errors.
    ///
    /// # Errors
    /// If it is no tokenizer that GGUF has lists for: what it is, and what was expected.
    pub fn from_json(bytes: &[u8], vocab_size: usize, origin: &str) -> Result<Self> {
        let fail = |reason: String| Error::Tokenizer { origin: origin.into(), reason };
        let json: Json = crate::files::text::json(bytes, origin)?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            let kind = model["type"].as_str().unwrap_or("unknown");
            return Err(fail(format!("has a model of type `{kind}`, and GGUF's lists hold BPE only")));
        }
        let mut spelled: Vec<Option<(String, i32)>> = vec![None; vocab_size];
        let mut put = |id: Option<u64>, token: &str, kind: i32| {
            let place = id.and_then(|id| usize::try_from(id).ok()).and_then(|id| spelled.get_mut(id));
            let place = place.ok_or_else(|| {
                fail(format!("has the token `{}` outside the model's vocabulary of {vocab_size}", token.escape_debug()))
            })?;
            if let Some((other, _)) = place.replace((token.to_owned(), kind)).filter(|(other, _)| other != token) {
                let (token, other) = (token.escape_debug(), other.escape_debug());
                return Err(fail(format!("has the tokens `{other}` and `{token}` with the same id")));
            }
            Ok(())
        };
        let around = around(&json["post_processor"]).unwrap_or_default();
        let is_llama = model["byte_fallback"] == true;
        let is_byte = |token: &str| is_llama && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        for (token, id) in model["vocab"].as_object().into_iter().flatten() {
            put(id.as_u64(), token, if is_byte(token) { BYTE } else { NORMAL })?;
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let token = added["content"].as_str().unwrap_or_default();
            let unknown = is_llama && model["unk_token"] == token;
            let kind = if unknown {
                UNKNOWN
            } else if added["special"] == true {
                CONTROL
            } else {
                USER_DEFINED
            };
            put(added["id"].as_u64(), token, kind)?;
        }
        let named = spelled.into_iter().enumerate();
        let (tokens, types): (Vec<String>, Vec<i32>) =
            named.map(|(id, token)| token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))).unzip();
        let pair = |merge: &Json| match merge {
            Json::String(pair) => Some(pair.clone()),
            Json::Array(pair) => Some(format!("{} {}", pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
            _ => None,
        };
        let merges = model["merges"].as_array().into_iter().flatten().map(pair).collect::<Option<Vec<String>>>();
        let merges = merges.ok_or_else(|| fail("has a merge that is no pair".into()))?;
        if is_llama {
            let scores = scores_of_merges(&merges, &tokens);
            let add_space_prefix = json["normalizer"].to_string().contains("\"Prepend\"");
            return Ok(Self {
                model: "llama",
                pre: None,
                tokens,
                scores: Some(scores),
                types,
                merges: Vec::new(),
                add_space_prefix,
                around,
            });
        }
        let byte_level = json["pre_tokenizer"].to_string().contains("\"ByteLevel\"");
        if !byte_level {
            return Err(fail(
                "is a BPE that is neither byte-level nor SentencePiece's, and GGUF has no lists for it".into(),
            ));
        }
        let cutting = CUTTINGS.iter().find(|cutting| cutting.is(&json["pre_tokenizer"]));
        // Without merges it does not matter how a text is cut.
        let pre = if merges.is_empty() { Some(CUTTINGS[0].names[0]) } else { cutting.map(|cutting| cutting.names[0]) };
        Ok(Self { model: "gpt2", pre, tokens, scores: None, types, merges, add_space_prefix: false, around })
    }
}

/// Scores under which SentencePiece's rule merges in the order of `merges`: tokens are the better the earlier they are made.
fn scores_of_merges(merges: &[String], tokens: &[String]) -> Vec<f32> {
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for merge in merges {
        let rank = ranks.len();
        ranks.entry(merge.replacen(' ', "", 1)).or_insert(rank);
    }
    tokens.iter().map(|token| -(ranks.get(token).copied().unwrap_or(ranks.len()) as f32)).collect()
}

/// SentencePiece's space.
const SPACE: &str = "\u{2581}";

/// Bytes of merges for each byte of a vocabulary, at most.
const MERGE_BYTES: usize = 16;

/// Longer tokens are not split in search of their parts: no vocabulary merges to such lengths.
const LONGEST_PIECE: usize = 512;
