//! The innermost loops of matrix products: a table of instruction sets.
//!
//! A *tile* is a small block of the output, `rows x cols`, that lives in registers while the inner dimension runs by:
//!
//! ```text
//! for word in 0..words:                       one word: 1 number (f32) or 2 neighbours of the inner dimension (bf16)
//!     for i in 0..rows, j in 0..cols:
//!         tile[i][j] += a[i * row_stride + word * word_stride] * b[word][j]
//! ```
//!
//! `b` is packed in this order, so its loads are contiguous; of `a` single words are broadcast. Each element is summed in the order of the inner
//! dimension, with fused multiply-adds where the CPU has them.
//!
//! The tiles of AMX read whole rows of `a` and sum in an order of their own (see [`super::amx`]).
//!
//! Adding an instruction set: a file with a `TileKernel`, one line in [`F32`] or [`BF16`]. Tests walk both tables.

use std::hint::black_box;

#[cfg(any(target_arch = "x86_64", test))]
use super::amx;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, avx512bf16};

/// One implementation of the loop.
pub struct TileKernel {
    /// Name for reports.
    pub name: &'static str,
    /// Whether this CPU has the instructions.
    pub supported: fn() -> bool,
    /// Numbers of the inner dimension that share a word: 1 (f32) or 2 (bf16).
    pub depth: usize,
    /// Rows of a tile.
    pub rows: usize,
    /// Columns of a tile.
    pub cols: usize,
    /// How the left operand has to lie.
    pub(super) left: Layout,
    /// What runs the loop, for this thread. Undefined on a CPU without the instructions, or where the thread has one already.
    pub(super) unit: unsafe fn() -> Unit,
    /// Sums in registers ([`SUMS`] where they are vectors), `rounds` times multiplied and added to: what the arithmetic alone
    /// allows. Undefined where `unit` is.
    pub(super) registers: unsafe fn(rounds: usize) -> f32,
    /// Multiplications (each with an addition) of a round.
    pub(super) products_per_round: usize,
}

/// Runs the loop. What it had to set up ends when it is dropped: work of other kinds on the same thread comes after that.
pub(super) enum Unit {
    /// Vector registers, of which nothing lasts. Overwrites `out`, `[rows, cols]`, with the product of `a` and `b`, `[words, cols]`.
    ///
    /// Undefined on a CPU without the instructions, if `a` ends before its last word, or if `out` is no whole tile.
    Vectors(unsafe fn(a: Left, b: &[u32], out: &mut [f32])),
    /// The tiles of AMX.
    #[cfg(target_arch = "x86_64")]
    Amx(amx::Unit<bitnet_infer::kernels::tiles::Hardware>),
    /// The same in plain Rust.
    #[cfg(test)]
    Emulated(Box<amx::Unit<bitnet_infer::kernels::tiles::Emulated>>),
}

/// How the words of a left operand may lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// At any strides.
    Strided,
    /// In rows (of words of two), which begin at cache lines.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "the only such kernel is emulated there"))]
    Rows,
}

/// Independent sums of [`TileKernel::registers`]: more than the latency of an instruction times those that begin at once.
pub(super) const SUMS: usize = 12;

/// The left operand of a tile: word `w` of row `i` at `words[i * row_stride + w * word_stride]`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) words: &'a [u32],
    pub(super) row_stride: usize,
    pub(super) word_stride: usize,
}

/// Exact products of f32, slowest first.
pub static F32: &[&TileKernel] = &[
    &PORTABLE,
    #[cfg(target_arch = "x86_64")]
    &avx2::KERNEL,
    #[cfg(target_arch = "x86_64")]
    &avx512::KERNEL,
];

/// Products of bf16 with sums in f32, slowest first.
pub static BF16: &[&TileKernel] = &[
    &PORTABLE_BF16,
    #[cfg(target_arch = "x86_64")]
    &avx512bf16::KERNEL,
    #[cfg(target_arch = "x86_64")]
    &amx::KERNEL,
];

