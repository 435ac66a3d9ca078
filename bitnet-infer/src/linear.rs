//! One projection: weights in a kernel's layout times a batch of inputs, on all threads.
//!
//! Rows (tokens, where a thread's rows would be too few for its kernel) are split over the threads, and every output is
//! computed by one thread in a fixed order, so results do not depend on the number of threads, nor on how many tokens are
//! computed together.

mod grouped;

use std::ops::Range;

use bitnet_model::quant::{ActivationScheme, rescale};
use bitnet_model::weights::LinearWeights;

use crate::kernels::{
    AlignedVec, CodeMatrix, CodeRows, Element, FLOAT_ROWS, FloatRows, FloatStore, GroupedMatrix, Kernel, Panel,
    Ternary, padded_cols, team,
};

/// A batch of inputs, quantized once and shared by the projections that read it (q, k, v; gate, up).
pub struct Activations {
    tokens: usize,
    cols: usize,
    stride: usize,
    inputs: Inputs,
}

impl Activations {
    /// Takes `x`, `[tokens, cols]` row-major, and quantizes each token if there is a scheme.
    ///
    /// # Panics
    /// If `cols` is 0 or `x` is not a whole number of tokens.
    pub fn new(x: &[f32], cols: usize, scheme: Option<&'static dyn ActivationScheme>) -> Self {
        assert!(cols > 0 && x.len().is_multiple_of(cols), "{} values are not whole tokens of {cols}", x.len());
        let tokens = x.len() / cols;
        let stride = padded_cols(cols);
        let Some(scheme) = scheme else {
            let mut values = AlignedVec::zeroed(tokens * stride);
            for (padded, x) in values.chunks_mut(stride).zip(x.chunks(cols)) {
                padded[..cols].copy_from_slice(x);
            }
            return Self { tokens, cols, stride, inputs: Inputs::Floats(values) };
        };
        let mut codes = AlignedVec::zeroed(tokens * stride);
        let (mut steps, mut sums) = (vec![0f32; tokens], vec![0i32; tokens]);
        let quantize = |x: &[f32], codes: &mut [i8], step: &mut f32, sum: &mut i32| {
            *step = scheme.quantize(x, &mut codes[..cols]);
            *sum = code_sum(codes);
        };
        let some = VALUES_PER_TASK.div_ceil(cols);
        let tasks = x.chunks(some * cols).zip(codes.chunks_mut(some * stride)).zip(steps.chunks_mut(some));
        team::each(tasks.zip(sums.chunks_mut(some)).collect(), |(((x, codes), steps), sums)| {
            let tokens = x.chunks(cols).zip(codes.chunks_mut(stride)).zip(steps).zip(sums);
            tokens.for_each(|(((x, codes), step), sum)| quantize(x, codes, step, sum));
        });
        Self { tokens, cols, stride, inputs: Inputs::Codes { codes, steps, sums } }
    }

    /// As [`Self::new`], of tokens that `write(token, values)` makes one by one: they are quantized while they are in a
    /// first-level cache, and stand nowhere as floats if there is a scheme.
    ///
    /// # Panics
    /// If `cols` is 0.
    pub(crate) fn produced(
        tokens: usize,
        cols: usize,
        scheme: Option<&'static dyn ActivationScheme>,
        write: impl Fn(usize, &mut [f32]) + Send + Sync,
    ) -> Self {
        let stride = padded_cols(cols);
        let some = VALUES_PER_TASK.div_ceil(cols);
        let Some(scheme) = scheme else {
            let mut values = AlignedVec::zeroed(tokens * stride);
            team::each(values.chunks_mut(some * stride).enumerate().collect(), |(task, values)| {
                let rows = values.chunks_mut(stride).enumerate();
                rows.for_each(|(i, row)| write(task * some + i, &mut row[..cols]));
            });
            return Self { tokens, cols, stride, inputs: Inputs::Floats(values) };
        };
        let mut codes = AlignedVec::zeroed(tokens * stride);
        let (mut steps, mut sums) = (vec![0f32; tokens], vec![0i32; tokens]);
        let tasks = codes.chunks_mut(some * stride).zip(steps.chunks_mut(some)).zip(sums.chunks_mut(some));
        team::each(tasks.enumerate().collect(), |(task, ((codes, steps), sums))| {
            let mut values = vec![0f32; cols];
            for (i, ((codes, step), sum)) in codes.chunks_mut(stride).zip(steps).zip(sums).enumerate() {
                write(task * some + i, &mut values);
                *step = scheme.quantize(&values, &mut codes[..cols]);
                *sum = code_sum(codes);
            }
        });
        Self { tokens, cols, stride, inputs: Inputs::Codes { codes, steps, sums } }
    }

