//! Matrices whose rows have a scale for each group of adjacent columns.
//!
//! A sum must stop where a scale ends, so the columns of a group are a small matrix of their own, in the layout of
//! [`super::layout`]; some rows (a *panel*) of one group after the other make one stream of bytes:
//!
//! ```text
//! panel 0: | columns 0..n: P groups of rows | columns n..2n | ... | panel 1: | ...      scales: a row of P * L / 4 each
//! for each panel, for each group of columns: raw = the kernel's sums;  total[token][row] += (product of raw) * scale[row]
//! ```
//!
//! The kernels know nothing of it: to them a group of columns is a matrix of few columns.

use std::ops::Range;

use bitnet_model::packed::PackedMatrix;
use rayon::prelude::*;

use super::layout::{CodeRows, FloatRows, Job, encode_row};
use super::{AlignedVec, CodeKind, Kernel, Ternary};

/// A `[rows, cols]` matrix of codes with a scale for each `group` columns of a row.
///
/// Invariant: the kernel runs on this CPU; for each panel and group of columns there are `panel_rows` scales and
/// `panel_rows / group_rows * blocks * lanes` bytes.
pub(crate) struct GroupedMatrix {
    kernel: &'static Kernel,
    kind: CodeKind,
    rows: usize,
    cols: usize,
    group: usize,
    /// Blocks of a group of columns.
    blocks: usize,
    bytes: AlignedVec<u8>,
    scales: Vec<f32>,
}

impl GroupedMatrix {
    /// Rearranges the rows of all `parts`, in order, panel by panel in parallel on the current pool.
    ///
    /// # Panics
    /// If the CPU does not support `kernel`, or the parts differ in columns, layout or groups, or have none.
    pub(crate) fn new(parts: &[&PackedMatrix], kernel: &'static Kernel) -> Self {
        let (layout, cols, group) = (parts[0].layout(), parts[0].cols(), parts[0].group().expect("groups"));
        let alike = |part: &&PackedMatrix| (part.layout(), part.cols(), part.group()) == (layout, cols, Some(group));
        assert!(parts.iter().all(alike), "parts of one kind");
        let kind = CodeKind::of(layout, Ternary::TwoBit, kernel);
        let row_of_part: Vec<_> = parts.iter().flat_map(|part| (0..part.rows()).map(move |row| (part, row))).collect();
        Self::from_rows(kind, [row_of_part.len(), cols], group, kernel, |row, codes, scales| {
            let (part, row) = row_of_part[row];
            part.unpack_row(row, codes);
            scales.copy_from_slice(part.scales_of(row));
        })
    }

