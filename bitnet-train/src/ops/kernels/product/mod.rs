//! Matrix products of training: packed operands, cache blocks, tiles.
//!
//! ```text
//! right operand [k, n]  ->  panels of `cols` columns, packed once for all uses             (Packed)
//! for each block of rows (a task, on some thread):
//!     for each block of the inner dimension:
//!         pack the rows of the left operand                                                 (in the second-level cache)
//!         for each panel, for each tile of rows:  out += tile                               (tiles.rs)
//! ```
//!
//! The inner dimension is cut into blocks of one size and every output is summed by one task in their order, so results
//! depend neither on the number of threads nor on timing.
//!
//! Codes are packed straight from int8: in f32 they are multiplied by their scale or step on the way, in bf16 they stay
//! integers (exact up to 256) and the scale or step goes to the other operand before it is rounded. So a dequantized matrix is
//! never stored, and bf16 rounds only the operand that is no integer.

mod left;
mod pack;
mod peak;
#[cfg(test)]
mod tests;
mod tiles;
mod transpose;

#[cfg(any(target_arch = "x86_64", test))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

pub use peak::peak;
pub use tiles::{BF16, F32, TileKernel, best};

use self::left::Prepared;
use self::pack::Panel;
use super::aligned::Aligned;
use super::elementwise::add_to;

/// A strided view of a matrix, contiguous along its rows or along its columns.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major `[rows, cols]` matrix at the start of `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A `[rows, cols]` matrix whose rows begin `row_stride` apart.
    ///
    /// # Panics
    /// If `data` is too short.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
        assert!(data.len() >= needed, "a {rows} x {cols} matrix with stride {row_stride} in {} numbers", data.len());
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Codes `[rows, cols]` whose rows begin `stride` apart, with one factor for all or one for each row; no factor is 1.
#[derive(Clone, Copy)]
pub struct Codes<'a> {
    /// The codes.
    pub codes: &'a [i8],
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Where a row begins after the one before.
    pub stride: usize,
    /// Scales or steps.
    pub factors: &'a [f32],
}

/// What becomes of the earlier content of the output.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// It is overwritten.
    Replace,
    /// The product is added to it.
    Add,
}

/// Whether one product uses all threads or the caller runs several products at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// All threads of the current rayon pool.
    All,
    /// The calling thread only.
    One,
}

/// The right operand of products, `[k, n]`, packed; its memory is used again from one to the next.
pub struct Packed {
    kernel: &'static TileKernel,
    k: usize,
    n: usize,
    words: Aligned,
    /// For each of the inner dimension, what is left to multiply the left operand by; empty for nothing.
    factors: Vec<f32>,
}

impl Default for Packed {
    fn default() -> Self {
        Self { kernel: &tiles::PORTABLE, k: 0, n: 0, words: Aligned::default(), factors: Vec::new() }
    }
}

