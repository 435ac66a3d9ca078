//! Float matrices (heads, and models without weight quantization) in the type they are stored in.

use std::ops::Range;

use bitnet_model::weights::{FloatData, FloatMatrix, FloatType};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::Kernel;
use super::aligned::{AlignedVec, Element, bytes_of, numbers_of};
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
        assert_eq!(x.cols, self.cols, "inputs of as many columns as the weights");
        let rows = group * FLOAT_ROWS * self.stride..(group + 1) * FLOAT_ROWS * self.stride;
        let weights = match &self.data {
            Data::F32(v) => Floats::F32(&v[rows]),
            Data::F16(v) => Floats::F16(&v[rows]),
            Data::Bf16(v) => Floats::Bf16(&v[rows]),
        };
        let x = FloatRows { values: &x.values[tokens.start * x.stride..tokens.end * x.stride], ..x };
        float_sums(self.kernel, weights, x, out);
    }
}

/// Numbers in the type they are stored in.
#[derive(Clone, Copy)]
pub(crate) enum Floats<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

impl<'a> Floats<'a> {
    /// Bytes as numbers of this machine; `None` if they do not begin where such a number may, or end within one.
    pub(crate) fn of_bytes(float_type: FloatType, bytes: &'a [u8]) -> Option<Self> {
        Some(match float_type {
            FloatType::F32 => Self::F32(numbers_of(bytes)?),
            FloatType::F16 => Self::F16(numbers_of(bytes)?),
            FloatType::Bf16 => Self::Bf16(numbers_of(bytes)?),
        })
    }

    /// The bytes of `data`, in this machine's order.
    pub(crate) fn bytes_of(data: &FloatData) -> &[u8] {
        match data {
            FloatData::F32(v) => bytes_of(v),
            FloatData::F16(v) => bytes_of(v),
            FloatData::Bf16(v) => bytes_of(v),
        }
    }

    /// Widens all numbers into `out`, which has as many.
    pub(crate) fn to_f32(self, out: &mut [f32]) {
        match self {
            Self::F32(v) => out.copy_from_slice(v),
            Self::F16(v) => v.convert_to_f32_slice(out),
            Self::Bf16(v) => v.convert_to_f32_slice(out),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::Bf16(v) => v.len(),
        }
    }
}

/// Products of [`FLOAT_ROWS`] rows, one after the other and each a whole number of [`FLOAT_PADDING`] values, with all tokens
/// of `x`, summed in f32 in an order that depends on the kernel and the length alone: `out` is `[tokens, FLOAT_ROWS]`.
///
/// # Panics
/// If the CPU does not support `kernel`, or the sizes do not fit.
pub(crate) fn float_sums(kernel: &Kernel, weights: Floats<'_>, x: FloatRows<'_>, out: &mut [f32]) {
    assert!(kernel.is_supported(), "kernel `{}` on a CPU without its instructions", kernel.name);
    let stride = weights.len() / FLOAT_ROWS;
    assert!(stride * FLOAT_ROWS == weights.len() && stride.is_multiple_of(FLOAT_PADDING), "whole, padded rows");
    assert!(x.stride >= stride.max(1), "inputs padded to whole vectors");
    assert_eq!(x.values.len() / x.stride * FLOAT_ROWS, out.len(), "a sum for each token and row");
    match weights {
        // SAFETY: the CPU runs this kernel, and the sizes are checked above.
        Floats::F32(w) => unsafe { (kernel.f32)(w, x, out) },
        // SAFETY: as above.
        Floats::F16(w) => unsafe { (kernel.f16)(w, x, out) },
        // SAFETY: as above.
        Floats::Bf16(w) => unsafe { (kernel.bf16)(w, x, out) },
    }
}

/// Products of FLOAT_ROWS rows (`weights` is `[FLOAT_ROWS, stride]`, `stride` a multiple of [`FLOAT_PADDING`] and at most
/// `x.stride`) with all tokens of `x`, into `out` `[tokens, FLOAT_ROWS]`.
pub(super) type FloatFn<W> = unsafe fn(&[W], FloatRows<'_>, &mut [f32]);

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
    let mut out = AlignedVec::in_huge_pages(rows.next_multiple_of(FLOAT_ROWS) * stride);
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
