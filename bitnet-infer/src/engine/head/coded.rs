//! A head of integer codes.
//!
//! A row of weights is cut into blocks of columns, each with a scale of its own (`int8`: one block; `int4`: blocks of 32), by
//! the formula of [`bitnet_model::quant::integer`]. The hidden state becomes codes too, of 16 bits in two planes of 8:
//!
//! ```text
//! step = max|x| / 32639,  q = round(x / step) = 256 * high + low,  -127 <= high <= 127,  -128 <= low <= 127
//! logit = step * sum over blocks: scale * (256 * sum(code * high) + sum(code * low))
//! ```
//!
//! so the integer kernels of the projections do the work, a token counting as two. Their sums are exact: logits are the same
//! bits on every kernel, in every batch and on any number of threads. Rounding `x` moves each of its values by at most
//! `max|x| / 65278`, where rounding a weight to eight bits moves it by up to `max|row| / 254`: the planes add about a thousandth
//! of the error that the codes of the weights make.

use std::ops::Range;

use bitnet_model::quant::{WeightScheme, weight_scheme};

use super::super::table::Table;
use super::bands;
use crate::kernels::{AlignedVec, CodeKind, CodeMatrix, CodeRows, GroupedMatrix, GroupedRows, Kernel, padded_cols};

/// A `[rows, cols]` matrix of codes.
pub(super) enum Coded {
    /// A scale for each row.
    Rows { matrix: CodeMatrix, scales: Vec<f32> },
    /// A scale for each group of columns.
    Groups(GroupedMatrix),
}

/// What is lost in a row, rounded up.
#[derive(Clone, Copy, Default)]
pub(super) struct RowError {
    /// Euclidean norm of the stored row.
    pub norm: f32,
    /// Euclidean norm of the stored row minus the coded one.
    pub residual: f32,
}

impl Coded {
    /// Eight bits, a scale for each row.
    pub fn int8(table: &Table, kernel: &'static Kernel) -> Self {
        Self::rows_of(table, kernel, |_, _, _| ()).0
    }

    /// As [`Self::int8`], with what is lost in each row.
    pub fn int8_with_errors(table: &Table, kernel: &'static Kernel) -> (Self, Vec<RowError>) {
        Self::rows_of(table, kernel, row_error)
    }

    /// Codes `table` in eight bits, straight from its rows; `note` makes of a row's floats, codes and scale what is returned
    /// for it.
    fn rows_of<N: Copy + Default + Send>(
        table: &Table,
        kernel: &'static Kernel,
        note: impl Fn(&[f32], &[i8], f32) -> N + Sync,
    ) -> (Self, Vec<N>) {
        let write = |row: usize, codes: &mut [i8]| {
            let values = floats_of(table, row);
            if let Some((stored, scale)) = table.codes_of(row) {
                codes.iter_mut().zip(stored).for_each(|(code, &stored)| *code = stored as i8);
                return (scale, note(&values, codes, scale));
            }
            let scale = scheme("int8").quantize(&values, 1, codes)[0];
            (scale, note(&values, codes, scale))
        };
        let (matrix, rows) = CodeMatrix::from_rows(CodeKind::Int8, [table.rows(), table.cols()], kernel, write);
        let (scales, notes) = rows.into_iter().unzip();
        (Self::Rows { matrix, scales }, notes)
    }

    /// Four bits, a scale for each 32 columns of a row: five bits a weight.
    pub fn int4(table: &Table, kernel: &'static Kernel) -> Self {
        let scheme = scheme("int4-g32");
        let group = scheme.granularity().group_cols().expect("a scheme of groups");
        let write = |row: usize, codes: &mut [i8], scales: &mut [f32]| {
            scales.copy_from_slice(&scheme.quantize(&floats_of(table, row), 1, codes));
        };
        let shape = [table.rows(), table.cols()];
        Self::Groups(GroupedMatrix::from_rows(CodeKind::Int4, shape, group, kernel, write))
    }

