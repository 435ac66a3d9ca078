//! How a kernel holds a matrix of codes, and the checked door to its unsafe functions.
//!
//! Codes are stored *unsigned*: `u = (code + offset) / multiplier`, so that the byte products of x86 (unsigned times signed)
//! apply and no code needs a sign. With `raw = sum(u * a)` over the activation codes `a`,
//!
//! ```text
//! sum(code * a) = multiplier * raw - offset * sum(a)        kind      bits  multiplier  offset  u
//!                                                           ternary   2     1           1       0..=2
//!                                                           binary    1     2           1       0..=1
//!                                                           int4      4     1           8       0..=15
//!                                                           int8      8     1           128     0..=255
//! ```
//!
//! Four rows form a *group* and are interleaved, so that one load of activations serves four rows and the bytes are read in
//! one stream. `L` is [`Kernel::lanes`] (32 bytes for AVX2, 64 for AVX-512) and `n = 8 / bits` the codes of a byte:
//!
//! ```text
//! group g: | block 0: row 4g: L bytes | row 4g+1: L bytes | row 4g+2 | row 4g+3 | block 1: row 4g ... |
//! block b covers columns b*n*L .. (b+1)*n*L; bits [i*bits, (i+1)*bits) of byte j hold u of column b*n*L + i*L + j
//! ```
//!
//! so one shift and one mask of a whole vector give `L` adjacent columns. Rows beyond the last and columns beyond the
//! last hold u = 0, and activations beyond the last column are 0, so both add nothing.
//!
//! Overflow: `0 <= u <= 255` and `-128 <= a <= 127`, so with at most [`MAX_COLS`] = 2^16 columns `|raw| <= 2^16 * 255 * 128 < 2^31`,
//! and `|offset * sum(a)| <= 128 * 2^16 * 128 = 2^30`. Binary: `multiplier * raw <= 2 * 2^16 * 128 = 2^24`.

use std::ops::Range;

use bitnet_model::packed::{Layout, PackedMatrix};
use rayon::prelude::*;

use super::Kernel;
use super::aligned::AlignedVec;

/// What the codes of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeKind {
    /// -1, 0, +1 in two bits.
    Ternary,
    /// -1, +1 in one bit.
    Binary,
    /// -128..=127.
    Int8,
    /// -8..=7.
    Int4,
}

impl CodeKind {
    /// Bits of a code.
    pub(crate) const fn bits(self) -> usize {
        match self {
            Self::Ternary => 2,
            Self::Binary => 1,
            Self::Int8 => 8,
            Self::Int4 => 4,
        }
    }

    /// `code = multiplier * u - offset`.
    pub(crate) const fn multiplier(self) -> i32 {
        if matches!(self, Self::Binary) { 2 } else { 1 }
    }

    /// `code = multiplier * u - offset`.
    pub(crate) const fn offset(self) -> i32 {
        match self {
            Self::Ternary | Self::Binary => 1,
            Self::Int8 => 128,
            Self::Int4 => 8,
        }
    }

    fn of(layout: Layout) -> Self {
        match layout {
            Layout::TwoBit => Self::Ternary,
            Layout::OneBit => Self::Binary,
            Layout::Int8 => Self::Int8,
            Layout::Int4 => Self::Int4,
        }
    }
}

/// A `[rows, cols]` matrix of codes as one kernel wants it.
///
/// Invariant: the kernel runs on this CPU, and `bytes` holds `groups * blocks * GROUP_ROWS * lanes` bytes.
pub(crate) struct CodeMatrix {
    kernel: &'static Kernel,
    kind: CodeKind,
    rows: usize,
    cols: usize,
    blocks: usize,
    bytes: AlignedVec<u8>,
}

