//! Pages: what a cache grows by, and what sequences with a common beginning share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::store::{Order, Store};
use super::{KvType, Shape};
use crate::engine::kernels::{BLOCK, LANES};

/// Positions of a page.
pub const PAGE_TOKENS: usize = BLOCK;

/// Keys and values of every layer at [`PAGE_TOKENS`] positions. A clone is the same page; writing to one that others hold too
/// copies it first.
#[derive(Clone, Debug)]
pub struct Page(Arc<Layers>);

/// A number of pages that exist; clones are the same number.
#[derive(Clone, Debug, Default)]
pub struct PageCount(Arc<AtomicUsize>);

impl PageCount {
    /// The number now.
    pub fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Clone, Debug)]
struct Layers {
    blocks: Vec<Block>,
    shape: Shape,
    _counted: Counted,
}

/// Keys (rotated) and values of one layer.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub keys: Store,
    pub values: Store,
}

/// One of the pages that are counted.
#[derive(Debug)]
struct Counted(PageCount);

impl Counted {
    fn new(count: &PageCount) -> Self {
        count.0.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Clone for Counted {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Page {
    pub(super) fn new(shape: Shape, count: &PageCount) -> Self {
        let store = |order| Store::new(shape.kv_type, order, shape.kv_heads, shape.head_dim);
        let block = || Block { keys: store(Order::Columns), values: store(Order::Rows) };
        let blocks = (0..shape.layers).map(|_| block()).collect();
        Self(Arc::new(Layers { blocks, shape, _counted: Counted::new(count) }))
    }

    /// Whether others hold this page too.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }

    /// Bytes allocated.
    pub fn byte_count(&self) -> usize {
        self.0.blocks.iter().map(|block| block.keys.byte_count() + block.values.byte_count()).sum()
    }

    pub(super) fn shape(&self) -> Shape {
        self.0.shape
    }

    pub(super) fn layer(&self, layer: usize) -> &Block {
        &self.0.blocks[layer]
    }

    pub(super) fn layer_mut(&mut self, layer: usize) -> &mut Block {
        &mut Arc::make_mut(&mut self.0).blocks[layer]
    }
}

impl Shape {
    /// Bytes of a page: [`Page::byte_count`] without making one.
    pub(super) fn page_bytes(self) -> usize {
        let numbers = self.kv_heads * PAGE_TOKENS * (self.head_dim + self.head_dim.next_multiple_of(LANES));
        let steps = 2 * self.kv_heads * PAGE_TOKENS * size_of::<f32>();
        self.layers
            * match self.kv_type {
                KvType::F32 => 4 * numbers,
                KvType::F16 => 2 * numbers,
                KvType::Int8 => numbers + steps,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(kv_type: KvType) -> Shape {
        Shape { layers: 3, kv_heads: 2, head_dim: 22, kv_type }
    }

    #[test]
    fn a_page_takes_what_is_said() {
        for kv_type in KvType::ALL {
            let page = Page::new(shape(kv_type), &PageCount::default());
            assert_eq!(page.byte_count(), shape(kv_type).page_bytes(), "{kv_type}");
        }
    }

    #[test]
    fn pages_are_counted_and_copied_when_written_to() {
        let count = PageCount::default();
        let mut first = Page::new(shape(KvType::F32), &count);
        let mut second = first.clone();
        assert_eq!((count.now(), first.is_shared()), (1, true));
        second.layer_mut(1).keys.write(0, &[1.0; 44]);
        assert_eq!((count.now(), first.is_shared()), (2, false));
        first.layer_mut(1).keys.write(0, &[2.0; 44]);
        assert_eq!(count.now(), 2);
        let key = |page: &Page| {
            let mut bytes = Vec::new();
            page.layer(1).keys.append_slot(0, &mut bytes);
            bytes
        };
        assert_ne!(key(&first), key(&second));
        drop((first, second));
        assert_eq!(count.now(), 0);
    }
}
