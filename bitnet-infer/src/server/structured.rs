//! Texts that must be JSON: which tokens may come next, by `llguidance`.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bitnet_model::ModelConfig;
use bitnet_model::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};

/// Makes constraints for one vocabulary; what that takes is prepared with the first.
#[derive(Default)]
pub struct Structured {
    factory: OnceLock<Result<ParserFactory, String>>,
}

/// What a text may still become.
pub struct Constraint(Matcher);

/// Tokens that may come next.
#[derive(Clone)]
pub struct Allowed(SimpleVob);

impl Structured {
    /// A constraint to texts that fit a JSON schema. White space is as Python's `json.dumps` writes it: a weak model cannot lose
    /// itself in it.
    ///
    /// # Errors
    /// If the schema is none, or has something that cannot be held to.
    pub fn schema(&self, mut schema: Value, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Constraint, String> {
        if let Some(schema) = schema.as_object_mut() {
            let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
            schema.insert("x-guidance".into(), style);
        }
        let factory = self.factory.get_or_init(|| factory(tokenizer, config)).as_ref().map_err(Clone::clone)?;
        let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema)).map_err(|e| one_line(&e))?;
        Ok(Constraint(Matcher::new(Ok(parser))))
    }
}

fn factory(tokenizer: &Tokenizer, config: &ModelConfig) -> Result<ParserFactory, String> {
    let Some(&eos) = config.eos_token_ids.first() else { return Err("the model has no token that ends a text".into()) };
    let vocab_size = u32::try_from(config.vocab_size).map_err(|e| e.to_string())?;
    let special: Vec<u32> =
        tokenizer.special_tokens().map(|(id, _)| id).chain(config.eos_token_ids.iter().copied()).collect();
    let words: Vec<Vec<u8>> = (0..vocab_size)
        .map(|id| {
            let bytes = tokenizer.bytes_of(id);
            // Marked, such a token is no text.
            if special.contains(&id) { [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes.as_slice()].concat() } else { bytes }
        })
        .collect();
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size, eos), &words);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&environment).map_err(|e| one_line(&e))?;
    factory.quiet();
    Ok(factory)
}

fn one_line(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(300).collect()
}

impl Constraint {
    /// Finds out which tokens may come next. This takes time: it walks the vocabulary.
    ///
    /// # Errors
    /// If it cannot be found out within the limits.
    pub fn allowed(&mut self) -> Result<Allowed, String> {
        self.0.compute_mask_or_eos().map(Allowed).map_err(|e| one_line(&e))
    }

    /// Takes the next token. Returns whether the text is complete.
    ///
    /// # Errors
    /// If it was not allowed.
    pub fn push(&mut self, token: u32) -> Result<bool, String> {
        self.0.consume_token(token).map_err(|e| one_line(&e))?;
        Ok(self.0.is_stopped())
    }
}

impl Allowed {
    /// Makes every other token impossible.
    pub fn mask(&self, logits: &mut [f32]) {
        for (token, logit) in (0..).zip(logits) {
            if !self.0.is_allowed(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        Self(self.0.deep_clone())
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraint")
    }
}
