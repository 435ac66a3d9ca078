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
//!                                                           base3     1.6   1           1       0..=2
//! ```
//!
//! Rows live in the 32-bit lanes of a vector. `L` is [`Kernel::lanes`] (its bytes: 16, 32 or 64); `L / 4` rows form a
//! *group*, `n = 8 / bits` codes (*slots*) share a byte, and a *block* of `L` bytes holds `4n` adjacent columns of a group:
//!
//! ```text
//! group g: | block 0: L bytes | block 1 | ... | block B-1 |        B = ceil(columns / 4n)
//! byte 4r + j of block b: bits [i*bits, (i+1)*bits) hold u of row g*L/4 + r, column 4*(b*n + i) + j
//! ```
//!
//! (base3, where five codes share a byte that is no row of bits, has the same places of columns: [`super::base3`])
//!
//! so a group is read in one stream, one shift and one mask of a whole vector give four adjacent columns of every row, and
//! the dot-product instructions (four byte products summed into each 32-bit lane) meet them with four activation codes
//! broadcast to all lanes. Sums stand in the lanes as they will stand in the output: nothing is ever added across lanes.
//! Unpacked, a block is also what a matrix unit takes as its second operand (AMX: 16 rows of 4 columns).
//! Rows beyond the last and columns beyond the last hold u = 0, and activations beyond the last column are 0, so both
//! add nothing.
//!
//! Overflow: `0 <= u <= 255` and `-128 <= a <= 127`, so with at most [`MAX_COLS`] = 2^16 columns `|raw| <= 2^16 * 255 * 128 < 2^31`,
//! and `|offset * sum(a)| <= 128 * 2^16 * 128 = 2^30`. Binary: `multiplier * raw <= 2 * 2^16 * 128 = 2^24`.

use std::ops::Range;

use bitnet_model::packed::{Layout, PackedMatrix};
use rayon::prelude::*;

use super::aligned::AlignedVec;
use super::{Kernel, Panel, base3};

/// What the codes of a matrix are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeKind {
    /// -1, 0, +1 in two bits.
    Ternary,
    /// -1, 0, +1, five to a byte.
    Base3,
    /// -1, +1 in one bit.
    Binary,
    /// -128..=127.
    Int8,
    /// -8..=7.
    Int4,
}

impl CodeKind {
    /// Codes of a byte.
    pub(crate) const fn slots(self) -> usize {
        match self {
            Self::Ternary => 4,
            Self::Base3 => base3::SLOTS,
            Self::Binary => 8,
            Self::Int8 => 1,
            Self::Int4 => 2,
        }
    }

    /// Whole bits of a code, for the kinds that have bits of their own (all but `Base3`).
    pub(crate) const fn bits(self) -> usize {
        8 / self.slots()
    }

    /// `code = multiplier * u - offset`.
    pub(crate) const fn multiplier(self) -> i32 {
        if matches!(self, Self::Binary) { 2 } else { 1 }
    }

    /// `code = multiplier * u - offset`.
    pub(crate) const fn offset(self) -> i32 {
        match self {
            Self::Ternary | Self::Base3 | Self::Binary => 1,
            Self::Int8 => 128,
            Self::Int4 => 8,
        }
    }

    /// Columns of one block.
    pub(crate) const fn block_cols(self) -> usize {
        4 * self.slots()
    }

    pub(super) fn of(layout: Layout, ternary: Ternary, kernel: &Kernel) -> Self {
        match layout {
            Layout::TwoBit | Layout::Base3 if ternary == Ternary::Base3 && kernel.has_base3() => Self::Base3,
            Layout::TwoBit | Layout::Base3 => Self::Ternary,
            Layout::OneBit => Self::Binary,
            Layout::Int8 => Self::Int8,
            Layout::Int4 => Self::Int4,
        }
    }
}

/// How ternary codes are held in memory: the results are the same to the bit, the speed is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ternary {
    /// Four to a byte: the fewest instructions.
    TwoBit,
    /// Five to a byte, on kernels that can ([`Kernel::has_base3`]): the fewest bytes.
    Base3,
}

impl Ternary {
    /// The name used by `BITNET_TERNARY` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::TwoBit => "2bit",
            Self::Base3 => "base3",
        }
    }

    /// Looks a way up.
    ///
    /// # Errors
    /// The names, if `name` is none of them.
    pub fn by_name(name: &str) -> Result<Self, String> {
        let known = [Self::TwoBit, Self::Base3].into_iter().find(|ternary| ternary.name() == name);
        known.ok_or_else(|| format!("there is no way `{name}` to hold ternary codes, expected one of: 2bit, base3"))
    }
}

/// A `[rows, cols]` matrix of codes as one kernel wants it.
///
/// Invariant: the kernel runs on this CPU, and `bytes` holds `groups * blocks * lanes` bytes.
pub(crate) struct CodeMatrix {
    kernel: &'static Kernel,
    kind: CodeKind,
    rows: usize,
    cols: usize,
    blocks: usize,
    bytes: AlignedVec<u8>,
}

