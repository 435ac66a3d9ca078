//! The fast form of [`Ops`]: each op is one candle custom op over plain slices, with its backward pass written out.
//!
//! What backward needs is kept inside the op (candle keeps the same instance in the graph). Rows are shared out over the
//! rayon pool; every float sum has one fixed order, so results do not depend on the number of threads or on timing.

mod attention;
mod bit_linear;
mod cross_entropy;
mod gated;
mod rms_norm;

use bitnet_model::config::HiddenAct;
use candle_core::{Result, Tensor};

use super::{AttentionSpec, BitLinearSpec, Ops};

/// Few, coarse custom ops.
pub struct FusedOps;

impl Ops for FusedOps {
    fn name(&self) -> &'static str {
        "fused"
    }

    fn bit_linear(&self, x: &Tensor, w_nk: &Tensor, spec: &BitLinearSpec) -> Result<Tensor> {
        x.apply_op2(w_nk, bit_linear::BitLinear::new(*spec))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        x.apply_op2(weight, rms_norm::RmsNorm::new(eps))
    }

    fn attention(&self, q_btq: &Tensor, k_btk: &Tensor, v_btk: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
        q_btq.apply_op3(k_btk, v_btk, attention::Attention::new(spec.clone()))
    }

    fn gated(&self, gate: &Tensor, up: &Tensor, act: HiddenAct) -> Result<Tensor> {
        gate.apply_op2(up, gated::Gated { act })
    }

    fn cross_entropy(&self, x_bth: &Tensor, head_vh: &Tensor, targets: &[u32]) -> Result<Tensor> {
        let with_gradient = x_bth.track_op() || head_vh.track_op();
        x_bth.apply_op2(head_vh, cross_entropy::CrossEntropy::new(targets, with_gradient))
    }
}

/// Rows that one task works on: large enough to amortise a task, small enough to balance, and independent of the number
/// of threads, so that partial sums are too.
const ROWS_PER_TASK: usize = 32;
