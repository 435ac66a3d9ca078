//! What happens to single tokens between products: norms, the gate, quantization, and their backward passes.
//!
//! Rows are shared out in tasks of a fixed number, so partial sums over rows do not depend on the number of threads.

use bitnet_infer::linear::Activations;
use bitnet_model::config::HiddenAct;
use bitnet_model::quant::ActivationScheme;
use rayon::prelude::*;

use super::attention::sized;
use crate::ops::kernels::elementwise::{
    add, quantize, relu2_gate, relu2_gate_backward, rms_norm_backward_row, rms_norm_row, silu_gate, silu_gate_backward,
};

/// Rows that one task works on: large enough to amortise a task, small enough to balance, and independent of the number
/// of threads, so that partial sums are too.
pub(super) const ROWS: usize = 32;

/// What a projection reads: codes, kept for the backward pass, or floats, which are computed again there.
pub(super) struct Input {
    scheme: Option<&'static dyn ActivationScheme>,
    codes: Activations,
}

impl Input {
    pub(super) fn new(scheme: Option<&'static dyn ActivationScheme>) -> Self {
        Self { scheme, codes: Activations::empty() }
    }

    /// The codes, if the input is quantized.
    pub(super) fn codes(&self) -> Option<&Activations> {
        self.scheme.map(|_| &self.codes)
    }

    /// Takes `t` rows of `k` numbers that `row(task, i, out)` writes, `i` counting the rows of all tasks, quantized if there
    /// is a scheme, else into `floats`. Every task has its piece of `tasks`, [`ROWS`] rows each.
    pub(super) fn fill<T: Send>(
        &mut self,
        [t, k]: [usize; 2],
        floats: &mut Vec<f32>,
        tasks: Vec<T>,
        row: impl Fn(&mut T, usize, &mut [f32]) + Send + Sync,
    ) {
        let numbered: Vec<_> = tasks.into_iter().enumerate().collect();
        match self.scheme {
            Some(scheme) => self.codes.refill([t, k, ROWS], numbered, |(number, mut task), mut writer| {
                let mut values = vec![0f32; k];
                for i in number * ROWS..t.min((number + 1) * ROWS) {
                    row(&mut task, i, &mut values);
                    writer.token(i - number * ROWS, |codes| quantize(scheme, &values, codes));
                }
            }),
            None => {
                let rows = sized(floats, t * k).par_chunks_mut(ROWS * k);
                rows.zip(numbered).for_each(|(values, (number, mut task))| {
                    values.chunks_mut(k).enumerate().for_each(|(i, values)| row(&mut task, number * ROWS + i, values));
                });
            }
        }
    }
}

/// RMSNorm's weight and constant.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    pub(super) weight: &'a [f32],
    pub(super) eps: f32,
}

/// `out = x + y`.
pub(super) fn sum(x: &[f32], y: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(CHUNK)
        .zip(x.par_chunks(CHUNK))
        .zip(y.par_chunks(CHUNK))
        .for_each(|((out, x), y)| add(x, y, out));
}

/// The normed rows of `x`, or `x` itself without a norm, as the input of a projection; keeps the inverse roots.
pub(super) fn norm(
    x: &[f32],
    k: usize,
    norm: Option<Norm>,
    inverses: &mut Vec<f32>,
    input: &mut Input,
    floats: &mut Vec<f32>,
) {
    let t = x.len() / k;
    let tasks = sized(inverses, t).chunks_mut(ROWS).collect();
    input.fill([t, k], floats, tasks, |inverses, i, out| {
        let x = &x[i * k..][..k];
        match norm {
            Some(Norm { weight, eps }) => inverses[i % ROWS] = rms_norm_row(x, weight, eps, out),
            None => out.copy_from_slice(x),
        }
    });
}

/// As [`norm`] of `x + y`, which is written to `out`.
pub(super) fn norm_of_sum(
    [x, y]: [&[f32]; 2],
    out: &mut [f32],
    norm: Norm,
    inverses: &mut Vec<f32>,
    input: &mut Input,
    floats: &mut Vec<f32>,
) {
    let k = norm.weight.len();
    let t = x.len() / k;
    let tasks = sized(inverses, t).chunks_mut(ROWS).zip(out.chunks_mut(ROWS * k)).collect();
    input.fill([t, k], floats, tasks, |(inverses, sums), i, out| {
        let (x, y, sum) = (&x[i * k..][..k], &y[i * k..][..k], &mut sums[i % ROWS * k..][..k]);
        add(x, y, sum);
        inverses[i % ROWS] = rms_norm_row(sum, norm.weight, norm.eps, out);
    });
}

