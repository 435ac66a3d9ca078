//! The readable form of [`Ops`]: plain candle operations and candle's own automatic differentiation.
//!
//! Only rounding needs help, because candle's `round` is half away from zero and cuts the graph without an error: the
//! quantizers are two custom ops that call `bitnet-model` and state their gradient. candle's fused norm, softmax and rope
//! have no gradient either, so the slow forms are used.

use bitnet_model::config::HiddenAct;
use bitnet_model::quant::{self, ActivationScheme, WeightScheme, scale_of};
use candle_core::{CpuStorage, CustomOp1, D, Error, Layout, Result, Shape, Tensor};
use candle_nn::{loss, ops, rotary_emb};

use super::values::{operand, tensor_like, values};
use super::{AttentionSpec, BitLinearSpec, Ops};
use crate::nn::estimator::{Estimator, Grid};

/// Plain candle.
pub struct ReferenceOps;

impl Ops for ReferenceOps {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn bit_linear(&self, x: &Tensor, w_nk: &Tensor, spec: &BitLinearSpec) -> Result<Tensor> {
        let x_q = match spec.quantization.activation {
            Some(scheme) => x.apply_op1(QuantizeActivations(scheme))?,
            None => x.clone(),
        };
        let w_q = match spec.quantization.weight {
            Some(scheme) => w_nk.apply_op1(QuantizeWeights { scheme, estimator: spec.estimator })?,
            None => w_nk.clone(),
        };
        let (n, k) = w_q.dims2()?;
        let mut dims = x.dims().to_vec();
        *dims.last_mut().expect("at least one dimension") = n;
        x_q.reshape(((), k))?.matmul(&w_q.t()?)?.reshape(dims)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        ops::rms_norm_slow(x, weight, eps)
    }

    fn attention(&self, q_btq: &Tensor, k_btk: &Tensor, v_btk: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
        let (b, t, _) = q_btq.dims3()?;
        let AttentionSpec { heads, kv_heads, head_dim, rope } = spec;
        let table = |values: &[f32]| Tensor::from_slice(&values[..t * rope.half], (t, rope.half), q_btq.device());
        let (cos, sin) = (table(&rope.cos)?, table(&rope.sin)?);
        let split = |x: &Tensor, n: usize| x.reshape((b, t, n, *head_dim))?.transpose(1, 2)?.contiguous();
        let group = heads / kv_heads;
        let repeat = |x: Tensor| -> Result<Tensor> {
            let x = x.unsqueeze(2)?.broadcast_as((b, *kv_heads, group, t, *head_dim))?.contiguous()?;
            x.reshape((b, *heads, t, *head_dim))
        };
        let q = rotary_emb::rope_slow(&split(q_btq, *heads)?, &cos, &sin)?;
        let k = repeat(rotary_emb::rope_slow(&split(k_btk, *kv_heads)?, &cos, &sin)?)?;
        let v = repeat(split(v_btk, *kv_heads)?)?;

        let scores = (q.matmul(&k.t()?.contiguous()?)? / (*head_dim as f64).sqrt())?;
        let mask: Vec<f32> =
            (0..t).flat_map(|i| (0..t).map(move |j| if j <= i { 0.0 } else { f32::NEG_INFINITY })).collect();
        let scores = scores.broadcast_add(&Tensor::from_vec(mask, (t, t), q_btq.device())?)?;
        let p = ops::softmax(&scores, D::Minus1)?;
        p.matmul(&v)?.transpose(1, 2)?.reshape((b, t, heads * head_dim))
    }

    fn gated(&self, gate: &Tensor, up: &Tensor, act: HiddenAct) -> Result<Tensor> {
        match act {
            HiddenAct::Relu2 => gate.relu()?.sqr()? * up,
            HiddenAct::Silu => gate.silu()? * up,
        }
    }

    fn cross_entropy(&self, x_bth: &Tensor, head_vh: &Tensor, targets: &[u32]) -> Result<Tensor> {
        let logits = x_bth.reshape((targets.len(), ()))?.matmul(&head_vh.t()?)?;
        loss::cross_entropy(&logits, &Tensor::from_slice(targets, targets.len(), x_bth.device())?)
    }
}

/// `x -> code * step` for each row; the gradient passes unchanged.
struct QuantizeActivations(&'static dyn ActivationScheme);

impl CustomOp1 for QuantizeActivations {
    fn name(&self) -> &'static str {
        "quantize-activations"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = operand(storage, layout)?;
        let k = *layout.dims().last().expect("at least one dimension");
        let mut codes = vec![0i8; k];
        let mut out = Vec::with_capacity(x.len());
        for row in x.chunks(k) {
            let step = self.0.quantize(row, &mut codes);
            out.extend(codes.iter().map(|&c| f32::from(c) * step));
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(dy.clone()))
    }
}

/// `w -> code * scale`; the gradient is the estimator's.
struct QuantizeWeights {
    scheme: &'static dyn WeightScheme,
    estimator: &'static dyn Estimator,
}

impl QuantizeWeights {
    fn quantize(&self, w: &[f32], rows: usize) -> Result<(Vec<i8>, Vec<f32>)> {
        let mut codes = vec![0i8; w.len()];
        let scales = quant::quantize(self.scheme, w, rows, &mut codes);
        Ok((codes, scales.map_err(|reason| Error::msg(format!("a weight matrix {reason}")))?))
    }
}

impl CustomOp1 for QuantizeWeights {
    fn name(&self) -> &'static str {
        "quantize-weights"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let w = operand(storage, layout)?;
        let (rows, cols) = layout.shape().dims2()?;
        let (codes, scales) = self.quantize(w, rows)?;
        let out = codes.iter().enumerate().map(|(i, &c)| f32::from(c) * scale_of(&scales, i / cols)).collect();
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let rows = w.dims2()?.0;
        let w_values = values(w)?;
        let (_, scales) = self.quantize(&w_values, rows)?;
        let mut gradient = values(&dy.contiguous()?)?.to_vec();
        let (low, high) = self.scheme.code_range();
        let grid = Grid { rows, scales: &scales, max_code: low.unsigned_abs().max(high.unsigned_abs()) };
        self.estimator.weight_gradient(&w_values, &grid, &mut gradient);
        Ok(Some(tensor_like(gradient, w)?))
    }
}
