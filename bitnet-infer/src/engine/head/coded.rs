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

use bitnet_model::quant::weight_scheme;

use super::super::table::Table;
use super::bands;
use crate::kernels::{AlignedVec, CodeKind, CodeMatrix, CodeRows, Kernel, padded_cols};

/// A `[rows, cols]` matrix of codes.
pub(super) struct Coded {
    rows: usize,
    cols: usize,
    blocks: Vec<Block>,
}

/// Some adjacent columns of all rows.
struct Block {
    cols: Range<usize>,
    matrix: CodeMatrix,
    /// One scale a row.
    scales: Vec<f32>,
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
        let (block, _) = Block::new(table, CodeKind::Int8, "int8", 0..table.cols(), kernel, |_, _, _| ());
        Self { rows: table.rows(), cols: table.cols(), blocks: vec![block] }
    }

    /// As [`Self::int8`], with what is lost in each row.
    pub fn int8_with_errors(table: &Table, kernel: &'static Kernel) -> (Self, Vec<RowError>) {
        let (block, errors) = Block::new(table, CodeKind::Int8, "int8", 0..table.cols(), kernel, row_error);
        (Self { rows: table.rows(), cols: table.cols(), blocks: vec![block] }, errors)
    }

    /// Four bits, a scale for each 32 columns of a row: five bits a weight.
    pub fn int4(table: &Table, kernel: &'static Kernel) -> Self {
        let starts = (0..table.cols()).step_by(INT4_COLS);
        let block = |start: usize| {
            let cols = start..table.cols().min(start + INT4_COLS);
            Block::new(table, CodeKind::Int4, "int4", cols, kernel, |_, _, _| ()).0
        };
        Self { rows: table.rows(), cols: table.cols(), blocks: starts.map(block).collect() }
    }

    pub fn byte_count(&self) -> usize {
        self.blocks.iter().map(|block| block.matrix.byte_count() + block.scales.len() * size_of::<f32>()).sum()
    }

    /// `out = x W^T`, `[tokens, rows]`.
    ///
    /// # Panics
    /// If `out` or `x` does not fit.
    pub fn forward(&self, x: &[Planes], out: &mut [f32]) {
        assert_eq!(out.len(), x.len() * self.rows, "an output for each token and row");
        for (x, out) in x.chunks(TOKENS_AT_ONCE).zip(out.chunks_mut(TOKENS_AT_ONCE * self.rows.max(1))) {
            let inputs: Vec<BlockCodes> = self.blocks.iter().map(|block| BlockCodes::new(x, &block.cols)).collect();
            bands(out, self.rows, PANEL_ROWS, |rows, mut out| {
                let mut sums = vec![0i32; 2 * x.len() * PANEL_ROWS];
                for start in rows.clone().step_by(PANEL_ROWS) {
                    let panel = start..rows.end.min(start + PANEL_ROWS);
                    let mut out: Vec<&mut [f32]> =
                        out.iter_mut().map(|out| &mut out[start - rows.start..][..panel.len()]).collect();
                    self.panel(panel, x, &inputs, &mut sums, &mut out);
                }
            });
        }
    }

    fn panel(&self, rows: Range<usize>, x: &[Planes], inputs: &[BlockCodes], sums: &mut [i32], out: &mut [&mut [f32]]) {
        out.iter_mut().for_each(|out| out.fill(0.0));
        for (block, input) in self.blocks.iter().zip(inputs) {
            let group = block.matrix.group_rows();
            let groups = rows.start / group..rows.end.div_ceil(group);
            let width = groups.len() * group;
            let sums = &mut sums[..2 * x.len() * width];
            block.matrix.sums(groups, input.rows(), 0..2 * x.len(), sums);
            let scales = &block.scales[rows.clone()];
            for (sums, out) in sums.chunks(2 * width).zip(out.iter_mut()) {
                let (high, low) = sums.split_at(width);
                for (((out, &high), &low), scale) in out.iter_mut().zip(high).zip(low).zip(scales) {
                    // Exact in f64, rounded once.
                    *out += (f64::from(high) * 256.0 + f64::from(low)) as f32 * scale;
                }
            }
        }
        for (x, out) in x.iter().zip(out) {
            out.iter_mut().for_each(|out| *out *= x.step);
        }
    }

    pub fn cols(&self) -> usize {
        self.cols
    }
}

impl Block {
    /// Codes the columns `cols` of `table` by the scheme `name`, straight from its rows; `note` makes of a row's floats, codes
    /// and scale what is returned for it.
    fn new<N: Copy + Default + Send>(
        table: &Table,
        kind: CodeKind,
        name: &str,
        cols: Range<usize>,
        kernel: &'static Kernel,
        note: impl Fn(&[f32], &[i8], f32) -> N + Sync,
    ) -> (Self, Vec<N>) {
        let scheme = weight_scheme(name).expect("in the table").expect("a scheme");
        let width = cols.len();
        let write = |row: usize, codes: &mut [i8]| {
            let mut values = vec![0f32; width];
            table.row_to_f32(row, cols.clone(), &mut values);
            let scale = scheme.quantize(&values, 1, codes)[0];
            if row.is_multiple_of(RELEASE_ROWS) {
                table.release();
            }
            (scale, note(&values, codes, scale))
        };
        let (matrix, rows) = CodeMatrix::from_rows(kind, [table.rows(), width], kernel, write);
        let (scales, notes) = rows.into_iter().unzip();
        (Self { cols, matrix, scales }, notes)
    }
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

/// Both planes of some tokens, one after the other, for the columns of a block.
struct BlockCodes {
    codes: AlignedVec<i8>,
    sums: Vec<i32>,
    cols: usize,
}

impl BlockCodes {
    fn new(x: &[Planes], cols: &Range<usize>) -> Self {
        let stride = padded_cols(cols.len());
        let mut codes = AlignedVec::zeroed(2 * x.len() * stride);
        let planes = x.iter().flat_map(|x| [&x.high, &x.low]).map(|plane| &plane[cols.clone()]);
        codes.chunks_mut(stride).zip(planes).for_each(|(codes, plane)| codes[..cols.len()].copy_from_slice(plane));
        let sums = codes.chunks(stride).map(|codes| codes.iter().map(|&code| i32::from(code)).sum()).collect();
        Self { codes, sums, cols: cols.len() }
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

/// Columns that share a scale in `int4`.
const INT4_COLS: usize = 32;

/// Rows whose sums are kept at a time; a multiple of every kernel's group.
const PANEL_ROWS: usize = 256;

/// Tokens computed together: their sums for a panel stay in a first-level cache.
const TOKENS_AT_ONCE: usize = 16;

/// After so many rows the memory of a mapped table is given back.
const RELEASE_ROWS: usize = 4096;
