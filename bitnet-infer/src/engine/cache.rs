//! The keys and values of the tokens a sequence has seen.

mod page;
mod store;

use std::fmt;
use std::str::FromStr;

use bitnet_model::ModelConfig;

use super::error::{Error, Result};
use super::kernels::{BLOCK, KeyBlock, Vectors};

pub use page::{PAGE_TOKENS, Page, PageCount};

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// f32: exact, four bytes a number.
    #[default]
    F32,
    /// f16, rounded to nearest, limited to +-65504: two bytes a number.
    F16,
    /// Codes of -127 to 127 and one f32 step for each head of a token, by the absmax of
    /// [`bitnet_model::quant`]: one byte a number, and four a head.
    Int8,
}

impl KvType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Int8];

    /// The name used on the command line, in reports and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|kv_type| kv_type.name() == name);
        found.ok_or_else(|| format!("is `{name}`, expected one of: {}", known()))
    }
}

/// The key-value cache of one sequence, grown page by page as the sequence does.
///
/// A clone shares its pages: one is copied when either of the two writes to it.
///
/// Invariant: there are enough pages for `len` positions, and `len <= capacity`.
#[derive(Clone, Debug)]
pub struct KvCache {
    pages: Vec<Page>,
    shape: Shape,
    capacity: usize,
    len: usize,
    count: PageCount,
}

/// What decides whether keys and values fit a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    kv_type: KvType,
}