/// The last kernel of `table` that this CPU can run.
pub fn best(table: &'static [&'static TileKernel]) -> &'static TileKernel {
    table.iter().rev().find(|kernel| (kernel.supported)()).expect("the portable kernel runs everywhere")
}

impl TileKernel {
    /// What runs the loop on this CPU.
    ///
    /// # Safety
    /// This thread has no other unit.
    pub(super) unsafe fn begin(&self) -> Unit {
        // SAFETY: kernels reach callers through `best` or through a check of `supported` alone (`Packed` refuses others); the
        // rest is the caller's promise.
        unsafe { (self.unit)() }
    }

    /// Runs the loop on a unit of this kernel.
    ///
    /// # Panics
    /// If `b` is no whole words, `a` ends before its last one or `out` is no whole tile.
    pub(super) fn run(&self, unit: &mut Unit, a: Left, b: &[u32], out: &mut [f32]) {
        let words = b.len() / self.cols;
        if words == 0 {
            return out.fill(0.0);
        }
        let last = (self.rows - 1) * a.row_stride + (words - 1) * a.word_stride;
        assert!(b.len() == words * self.cols && out.len() == self.rows * self.cols && last < a.words.len());
        match unit {
            // SAFETY: `begin` gave the function for this CPU, and the sizes that it relies on have just been checked.
            Unit::Vectors(tile) => unsafe { tile(a, b, out) },
            #[cfg(target_arch = "x86_64")]
            Unit::Amx(unit) => unit.multiply(a, b, out),
            #[cfg(test)]
            Unit::Emulated(unit) => unit.multiply(a, b, out),
        }
    }
}

pub(super) static PORTABLE: TileKernel = TileKernel {
    name: "portable",
    supported: || true,
    depth: 1,
    rows: 4,
    cols: 8,
    left: Layout::Strided,
    unit: || Unit::Vectors(portable),
    registers: portable_registers,
    products_per_round: SUMS * 4,
};

fn portable(a: Left, b: &[u32], out: &mut [f32]) {
    let mut tile = [[0f32; 8]; 4];
    for (word, b) in b.as_chunks::<8>().0.iter().enumerate() {
        for (i, row) in tile.iter_mut().enumerate() {
            let a = a.words[i * a.row_stride + word * a.word_stride];
            for (sum, &b) in row.iter_mut().zip(b) {
                *sum += f32::from_bits(a) * f32::from_bits(b);
            }
        }
    }
    out.copy_from_slice(tile.as_flattened());
}

/// Vectors of four, which every machine of 64 bits has; here multiplication and addition are two instructions.
fn portable_registers(rounds: usize) -> f32 {
    let [x, y] = black_box([0.999, 1e-3]);
    let mut sums = [[y; 4]; SUMS];
    for _ in 0..rounds {
        sums = sums.map(|sum| sum.map(|sum| sum * x + y));
    }
    sums.as_flattened().iter().sum()
}

static PORTABLE_BF16: TileKernel = TileKernel {
    name: "portable-bf16",
    supported: || true,
    depth: 2,
    rows: 4,
    cols: 8,
    left: Layout::Strided,
    unit: || Unit::Vectors(portable_bf16),
    registers: portable_registers,
    products_per_round: SUMS * 4,
};

/// The readable form of `vdpbf16ps`: the neighbour in the upper half of a word first, then that in the lower half. A
/// product of two bf16 numbers is exact in f32, so nothing depends on whether multiply and add are fused.
fn portable_bf16(a: Left, b: &[u32], out: &mut [f32]) {
    let halves = |word: u32| [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)];
    let mut tile = [[0f32; 8]; 4];
    for (word, b) in b.as_chunks::<8>().0.iter().enumerate() {
        for (i, row) in tile.iter_mut().enumerate() {
            let a = a.words[i * a.row_stride + word * a.word_stride];
            let [a_low, a_high] = halves(a);
            for (sum, &b) in row.iter_mut().zip(b) {
                let [b_low, b_high] = halves(b);
                *sum = (*sum + a_high * b_high) + a_low * b_low;
            }
        }
    }
    out.copy_from_slice(tile.as_flattened());
}