    pub fn byte_count(&self) -> usize {
        match self {
            Self::Rows { matrix, scales } => matrix.byte_count() + size_of_val(&scales[..]),
            Self::Groups(matrix) => matrix.byte_count(),
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            Self::Rows { matrix, .. } => matrix.cols(),
            Self::Groups(matrix) => matrix.cols(),
        }
    }

    fn rows(&self) -> usize {
        match self {
            Self::Rows { matrix, .. } => matrix.rows(),
            Self::Groups(matrix) => matrix.rows(),
        }
    }

    /// `out = x W^T`, `[tokens, rows]`.
    ///
    /// # Panics
    /// If `out` or `x` does not fit.
    pub fn forward(&self, x: &[Planes], out: &mut [f32]) {
        let rows = self.rows();
        assert_eq!(out.len(), x.len() * rows, "an output for each token and row");
        for (x, out) in x.chunks(TOKENS_AT_ONCE).zip(out.chunks_mut(TOKENS_AT_ONCE * rows.max(1))) {
            let codes = Codes::new(x, self.cols());
            match self {
                Self::Rows { matrix, scales } => panels(out, rows, PANEL_ROWS, |rows, out| {
                    row_panel(matrix, scales, rows, &codes, out);
                    finish(x, out);
                }),
                Self::Groups(matrix) => {
                    let codes = matrix.codes(codes.rows());
                    panels(out, rows, matrix.panel_rows(), |rows, out| {
                        group_panel(matrix, rows, &codes, 2 * x.len(), out);
                        finish(x, out);
                    });
                }
            }
        }
    }
}

/// Computes the rows of `out`, `[tokens, rows]`, panel by panel on the current pool.
fn panels(
    out: &mut [f32],
    rows: usize,
    panel_rows: usize,
    compute: impl Fn(Range<usize>, &mut [&mut [f32]]) + Send + Sync,
) {
    bands(out, rows, panel_rows, |rows, mut out| {
        for start in rows.clone().step_by(panel_rows) {
            let panel = start..rows.end.min(start + panel_rows);
            let mut out: Vec<&mut [f32]> =
                out.iter_mut().map(|out| &mut out[start - rows.start..][..panel.len()]).collect();
            compute(panel, &mut out);
        }
    });
}

fn row_panel(matrix: &CodeMatrix, scales: &[f32], rows: Range<usize>, codes: &Codes, out: &mut [&mut [f32]]) {
    let group = matrix.group_rows();
    let groups = rows.start / group..rows.end.div_ceil(group);
    let width = groups.len() * group;
    let mut sums = vec![0i32; 2 * out.len() * width];
    matrix.sums(groups, codes.rows(), 0..2 * out.len(), &mut sums);
    for (sums, out) in sums.chunks(2 * width).zip(out) {
        out.fill(0.0);
        add_planes(sums, &scales[rows.clone()], out);
    }
}

fn group_panel(
    matrix: &GroupedMatrix,
    rows: Range<usize>,
    codes: &GroupedRows<i8>,
    planes: usize,
    out: &mut [&mut [f32]],
) {
    let width = matrix.panel_rows();
    out.iter_mut().for_each(|out| out.fill(0.0));
    matrix.each_group(rows.start / width, codes, 0..planes, |sums, scales| {
        for (sums, out) in sums.chunks(2 * width).zip(out.iter_mut()) {
            add_planes(sums, scales, out);
        }
    });
}

/// Adds the products of both planes of a token.
fn add_planes(sums: &[i32], scales: &[f32], out: &mut [f32]) {
    let (high, low) = sums.split_at(sums.len() / 2);
    for (((out, &high), &low), scale) in out.iter_mut().zip(high).zip(low).zip(scales) {
        // Exact in f64, rounded once.
        *out += (f64::from(high) * 256.0 + f64::from(low)) as f32 * scale;
    }
}

fn finish(x: &[Planes], out: &mut [&mut [f32]]) {
    for (x, out) in x.iter().zip(out) {
        out.iter_mut().for_each(|out| *out *= x.step);
    }
}

