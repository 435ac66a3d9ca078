//! Float matrices (heads, and models without weight quantization) in the type they are stored in.

use std::ops::Range;

use bitnet_model::weights::{FloatData, FloatMatrix};
use half::{bf16, f16};

use super::Kernel;
use super::aligned::{AlignedVec, Element};
use super::layout::FloatRows;

/// A `[rows, cols]` float matrix for one kernel: rows padded with zeros to `stride` values, and to whole groups of rows.
///
/// Invariant: the kernel runs on this CPU, and the data is `groups * FLOAT_ROWS * stride` values, `stride` a multiple of 32.
pub(crate) struct FloatStore {
    kernel: &'static Kernel,
    rows: usize,
    cols: usize,
    stride: usize,
    data: Data,
}

impl FloatStore {
    /// Copies the rows of all `parts`, in order.
    ///
    /// # Panics
    /// If the CPU does not support `kernel`, or the parts differ in columns or type.
    pub(crate) fn new(parts: &[&FloatMatrix], kernel: &'static Kernel) -> Self {
        assert!(kernel.is_supported(), "kernel `{}` on a CPU without its instructions", kernel.name);
        let (rows, cols) = (parts.iter().map(|part| part.rows).sum(), parts[0].cols);
        assert!(parts.iter().all(|part| part.cols == cols), "parts of as many columns");
        let stride = cols.next_multiple_of(FLOAT_PADDING);
        let data = match &parts[0].data {
            FloatData::F32(_) => Data::F32(padded(parts, rows, stride, |part| match &part.data {
                FloatData::F32(v) => v,
                _ => panic!("parts of one type"),
            })),
            FloatData::F16(_) => Data::F16(padded(parts, rows, stride, |part| match &part.data {
                FloatData::F16(v) => v,
                _ => panic!("parts of one type"),
            })),
            FloatData::Bf16(_) => Data::Bf16(padded(parts, rows, stride, |part| match &part.data {
                FloatData::Bf16(v) => v,
                _ => panic!("parts of one type"),
            })),
        };
        Self { kernel, rows, cols, stride, data }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn byte_count(&self) -> usize {
        match &self.data {
            Data::F32(v) => v.len() * 4,
            Data::F16(v) => v.len() * 2,
            Data::Bf16(v) => v.len() * 2,
        }
    }

    /// Products of the rows of `group` with `tokens` of `x`, summed in f32: `out` is `[tokens, FLOAT_ROWS]`.
    ///
    /// # Panics
    /// If a group or token does not exist, or `x` has other columns.
    pub(crate) fn sums(&self, group: usize, x: FloatRows<'_>, tokens: Range<usize>, out: &mut [f32]) {
        let kernel = self.kernel;
        match &self.data {
            Data::F32(v) => self.run(v, kernel.f32, group, x, tokens, out),
            Data::F16(v) => self.run(v, kernel.f16, group, x, tokens, out),
            Data::Bf16(v) => self.run(v, kernel.bf16, group, x, tokens, out),
        }
    }

    fn run<W: Element>(
        &self,
        data: &[W],
        function: FloatFn<W>,
        group: usize,
        x: FloatRows<'_>,
        tokens: Range<usize>,
        out: &mut [f32],
    ) {
        assert_eq!(x.cols, self.cols, "inputs of as many columns as the weights");
        assert!(x.stride >= self.stride, "inputs padded to whole vectors");
        assert_eq!(out.len(), tokens.len() * FLOAT_ROWS, "a sum for each token and row");
        let weights = &data[group * FLOAT_ROWS * self.stride..][..FLOAT_ROWS * self.stride];
        let x = FloatRows { values: &x.values[tokens.start * x.stride..tokens.end * x.stride], ..x };
        // SAFETY: `new` checked that the CPU runs this kernel; sizes are checked above and by the two slicings.
        unsafe { function(weights, x, out) };
    }
}

/// Products of FLOAT_ROWS rows (`weights` is `[FLOAT_ROWS, stride]`, `stride` a multiple of [`FLOAT_PADDING`] and at most
/// `x.stride`) with all tokens of `x`, into `out` `[tokens, FLOAT_ROWS]`.
pub(crate) type FloatFn<W> = unsafe fn(&[W], FloatRows<'_>, &mut [f32]);

enum Data {
    F32(AlignedVec<f32>),
    F16(AlignedVec<f16>),
    Bf16(AlignedVec<bf16>),
}

fn padded<'a, W: Element>(
    parts: &[&'a FloatMatrix],
    rows: usize,
    stride: usize,
    values: impl Fn(&'a FloatMatrix) -> &'a [W],
) -> AlignedVec<W> {
    let mut out = AlignedVec::zeroed(rows.next_multiple_of(FLOAT_ROWS) * stride);
    let rows = parts.iter().flat_map(|part| values(part).chunks(part.cols.max(1)));
    for (out, row) in out.chunks_mut(stride.max(1)).zip(rows) {
        out[..row.len()].copy_from_slice(row);
    }
    out
}

/// Rows that a float function takes together.
pub(crate) const FLOAT_ROWS: usize = 4;

/// Values to which rows are padded: a multiple of every kernel's float vector.
pub(crate) const FLOAT_PADDING: usize = 32;