impl CodeMatrix {
    /// Rearranges the rows of all `parts`, in order, group by group in parallel on the current pool; beyond the result it
    /// needs one unpacked row a thread. Ternary codes are held as `ternary` says, if the kernel can.
    ///
    /// # Panics
    /// If the CPU does not support `kernel`, there are more than [`MAX_COLS`] columns, or the parts differ in columns or
    /// layout.
    pub(crate) fn new(parts: &[&PackedMatrix], kernel: &'static Kernel, ternary: Ternary) -> Self {
        let (layout, cols) = (parts[0].layout(), parts[0].cols());
        assert!(parts.iter().all(|part| (part.layout(), part.cols()) == (layout, cols)), "parts of one kind");
        let kind = CodeKind::of(layout, ternary, kernel);
        let row_of_part: Vec<_> = parts.iter().flat_map(|part| (0..part.rows()).map(move |row| (part, row))).collect();
        let unpack = |row: usize, codes: &mut [i8]| {
            let (part, row) = row_of_part[row];
            part.unpack_row(row, codes);
        };
        Self::from_rows(kind, [row_of_part.len(), cols], kernel, unpack).0
    }

    /// Takes the codes of each row of `[rows, cols]` from `write`, in no order and on the current pool, and keeps what it
    /// returns for each row.
    ///
    /// # Panics
    /// If the CPU does not support `kernel` or there are more than [`MAX_COLS`] columns.
    pub(crate) fn from_rows<N: Copy + Default + Send>(
        kind: CodeKind,
        [rows, cols]: [usize; 2],
        kernel: &'static Kernel,
        write: impl Fn(usize, &mut [i8]) -> N + Sync,
    ) -> (Self, Vec<N>) {
        assert!(kernel.is_supported(), "kernel `{}` on a CPU without its instructions", kernel.name);
        assert!(cols <= MAX_COLS, "{cols} columns, at most {MAX_COLS} keep sums in i32");
        let blocks = cols.div_ceil(kind.block_cols());
        let (group_rows, group_bytes) = (kernel.group_rows(), blocks * kernel.lanes);
        let mut bytes = AlignedVec::in_huge_pages(rows.div_ceil(group_rows) * group_bytes);
        let mut notes = vec![N::default(); rows];
        let groups = bytes.par_chunks_mut(group_bytes.max(1)).zip(notes.par_chunks_mut(group_rows)).enumerate();
        groups.for_each_init(
            || vec![0i8; cols.next_multiple_of(4)],
            |codes, (group, (bytes, notes))| {
                for (r, note) in notes.iter_mut().enumerate() {
                    *note = write(group * group_rows + r, &mut codes[..cols]);
                    encode_row(kind, kernel.lanes, codes, cols, r, bytes);
                }
            },
        );
        (Self { kernel, kind, rows, cols, blocks, bytes }, notes)
    }

    /// A matrix of `u` = 0, its memory written and not only promised, for measuring how fast one is read.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub(crate) fn of_zeros(rows: usize, cols: usize, kernel: &'static Kernel, ternary: Ternary) -> Self {
        assert!(kernel.is_supported() && cols <= MAX_COLS, "{cols} columns for kernel `{}`", kernel.name);
        let kind = CodeKind::of(Layout::TwoBit, ternary, kernel);
        let blocks = cols.div_ceil(kind.block_cols());
        let mut bytes = AlignedVec::in_huge_pages(rows.div_ceil(kernel.group_rows()) * blocks * kernel.lanes);
        bytes.par_chunks_mut(1 << 20).for_each(|bytes| bytes.fill(0));
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

    /// Rows of a group.
    pub(crate) fn group_rows(&self) -> usize {
        self.kernel.group_rows()
    }

    /// How a product with `tokens` tokens is cut into calls.
    pub(crate) fn panel(&self, tokens: usize) -> Panel {
        (self.kernel.panel)(self.kind, self.cols, tokens)
    }

    /// Exact products of the rows of `groups` with `tokens` of `x`: `out` is `[tokens, groups * group_rows]`; rows that do
    /// not exist give numbers without meaning.
    ///
    /// # Panics
    /// If a group or token does not exist, or `x` has other columns or was not padded.
    pub(crate) fn sums(&self, groups: Range<usize>, x: CodeRows<'_>, tokens: Range<usize>, out: &mut [i32]) {
        let width = groups.len() * self.group_rows();
        self.raw_sums(groups, x, tokens.clone(), out);
        for (out, &sum) in out.chunks_mut(width.max(1)).zip(&x.sums[tokens]) {
            let exact = self.correction(sum);
            out.iter_mut().for_each(|out| *out = exact(*out));
        }
    }

    /// As [`Self::sums`], of the codes as they are stored: [`Self::correction`] is left to whoever looks at each sum anyway.
    pub(crate) fn raw_sums(&self, groups: Range<usize>, x: CodeRows<'_>, tokens: Range<usize>, out: &mut [i32]) {
        let width = groups.len() * self.group_rows();
        assert_eq!(out.len(), tokens.len() * width, "a sum for each token and row");
        assert_eq!(x.sums.len() * x.stride, x.codes.len(), "a sum for each token");
        let job = self.job(groups, x.cols, x.stride, &x.codes[tokens.start * x.stride..tokens.end * x.stride]);
        // SAFETY: `new` checked that the CPU runs this kernel; `job` checked the sizes that `Job` promises, and `out` has
        // an entry for each row of its groups and each of its tokens.
        unsafe { self.kernel.code_function(self.kind)(&job, out) };
    }