/// A row of the table; now and then the memory of a mapped table is given back.
fn floats_of(table: &Table, row: usize) -> Vec<f32> {
    let mut values = vec![0f32; table.cols()];
    table.row_to_f32(row, 0..table.cols(), &mut values);
    if row.is_multiple_of(RELEASE_ROWS) {
        table.release();
    }
    values
}

fn scheme(name: &str) -> &'static dyn WeightScheme {
    weight_scheme(name).ok().flatten().expect("in the table")
}

/// A hidden state in two planes of codes, see the top of this file.
pub(super) struct Planes {
    high: Vec<i8>,
    low: Vec<i8>,
    step: f32,
}

impl Planes {
    /// Codes one token's hidden state. Where that is not finite, neither is the step.
    pub fn new(x: &[f32]) -> Self {
        let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let finite = x.iter().all(|x| x.is_finite());
        let step = if finite { (largest / LARGEST_CODE).max(f32::MIN_POSITIVE) } else { f32::NAN };
        let code = |x: &f32| (x / step).round_ties_even().clamp(-LARGEST_CODE, LARGEST_CODE) as i32;
        let high = |code: i32| (code + 128) >> 8;
        Self {
            high: x.iter().map(|x| high(code(x)) as i8).collect(),
            low: x.iter().map(|x| (code(x) - 256 * high(code(x))) as i8).collect(),
            step,
        }
    }

    /// Norms of the state, of its coded form, and of their difference.
    pub fn norms(&self, x: &[f32]) -> [f64; 3] {
        let mut squares = [0f64; 3];
        for ((&x, &high), &low) in x.iter().zip(&self.high).zip(&self.low) {
            let coded = f64::from(self.step) * f64::from(256 * i32::from(high) + i32::from(low));
            let x = f64::from(x);
            squares = [squares[0] + x * x, squares[1] + coded * coded, squares[2] + (x - coded) * (x - coded)];
        }
        squares.map(f64::sqrt)
    }
}

/// Both planes of some tokens, one after the other.
struct Codes {
    codes: AlignedVec<i8>,
    sums: Vec<i32>,
    cols: usize,
}

impl Codes {
    fn new(x: &[Planes], cols: usize) -> Self {
        let stride = padded_cols(cols);
        let mut codes = AlignedVec::zeroed(2 * x.len() * stride);
        let planes = x.iter().flat_map(|x| [&x.high, &x.low]);
        codes.chunks_mut(stride).zip(planes).for_each(|(codes, plane)| codes[..cols].copy_from_slice(plane));
        let sums = codes.chunks(stride).map(|codes| codes.iter().map(|&code| i32::from(code)).sum()).collect();
        Self { codes, sums, cols }
    }

    fn rows(&self) -> CodeRows<'_> {
        CodeRows { codes: &self.codes, sums: &self.sums, cols: self.cols, stride: padded_cols(self.cols) }
    }
}

fn row_error(values: &[f32], codes: &[i8], scale: f32) -> RowError {
    // Several sums side by side: one would wait for itself.
    let mut squares = [[0f64; 8]; 2];
    for (values, codes) in values.chunks(8).zip(codes.chunks(8)) {
        for (i, (&w, &code)) in values.iter().zip(codes).enumerate() {
            // The product of a scale and a code is exact in f64, so is the difference but for a relative 2^-53.
            let rest = f64::from(w) - f64::from(scale) * f64::from(code);
            squares[0][i] += f64::from(w) * f64::from(w);
            squares[1][i] += rest * rest;
        }
    }
    // Covers what rounding in f64 (some 1e-12) and to f32 (6e-8) may take away.
    let [norm, residual] = squares.map(|squares| (squares.iter().sum::<f64>().sqrt() * (1.0 + 1e-6)) as f32);
    RowError { norm, residual }
}

/// The largest code of a hidden state: 127 in both planes.
const LARGEST_CODE: f32 = 32639.0;

/// Rows whose sums are kept at a time; a multiple of every kernel's group.
const PANEL_ROWS: usize = 256;

/// Tokens computed together: their sums for a panel stay in a first-level cache.
const TOKENS_AT_ONCE: usize = 16;

/// After so many rows the memory of a mapped table is given back.
const RELEASE_ROWS: usize = 4096;
