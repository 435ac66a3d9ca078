//! BitLinear on slices: projections that read the same input (q, k, v; gate, up) as one matrix.
//!
//! Forward, with both sides quantized, is the product of `bitnet-infer`: the same activation codes, the same integer
//! kernels, the same `rescale`. So what a model computes in training is what it computes when it is served, bit for bit.
//! Where one side is not quantized, the other is dequantized and the product is one of floats.
//!
//! Backward: `dx = dy W_q`, `dW = est(dy^T x_q)`, with the codes of the forward pass, packed straight from int8.

use bitnet_infer::kernels::{Kernel, Ternary};
use bitnet_infer::linear::{Activations, Linear};
use bitnet_model::packed::{Layout, PackedMatrix};
use bitnet_model::quant::{self, WeightScheme, scale_of};
use bitnet_model::weights::LinearWeights;
use rayon::prelude::*;

use super::attention::sized;
use super::int8::{self, Noise};
use super::rows::{Input, ROWS};
use crate::nn::estimator::Grid;
use crate::ops::BitLinearSpec;
use crate::ops::kernels::elementwise::expand;
use crate::ops::kernels::product::{Codes, Matrix, Output, Packed, Threads, TileKernel, multiply};

/// The quantized form of some matrices of `cols` columns, one above the other.
pub(super) struct Stack {
    spec: BitLinearSpec,
    /// Rows of each part.
    parts: Vec<usize>,
    cols: usize,
    /// `[rows, cols]`; empty if weights are not quantized.
    codes: Vec<i8>,
    /// The scales of each part.
    scales: Vec<Vec<f32>>,
    /// One for all rows, or one for each.
    row_scales: Vec<f32>,
    /// For the integer product; `None` if one side is not quantized.
    linear: Option<Linear>,
}

/// Memory of products that is used again from one to the next.
#[derive(Default)]
pub(super) struct ProductBuffers {
    packed: Packed,
    /// An input of a projection in floats, where it is not quantized.
    pub(super) floats: Vec<f32>,
    gradient: Vec<f32>,
}

/// How the backward products of a stack are computed.
pub(super) struct Backward<'a> {
    pub(super) tiles: &'static TileKernel,
    /// For quantized gradients: the random numbers of the first of both products, and the kernel.
    pub(super) int8: Option<(Noise, &'static Kernel)>,
    pub(super) buffers: &'a mut ProductBuffers,
}

impl Stack {
    pub(super) fn new(spec: BitLinearSpec, parts: Vec<usize>, cols: usize) -> Self {
        let (scales, row_scales) = (Vec::new(), Vec::new());
        Self { spec, parts, cols, codes: Vec::new(), scales, row_scales, linear: None }
    }

