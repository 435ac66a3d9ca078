//! The left operand of a block of the product, as tiles read it.
//!
//! A row-major f32 operand without factors is read where it lies. Otherwise the block is written to scratch memory once and
//! read from there for every panel of the right operand: rows that are contiguous along the inner dimension stay rows
//! (rounded, or with factors), a transpose becomes tiles, or rows for kernels that want them.

use std::ops::Range;

use super::Matrix;
use super::pack::{self, Panel};
use super::tiles::{Layout, Left, TileKernel};
use super::transpose;
use crate::ops::kernels::aligned::Aligned;

/// A block of rows, for a block of the inner dimension.
pub(super) struct Prepared<'a> {
    /// Whole tiles.
    whole: Left<'a>,
    /// Where a tile begins after the one before.
    tile_stride: usize,
    /// The last tile, if it has fewer rows than others.
    last: Option<Left<'a>>,
    tiles: usize,
}

impl<'a> Prepared<'a> {
    /// Rows `rows` and numbers `ks` of the inner dimension of `m`, with `factors` for each of those numbers or for none.
    pub(super) fn new(
        m: &Matrix<'a>,
        rows: Range<usize>,
        ks: Range<usize>,
        kernel: &TileKernel,
        factors: &[f32],
        scratch: &'a mut Aligned,
    ) -> Self {
        let TileKernel { rows: height, depth, .. } = *kernel;
        let words = ks.len().div_ceil(depth);
        let (whole, tail) = (rows.len() / height, rows.len() % height);
        let at =
            |row: usize| m.data.get((rows.start + row) * m.row_stride + ks.start * m.col_stride..).unwrap_or_default();
        let contiguous = m.row_stride != 1 || m.cols == 1;
        if kernel.left == Layout::Rows {
            assert_eq!(depth, 2, "rows of pairs");
            // Rows at cache lines, an odd number of them apart, or they would share few places in the cache.
            let stride = (words.div_ceil(LINE) | 1) * LINE;
            let tiles = rows.len().div_ceil(height);
            let out = scratch.words(tiles * height * stride);
            let (used, beyond) = out.split_at_mut(rows.len() * stride);
            beyond.fill(0);
            if contiguous {
                for (row, out) in used.chunks_exact_mut(stride).enumerate() {
                    pack::rows(at(row), m.row_stride, ks.len(), factors, depth, &mut out[..words]);
                }
            } else {
                transpose::rows_of_pairs(at(0), m.col_stride, rows.len(), ks.len(), factors, out, stride);
            }
            let whole = Left { words: out, row_stride: stride, word_stride: 1 };
            return Self { whole, tile_stride: height * stride, last: None, tiles };
        }
        // One line more between two tiles, or tiles of a power of two would share their place in the cache.
        let tile_stride = words * height + if contiguous { 0 } else { LINE };
        // Rows a multiple of 4 KiB apart have one place in the first-level cache between them.
        let direct = contiguous && depth == 1 && factors.is_empty() && !m.row_stride.is_multiple_of(1024);
        let (whole_words, last_words) = (if direct { 0 } else { whole * tile_stride }, words * height);
        let (in_whole, in_last) = scratch.words(whole_words + last_words).split_at_mut(whole_words);
        if tail > 0 {
            let panel = Panel { ks: ks.len(), width: tail, depth, w: height };
            if contiguous {
                let used = tail * words;
                pack::rows(at(whole * height), m.row_stride, ks.len(), factors, depth, &mut in_last[..used]);
                in_last[used..].fill(0);
            } else {
                pack::contiguous_panel(at(whole * height), m.col_stride, panel, factors, in_last);
            }
        }
        if direct {
        } else if contiguous {
            pack::rows(at(0), m.row_stride, ks.len(), factors, depth, in_whole);
        } else if height == 8 {
            pack::tiles_of_8(at(0), m.col_stride, ks.len(), factors, depth, tile_stride.max(1), in_whole);
        } else {
            let panel = Panel { ks: ks.len(), width: height, depth, w: height };
            for (tile, out) in in_whole.chunks_mut(tile_stride.max(1)).enumerate() {
                pack::contiguous_panel(at(tile * height), m.col_stride, panel, factors, &mut out[..words * height]);
            }
        }
        let (row_stride, word_stride) = if contiguous { (words, 1) } else { (1, height) };
        let tiles = whole + usize::from(tail > 0);
        let last = (tail > 0).then_some(Left { words: in_last, row_stride, word_stride });
        if direct {
            let whole = Left { words: bits(at(0)), row_stride: m.row_stride, word_stride: 1 };
            return Self { whole, tile_stride: height * m.row_stride, last, tiles };
        }
        Self { whole: Left { words: in_whole, row_stride, word_stride }, tile_stride, last, tiles }
    }

    /// Each tile in its order.
    pub(super) fn tiles(&self) -> impl Iterator<Item = Left<'_>> {
        (0..self.tiles).map(|tile| match &self.last {
            Some(last) if tile + 1 == self.tiles => *last,
            _ => Left { words: &self.whole.words[tile * self.tile_stride..], ..self.whole },
        })
    }
}

/// Numbers as the words that hold them.
fn bits(x: &[f32]) -> &[u32] {
    // SAFETY: f32 and u32 have the same size and alignment, and every f32 is a valid u32.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) }
}

const LINE: usize = 16;
