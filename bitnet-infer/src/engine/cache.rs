//! The keys and values of the tokens a sequence has seen.

use bitnet_model::ModelConfig;

use super::error::{Error, Result};

/// Positions that are allocated at once.
pub(super) const BLOCK: usize = 256;

/// The key-value cache of one sequence, in f32: exact, and grown block by block as the sequence does.
///
/// Invariant: every layer has the same number of blocks, enough for `len` positions, and `len <= capacity`.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: Vec<KeyValues>,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
}

/// Keys (rotated) and values of one layer, in blocks of [`BLOCK`] positions. Keys are `[kv_heads, head_dim, BLOCK]` and
/// values `[kv_heads, BLOCK, head_dim]`: so attention adds whole rows in both of its products.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyValues {
    keys: Vec<Box<[f32]>>,
    values: Vec<Box<[f32]>>,
}

impl KvCache {
    /// An empty cache for at most `capacity` tokens of a model of `config`.
    ///
    /// # Errors
    /// If `capacity` is zero or beyond the model's `max_position_embeddings`.
    pub fn new(config: &ModelConfig, capacity: usize) -> Result<Self> {
        let longest = config.max_position_embeddings;
        if capacity == 0 || capacity > longest {
            return Err(Error::Input(format!(
                "a context of {capacity} tokens is not possible: this model's is 1 to {longest}"
            )));
        }
        Ok(Self {
            layers: vec![KeyValues::default(); config.num_hidden_layers],
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            capacity,
            len: 0,
        })
    }

    /// Tokens in the cache: the position of the next one.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is in the cache.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that the cache may hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes allocated now.
    pub fn byte_count(&self) -> usize {
        self.layers.iter().map(|layer| layer.keys.len() * 2 * self.block_len() * 4).sum()
    }

    /// Forgets all tokens but the first `len`; keeps the memory. Does nothing if there are no more than that.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Forgets all tokens; keeps the memory.
    pub fn reset(&mut self) {
        self.len = 0;
    }

    /// Whether `more` tokens fit.
    pub(super) fn check_room(&self, more: usize) -> Result<()> {
        if more <= self.capacity - self.len {
            return Ok(());
        }
        Err(Error::ContextFull { used: self.len, capacity: self.capacity, more })
    }

    /// Whether the cache was made for a model of this shape.
    pub(super) fn fits(&self, config: &ModelConfig) -> bool {
        (self.layers.len(), self.kv_heads, self.head_dim)
            == (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    }

    /// Writes keys and values `[tokens, kv_heads * head_dim]` of `layer` behind the tokens counted so far, without
    /// counting them: that is [`KvCache::advance`], once every layer has been written.
    pub(super) fn write(&mut self, layer: usize, keys_tk: &[f32], values_tk: &[f32]) {
        let (width, d, block_len) = (self.kv_heads * self.head_dim, self.head_dim, self.block_len());
        let layer = &mut self.layers[layer];
        let tokens = keys_tk.chunks(width).zip(values_tk.chunks(width));
        for (position, (keys, values)) in (self.len..).zip(tokens) {
            let (block, slot) = (position / BLOCK, position % BLOCK);
            if block == layer.keys.len() {
                layer.keys.push(vec![0.0; block_len].into());
                layer.values.push(vec![0.0; block_len].into());
            }
            for head in 0..self.kv_heads {
                let at = head * d * BLOCK;
                let column = layer.keys[block][at + slot..].iter_mut().step_by(BLOCK);
                column.zip(&keys[head * d..][..d]).for_each(|(stored, key)| *stored = *key);
                layer.values[block][at + slot * d..][..d].copy_from_slice(&values[head * d..][..d]);
            }
        }
    }

    /// Counts tokens that were written to every layer.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// The keys of one head, block by block `[head_dim, BLOCK]`.
    pub(super) fn keys(&self, layer: usize, head: usize) -> impl Iterator<Item = &[f32]> {
        head_of(&self.layers[layer].keys, head, self.head_dim)
    }

    /// The values of one head, block by block `[BLOCK, head_dim]`.
    pub(super) fn values(&self, layer: usize, head: usize) -> impl Iterator<Item = &[f32]> {
        head_of(&self.layers[layer].values, head, self.head_dim)
    }

    fn block_len(&self) -> usize {
        self.kv_heads * BLOCK * self.head_dim
    }
}

fn head_of(blocks: &[Box<[f32]>], head: usize, head_dim: usize) -> impl Iterator<Item = &[f32]> {
    blocks.iter().map(move |block| &block[head * BLOCK * head_dim..][..BLOCK * head_dim])
}