/// Room for a block of one head as f32; nothing if it is stored as that.
#[derive(Default)]
pub(super) struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    /// An empty cache in f32 for at most `capacity` tokens of a model of `config`.
    ///
    /// # Errors
    /// If `capacity` is zero or beyond the model's `max_position_embeddings`.
    pub fn new(config: &ModelConfig, capacity: usize) -> Result<Self> {
        Self::with_type(config, capacity, KvType::F32)
    }

    /// An empty cache that keeps keys and values as `kv_type`.
    ///
    /// # Errors
    /// As [`KvCache::new`].
    pub fn with_type(config: &ModelConfig, capacity: usize, kv_type: KvType) -> Result<Self> {
        let longest = config.max_position_embeddings;
        if capacity == 0 || capacity > longest {
            return Err(Error::Input(format!(
                "a context of {capacity} tokens is not possible: this model's is 1 to {longest}"
            )));
        }
        let shape = Shape {
            layers: config.num_hidden_layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            kv_type,
        };
        Ok(Self { pages: Vec::new(), shape, capacity, len: 0, count: PageCount::default() })
    }

    /// The same cache, whose pages from now on are counted by `count` (so is the copy of a page that others see too).
    pub fn counted_by(mut self, count: &PageCount) -> Self {
        self.count = count.clone();
        self
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

    /// What keys and values are kept as.
    pub fn kv_type(&self) -> KvType {
        self.shape.kv_type
    }

    /// Bytes allocated now, those of pages that others see too included.
    pub fn byte_count(&self) -> usize {
        self.pages.iter().map(Page::byte_count).sum()
    }

    /// Bytes of one page.
    pub fn page_bytes(&self) -> usize {
        self.shape.page_bytes()
    }

    /// Bytes that one position takes in all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.position_bytes() * self.shape.layers
    }

    /// The pages that hold the tokens, the last of them perhaps not full.
    pub fn pages(&self) -> &[Page] {
        &self.pages[..self.len.div_ceil(PAGE_TOKENS)]
    }

    /// Takes the first `tokens` positions of `page`, which another sequence has computed for the same tokens behind the same
    /// tokens, as its own next ones.
    ///
    /// # Panics
    /// If the cache does not end at the end of a page, `page` is of a model of another shape or another type, or the tokens
    /// are more than a page holds or than fit.
    pub fn share(&mut self, page: &Page, tokens: usize) {
        assert!(self.len.is_multiple_of(PAGE_TOKENS), "{} tokens end within a page", self.len);
        assert!(page.shape() == self.shape, "a page of another shape");
        assert!(tokens <= PAGE_TOKENS && tokens <= self.capacity - self.len, "{tokens} tokens do not fit");
        self.pages.truncate(self.len / PAGE_TOKENS);
        self.pages.push(page.clone());
        self.len += tokens;
    }

    /// Pages that writing `more` tokens will make, copies of shared ones included.
    pub fn pages_to_make(&self, more: usize) -> usize {
        let last_is_shared = more > 0
            && !self.len.is_multiple_of(PAGE_TOKENS)
            && self.pages.get(self.len / PAGE_TOKENS).is_some_and(Page::is_shared);
        (self.len + more).div_ceil(PAGE_TOKENS).saturating_sub(self.pages.len()) + usize::from(last_is_shared)
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
        let Shape { layers, kv_heads, head_dim, .. } = self.shape;
        (layers, kv_heads, head_dim) == (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    }

    /// Writes keys and values `[tokens, kv_heads * head_dim]` of `layer` behind the tokens counted so far, without
    /// counting them: that is [`KvCache::advance`], once every layer has been written.
    pub(super) fn write(&mut self, layer: usize, keys_tk: &[f32], values_tk: &[f32]) {
        let width = self.shape.kv_heads * self.shape.head_dim;
        let mut done = 0;
        while done < keys_tk.len() / width {
            let (page, slot) = ((self.len + done) / BLOCK, (self.len + done) % BLOCK);
            let tokens = (BLOCK - slot).min(keys_tk.len() / width - done);
            let rows = done * width..(done + tokens) * width;
            let block = self.page_mut(page).layer_mut(layer);
            block.keys.write(slot, &keys_tk[rows.clone()]);
            block.values.write(slot, &values_tk[rows]);
            done += tokens;
        }
    }

    /// Counts tokens that were written to every layer.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Block `index` of one head, in `scratch` if it is not stored as f32.
    pub(super) fn block<'a>(
        &'a self,
        (layer, head): (usize, usize),
        index: usize,
        vectors: Vectors,
        scratch: &'a mut Scratch,
    ) -> KeyBlock<'a> {
        let block = self.pages[index].layer(layer);
        KeyBlock {
            keys: block.keys.head(head, vectors, &mut scratch.keys),
            values: block.values.head(head, vectors, &mut scratch.values),
            start: index * BLOCK,
        }
    }

    /// All stored numbers of position `position` of `layer`, as they are written to a file.
    pub(super) fn append_position(&self, layer: usize, position: usize, bytes: &mut Vec<u8>) {
        let block = self.pages[position / BLOCK].layer(layer);
        block.keys.append_slot(position % BLOCK, bytes);
        block.values.append_slot(position % BLOCK, bytes);
    }

    /// Puts back what [`KvCache::append_position`] has given out, `bytes` being [`KvCache::position_bytes`] long. The position
    /// is one before those that [`KvCache::advance`] will count.
    pub(super) fn restore_position(&mut self, layer: usize, position: usize, bytes: &[u8]) {
        let block = self.page_mut(position / BLOCK).layer_mut(layer);
        let (key_bytes, value_bytes) = bytes.split_at(bytes.len() / 2);
        block.keys.restore_slot(position % BLOCK, key_bytes);
        block.values.restore_slot(position % BLOCK, value_bytes);
    }

    /// Bytes of one position of one layer in a file.
    pub(super) fn position_bytes(&self) -> usize {
        let Shape { kv_heads, head_dim, kv_type, .. } = self.shape;
        let head = match kv_type {
            KvType::F32 => 4 * head_dim,
            KvType::F16 => 2 * head_dim,
            KvType::Int8 => size_of::<f32>() + head_dim,
        };
        2 * kv_heads * head
    }

    fn page_mut(&mut self, index: usize) -> &mut Page {
        while self.pages.len() <= index {
            self.pages.push(Page::new(self.shape, &self.count));
        }
        &mut self.pages[index]
    }
}
