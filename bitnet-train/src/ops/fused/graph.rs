//! The single fused ops as candle custom ops: each puts its operands in the form that the functions of the pass take, and
//! keeps for its backward pass what they gave (candle keeps the same instance in the graph).

use std::sync::Mutex;

use bitnet_infer::kernels::{self, MAX_COLS};
use bitnet_model::config::HiddenAct;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Error, Layout, Result, Shape, Tensor, bail};

use super::attention;
use super::head::{HeadBuffers, HeadGradients, cross_entropy};
use super::profile::Profile;
use super::rows::{self, Gate, Input, Norm};
use super::stack::{Backward, ProductBuffers, Stack};
use crate::ops::kernels::product::{Output, TileKernel};
use crate::ops::kernels::softmax;
use crate::ops::values::{operand, tensor_like, values};
use crate::ops::{AttentionSpec, BitLinearSpec};

/// What an op keeps until its backward pass, which takes it.
struct Kept<T>(Mutex<Option<T>>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Kept<T> {
    fn put(&self, kept: T) {
        *self.0.lock().expect("no panic while held") = Some(kept);
    }

    fn take(&self, op: &str) -> Result<T> {
        let kept = self.0.lock().expect("no panic while held").take();
        kept.ok_or_else(|| Error::Msg(format!("{op}: a second backward pass on the same graph")))
    }
}

pub(super) struct BitLinear {
    spec: BitLinearSpec,
    kept: Kept<(Stack, Input, ProductBuffers)>,
}

impl BitLinear {
    pub(super) fn new(spec: BitLinearSpec) -> Self {
        Self { spec, kept: Kept::default() }
    }
}

impl CustomOp2 for BitLinear {
    fn name(&self) -> &'static str {
        "bit-linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (operand(s1, l1)?, operand(s2, l2)?);
        let (n, k) = l2.shape().dims2()?;
        if l1.dims().last() != Some(&k) {
            bail!("bit-linear: input {:?} does not end in the weights' {k} columns", l1.dims());
        }
        if k > MAX_COLS {
            bail!("bit-linear: {k} columns, expected at most {MAX_COLS}");
        }
        let t = x.len() / k;
        let (mut stack, mut buffers) = (Stack::new(self.spec, vec![n], k), ProductBuffers::default());
        let kernel = kernels::best().map_err(Error::msg)?;
        stack.quantize(&[w], kernel).map_err(|(_, reason)| Error::msg(format!("a weight matrix {reason}")))?;
        let mut input = Input::new(self.spec.quantization.activation);
        rows::norm(x, k, None, &mut Vec::new(), &mut input, &mut buffers.floats);
        let mut y = vec![0f32; t * n];
        stack.forward(&[w], &input, t, &mut y, TileKernel::f32(), &mut buffers);
        self.kept.put((stack, input, buffers));
        let mut dims = l1.dims().to_vec();
        *dims.last_mut().expect("at least one dimension") = n;
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (stack, input, mut buffers) = self.kept.take(self.name())?;
        let dy = dy.contiguous()?;
        let (dy, latent) = (values(&dy)?, values(w)?);
        let (mut dx, mut dw) = (vec![0f32; x.elem_count()], vec![0f32; latent.len()]);
        let slot = [(&mut dw[..], Output::Replace)];
        let how = &mut Backward { tiles: TileKernel::f32(), int8: None, buffers: &mut buffers };
        stack.weight_gradients(&[&latent], &dy, &input, how, slot);
        stack.input_gradient(&[&latent], &dy, &mut dx, how);
        Ok((Some(tensor_like(dx, x)?), Some(tensor_like(dw, w)?)))
    }
}

pub(super) struct RmsNorm {
    eps: f32,
    /// The inverse root mean square of each row.
    inverses: Kept<Vec<f32>>,
}

impl RmsNorm {
    pub(super) fn new(eps: f32) -> Self {
        Self { eps, inverses: Kept::default() }
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, weight) = (operand(s1, l1)?, operand(s2, l2)?);
        let n = weight.len();
        if l1.dims().last() != Some(&n) {
            bail!("rms-norm: input {:?} does not end in the weight's {n} features", l1.dims());
        }
        let (mut y, mut inverses) = (Vec::new(), Vec::new());
        rows::norm(x, n, Some(Norm { weight, eps: self.eps }), &mut inverses, &mut Input::new(None), &mut y);
        self.inverses.put(inverses);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let inverses = self.inverses.take(self.name())?;
        let dy = dy.contiguous()?;
        let (x_values, weight_values, dy) = (values(x)?, values(weight)?, values(&dy)?);
        let (mut dx, mut dw) = (vec![0f32; x_values.len()], vec![0f32; weight_values.len()]);
        rows::norm_backward([&x_values, &dy], &weight_values, &inverses, &mut dx, &mut dw, [false; 2]);
        Ok((Some(tensor_like(dx, x)?), Some(tensor_like(dw, weight)?)))
    }
}

pub(super) struct Gated {
    pub(super) act: HiddenAct,
}

impl Gated {
    fn gate(&self, dims: &[usize]) -> Gate<'_> {
        Gate { act: self.act, width: dims.last().copied().unwrap_or(1), norm: None }
    }
}

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (operand(s1, l1)?, operand(s2, l2)?);
        if l1.dims() != l2.dims() {
            bail!("gated: gate {:?} and up {:?} differ", l1.dims(), l2.dims());
        }
        let op = self.gate(l1.dims());
        let (mut y, rows) = (Vec::new(), interleaved(&[(gate, op.width), (up, op.width)]));
        op.forward(&rows, &mut Vec::new(), &mut Input::new(None), &mut y);
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let op = self.gate(gate.dims());
        let dy = dy.contiguous()?;
        let mut rows = interleaved(&[(&values(gate)?, op.width), (&values(up)?, op.width)]);
        op.backward(&mut rows, &vec![0.0; dy.elem_count() / op.width], &values(&dy)?, None, false);
        let [d_gate, d_up] = [0, op.width].map(|first| columns(&rows, 2 * op.width, first, op.width));
        Ok((Some(tensor_like(d_gate, gate)?), Some(tensor_like(d_up, up)?)))
    }
}

