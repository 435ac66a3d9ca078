//! The gate of the feed-forward half: `act(gate) * up`.

use bitnet_model::config::HiddenAct;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::ops::kernels::elementwise::{relu2_gate, relu2_gate_backward, silu_gate, silu_gate_backward};
use crate::ops::values::{operand, tensor_like, values};

pub(super) struct Gated {
    pub(super) act: HiddenAct,
}

/// Elements of one task.
const CHUNK: usize = 1 << 14;

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (operand(s1, l1)?, operand(s2, l2)?);
        if l1.dims() != l2.dims() {
            bail!("gated: gate {:?} and up {:?} differ", l1.dims(), l2.dims());
        }
        let forward = match self.act {
            HiddenAct::Relu2 => relu2_gate,
            HiddenAct::Silu => silu_gate,
        };
        let mut y = vec![0f32; gate.len()];
        let chunks = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
        chunks.zip(y.par_chunks_mut(CHUNK)).for_each(|((gate, up), y)| forward(gate, up, y));
        Ok((CpuStorage::F32(y), l1.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let backward = match self.act {
            HiddenAct::Relu2 => relu2_gate_backward,
            HiddenAct::Silu => silu_gate_backward,
        };
        let dy = dy.contiguous()?;
        let (gate_values, up_values, dy) = (values(gate)?, values(up)?, values(&dy)?);
        let mut dgate = vec![0f32; dy.len()];
        let mut dup = vec![0f32; dy.len()];
        let inputs = gate_values.par_chunks(CHUNK).zip(up_values.par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK));
        let outputs = dgate.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK));
        inputs.zip(outputs).for_each(|(((gate, up), dy), (dgate, dup))| backward(gate, up, dy, dgate, dup));
        Ok((Some(tensor_like(dgate, gate)?), Some(tensor_like(dup, up)?)))
    }
}
