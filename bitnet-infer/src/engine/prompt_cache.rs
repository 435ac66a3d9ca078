//! The keys and values of a prompt in a file, so that a prompt that begins alike need not be read again.
//!
//! The file, little-endian, whatever the machine: the eight letters `bitnetkv`, the version (u32, 2), the type of the cache
//! (u32: 0 f32, 1 f16, 2 int8), the fingerprint of the model and the tokens (u64), the number of tokens (u64), the tokens
//! (u32 each); for each layer and each token its keys, then its values, head by head (int8: a step as f32, then the codes);
//! at the end the checksum of all that (u64). Fingerprint and checksum are XXH3 ([`super::fingerprint`]).

use std::io::{self, Write};
use std::path::Path;

use bitnet_model::files;

use super::cache::{KvCache, KvType};
use super::error::{Error, Result};
use super::fingerprint::{self, Digest};
use super::model::Model;

/// A prompt as it was saved: its tokens and what the cache held after them.
///
/// Invariant: `data` holds `tokens.len()` positions of every layer of the model it was read for.
pub struct SavedPrompt {
    tokens: Vec<u32>,
    kv_type: KvType,
    data: Vec<u8>,
}

impl SavedPrompt {
    /// Reads a file that [`save_prompt`] has written.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or was written for another model or another type of cache.
    pub fn read(path: &Path, model: &Model, kv_type: KvType) -> Result<Self> {
        let longest = model.config.max_position_embeddings;
        let position = size_of::<u32>() + layer_bytes(model, kv_type)? * model.config.num_hidden_layers;
        let limit = longest.saturating_mul(position).saturating_add(HEADER_BYTES + CHECKSUM_BYTES);
        let bytes = files::read_bounded(path, limit as u64)?;
        Self::parse(bytes, model, kv_type).map_err(|reason| {
            let path = path.display();
            Error::Input(format!("{path}: {reason}: remove the file or name another"))
        })
    }

    /// The tokens that were saved.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Puts the longest common beginning of the saved tokens and `prompt` into `cache`, which must be empty, of the same type
    /// and for the same model. Of a prompt that is saved as a whole the last token is left out: its logits are not saved.
    /// Returns how many tokens that are.
    ///
    /// # Panics
    /// If the cache is not empty or of another type.
    pub fn restore(&self, prompt: &[u32], cache: &mut KvCache) -> usize {
        assert!(cache.is_empty() && cache.kv_type() == self.kv_type, "an empty cache of type {}", self.kv_type);
        let common = self.tokens.iter().zip(prompt).take_while(|(saved, token)| saved == token).count();
        let common = common.min(prompt.len().saturating_sub(1)).min(cache.capacity());
        let position_bytes = cache.position_bytes();
        let layers = self.data.chunks_exact((self.tokens.len() * position_bytes).max(1));
        for (layer, positions) in layers.enumerate() {
            for (position, bytes) in positions.chunks_exact(position_bytes).take(common).enumerate() {
                cache.restore_position(layer, position, bytes);
            }
        }
        cache.advance(common);
        common
    }

    /// Checks the bytes of a file; the error is what is wrong with them.
    fn parse(mut bytes: Vec<u8>, model: &Model, kv_type: KvType) -> Result<Self, String> {
        let len = bytes.len();
        let damaged = |what: String| format!("is not a whole prompt cache: {what}");
        if len < HEADER_BYTES + CHECKSUM_BYTES {
            return Err(damaged(format!("it has {len} bytes, expected at least {}", HEADER_BYTES + CHECKSUM_BYTES)));
        }
        if bytes[..8] != *MAGIC {
            return Err(damaged("it does not begin with `bitnetkv`".into()));
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let (version, type_number, fingerprint, count) = (u32_at(8), u32_at(12), u64_at(16), u64_at(24));
        if version != VERSION {
            return Err(format!("is a prompt cache of version {version}, expected version {VERSION}"));
        }
        let mut checksum = Digest::new();
        checksum.add(&bytes[..len - CHECKSUM_BYTES]);
        if checksum.value() != u64_at(len - CHECKSUM_BYTES) {
            return Err(damaged("the checksum does not fit".into()));
        }
        let Some(found) = KvType::ALL.get(type_number as usize).copied() else {
            return Err(damaged(format!("cache type {type_number} is not known")));
        };
        if found != kv_type {
            return Err(format!("holds keys and values in {found}, expected {kv_type}"));
        }
        let layers = layer_bytes(model, kv_type).map_err(|e| e.to_string())? * model.config.num_hidden_layers;
        let expected = count.checked_mul((size_of::<u32>() + layers) as u64);
        if expected != Some((len - HEADER_BYTES - CHECKSUM_BYTES) as u64) {
            return Err(damaged(format!("it has {len} bytes, which are not {count} tokens")));
        }
        let data_start = HEADER_BYTES + count as usize * size_of::<u32>();
        let tokens: Vec<u32> =
            bytes[HEADER_BYTES..data_start].as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        if fingerprint != fingerprint::of_prompt(model, &tokens) {
            return Err("was written for another model, or with a kernel that rounds differently".into());
        }
        bytes.truncate(len - CHECKSUM_BYTES);
        bytes.drain(..data_start);
        Ok(Self { tokens, kv_type, data: bytes })
    }
}

/// Writes what `cache` holds, which are `tokens` run through `model`, all or nothing.
///
/// # Errors
/// If the file cannot be written; an earlier one at `path` is then untouched.
///
/// # Panics
/// If the cache does not hold as many tokens, or is for a model of another shape.
pub fn save_prompt(path: &Path, model: &Model, tokens: &[u32], cache: &KvCache) -> Result<()> {
    assert!(cache.len() == tokens.len() && cache.fits(&model.config), "the cache of these {} tokens", tokens.len());
    let type_number = KvType::ALL.iter().position(|kv_type| *kv_type == cache.kv_type()).expect("all are there");
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((type_number as u32).to_le_bytes());
    header.extend(fingerprint::of_prompt(model, tokens).to_le_bytes());
    header.extend((tokens.len() as u64).to_le_bytes());
    header.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    let fill = |file: &mut dyn Write| -> io::Result<()> {
        let mut checksum = Digest::new();
        checksum.add(&header);
        file.write_all(&header)?;
        let mut bytes = Vec::new();
        for layer in 0..model.config.num_hidden_layers {
            for position in 0..tokens.len() {
                bytes.clear();
                cache.append_position(layer, position, &mut bytes);
                checksum.add(&bytes);
                file.write_all(&bytes)?;
            }
        }
        file.write_all(&checksum.value().to_le_bytes())
    };
    Ok(files::write_atomic_with(path, fill)?)
}

/// Bytes of one position of one layer.
fn layer_bytes(model: &Model, kv_type: KvType) -> Result<usize> {
    Ok(KvCache::with_type(&model.config, 1, kv_type)?.position_bytes())
}

const MAGIC: &[u8; 8] = b"bitnetkv";
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::RandomModel;
    use crate::kernels;
    use proptest::prelude::*;