    /// Takes codes `[tokens, cols]` that are quantized already, with a step for each token.
    ///
    /// # Panics
    /// If there are not `cols` codes for each step.
    pub fn from_codes(codes: &[i8], steps: Vec<f32>, cols: usize) -> Self {
        assert_eq!(codes.len(), steps.len() * cols, "{cols} codes for each of {} tokens", steps.len());
        let (tokens, stride) = (steps.len(), padded_cols(cols));
        let mut padded = AlignedVec::zeroed(tokens * stride);
        for (padded, codes) in padded.chunks_mut(stride).zip(codes.chunks(cols.max(1))) {
            padded[..cols].copy_from_slice(codes);
        }
        let sums = padded.chunks(stride).map(code_sum).collect();
        Self { tokens, cols, stride, inputs: Inputs::Codes { codes: padded, steps, sums } }
    }

    /// An empty batch, to be filled by [`Activations::refill`].
    pub fn empty() -> Self {
        let codes = AlignedVec::zeroed(0);
        Self { tokens: 0, cols: 1, stride: 0, inputs: Inputs::Codes { codes, steps: Vec::new(), sums: Vec::new() } }
    }

    /// Becomes a batch of quantized inputs in the memory of an earlier one of the same size. Each task writes the `some`
    /// tokens (the last task: those that are left) that belong to its own piece of whatever else the caller computes along
    /// the way.
    ///
    /// # Panics
    /// If there is not a task for each `some` tokens.
    pub fn refill<T: Send>(
        &mut self,
        [tokens, cols, some]: [usize; 3],
        tasks: Vec<T>,
        work: impl Fn(T, CodeWriter) + Send + Sync,
    ) {
        assert_eq!(tasks.len(), tokens.div_ceil(some.max(1)), "a task for each {some} of {tokens} tokens");
        let stride = padded_cols(cols);
        let fits = matches!(&self.inputs, Inputs::Codes { codes, .. } if codes.len() == tokens * stride);
        if !fits || self.cols != cols {
            let codes = AlignedVec::zeroed(tokens * stride);
            self.inputs = Inputs::Codes { codes, steps: vec![0.0; tokens], sums: vec![0; tokens] };
            (self.tokens, self.cols, self.stride) = (tokens, cols, stride);
        }
        let Inputs::Codes { codes, steps, sums } = &mut self.inputs else {
            unreachable!("codes since the lines above")
        };
        let rows = codes.chunks_mut(some * stride).zip(steps.chunks_mut(some)).zip(sums.chunks_mut(some));
        team::each(tasks.into_iter().zip(rows).collect(), |(task, ((codes, steps), sums))| {
            work(task, CodeWriter { cols, stride, codes, steps, sums });
        });
    }

    /// The codes of all tokens with the distance from one token to the next, or `None` if the inputs are not quantized.
    pub fn padded_codes(&self) -> Option<(&[i8], usize)> {
        match &self.inputs {
            Inputs::Codes { codes, .. } => Some((codes, self.stride)),
            Inputs::Floats(_) => None,
        }
    }

    /// Tokens in the batch.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The codes of each token, `cols` long; `None` if the inputs are not quantized.
    pub fn codes(&self) -> Option<impl Iterator<Item = &[i8]>> {
        match &self.inputs {
            Inputs::Codes { codes, .. } => Some(codes.chunks(self.stride).map(|codes| &codes[..self.cols])),
            Inputs::Floats(_) => None,
        }
    }

    /// The step of each token; `None` if the inputs are not quantized.
    pub fn steps(&self) -> Option<&[f32]> {
        match &self.inputs {
            Inputs::Codes { steps, .. } => Some(steps),
            Inputs::Floats(_) => None,
        }
    }
}

/// The tokens of one task of [`Activations::refill`].
pub struct CodeWriter<'a> {
    cols: usize,
    stride: usize,
    codes: &'a mut [i8],
    steps: &'a mut [f32],
    sums: &'a mut [i32],
}

