//! The head: hidden states in, logits out, computed with the stored weights or with codes of them.

mod coded;
#[cfg(test)]
mod tests;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use super::sampler::Wanted;
use super::table::Table;
use crate::kernels::{AlignedVec, FLOAT_PADDING, FLOAT_ROWS, FloatRows, Floats, Kernel, float_sums, padded_cols, team};
use coded::{Coded, Planes, RowError};

/// How logits are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadFormat {
    /// From the weights in their stored type: f16, bf16 or f32.
    #[default]
    Stored,
    /// From codes of 8 bits with a scale for each row.
    Int8,
    /// From codes of 4 bits with a scale for each 32 columns of a row (5 bits a weight).
    Int4,
    /// As `Stored`, to the bit, at about the cost of `Int8` where few logits are wanted: see [`NextLogits`].
    Exact,
}

impl HeadFormat {
    /// All formats.
    pub const ALL: [Self; 4] = [Self::Stored, Self::Int8, Self::Int4, Self::Exact];

    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Exact => "exact",
        }
    }
}

impl fmt::Display for HeadFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HeadFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(Self::name).join(", ");
        Self::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| format!("is `{name}`, expected one of: {names}"))
    }
}

/// The logits that a choice of the next token needs.
#[derive(Clone, Debug, PartialEq)]
pub struct NextLogits {
    /// `[vocab]`; with [`HeadFormat::Exact`] and [`Wanted::Largest`], minus infinity where the token is certainly not wanted.
    pub logits: Vec<f32>,
    /// How many rows of the stored head were read besides the codes; `None` if there was no choice between them.
    pub rescored: Option<usize>,
}

/// A head `[vocab, hidden]`.
pub(super) struct Head {
    kernel: &'static Kernel,
    table: Arc<Table>,
    form: Form,
}

/// What a state is screened with; the names are those of the proof at [`Head::next`].
struct Screening<'a> {
    x: &'a [f32],
    count: usize,
    also: &'a [u32],
    by_residual: f64,
    by_norm: f64,
    least: f64,
}

impl Screening<'_> {
    /// How far the logit of the codes may be from that of the stored row.
    fn bound(&self, error: &RowError) -> f64 {
        f64::from(error.residual) * self.by_residual + f64::from(error.norm) * self.by_norm + self.least
    }
}

enum Form {
    Stored,
    Int8(Coded),
    Int4(Coded),
    Exact { screen: Coded, errors: Vec<RowError>, largest_norm: f64 },
}

impl Head {
    /// A head of stored weights: floats, or codes.
    pub fn new(table: Arc<Table>, kernel: &'static Kernel) -> Self {
        let form = if table.is_coded() { Form::Int8(Coded::int8(&table, kernel)) } else { Form::Stored };
        Self { kernel, table, form }
    }

    /// The table of stored weights.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The same weights in another form, on the current pool. A stored head is copied from a mapped file into memory.
    pub fn with_format(mut self, format: HeadFormat) -> Self {
        // Of codes, there is nothing more exact than the codes.
        if self.table.is_coded() && format != HeadFormat::Int4 {
            return self;
        }
        if format == HeadFormat::Stored
            && let Some(copy) = self.table.copied()
        {
            self.table = Arc::new(copy);
        }
        let (table, kernel) = (&self.table, self.kernel);
        let form = match format {
            HeadFormat::Stored => Form::Stored,
            HeadFormat::Int8 => Form::Int8(Coded::int8(table, kernel)),
            HeadFormat::Int4 => Form::Int4(Coded::int4(table, kernel)),
            HeadFormat::Exact => {
                let (screen, errors) = Coded::int8_with_errors(table, kernel);
                let largest_norm = errors.iter().map(|error| f64::from(error.norm)).fold(0.0, f64::max);
                Form::Exact { screen, errors, largest_norm }
            }
        };
        if format != HeadFormat::Stored {
            table.release();
        }
        Self { form, ..self }
    }

    pub fn format(&self) -> HeadFormat {
        match self.form {
            Form::Stored => HeadFormat::Stored,
            Form::Int8(_) => HeadFormat::Int8,
            Form::Int4(_) => HeadFormat::Int4,
            Form::Exact { .. } => HeadFormat::Exact,
        }
    }