    pub(super) fn rows(&self) -> usize {
        self.parts.iter().sum()
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// The codes of each part; nothing if weights are not quantized.
    pub(super) fn codes(&self) -> impl Iterator<Item = &[i8]> {
        let mut rest = &self.codes[..];
        self.parts.iter().map_while(move |rows| rest.split_off(..rows * self.cols))
    }

    /// Quantizes the latent weights of each part, `[rows, cols]` each.
    ///
    /// # Errors
    /// Which part is not finite, and a sentence.
    pub(super) fn quantize(&mut self, latent: &[&[f32]], kernel: &'static Kernel) -> Result<(), (usize, String)> {
        let Some(scheme) = self.spec.quantization.weight else { return Ok(()) };
        self.codes.resize(self.rows() * self.cols, 0);
        let mut codes = &mut self.codes[..];
        self.scales.clear();
        for (index, (&rows, latent)) in self.parts.iter().zip(latent).enumerate() {
            let (part, rest) = codes.split_at_mut(rows * self.cols);
            let scales = quant::quantize(scheme, latent, rows, part);
            self.scales.push(scales.map_err(|reason| (index, reason))?);
            codes = rest;
        }
        self.row_scales = match &self.scales[..] {
            [only] => only.clone(),
            several => {
                let parts = several.iter().zip(&self.parts);
                parts.flat_map(|(scales, &rows)| (0..rows).map(|row| scale_of(scales, row))).collect()
            }
        };
        if self.spec.quantization.activation.is_some() {
            self.linear = Some(self.packed(scheme, kernel)?);
        }
        Ok(())
    }

    /// The codes in the layout of `kernel`.
    fn packed(&self, scheme: &'static dyn WeightScheme, kernel: &'static Kernel) -> Result<Linear, (usize, String)> {
        let mut first = 0;
        let mut parts = Vec::with_capacity(self.parts.len());
        for (index, (&rows, scales)) in self.parts.iter().zip(&self.scales).enumerate() {
            let codes = &self.codes[first * self.cols..][..rows * self.cols];
            let packed = PackedMatrix::pack(scheme.layout(), rows, self.cols, codes, scales.clone());
            parts.push(LinearWeights::Packed(packed.map_err(|reason| (index, reason))?));
            first += rows;
        }
        Ok(Linear::stacked(&parts.iter().collect::<Vec<_>>(), kernel, Ternary::TwoBit))
    }

    /// `out [t, rows] = x W^T`; inputs that are not quantized are those of `buffers.floats`.
    pub(super) fn forward(
        &self,
        latent: &[&[f32]],
        input: &Input,
        t: usize,
        out: &mut [f32],
        tiles: &'static TileKernel,
        buffers: &mut ProductBuffers,
    ) {
        if let (Some(codes), Some(linear)) = (input.codes(), &self.linear) {
            return linear.forward(codes, out);
        }
        let ProductBuffers { packed, floats, gradient } = buffers;
        if let Some(codes) = input.codes() {
            dequantize(codes, floats);
        }
        let x = Matrix::new(floats, t, self.cols);
        let (stride, mut first) = (self.rows(), 0);
        for (i, (&rows, latent)) in self.parts.iter().zip(latent).enumerate() {
            let weights = match self.scales.get(i) {
                Some(scales) => {
                    let codes = self.codes[first * self.cols..][..rows * self.cols].par_chunks(self.cols);
                    let floats = sized(gradient, rows * self.cols);
                    let each = floats.par_chunks_mut(self.cols).zip(codes).enumerate().with_min_len(ROWS);
                    each.for_each(|(row, (out, codes))| expand(codes, scale_of(scales, row), out));
                    &*floats
                }
                None => latent,
            };
            let w = packed.floats(tiles, Matrix::new(weights, rows, self.cols).t(), Threads::All);
            multiply(&mut out[first..], stride, x, w, Output::Replace, Threads::All);
            first += rows;
        }
    }

    /// `dx [t, cols] = dy W_q`.
    pub(super) fn input_gradient(&self, latent: &[&[f32]], dy: &[f32], dx: &mut [f32], how: &mut Backward) {
        let Backward { tiles, int8, buffers } = how;
        let tiles = *tiles;
        let (rows, k) = (self.rows(), self.cols);
        let t = dy.len() / rows;
        if let (Some((noise, kernel)), Some(scheme)) = (*int8, self.spec.quantization.weight) {
            let weights = int8::transposed(&self.codes, [rows, k, k], scheme.layout(), kernel);
            let gradient = noise.quantize([t, rows], |token, out| {
                let row = out.iter_mut().zip(&dy[token * rows..]).enumerate();
                row.for_each(|(i, (out, dy))| *out = dy * scale_of(&self.row_scales, i));
            });
            return weights.forward(&gradient, dx);
        }
        if !self.codes.is_empty() {
            let codes = Codes { codes: &self.codes, rows, cols: k, stride: k, factors: &self.row_scales };
            let w = buffers.packed.codes(tiles, codes, Threads::All);
            return multiply(dx, k, Matrix::new(dy, t, rows), w, Output::Replace, Threads::All);
        }
        let mut first = 0;
        for (&part, latent) in self.parts.iter().zip(latent) {
            let w = buffers.packed.floats(tiles, Matrix::new(latent, part, k), Threads::All);
            let output = if first == 0 { Output::Replace } else { Output::Add };
            multiply(dx, k, Matrix::strided(&dy[first..], t, part, rows), w, output, Threads::All);
            first += part;
        }
    }

    /// Writes (or adds, for a later micro-batch) `est(dy^T x_q)` of every part to what `slot(part)` gives; an input that is
    /// not quantized is that of `buffers.floats`.
    pub(super) fn weight_gradients<'g>(
        &self,
        latent: &[&[f32]],
        dy: &[f32],
        input: &Input,
        how: &mut Backward,
        gradients: impl IntoIterator<Item = (&'g mut [f32], Output)>,
    ) {
        let (rows, k) = (self.rows(), self.cols);
        let t = dy.len() / rows;
        let Backward { tiles, int8, buffers } = how;
        let tiles = *tiles;
        if let (Some((noise, kernel)), Some(x)) = (*int8, input.codes()) {
            return self.int8_weight_gradients(latent, dy, x, (noise, kernel), gradients);
        }
        let ProductBuffers { packed, floats, gradient } = &mut **buffers;
        let x = match input.codes() {
            Some(x) => {
                let (codes, stride) = x.padded_codes().expect("quantized");
                let steps = x.steps().expect("quantized");
                packed.codes(tiles, Codes { codes, rows: t, cols: k, stride, factors: steps }, Threads::All)
            }
            None => packed.floats(tiles, Matrix::new(floats, t, k), Threads::All),
        };
        let mut first = 0;
        for (i, ((&part, latent), (out, output))) in self.parts.iter().zip(latent).zip(gradients).enumerate() {
            let dy = Matrix::strided(&dy[first..], t, part, rows);
            first += part;
            match output {
                Output::Replace => {
                    multiply(out, k, dy.t(), x, Output::Replace, Threads::All);
                    self.estimate(i, latent, out);
                }
                // An estimator sees each micro-batch by itself.
                Output::Add => {
                    let fresh = sized(gradient, part * k);
                    multiply(fresh, k, dy.t(), x, Output::Replace, Threads::All);
                    self.estimate(i, latent, fresh);
                    out.par_iter_mut().zip(&*fresh).with_min_len(1 << 14).for_each(|(sum, g)| *sum += g);
                }
            }
        }
    }

    /// The same with gradients quantized by output features.
    fn int8_weight_gradients<'g>(
        &self,
        latent: &[&[f32]],
        dy: &[f32],
        x: &Activations,
        (noise, kernel): (Noise, &'static Kernel),
        gradients: impl IntoIterator<Item = (&'g mut [f32], Output)>,
    ) {
        let (rows, k, t) = (self.rows(), self.cols, x.tokens());
        let (Some((codes, stride)), Some(steps)) = (x.padded_codes(), x.steps()) else { return };
        let inputs = int8::transposed(codes, [t, k, stride], Layout::Int8, kernel);
        let mut first = 0;
        for (i, ((&part, latent), (out, output))) in self.parts.iter().zip(latent).zip(gradients).enumerate() {
            let noise = Noise { product: noise.product + 1 + i as u64, ..noise };
            let gradient = noise.quantize([part, t], |row, out| {
                let column = dy[first + row..].iter().step_by(rows).zip(steps);
                out.iter_mut().zip(column).for_each(|(out, (dy, step))| *out = dy * step);
            });
            first += part;
            let mut fresh = vec![0f32; part * k];
            inputs.forward(&gradient, &mut fresh);
            self.estimate(i, latent, &mut fresh);
            match output {
                Output::Replace => out.copy_from_slice(&fresh),
                Output::Add => out.iter_mut().zip(&fresh).for_each(|(sum, g)| *sum += g),
            }
        }
    }

    fn estimate(&self, part: usize, latent: &[f32], gradient: &mut [f32]) {
        if let (Some(scheme), Some(scales)) = (self.spec.quantization.weight, self.scales.get(part)) {
            let (low, high) = scheme.code_range();
            let max_code = low.unsigned_abs().max(high.unsigned_abs());
            self.spec.estimator.weight_gradient(latent, &Grid { rows: self.parts[part], scales, max_code }, gradient);
        }
    }
}

/// Codes times steps, `[tokens, cols]`.
fn dequantize(x: &Activations, floats: &mut Vec<f32>) {
    let (Some(codes), Some(steps)) = (x.codes(), x.steps()) else { return };
    let codes: Vec<_> = codes.collect();
    let rows = sized(floats, x.tokens() * x.cols()).par_chunks_mut(x.cols()).zip(codes).zip(steps);
    rows.with_min_len(ROWS).for_each(|((out, codes), &step)| expand(codes, step, out));
}