impl CodeWriter<'_> {
    /// Takes the codes that `quantize` writes as token `token` of this task, and the step that it gives.
    ///
    /// # Panics
    /// If there is no such token.
    pub fn token(&mut self, token: usize, quantize: impl FnOnce(&mut [i8]) -> f32) {
        let codes = &mut self.codes[token * self.stride..][..self.cols];
        self.steps[token] = quantize(codes);
        self.sums[token] = code_sum(codes);
    }
}

/// One projection, `[rows, cols]` = `[out_features, in_features]`, in its kernel's own layout.
pub struct Linear {
    weights: Weights,
}

impl Linear {
    /// Rearranges `weights` for `kernel`, on the current pool; ternary codes at two bits.
    ///
    /// # Panics
    /// If this CPU does not support `kernel`, or packed weights have more columns than [`crate::kernels::MAX_COLS`].
    pub fn new(weights: &LinearWeights, kernel: &'static Kernel) -> Self {
        Self::stacked(&[weights], kernel, Ternary::TwoBit)
    }

    /// Several projections of the same inputs as one, the rows of the first first, with ternary codes held as `ternary`
    /// says if the kernel can.
    ///
    /// # Panics
    /// As [`Linear::new`], and if there are none, or they differ in columns or in the kind of weights.
    pub fn stacked(parts: &[&LinearWeights], kernel: &'static Kernel, ternary: Ternary) -> Self {
        let packed = parts.iter().map(|part| match part {
            LinearWeights::Packed(packed) => Some(packed),
            LinearWeights::Float(_) => None,
        });
        if let Some(parts) = packed.collect::<Option<Vec<_>>>() {
            if parts[0].group().is_some() {
                return Self { weights: Weights::Groups(GroupedMatrix::new(&parts, kernel)) };
            }
            let scales = match &parts[..] {
                [only] => only.scales().to_vec(),
                parts => parts.iter().flat_map(|part| (0..part.rows()).map(|row| part.scale_of(row))).collect(),
            };
            return Self { weights: Weights::Codes { matrix: CodeMatrix::new(&parts, kernel, ternary), scales } };
        }
        let float = parts.iter().map(|part| match part {
            LinearWeights::Packed(_) => panic!("weights of one kind"),
            LinearWeights::Float(matrix) => matrix,
        });
        let parts: Vec<_> = float.collect();
        Self { weights: Weights::Floats(FloatStore::new(&parts, kernel)) }
    }

