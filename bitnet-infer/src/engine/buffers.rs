//! What lies between the products of a block.

use std::sync::{Mutex, PoisonError};

use bitnet_model::ModelConfig;

/// One set of buffers serves all blocks of a step: every value is overwritten before it is read.
#[derive(Default)]
pub(super) struct Buffers {
    pub qkv: Vec<f32>,
    pub q_tq: Vec<f32>,
    pub k_tk: Vec<f32>,
    pub v_tk: Vec<f32>,
    pub mixed_tq: Vec<f32>,
    pub gate_up: Vec<f32>,
    pub out_th: Vec<f32>,
}

impl Buffers {
    /// Makes every buffer at least as long as a step of `rows` needs it.
    pub(super) fn fit(&mut self, config: &ModelConfig, rows: usize) {
        let (h, q, k, f) = (config.hidden_size, config.query_size(), config.key_value_size(), config.intermediate_size);
        for (buffer, width) in [
            (&mut self.qkv, q + 2 * k),
            (&mut self.q_tq, q),
            (&mut self.k_tk, k),
            (&mut self.v_tk, k),
            (&mut self.mixed_tq, q),
            (&mut self.gate_up, 2 * f),
            (&mut self.out_th, h),
        ] {
            buffer.resize(buffer.len().max(rows * width), 0.0);
        }
    }
}

/// Buffers that no step is using. Memory asked of the system anew for every step costs a sixth of a prefill: each page is
/// cleared when it is first touched.
#[derive(Default)]
pub(super) struct SpareBuffers(Mutex<Vec<Buffers>>);

impl SpareBuffers {
    pub(super) fn take(&self) -> Buffers {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn put(&self, buffers: Buffers) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffers);
    }
}