    /// Bytes that one token reads.
    pub fn byte_count(&self) -> usize {
        match &self.form {
            Form::Stored => self.table.byte_count(),
            Form::Int8(coded) | Form::Int4(coded) => coded.byte_count(),
            Form::Exact { screen, errors, .. } => screen.byte_count() + size_of_val(&errors[..]),
        }
    }

    /// All logits `[t, vocab]` of hidden states `[t, h]`; `Exact` gives those of the stored head.
    ///
    /// # Panics
    /// If `out` or `x_th` does not fit.
    pub fn forward(&self, x_th: &[f32], out: &mut [f32]) {
        match &self.form {
            Form::Int8(coded) | Form::Int4(coded) => {
                let planes: Vec<Planes> = x_th.chunks_exact(coded.cols()).map(Planes::new).collect();
                coded.forward(&planes, out);
            }
            Form::Stored | Form::Exact { .. } => self.stored(x_th, out),
        }
    }

    /// The logits of hidden states `[n, h]` that are wanted, see [`NextLogits`]; each as if it were alone.
    ///
    /// The screen. Let `w` be a stored row, `w'` its coded form, `x` the hidden state, `x'` its coded form, `L` the logit as the
    /// stored head's kernel computes it and `L'` that of the codes. With norms and inner products in exact arithmetic,
    ///
    /// ```text
    /// |L - L'| <= |L - w.x| + |(w - w').x| + |w'.(x - x')| + |w'.x' - L'|
    ///          <= g |w| |x| + |w - w'| |x| + |w'| |x - x'| + 5u |w'| |x'|                  (Cauchy-Schwarz)
    ///          <= residual * (|x| + d) + norm * (g |x| + d),    d = |x - x'| + 5u |x'|     (|w'| <= norm + residual)
    /// ```
    ///
    /// where `u = 2^-24`, and `g = mu / (1 - mu)` bounds the relative error of an f32 sum of products in any order, fused or not,
    /// in which a product meets at most `m` roundings (Higham, Accuracy and Stability, section 3.1): `m` = columns and padding
    /// plus 8 for the sums of lanes. `L'` is an exact integer that is rounded to f32, then times `scale`, then times `step`:
    /// (1+u)^3 - 1 < 4u, and the fifth `u` covers this function's own f64. Where a number underflows, an absolute error of at most
    /// 2^-149 an operation joins, far below the `f32::MIN_POSITIVE * (m + 8)` that is added. Overflow and states that are not
    /// finite go to the stored head.
    ///
    /// The choice. Let `T` be the `count`-th largest of `L' - e` over all rows, `e` the bound: `count` rows have `L >= T`, so
    /// the `count`-th largest `L` is at least `T`, and every row whose `L` is not below it (ties included) has
    /// `L' + e >= L >= T`. The rows with `L' + e >= T` are computed with the stored head's own kernel, whose sum for a row
    /// depends on neither the other rows nor on how many tokens there are.
    ///
    /// # Panics
    /// If there are not as many states as `wanted`.
    pub fn next(&self, x_nh: &[f32], wanted: &[Wanted]) -> Vec<NextLogits> {
        let (rows, cols) = (self.table.rows(), self.table.cols());
        assert_eq!(x_nh.len(), wanted.len() * cols, "a state for each");
        let is_exact = matches!(self.form, Form::Exact { .. });
        let mut chosen = self.screened(x_nh, wanted);
        let open: Vec<usize> = (0..wanted.len()).filter(|&i| chosen[i].is_none()).collect();
        let x: Vec<f32> = open.iter().flat_map(|&i| &x_nh[i * cols..][..cols]).copied().collect();
        let mut logits = vec![0f32; open.len() * rows];
        if !open.is_empty() {
            self.forward(&x, &mut logits);
        }
        for (logits, i) in logits.chunks(rows.max(1)).zip(open) {
            let rescored = (is_exact && matches!(wanted[i], Wanted::Largest { .. })).then_some(rows);
            chosen[i] = Some(NextLogits { logits: logits.to_vec(), rescored });
        }
        chosen.into_iter().map(|next| next.expect("screened or computed")).collect()
    }