impl Packed {
    /// Takes a float matrix, for `kernel`.
    ///
    /// # Panics
    /// If this CPU cannot run `kernel`.
    pub fn floats(&mut self, kernel: &'static TileKernel, m: Matrix, threads: Threads) -> Right<'_> {
        self.kernel = kernel;
        self.factors.clear();
        self.fill(m.rows, m.cols, threads, |column, panel, out| {
            let data = m.data.get(column * m.col_stride..).unwrap_or_default();
            if m.col_stride == 1 {
                pack::contiguous_panel(data, m.row_stride, panel, &[], out);
            } else {
                pack::transposed_panel(data, m.col_stride, panel, &[], out);
            }
        })
    }

    /// Takes codes, for `kernel`.
    ///
    /// # Panics
    /// If this CPU cannot run `kernel`, there are fewer codes than the sizes say, or factors that are neither none, one, nor one a row.
    pub fn codes(&mut self, kernel: &'static TileKernel, m: Codes, threads: Threads) -> Right<'_> {
        self.kernel = kernel;
        assert!(matches!(m.factors.len(), 0 | 1) || m.factors.len() == m.rows, "{} factors", m.factors.len());
        self.factors.clear();
        let inside = if self.kernel.depth == 1 {
            m.factors
        } else {
            match m.factors {
                [factor] => self.factors.resize(m.rows, *factor),
                factors => self.factors.extend_from_slice(factors),
            }
            &[]
        };
        self.fill(m.rows, m.cols, threads, |column, panel, out| {
            pack::code_panel(&m.codes[column..], m.stride, panel, inside, out);
        })
    }

    fn fill(
        &mut self,
        k: usize,
        n: usize,
        threads: Threads,
        pack: impl Fn(usize, Panel, &mut [u32]) + Sync,
    ) -> Right<'_> {
        assert!((self.kernel.supported)(), "tiles `{}` on a CPU without their instructions", self.kernel.name);
        (self.k, self.n) = (k, n);
        let TileKernel { cols: w, depth, .. } = *self.kernel;
        let panel = k.div_ceil(depth) * w;
        let words = self.words.words(n.div_ceil(w) * panel);
        let one = |(i, out): (usize, &mut [u32])| pack(i * w, Panel { ks: k, width: w.min(n - i * w), depth, w }, out);
        if panel == 0 {
        } else if threads == Threads::All && words.len() >= PARALLEL_WORDS {
            words.par_chunks_mut(panel).enumerate().for_each(one);
        } else {
            words.chunks_mut(panel).enumerate().for_each(one);
        }
        self.all()
    }
}

/// The first `k` rows and `n` columns of a packed operand.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    packed: &'a Packed,
    k: usize,
    n: usize,
}

impl Packed {
    /// All of it.
    pub fn all(&self) -> Right<'_> {
        self.first(self.k, self.n)
    }

    /// The first `k` rows of the first `n` columns.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn first(&self, k: usize, n: usize) -> Right<'_> {
        assert!(k <= self.k && n <= self.n, "{k} x {n} of {} x {}", self.k, self.n);
        Right { packed: self, k, n }
    }
}

/// `out = a b` (or `+=`), with `out` row-major `[a.rows, b.n]` whose rows begin `out_stride` apart.
///
/// # Panics
/// If the inner sizes differ or `out` is too short.
pub fn multiply(out: &mut [f32], out_stride: usize, a: Matrix, b: Right, output: Output, threads: Threads) {
    let (m, n, kernel) = (a.rows, b.n, b.packed.kernel);
    assert_eq!(a.cols, b.k, "inner sizes of {m} x {} and {} x {n}", a.cols, b.k);
    if m == 0 || n == 0 || (b.k == 0 && output == Output::Add) {
        return;
    }
    let room = (m - 1) * out_stride + n;
    assert!(out_stride >= n && out.len() >= room, "an output of {m} x {n} with stride {out_stride}");
    let panels = n.div_ceil(kernel.cols);
    let workers = match threads {
        Threads::All if m * n * a.cols >= PARALLEL_PRODUCTS => rayon::current_num_threads(),
        _ => 1,
    };
    // Whole blocks of rows, as many for each thread. Or else some tasks a thread, so that one that is held up costs little;
    // halves of blocks before parts of rows, because each part packs its rows for itself.
    let blocks = m.div_ceil(ROWS);
    let wanted = if blocks.is_multiple_of(workers) { blocks } else { workers * TASKS_PER_THREAD };
    let rows = if workers > 1 && blocks < wanted { ROWS / 2 } else { ROWS };
    let rows = (rows / kernel.rows * kernel.rows).min(m.next_multiple_of(kernel.rows));
    let row_blocks = m.div_ceil(rows);
    let out = Target { start: out.as_mut_ptr(), stride: out_stride };
    if workers == 1 {
        for i in 0..row_blocks {
            block(&out, a, b, i * rows..m.min((i + 1) * rows), 0..panels, output);
        }
        return;
    }
    let panel_blocks = wanted.div_ceil(row_blocks).min(panels);
    let panels_per_block = panels.div_ceil(panel_blocks);
    (0..row_blocks * panel_blocks).into_par_iter().with_max_len(1).for_each(|task| {
        let (i, j) = (task / panel_blocks, task % panel_blocks * panels_per_block);
        let panels = j.min(panels)..panels.min(j + panels_per_block);
        block(&out, a, b, i * rows..m.min((i + 1) * rows), panels, output);
    });
}