    /// Takes the codes and the scales of each row of `[rows, cols]` from `write`, in no order and on the current pool.
    ///
    /// # Panics
    /// If the CPU does not support `kernel`, or `group` is 0 or beyond [`super::MAX_COLS`].
    pub(crate) fn from_rows(
        kind: CodeKind,
        [rows, cols]: [usize; 2],
        group: usize,
        kernel: &'static Kernel,
        write: impl Fn(usize, &mut [i8], &mut [f32]) + Sync,
    ) -> Self {
        assert!(kernel.is_supported(), "kernel `{}` on a CPU without its instructions", kernel.name);
        assert!((1..=super::MAX_COLS).contains(&group), "groups of {group} columns");
        let (blocks, groups) = (group.div_ceil(kind.block_cols()), cols.div_ceil(group));
        let panel_rows = PANEL_GROUPS * kernel.group_rows();
        let group_bytes = blocks * kernel.lanes;
        let panels = rows.div_ceil(panel_rows);
        let mut bytes = AlignedVec::in_huge_pages(panels * groups * PANEL_GROUPS * group_bytes);
        let mut scales = vec![0f32; panels * groups * panel_rows];
        let panel_bytes = bytes.par_chunks_mut((groups * PANEL_GROUPS * group_bytes).max(1));
        let panels = panel_bytes.zip(scales.par_chunks_mut((groups * panel_rows).max(1))).enumerate();
        panels.for_each(|(panel, (bytes, scales))| {
            let (mut codes, mut row_scales) = (vec![0i8; cols], vec![0f32; groups]);
            let mut some = vec![0i8; group.next_multiple_of(4)];
            for r in 0..panel_rows.min(rows - panel * panel_rows) {
                write(panel * panel_rows + r, &mut codes, &mut row_scales);
                let parts = codes.chunks(group).zip(&row_scales).zip(bytes.chunks_mut(PANEL_GROUPS * group_bytes));
                for (((codes, &scale), bytes), scales) in parts.zip(scales.chunks_mut(panel_rows)) {
                    scales[r] = scale;
                    some[..codes.len()].copy_from_slice(codes);
                    let bytes = &mut bytes[r / kernel.group_rows() * group_bytes..][..group_bytes];
                    let row = &mut some[..codes.len().next_multiple_of(4)];
                    encode_row(kind, kernel.lanes, row, codes.len(), r % kernel.group_rows(), bytes);
                }
            }
        });
        Self { kernel, kind, rows, cols, group, blocks, bytes, scales }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn byte_count(&self) -> usize {
        self.bytes.len() + size_of_val(&self.scales[..])
    }

    /// Rows that are computed together.
    pub(crate) fn panel_rows(&self) -> usize {
        PANEL_GROUPS * self.kernel.group_rows()
    }

    /// The inputs in the order in which this matrix takes them.
    pub(crate) fn codes(&self, x: CodeRows<'_>) -> GroupedRows<i8> {
        let mut rows = GroupedRows::new(x.codes, [x.cols, x.stride], self.group);
        rows.sums =
            rows.values.chunks(rows.stride).map(|codes| codes.iter().map(|&code| i32::from(code)).sum()).collect();
        rows
    }

    /// The inputs in the order in which this matrix takes them.
    pub(crate) fn floats(&self, x: FloatRows<'_>) -> GroupedRows<f32> {
        GroupedRows::new(x.values, [x.cols, x.stride], self.group)
    }

    /// Exact products of the rows of a panel with `tokens` of `x`, group after group: `add` gets those of a group,
    /// `[tokens, panel_rows]` and without meaning in rows that do not exist, and the scales of its rows.
    ///
    /// # Panics
    /// If a panel or token does not exist.
    pub(crate) fn each_group(
        &self,
        panel: usize,
        x: &GroupedRows<i8>,
        tokens: Range<usize>,
        mut add: impl FnMut(&[i32], &[f32]),
    ) {
        let width = self.panel_rows();
        let mut sums = vec![0i32; tokens.len() * width];
        let (multiplier, offset) = (self.kind.multiplier(), self.kind.offset());
        for group in 0..self.cols.div_ceil(self.group) {
            let (job, scales) = self.job(panel, group, x, &tokens);
            // SAFETY: `from_rows` checked that the CPU runs this kernel; `job` checked the sizes that `Job` promises, and
            // there is a sum for each of its rows and tokens.
            unsafe { self.kernel.code_function(self.kind)(&job, &mut sums) };
            let of_tokens = &x.sums[group * x.tokens..][tokens.clone()];
            for (sums, sum) in sums.chunks_mut(width).zip(of_tokens) {
                sums.iter_mut().for_each(|raw| *raw = multiplier * *raw - offset * sum);
            }
            add(&sums, scales);
        }
    }

    /// As [`Self::each_group`], of unquantized inputs: sums in f32.
    ///
    /// # Panics
    /// As [`Self::each_group`].
    pub(crate) fn each_float_group(
        &self,
        panel: usize,
        x: &GroupedRows<f32>,
        tokens: Range<usize>,
        mut add: impl FnMut(&[f32], &[f32]),
    ) {
        let mut sums = vec![0f32; tokens.len() * self.panel_rows()];
        for group in 0..self.cols.div_ceil(self.group) {
            let (job, scales) = self.job(panel, group, x, &tokens);
            // SAFETY: as in `each_group`.
            unsafe { (self.kernel.code_floats)(&job, &mut sums) };
            add(&sums, scales);
        }
    }

    fn job<'a, T: super::Element>(
        &'a self,
        panel: usize,
        group: usize,
        x: &'a GroupedRows<T>,
        tokens: &Range<usize>,
    ) -> (Job<'a, T>, &'a [f32]) {
        let (width, groups) = (self.panel_rows(), self.cols.div_ceil(self.group));
        assert_eq!((x.cols, x.group), (self.cols, self.group), "inputs of as many columns as the weights");
        assert!(panel < self.rows.div_ceil(width) && tokens.end <= x.tokens, "panel {panel}, tokens {tokens:?}");
        let (index, len) = (panel * groups + group, PANEL_GROUPS * self.blocks * self.kernel.lanes);
        let first = group * x.tokens;
        let job = Job {
            kind: self.kind,
            lanes: self.kernel.lanes,
            blocks: self.blocks,
            rows: width,
            bytes: &self.bytes[index * len..][..len],
            x: &x.values[(first + tokens.start) * x.stride..(first + tokens.end) * x.stride],
            stride: x.stride,
        };
        (job, &self.scales[index * width..][..width])
    }
}

/// Inputs `[group of columns, token, stride]`, zero beyond the columns of the group.
///
/// Invariant: a stride is whole blocks of every kind, and holds a group.
pub(crate) struct GroupedRows<T> {
    values: AlignedVec<T>,
    /// The sum of the codes of each group of columns and token; empty for floats.
    sums: Vec<i32>,
    tokens: usize,
    cols: usize,
    group: usize,
    stride: usize,
}

impl<T: super::Element> GroupedRows<T> {
    fn new(x: &[T], [cols, x_stride]: [usize; 2], group: usize) -> Self {
        let tokens = x.len() / x_stride;
        let stride = super::padded_cols(group);
        let mut values = AlignedVec::zeroed(cols.div_ceil(group) * tokens * stride);
        for (index, values) in values.chunks_mut((tokens * stride).max(1)).enumerate() {
            let columns = index * group..cols.min((index + 1) * group);
            for (values, x) in values.chunks_mut(stride).zip(x.chunks(x_stride)) {
                values[..columns.len()].copy_from_slice(&x[columns.clone()]);
            }
        }
        Self { values, sums: Vec::new(), tokens, cols, group, stride }
    }
}

/// Groups of rows of a panel: enough for the sums of a few columns to be worth a call, few enough for them to stay in a
/// first-level cache.
const PANEL_GROUPS: usize = 8;