    /// Ternary weights of no meaning, for measuring how fast they are read.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub(crate) fn of_zeros(rows: usize, cols: usize, kernel: &'static Kernel, ternary: Ternary) -> Self {
        let matrix = CodeMatrix::of_zeros(rows, cols, kernel, ternary);
        Self { weights: Weights::Codes { matrix, scales: vec![1.0] } }
    }

    /// Whether the weights are codes and not floats.
    pub fn is_coded(&self) -> bool {
        !matches!(self.weights, Weights::Floats(_))
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        match &self.weights {
            Weights::Codes { matrix, .. } => matrix.rows(),
            Weights::Groups(matrix) => matrix.rows(),
            Weights::Floats(matrix) => matrix.rows(),
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match &self.weights {
            Weights::Codes { matrix, .. } => matrix.cols(),
            Weights::Groups(matrix) => matrix.cols(),
            Weights::Floats(matrix) => matrix.cols(),
        }
    }

    /// Bytes in memory, padding and scales included.
    pub fn byte_count(&self) -> usize {
        match &self.weights {
            Weights::Codes { matrix, scales } => matrix.byte_count() + scales.len() * size_of::<f32>(),
            Weights::Groups(matrix) => matrix.byte_count(),
            Weights::Floats(matrix) => matrix.byte_count(),
        }
    }

    /// `out = x W^T`, `[tokens, rows]`.
    ///
    /// With packed weights and quantized inputs the sum is an exact integer and [`rescale`] the only floating point; in the
    /// three other cases sums run in f32.
    ///
    /// # Panics
    /// If the columns of `x` or the length of `out` do not fit.
    pub fn forward(&self, x: &Activations, out: &mut [f32]) {
        match (&self.weights, &x.inputs) {
            (Weights::Codes { matrix, scales }, Inputs::Codes { steps, .. }) => {
                let codes = x.code_rows().expect("quantized inputs");
                self.each_panel(
                    x,
                    out,
                    |panel, tokens, sums| matrix.raw_sums(self.groups(panel), codes, tokens, sums),
                    |sums: &[i32], token, rows, out| {
                        let exact = matrix.correction(codes.sums[token]);
                        match &scales[..] {
                            [scale] => each(sums, out, |raw| rescale(exact(raw), steps[token], *scale)),
                            scales => {
                                let scaled = out.iter_mut().zip(sums).zip(&scales[rows]);
                                scaled.for_each(|((out, &raw), &s)| *out = rescale(exact(raw), steps[token], s));
                            }
                        }
                    },
                );
            }
            (Weights::Groups(matrix), _) => self.forward_grouped(matrix, x, out),
            (Weights::Codes { matrix, scales }, Inputs::Floats(values)) => {
                let floats = x.float_rows(values);
                self.each_panel(
                    x,
                    out,
                    |panel, tokens, sums| matrix.float_sums(self.groups(panel), floats, tokens, sums),
                    |sums: &[f32], _, rows, out| match &scales[..] {
                        [scale] => each(sums, out, |sum| sum * scale),
                        scales => {
                            let scaled = out.iter_mut().zip(sums).zip(&scales[rows]);
                            scaled.for_each(|((out, sum), scale)| *out = sum * scale);
                        }
                    },
                );
            }
            (Weights::Floats(matrix), Inputs::Codes { codes, steps, .. }) => {
                let mut values = AlignedVec::zeroed(codes.len());
                values.iter_mut().zip(codes.iter()).for_each(|(value, &code)| *value = f32::from(code));
                let floats = x.float_rows(&values);
                self.each_panel(
                    x,
                    out,
                    |panel, tokens, sums| matrix.sums(panel.start / FLOAT_ROWS, floats, tokens, sums),
                    |sums: &[f32], token, _, out| each(sums, out, |sum| sum * steps[token]),
                );
            }
            (Weights::Floats(matrix), Inputs::Floats(values)) => {
                let floats = x.float_rows(values);
                self.each_panel(
                    x,
                    out,
                    |panel, tokens, sums| matrix.sums(panel.start / FLOAT_ROWS, floats, tokens, sums),
                    |sums: &[f32], _, _, out| each(sums, out, |sum| sum),
                );
            }
        }
    }

    /// The exact integer sums, `[tokens, rows]`, before [`rescale`].
    ///
    /// # Panics
    /// If the weights or the inputs are not quantized, rows have several scales, or the sizes do not fit.
    pub fn integer_sums(&self, x: &Activations, out: &mut [i32]) {
        let (Weights::Codes { matrix, .. }, Some(codes)) = (&self.weights, x.code_rows()) else {
            panic!("integer sums need quantized weights and quantized inputs");
        };
        self.each_panel(
            x,
            out,
            |panel, tokens, sums| matrix.sums(self.groups(panel), codes, tokens, sums),
            |sums: &[i32], _, _, out| each(sums, out, |sum| sum),
        );
    }

    /// Rows that a product takes together.
    fn group_rows(&self) -> usize {
        match &self.weights {
            Weights::Codes { matrix, .. } => matrix.group_rows(),
            Weights::Groups(matrix) => matrix.panel_rows(),
            Weights::Floats(_) => FLOAT_ROWS,
        }
    }

    /// The groups that hold a panel of rows.
    fn groups(&self, panel: Range<usize>) -> Range<usize> {
        let group = self.group_rows();
        panel.start / group..panel.end.div_ceil(group)
    }

    /// Computes all rows for all tokens, panel by panel: `product(rows, tokens, sums)` fills `[tokens, rows]` sums, rows
    /// rounded up to whole groups, and `finish(sums, token, rows, outputs)` turns those of one token into outputs.
    fn each_panel<S: Element, O: Send>(
        &self,
        x: &Activations,
        out: &mut [O],
        product: impl Fn(Range<usize>, Range<usize>, &mut [S]) + Send + Sync,
        finish: impl Fn(&[S], usize, Range<usize>, &mut [O]) + Send + Sync,
    ) {
        let (rows, cols, tokens) = (self.rows(), self.cols(), x.tokens());
        assert_eq!(x.cols(), cols, "inputs of as many columns as the weights");
        assert_eq!(out.len(), tokens * rows, "an output for each token and row");
        if out.is_empty() {
            return;
        }
        let group_rows = self.group_rows();
        let panel = match &self.weights {
            Weights::Codes { matrix, .. } => matrix.panel(tokens),
            Weights::Groups(_) => Panel { rows: group_rows, ..Panel::small(group_rows, cols) },
            Weights::Floats(_) => Panel { rows: FLOAT_ROWS, ..Panel::small(FLOAT_ROWS, cols) },
        };
        let compute = |first: [usize; 2], mut outputs: Vec<&mut [O]>| {
            let (end_row, end_token) = (first[0] + outputs[0].len(), first[1] + outputs.len());
            // Panels of equal rows rather than a narrow last one.
            let panels = (end_row - first[0]).div_ceil(panel.rows);
            let panel_rows = (end_row - first[0]).div_ceil(panels).next_multiple_of(group_rows);
            // On lines, like the vectors and tiles that are written there.
            let mut sums = AlignedVec::<S>::zeroed(panel.tokens.min(outputs.len()) * panel_rows);
            for start in (first[1]..end_token).step_by(panel.tokens) {
                let tile = start..end_token.min(start + panel.tokens);
                for row in (first[0]..end_row).step_by(panel_rows) {
                    let rows = row..end_row.min(row + panel_rows);
                    let width = rows.len().next_multiple_of(group_rows);
                    let sums = &mut sums[..tile.len() * width];
                    product(rows.clone(), tile.clone(), sums);
                    for (token, sums) in tile.clone().zip(sums.chunks(width)) {
                        let out = &mut outputs[token - first[1]][row - first[0]..][..rows.len()];
                        finish(&sums[..rows.len()], token, rows.clone(), out);
                    }
                }
            }
        };
        let threads = if rows * cols * tokens < PARALLEL_PRODUCTS { 1 } else { rayon::current_num_threads() };
        // Threads that split tokens read all rows, so they do only where their rows would be too few.
        let over_tokens = (threads * panel.rows_a_thread).div_ceil(rows).min(tokens / panel.tokens).clamp(1, threads);
        let tokens_a_thread = tokens.div_ceil(over_tokens);
        let rows_a_thread = rows.div_ceil(group_rows).div_ceil(threads / over_tokens) * group_rows;
        let mut parts: Vec<([usize; 2], Vec<&mut [O]>)> = Vec::new();
        for (i, out) in out.chunks_mut(tokens_a_thread * rows).enumerate() {
            let start = parts.len();
            for row in (0..rows).step_by(rows_a_thread) {
                parts.push(([row, i * tokens_a_thread], Vec::with_capacity(tokens_a_thread)));
            }
            for out in out.chunks_mut(rows) {
                for ((_, part), out) in parts[start..].iter_mut().zip(out.chunks_mut(rows_a_thread)) {
                    part.push(out);
                }
            }
        }
        team::each(parts, |(first, part)| compute(first, part));
    }
}