    /// The answers to those states that the screen has one for.
    fn screened(&self, x_nh: &[f32], wanted: &[Wanted]) -> Vec<Option<NextLogits>> {
        let rows = self.table.rows();
        let mut chosen: Vec<Option<NextLogits>> = wanted.iter().map(|_| None).collect();
        let Form::Exact { screen, errors, largest_norm } = &self.form else { return chosen };
        let m = (self.stride() + 8) as f64;
        let mut tasks: Vec<(usize, Screening)> = Vec::new();
        let mut all_planes = Vec::new();
        for (i, (x, wanted)) in x_nh.chunks_exact(self.table.cols()).zip(wanted).enumerate() {
            let Wanted::Largest { count, also } = wanted else { continue };
            let planes = Planes::new(x);
            let [norm, coded_norm, lost] = planes.norms(x);
            // Neither these sums of f32 nor those of the codes can overflow below this.
            let reach = largest_norm * (norm + coded_norm + 65536.0 * m);
            if *count == 0 || *count >= rows || !norm.is_finite() || reach > f64::from(f32::MAX) / 16.0 {
                continue;
            }
            let u = f64::from(f32::EPSILON) / 2.0;
            let d = lost + 5.0 * u * coded_norm;
            let g = m * u / (1.0 - m * u);
            let screening = Screening {
                x,
                count: *count,
                also,
                by_residual: (norm + d) * (1.0 + 1e-9),
                by_norm: (g * norm + d) * (1.0 + 1e-9),
                least: f64::from(f32::MIN_POSITIVE) * (m + 8.0),
            };
            tasks.push((i, screening));
            all_planes.push(planes);
        }
        let mut logits = vec![0f32; tasks.len() * rows];
        screen.forward(&all_planes, &mut logits);
        let tasks: Vec<(usize, Screening, &[f32])> =
            tasks.into_iter().zip(logits.chunks(rows.max(1))).map(|((i, task), logits)| (i, task, logits)).collect();
        let answers = team::map(&tasks, 1, |(_, task, logits)| self.choose(task, logits, errors));
        for ((i, ..), answer) in tasks.iter().zip(answers) {
            chosen[*i] = answer;
        }
        chosen
    }

    /// The rows of one state that pass the screen, computed with the stored weights; `None` if they are so many that reading the
    /// stored head as a whole is faster.
    fn choose(&self, task: &Screening, screened: &[f32], errors: &[RowError]) -> Option<NextLogits> {
        let rows = screened.len();
        let screened = || screened.iter().map(|&logit| f64::from(logit)).zip(errors);
        let lowest = screened().map(|(logit, error)| logit - task.bound(error));
        let threshold = if task.count == 1 {
            lowest.fold(f64::NEG_INFINITY, f64::max)
        } else {
            let mut lowest: Vec<f64> = lowest.collect();
            *lowest.select_nth_unstable_by(task.count - 1, |a, b| b.total_cmp(a)).1
        };
        let possible = screened().enumerate().filter(|(_, (logit, error))| logit + task.bound(error) >= threshold);
        let mut survivors: Vec<usize> = possible.map(|(row, _)| row).collect();
        survivors.extend(task.also.iter().map(|&token| token as usize).filter(|&row| row < rows));
        survivors.sort_unstable();
        survivors.dedup();
        if survivors.len() > rows / MOST_SURVIVORS {
            return None;
        }
        let mut logits = vec![f32::NEG_INFINITY; rows];
        for (row, logit) in survivors.iter().zip(self.rescored(task.x, &survivors)) {
            logits[*row] = logit;
        }
        Some(NextLogits { logits, rescored: Some(survivors.len()) })
    }

    /// The stored head's logits of some rows.
    fn rescored(&self, x_h: &[f32], rows: &[usize]) -> Vec<f32> {
        let x = self.padded(x_h);
        let some = |rows: &[usize]| {
            let mut sums = [0f32; FLOAT_ROWS];
            self.sums_of(rows, self.float_rows(&x), &mut self.row_buffer(), &mut sums);
            sums.into_iter().take(rows.len()).collect::<Vec<f32>>()
        };
        let fours: Vec<&[usize]> = rows.chunks(FLOAT_ROWS).collect();
        team::map(&fours, 8, |rows| some(rows)).concat()
    }