/// The output, which tasks write to in blocks that do not overlap.
struct Target {
    start: *mut f32,
    stride: usize,
}

// SAFETY: `multiply` borrows the output mutably as long as a `Target` lives, and gives every task rows and panels of its own.
unsafe impl Sync for Target {}

impl Target {
    /// Replaces or adds to some rows and columns by those of `tile`, whose rows begin `stride` apart.
    ///
    /// # Safety
    /// They lie inside the output, and nobody else reads or writes them.
    #[inline(always)]
    unsafe fn write(&self, rows: Range<usize>, cols: Range<usize>, tile: &[f32], stride: usize, add: bool) {
        for (row, sums) in rows.zip(tile.chunks_exact(stride)) {
            // SAFETY: what the caller has promised.
            let out =
                unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride + cols.start), cols.len()) };
            let sums = &sums[..cols.len()];
            if add { add_to(out, sums) } else { out.copy_from_slice(sums) }
        }
    }
}

/// One task: some rows of the output, in some panels of columns.
fn block(out: &Target, a: Matrix, b: Right, rows: Range<usize>, panels: Range<usize>, output: Output) {
    let Packed { kernel, words: packed, factors, .. } = b.packed;
    let TileKernel { rows: tile_rows, cols: tile_cols, depth, .. } = **kernel;
    // Words of a packed column, and those that this product uses.
    let (packed_words, all_words) = (b.packed.k.div_ceil(depth), b.k.div_ceil(depth));
    let packed = packed.read(b.packed.n.div_ceil(tile_cols) * packed_words * tile_cols);
    let mut tile = Tile([0f32; MOST_TILE]);
    let tile = &mut tile.0[..tile_rows * tile_cols];
    // SAFETY: nothing below makes another, or gives this thread work of others that might.
    let mut unit = unsafe { kernel.begin() };
    LEFT.with_borrow_mut(|scratch| {
        for first_word in (0..all_words.max(1)).step_by(WORDS) {
            let words = WORDS.min(all_words - first_word);
            let (k, ks) = (first_word * depth, (words * depth).min(b.k - first_word * depth));
            let factors = factors.get(k..k + ks).unwrap_or_default();
            let left = Prepared::new(&a, rows.clone(), k..k + ks, kernel, factors, scratch);
            let add = output == Output::Add || first_word > 0;
            for panel in panels.clone() {
                let right = &packed[(panel * packed_words + first_word) * tile_cols..][..words * tile_cols];
                let (j, width) = (panel * tile_cols, tile_cols.min(b.n - panel * tile_cols));
                for (i, left) in rows.clone().step_by(tile_rows).zip(left.tiles()) {
                    kernel.run(&mut unit, left, right, tile);
                    // SAFETY: these rows and columns lie inside the output (`multiply` has checked its size) and belong to
                    // this task alone.
                    unsafe { out.write(i..rows.end.min(i + tile_rows), j..j + width, tile, tile_cols, add) };
                }
            }
        }
    });
}

thread_local! {
    /// The packed rows of the left operand.
    static LEFT: RefCell<Aligned> = RefCell::default();
}

/// Rows of a task: with a block of the inner dimension 256 KiB, which a second-level cache holds.
const ROWS: usize = 128;

/// Words of a block of the inner dimension.
const WORDS: usize = 512;

/// Tasks that a product is cut into for each thread, at least.
const TASKS_PER_THREAD: usize = 3;

/// Elements of the largest tile.
const MOST_TILE: usize = 32 * 32;

/// At a cache line, as vectors are stored fastest.
#[repr(align(64))]
struct Tile([f32; MOST_TILE]);

/// Products below which one thread is faster than waking others.
const PARALLEL_PRODUCTS: usize = 1 << 20;

/// Words below which one thread packs.
const PARALLEL_WORDS: usize = 1 << 15;