    /// Turns raw sums of a token into products; `sum` is that of the token's activation codes.
    pub(crate) fn correction(&self, sum: i32) -> impl Fn(i32) -> i32 + use<> {
        // The multiplier is 1 or 2: a shift, since the oldest vectors of x86 cannot multiply these integers.
        let (shift, offset) = (self.kind.multiplier() - 1, self.kind.offset() * sum);
        move |raw| (raw << shift) - offset
    }

    /// Products of the rows of `groups` with `tokens` of unquantized inputs, summed in f32: `out` is
    /// `[tokens, groups * group_rows]`.
    ///
    /// # Panics
    /// As [`Self::sums`].
    pub(crate) fn float_sums(&self, groups: Range<usize>, x: FloatRows<'_>, tokens: Range<usize>, out: &mut [f32]) {
        assert_eq!(out.len(), tokens.len() * groups.len() * self.group_rows(), "a sum for each token and row");
        let job = self.job(groups, x.cols, x.stride, &x.values[tokens.start * x.stride..tokens.end * x.stride]);
        // SAFETY: as in `sums`.
        unsafe { (self.kernel.code_floats)(&job, out) };
    }

    fn job<'a, A>(&'a self, groups: Range<usize>, cols: usize, stride: usize, x: &'a [A]) -> Job<'a, A> {
        assert_eq!(cols, self.cols, "inputs of as many columns as the weights");
        let group_bytes = self.blocks * self.kernel.lanes;
        assert!(groups.end * group_bytes <= self.bytes.len(), "groups {groups:?} of {} rows", self.rows);
        assert!(stride >= self.blocks * self.kind.block_cols(), "inputs padded to whole blocks");
        assert!(stride == 0 || x.len().is_multiple_of(stride), "whole tokens");
        let bytes = &self.bytes[groups.start * group_bytes..groups.end * group_bytes];
        let rows = groups.len() * self.group_rows();
        Job { kind: self.kind, lanes: self.kernel.lanes, blocks: self.blocks, rows, bytes, x, stride }
    }
}

/// Some groups of rows and some tokens, as a kernel function sees them.
///
/// Invariant: `rows` is a whole number of groups of `lanes / 4` rows, `bytes` has `blocks * lanes` bytes for each; `x` is a whole number of tokens of `stride`
/// values, and `stride >= blocks * kind.block_cols()`.
pub(crate) struct Job<'a, A> {
    pub(crate) kind: CodeKind,
    pub(crate) lanes: usize,
    pub(crate) blocks: usize,
    pub(crate) rows: usize,
    pub(crate) bytes: &'a [u8],
    pub(crate) x: &'a [A],
    pub(crate) stride: usize,
}

impl<A> Job<'_, A> {
    /// The bytes of each group.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &[u8]> {
        let group_bytes = self.blocks * self.lanes;
        (0..self.rows / (self.lanes / 4)).map(move |group| &self.bytes[group * group_bytes..][..group_bytes])
    }
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

/// Values a token takes in memory: columns padded to whole blocks of any kind.
pub(crate) fn padded_cols(cols: usize) -> usize {
    // No multiple of 64 is the end of every block of 20.
    cols.max(1).next_multiple_of(CodeKind::Base3.block_cols()).next_multiple_of(PADDING)
}

/// Writes row `r` of a group. `codes` is `cols` long and padded with anything to whole fours.
pub(super) fn encode_row(kind: CodeKind, lanes: usize, codes: &mut [i8], cols: usize, r: usize, bytes: &mut [u8]) {
    let (offset, shift) = (kind.offset() as u8, kind.multiplier() - 1);
    // In wrapping bytes, so that the loop vectorizes; the division by 1 or 2 is exact.
    codes.iter_mut().for_each(|code| *code = ((*code as u8).wrapping_add(offset) >> shift) as i8);
    codes[cols..].fill(0);
    let words = codes.as_chunks::<4>().0.chunks(kind.slots()).zip(bytes.chunks_mut(lanes));
    let words = words.map(|(slots, bytes)| (slots, &mut bytes[4 * r..][..4]));
    if kind == CodeKind::Base3 {
        return words.for_each(|(slots, bytes)| bytes.copy_from_slice(&base3::encode(slots).to_le_bytes()));
    }
    for (slots, bytes) in words {
        let merge =
            |word, (i, u): (usize, &[i8; 4])| word | u32::from_le_bytes(u.map(|u| u as u8)) << (i * kind.bits());
        let word = slots.iter().enumerate().fold(0, merge);
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// A multiple of every block of bits, and of whole lines of codes.
const PADDING: usize = 64;

/// Columns up to which no integer sum of any kind can leave i32.
pub const MAX_COLS: usize = 1 << 16;