    fn stored(&self, x_th: &[f32], out: &mut [f32]) {
        let rows = self.table.rows();
        let x_th = self.padded(x_th);
        let tile = TOKENS_AT_ONCE * padded_cols(self.table.cols());
        for (x, out) in x_th.chunks(tile).zip(out.chunks_mut(TOKENS_AT_ONCE * rows.max(1))) {
            bands(out, rows, FLOAT_ROWS, |rows, mut out| {
                let mut sums = vec![0f32; out.len() * FLOAT_ROWS];
                let mut buffer = self.row_buffer();
                for start in rows.clone().step_by(FLOAT_ROWS) {
                    let some: [usize; FLOAT_ROWS] = std::array::from_fn(|i| start + i);
                    let some = &some[..(rows.end - start).min(FLOAT_ROWS)];
                    self.sums_of(some, self.float_rows(x), &mut buffer, &mut sums);
                    for (out, sums) in out.iter_mut().zip(sums.chunks(FLOAT_ROWS)) {
                        out[start - rows.start..][..some.len()].copy_from_slice(&sums[..some.len()]);
                    }
                }
            });
        }
    }

    /// Products of [`FLOAT_ROWS`] rows at most with all tokens of `x`: in place where the table has them as the kernel takes
    /// them, else through `buffer`.
    fn sums_of(&self, rows: &[usize], x: FloatRows, buffer: &mut AlignedVec<u8>, out: &mut [f32]) {
        let table = &*self.table;
        let adjacent = rows.len() == FLOAT_ROWS && rows.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        if adjacent && self.stride() == table.cols() {
            return float_sums(self.kernel, table.floats(rows[0]..rows[0] + FLOAT_ROWS), x, out);
        }
        let stride_bytes = self.stride() * table.number_bytes();
        for (&row, padded) in rows.iter().zip(buffer.chunks_exact_mut(stride_bytes.max(1))) {
            let bytes = table.row_bytes(row);
            padded[..bytes.len()].copy_from_slice(bytes);
        }
        let weights = Floats::of_bytes(table.float_type(), buffer).expect("aligned and whole");
        float_sums(self.kernel, weights, x, out);
    }

    /// Room for the rows of one call, zero beyond their columns.
    fn row_buffer(&self) -> AlignedVec<u8> {
        AlignedVec::zeroed(FLOAT_ROWS * self.stride() * self.table.number_bytes())
    }

    /// Values of a row as the kernel takes it.
    fn stride(&self) -> usize {
        self.table.cols().next_multiple_of(FLOAT_PADDING)
    }

    fn padded(&self, x_th: &[f32]) -> AlignedVec<f32> {
        let cols = self.table.cols();
        assert!(x_th.len().is_multiple_of(cols), "whole states of {cols}");
        let stride = padded_cols(cols);
        let mut padded = AlignedVec::zeroed(x_th.len() / cols * stride);
        padded.chunks_mut(stride).zip(x_th.chunks(cols)).for_each(|(padded, x)| padded[..cols].copy_from_slice(x));
        padded
    }

    fn float_rows<'a>(&self, values: &'a [f32]) -> FloatRows<'a> {
        FloatRows { values, cols: self.table.cols(), stride: padded_cols(self.table.cols()) }
    }
}

/// Cuts the rows of `out`, `[tokens, rows]`, into bands of a multiple of `unit` rows, and computes them on the current pool:
/// `compute(rows, outputs)` writes the outputs of its rows, one slice for each token.
fn bands(out: &mut [f32], rows: usize, unit: usize, compute: impl Fn(Range<usize>, Vec<&mut [f32]>) + Send + Sync) {
    if out.is_empty() {
        return;
    }
    // A few for each thread, so that none waits long for another.
    let band = rows.div_ceil(unit).div_ceil(4 * rayon::current_num_threads()).max(BAND_ROWS.div_ceil(unit)) * unit;
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(rows.div_ceil(band), Vec::new);
    for out in out.chunks_mut(rows) {
        parts.iter_mut().zip(out.chunks_mut(band)).for_each(|(part, out)| part.push(out));
    }
    team::each(parts.into_iter().enumerate().collect(), |(i, part): (usize, Vec<&mut [f32]>)| {
        compute(i * band..rows.min((i + 1) * band), part);
    });
}

/// Rows of a band at least: fewer are not worth another thread.
const BAND_ROWS: usize = 256;

/// Tokens that the stored head computes together: their states stay in a second-level cache.
const TOKENS_AT_ONCE: usize = 32;

/// With more than one row in so many left, reading the stored head as a whole is faster.
const MOST_SURVIVORS: usize = 4;