fn each<S: Copy, O>(sums: &[S], out: &mut [O], finish: impl Fn(S) -> O) {
    out.iter_mut().zip(sums).for_each(|(out, &sum)| *out = finish(sum));
}

impl Activations {
    fn code_rows(&self) -> Option<CodeRows<'_>> {
        match &self.inputs {
            Inputs::Codes { codes, sums, .. } => Some(CodeRows { codes, sums, cols: self.cols, stride: self.stride }),
            Inputs::Floats(_) => None,
        }
    }

    fn float_rows<'a>(&self, values: &'a [f32]) -> FloatRows<'a> {
        FloatRows { values, cols: self.cols, stride: self.stride }
    }
}

/// Rows of `stride` values, zero beyond `cols`.
enum Inputs {
    Codes { codes: AlignedVec<i8>, steps: Vec<f32>, sums: Vec<i32> },
    Floats(AlignedVec<f32>),
}

enum Weights {
    Codes { matrix: CodeMatrix, scales: Vec<f32> },
    Groups(GroupedMatrix),
    Floats(FloatStore),
}

fn code_sum(codes: &[i8]) -> i32 {
    codes.iter().map(|&code| i32::from(code)).sum()
}

/// Products below which one thread is faster than waking others (some 10 microseconds of work).
const PARALLEL_PRODUCTS: usize = 1 << 19;

/// Values that one task quantizes: enough to outweigh handing the task out.
const VALUES_PER_TASK: usize = 1 << 14;