    fn model(seed: u64) -> Model {
        let random = RandomModel { seed, ..RandomModel::named("tiny").expect("known") };
        random.build(kernels::best().expect("a kernel")).expect("possible")
    }

    fn saved(model: &Model, kv_type: KvType) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        let tokens: Vec<u32> = (0..70).collect();
        let mut cache = KvCache::with_type(&model.config, 100, kv_type).expect("fits");
        model.hidden_states(&mut [crate::engine::Sequence { tokens: &tokens, cache: &mut cache }]).expect("runs");
        save_prompt(file.path(), model, &tokens, &cache).expect("written");
        std::fs::read(file.path()).expect("read")
    }

    /// Makes the checksum fit, so that a lie gets further.
    fn sign(bytes: &mut [u8]) {
        let Some(end) = bytes.len().checked_sub(CHECKSUM_BYTES) else { return };
        let mut checksum = Digest::new();
        checksum.add(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.value().to_le_bytes());
    }

    proptest! {
        #[test]
        fn a_hostile_file_is_refused_or_harmless(
            kv_type in prop::sample::select(&KvType::ALL[..]),
            places in prop::collection::vec((0usize..400, any::<u8>()), 0..4),
            length in prop_oneof![Just(usize::MAX), 0usize..400, any::<usize>()],
            more in prop::collection::vec(any::<u8>(), 0..9),
            signed in any::<bool>(),
        ) {
            let model = model(0);
            let whole = saved(&model, kv_type);
            let mut bytes = whole.clone();
            places.iter().for_each(|&(at, byte)| bytes[at] = byte);
            bytes.truncate(if length == usize::MAX { length } else { length % whole.len() });
            bytes.extend(&more);
            if signed {
                sign(&mut bytes);
            }
            let same = bytes == whole;
            match SavedPrompt::parse(bytes, &model, kv_type) {
                Ok(prompt) => {
                    prop_assert!(same || signed);
                    let mut cache = KvCache::with_type(&model.config, 40, kv_type).expect("fits");
                    let tokens: Vec<u32> = prompt.tokens().iter().copied().take(90).collect();
                    let restored = prompt.restore(&tokens, &mut cache);
                    prop_assert_eq!((restored, cache.len()), (40.min(tokens.len() - 1), restored));
                }
                Err(reason) => prop_assert!(!same && reason.lines().count() == 1, "{}", reason),
            }
        }
    }

    #[test]
    fn another_model_type_or_number_of_tokens_is_refused() {
        let own = model(0);
        let bytes = saved(&own, KvType::F16);
        let refused = |bytes: &[u8], model: &Model, kv_type| {
            SavedPrompt::parse(bytes.to_vec(), model, kv_type).err().expect("refused")
        };
        assert!(refused(&bytes, &model(1), KvType::F16).starts_with("was written for another model"));
        assert_eq!(refused(&bytes, &own, KvType::Int8), "holds keys and values in f16, expected int8");
        for count in [0, 69, 71, 1 << 61, u64::MAX] {
            let mut lie = bytes.clone();
            lie[24..32].copy_from_slice(&count.to_le_bytes());
            sign(&mut lie);
            assert!(refused(&lie, &own, KvType::F16).contains(&format!("which are not {count} tokens")));
        }
        let mut flipped = bytes.clone();
        flipped[bytes.len() / 2] ^= 1;
        assert!(refused(&flipped, &own, KvType::F16).contains("checksum"));
    }
}
