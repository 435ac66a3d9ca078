//! How a model asks to be sampled: its `generation_config.json`.

use bitnet_model::files::hugging_face::GENERATION_FILE;
use bitnet_model::files::text;

use crate::engine::{ModelFiles, Result, SamplerConfig};

/// What a `generation_config.json` says of sampling and of the end of a text. Whatever it does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
#[serde(default)]
pub struct GenerationDefaults {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Draw from that many most probable tokens.
    pub top_k: Option<usize>,
    /// Draw from the most probable tokens that together reach this.
    pub top_p: Option<f32>,
    /// Draw from tokens at least so many times as probable as the first.
    pub min_p: Option<f32>,
    /// Makes recent tokens less probable.
    pub repetition_penalty: Option<f32>,
    /// Tokens that end a text.
    eos_token_id: Option<Ends>,
}

#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(untagged)]
enum Ends {
    One(u32),
    Several(Vec<u32>),
}

impl GenerationDefaults {
    /// Those of a model; nothing is set where it has none.
    ///
    /// # Errors
    /// If the file is there and is not what it should be.
    pub fn of(files: &ModelFiles) -> Result<Self> {
        let Some(path) = files.folder().map(|folder| folder.join(GENERATION_FILE)).filter(|path| path.exists()) else {
            return Ok(Self::default());
        };
        Ok(text::read_json(&path, 1 << 20)?)
    }

    /// Tokens that end a text.
    pub fn end_tokens(&self) -> &[u32] {
        match &self.eos_token_id {
            None => &[],
            Some(Ends::One(id)) => std::slice::from_ref(id),
            Some(Ends::Several(ids)) => ids,
        }
    }

    /// `config` with what is set here.
    pub fn over(&self, config: SamplerConfig) -> SamplerConfig {
        SamplerConfig {
            temperature: self.temperature.unwrap_or(config.temperature),
            top_k: self.top_k.unwrap_or(config.top_k),
            top_p: self.top_p.unwrap_or(config.top_p),
            min_p: self.min_p.unwrap_or(config.min_p),
            repeat_penalty: self.repetition_penalty.unwrap_or(config.repeat_penalty),
            ..config
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_counts_and_nothing_else() {
        let text =
            r#"{"do_sample": true, "eos_token_id": [128009, 7], "temperature": 0.6, "top_p": 0.9, "bos_token_id": 1}"#;
        let defaults: GenerationDefaults = serde_json::from_str(text).expect("parses");
        assert_eq!(defaults.end_tokens(), [128_009, 7]);
        let config = defaults.over(SamplerConfig { top_k: 3, ..SamplerConfig::default() });
        assert_eq!((config.temperature, config.top_p, config.top_k), (0.6, 0.9, 3));
        let one: GenerationDefaults = serde_json::from_str(r#"{"eos_token_id": 2}"#).expect("parses");
        assert_eq!(one.end_tokens(), [2]);
        assert!(serde_json::from_str::<GenerationDefaults>(r#"{"eos_token_id": "x"}"#).is_err());
    }
}