pub(super) struct Attention {
    spec: AttentionSpec,
    /// `log(sum(exp(S)))` of every query, `[b, kv_head, group, t]`.
    log_sums: Kept<Vec<f32>>,
}

impl Attention {
    pub(super) fn new(spec: AttentionSpec) -> Self {
        Self { spec, log_sums: Kept::default() }
    }

    /// The op for sequences of `q`'s length, if all shapes fit.
    fn op(&self, q: &[usize], k: &[usize], v: &[usize]) -> Result<attention::Attention<'_>> {
        let AttentionSpec { heads, kv_heads, head_dim: d, rope } = &self.spec;
        let &[b, t, q_width] = q else { bail!("attention: queries {q:?}, expected three dimensions") };
        let kv_width = kv_heads * d;
        if q_width != heads * d || k != [b, t, kv_width] || v != [b, t, kv_width] {
            bail!("attention: shapes {q:?}, {k:?}, {v:?} do not fit {heads} and {kv_heads} heads of {d}");
        }
        if rope.cos.len() < t * d / 2 {
            bail!("attention: {t} positions, but rotary angles for {}", rope.cos.len() / (d / 2));
        }
        Ok(attention::Attention { spec: &self.spec, t, tiles: TileKernel::f32() })
    }

    fn rows(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let AttentionSpec { heads, kv_heads, head_dim: d, .. } = self.spec;
        interleaved(&[(q, heads * d), (k, kv_heads * d), (v, kv_heads * d)])
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (operand(s1, l1)?, operand(s2, l2)?, operand(s3, l3)?);
        let op = self.op(l1.dims(), l2.dims(), l3.dims())?;
        let mut out = vec![0f32; q.len()];
        let mut log_sums = vec![0f32; q.len() / self.spec.head_dim];
        op.forward(&self.rows(q, k, v), &mut out, &mut log_sums);
        self.log_sums.put(log_sums);
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        d_out: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let op = self.op(q.dims(), k.dims(), v.dims())?;
        let log_sums = self.log_sums.take(self.name())?;
        let mut rows = self.rows(&values(q)?, &values(k)?, &values(v)?);
        op.backward(&mut rows, &values(&d_out.contiguous()?)?, &log_sums);
        let (width, q_width) = (op.width(), op.q_width());
        let kv_width = (width - q_width) / 2;
        let part = |first, count, like: &Tensor| tensor_like(columns(&rows, width, first, count), like);
        let dq = part(0, q_width, q)?;
        Ok((Some(dq), Some(part(q_width, kv_width, k)?), Some(part(q_width + kv_width, kv_width, v)?)))
    }
}

pub(super) struct CrossEntropy {
    targets: Vec<u32>,
    with_gradient: bool,
    /// Gradients of the input and of the head for an incoming gradient of 1.
    gradients: Kept<[Vec<f32>; 2]>,
}

impl CrossEntropy {
    pub(super) fn new(targets: &[u32], with_gradient: bool) -> Self {
        Self { targets: targets.to_vec(), with_gradient, gradients: Kept::default() }
    }
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, head) = (operand(s1, l1)?, operand(s2, l2)?);
        let (v, h) = l2.shape().dims2()?;
        let t = self.targets.len();
        if l1.dims().last() != Some(&h) || x.len() != t * h {
            bail!("cross-entropy: input {:?} for {t} targets and a head of {v} x {h}", l1.dims());
        }
        if let Some(bad) = self.targets.iter().find(|&&target| target as usize >= v) {
            bail!("cross-entropy: target {bad} is not below the vocabulary of {v}");
        }
        let rest = (&mut HeadBuffers::default(), &Profile::default());
        let tiles = TileKernel::f32();
        let loss = if self.with_gradient {
            let (mut dx, mut d_head) = (vec![0f32; x.len()], vec![0f32; head.len()]);
            let gradients = HeadGradients { dx: &mut dx, d_head: &mut d_head, add: false };
            let loss = cross_entropy(x, head, &self.targets, Some(gradients), tiles, rest);
            self.gradients.put([dx, d_head]);
            loss
        } else {
            cross_entropy(x, head, &self.targets, None, tiles, rest)
        };
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        head: &Tensor,
        _loss: &Tensor,
        dloss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [mut dx, mut d_head] = self.gradients.take(self.name())?;
        let factor = dloss.to_scalar::<f32>()?;
        if factor != 1.0 {
            [&mut dx, &mut d_head].into_iter().for_each(|d| softmax::scale(d, factor));
        }
        Ok((Some(tensor_like(dx, x)?), Some(tensor_like(d_head, head)?)))
    }
}

/// Rows of several matrices side by side.
fn interleaved(parts: &[(&[f32], usize)]) -> Vec<f32> {
    let rows = parts[0].0.len() / parts[0].1.max(1);
    (0..rows)
        .flat_map(|row| parts.iter().flat_map(move |(x, width)| &x[row * width..(row + 1) * width]))
        .copied()
        .collect()
}

/// The columns `first..first + count` of a matrix.
fn columns(rows: &[f32], width: usize, first: usize, count: usize) -> Vec<f32> {
    rows.chunks(width).flat_map(|row| &row[first..first + count]).copied().collect()
}