impl CodeMatrix {
    /// Rearranges `packed`, group by group in parallel on the current pool; beyond the result it needs one unpacked row a thread.
    ///
    /// # Panics
    /// If the CPU does not support `kernel` or there are more than [`MAX_COLS`] columns.
    pub(crate) fn new(packed: &PackedMatrix, kernel: &'static Kernel) -> Self {
        assert!(kernel.is_supported(), "kernel `{}` on a CPU without its instructions", kernel.name);
        assert!(packed.cols() <= MAX_COLS, "{} columns, at most {MAX_COLS} keep sums in i32", packed.cols());
        let kind = CodeKind::of(packed.layout());
        let (rows, cols, lanes) = (packed.rows(), packed.cols(), kernel.lanes);
        let blocks = cols.div_ceil(block_cols(kind, lanes));
        let group_bytes = blocks * GROUP_ROWS * lanes;
        let mut bytes = AlignedVec::zeroed(rows.div_ceil(GROUP_ROWS) * group_bytes);
        bytes.par_chunks_mut(group_bytes.max(1)).enumerate().for_each_init(
            || vec![0i8; cols],
            |codes, (group, bytes)| {
                for (r, row) in (group * GROUP_ROWS..rows).take(GROUP_ROWS).enumerate() {
                    packed.unpack_row(row, codes);
                    encode_row(kind, lanes, codes, r, bytes);
                }
            },
        );
        Self { kernel, kind, rows, cols, blocks, bytes }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn byte_count(&self) -> usize {
        self.bytes.len()
    }

    /// Exact products of the rows of `group` with `tokens` of `x`: `out` is `[tokens, GROUP_ROWS]`; rows that do not exist
    /// give numbers without meaning.
    ///
    /// # Panics
    /// If a group or token does not exist, or `x` has other columns or was padded for a narrower kernel.
    pub(crate) fn sums(&self, group: usize, x: CodeRows<'_>, tokens: Range<usize>, out: &mut [i32]) {
        assert_eq!(out.len(), tokens.len() * GROUP_ROWS, "a sum for each token and row");
        assert_eq!(x.sums.len() * x.stride, x.codes.len(), "a sum for each token");
        let job = self.job(group, x.cols, x.stride, &x.codes[tokens.start * x.stride..tokens.end * x.stride]);
        let function = match self.kind {
            CodeKind::Ternary => self.kernel.ternary,
            CodeKind::Binary => self.kernel.binary,
            CodeKind::Int8 => self.kernel.int8,
            CodeKind::Int4 => self.kernel.int4,
        };
        // SAFETY: `new` checked that the CPU runs this kernel; `job` checked the sizes that `Job` promises, and `out` has
        // GROUP_ROWS entries for each of its tokens.
        unsafe { function(&job, out) };
        for (out, &sum) in out.chunks_mut(GROUP_ROWS).zip(&x.sums[tokens]) {
            for out in out {
                *out = self.kind.multiplier() * *out - self.kind.offset() * sum;
            }
        }
    }

    /// Products of the rows of `group` with `tokens` of unquantized inputs, summed in f32: `out` is `[tokens, GROUP_ROWS]`.
    ///
    /// # Panics
    /// As [`Self::sums`].
    pub(crate) fn float_sums(&self, group: usize, x: FloatRows<'_>, tokens: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), tokens.len() * GROUP_ROWS, "a sum for each token and row");
        let job = self.job(group, x.cols, x.stride, &x.values[tokens.start * x.stride..tokens.end * x.stride]);
        // SAFETY: as in `sums`.
        unsafe { (self.kernel.code_floats)(&job, out) };
    }

    fn job<'a, A>(&'a self, group: usize, cols: usize, stride: usize, x: &'a [A]) -> Job<'a, A> {
        assert_eq!(cols, self.cols, "inputs of as many columns as the weights");
        assert!(group * GROUP_ROWS < self.rows, "group {group} of {} rows", self.rows);
        assert!(
            stride >= self.blocks * block_cols(self.kind, self.kernel.lanes),
            "inputs padded for kernel `{}`",
            self.kernel.name
        );
        assert!(stride == 0 || x.len().is_multiple_of(stride), "whole tokens");
        let group_bytes = self.blocks * GROUP_ROWS * self.kernel.lanes;
        let bytes = &self.bytes[group * group_bytes..][..group_bytes];
        Job { kind: self.kind, lanes: self.kernel.lanes, blocks: self.blocks, bytes, x, stride }
    }
}

/// One group of rows and some tokens, as a kernel function sees them.
///
/// Invariant: `bytes` is `blocks * GROUP_ROWS * lanes` long; `x` is a whole number of tokens of `stride` values, and
/// `stride >= blocks * block_cols(kind, lanes)`.
pub(crate) struct Job<'a, A> {
    pub(crate) kind: CodeKind,
    pub(crate) lanes: usize,
    pub(crate) blocks: usize,
    pub(crate) bytes: &'a [u8],
    pub(crate) x: &'a [A],
    pub(crate) stride: usize,
}

/// Activation codes `[tokens, stride]` of which `cols` count and the rest are 0, with the sum of each token's codes.
#[derive(Clone, Copy)]
pub(crate) struct CodeRows<'a> {
    pub(crate) codes: &'a [i8],
    pub(crate) sums: &'a [i32],
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

/// Inputs `[tokens, stride]` of which `cols` count and the rest are 0.
#[derive(Clone, Copy)]
pub(crate) struct FloatRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) cols: usize,
    pub(crate) stride: usize,
}

/// Columns of one block.
pub(crate) const fn block_cols(kind: CodeKind, lanes: usize) -> usize {
    lanes * 8 / kind.bits()
}

/// Values a token takes in memory: columns padded to the largest block of `kernel`, and to whole lines as f32.
pub(crate) fn padded_cols(cols: usize, kernel: &Kernel) -> usize {
    cols.max(1).next_multiple_of(block_cols(CodeKind::Binary, kernel.lanes))
}

fn encode_row(kind: CodeKind, lanes: usize, codes: &[i8], r: usize, bytes: &mut [u8]) {
    let blocks = codes.chunks(block_cols(kind, lanes));
    for (codes, bytes) in blocks.zip(bytes.chunks_mut(GROUP_ROWS * lanes)) {
        let bytes = &mut bytes[r * lanes..][..lanes];
        for (i, codes) in codes.chunks(lanes).enumerate() {
            for (byte, &code) in bytes.iter_mut().zip(codes) {
                // In wrapping bytes, so that the loop vectorizes; the division by 1 or 2 is exact.
                let u = (code as u8).wrapping_add(kind.offset() as u8) >> (kind.multiplier() - 1);
                *byte |= u << (i * kind.bits());
            }
        }
    }
}

/// Rows of a group.
pub(crate) const GROUP_ROWS: usize = 4;

/// Columns up to which no integer sum of any kind can leave i32.
pub const MAX_COLS: usize = 1 << 16;