/// `dx = (or +=) ` the gradient of a norm's input `x`, given that of its output; writes or adds that of its weight.
pub(super) fn norm_backward(
    [x, dy]: [&[f32]; 2],
    weight: &[f32],
    inverses: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    [add_dx, add_dw]: [bool; 2],
) {
    let n = weight.len();
    let tasks = x.par_chunks(n * ROWS).zip(dy.par_chunks(n * ROWS)).zip(dx.par_chunks_mut(n * ROWS));
    let partial: Vec<Vec<f32>> = tasks
        .zip(inverses[..x.len() / n].par_chunks(ROWS))
        .map(|(((x, dy), dx), inverses)| {
            let (mut dw, mut row) = (vec![0f32; n], vec![0f32; n]);
            for (((x, dy), dx), &inverse) in x.chunks(n).zip(dy.chunks(n)).zip(dx.chunks_mut(n)).zip(inverses) {
                if add_dx {
                    rms_norm_backward_row(x, weight, dy, inverse, &mut row, &mut dw);
                    dx.iter_mut().zip(&row).for_each(|(dx, row)| *dx += row);
                } else {
                    rms_norm_backward_row(x, weight, dy, inverse, dx, &mut dw);
                }
            }
            dw
        })
        .collect();
    add_up(&partial, dw, add_dw);
}

/// The feed-forward half between its products: `norm(act(gate) * up)`, rows of `gate_up` being `gate` and `up` in turn.
#[derive(Clone, Copy)]
pub(super) struct Gate<'a> {
    pub(super) act: HiddenAct,
    pub(super) width: usize,
    pub(super) norm: Option<Norm<'a>>,
}

impl Gate<'_> {
    fn forward_row(self, gate_up: &[f32], out: &mut [f32]) {
        let (gate, up) = gate_up.split_at(self.width);
        match self.act {
            HiddenAct::Relu2 => relu2_gate(gate, up, out),
            HiddenAct::Silu => silu_gate(gate, up, out),
        }
    }

    /// The input of the down projection; keeps the inverse roots of the norm.
    pub(super) fn forward(self, gate_up: &[f32], inverses: &mut Vec<f32>, input: &mut Input, floats: &mut Vec<f32>) {
        let f = self.width;
        let t = gate_up.len() / (2 * f);
        let tasks = sized(inverses, t).chunks_mut(ROWS).map(|inverses| (inverses, vec![0f32; f])).collect();
        input.fill([t, f], floats, tasks, |(inverses, gated), i, out| {
            let gate_up = &gate_up[i * 2 * f..][..2 * f];
            match self.norm {
                Some(Norm { weight, eps }) => {
                    self.forward_row(gate_up, gated);
                    inverses[i % ROWS] = rms_norm_row(gated, weight, eps, out);
                }
                None => self.forward_row(gate_up, out),
            }
        });
    }

    /// Turns `gate_up` into its own gradient, given that of the output; writes or adds that of the norm's weight.
    pub(super) fn backward(
        self,
        gate_up: &mut [f32],
        inverses: &[f32],
        dy: &[f32],
        dw: Option<&mut [f32]>,
        add_dw: bool,
    ) {
        let f = self.width;
        let backward = match self.act {
            HiddenAct::Relu2 => relu2_gate_backward,
            HiddenAct::Silu => silu_gate_backward,
        };
        let t = dy.len() / f;
        let tasks =
            gate_up.par_chunks_mut(2 * f * ROWS).zip(dy.par_chunks(f * ROWS)).zip(inverses[..t].par_chunks(ROWS));
        let partial: Vec<Vec<f32>> = tasks
            .map(|((gate_up, dy), inverses)| {
                let mut dw = vec![0f32; f];
                let [mut gated, mut d_gated, mut d_gate, mut d_up] = [0; 4].map(|_| vec![0f32; f]);
                for ((gate_up, dy), &inverse) in gate_up.chunks_mut(2 * f).zip(dy.chunks(f)).zip(inverses) {
                    let d_gated = match self.norm {
                        Some(Norm { weight, .. }) => {
                            self.forward_row(gate_up, &mut gated);
                            rms_norm_backward_row(&gated, weight, dy, inverse, &mut d_gated, &mut dw);
                            &d_gated
                        }
                        None => dy,
                    };
                    let (gate, up) = gate_up.split_at_mut(f);
                    backward(gate, up, d_gated, &mut d_gate, &mut d_up);
                    gate.copy_from_slice(&d_gate);
                    up.copy_from_slice(&d_up);
                }
                dw
            })
            .collect();
        if let Some(dw) = dw {
            add_up(&partial, dw, add_dw);
        }
    }
}

/// Adds partial sums in their order.
fn add_up(partial: &[Vec<f32>], out: &mut [f32], add: bool) {
    if !add {
        out.fill(0.0);
    }
    for partial in partial {
        out.iter_mut().zip(partial).for_each(|(out, p)| *out += p);
    }
}

/// Numbers of a task of element-wise work.
const CHUNK: usize = 1 << 14;
