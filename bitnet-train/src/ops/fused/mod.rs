//! The fast form of [`Ops`].
//!
//! [`Ops::differentiate`] and [`Ops::loss`] compute the whole model on plain slices, without a graph ([`pass`]). The single
//! ops are the same functions as candle custom ops ([`graph`]), so that each can be tested alone and a network of another
//! shape can be built of them. Rows are shared out over the rayon pool; every float sum has one fixed order, so results do
//! not depend on the number of threads or on timing.

mod attention;
mod block;
mod embedding;
mod graph;
mod head;
mod int8;
mod memory;
mod pass;
mod profile;
mod rows;
mod stack;

use std::sync::{Mutex, PoisonError};

use bitnet_model::ModelConfig;
use bitnet_model::config::HiddenAct;
use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use self::block::PRODUCTS_PER_BLOCK;
use self::int8::PRODUCTS;
pub(crate) use self::memory::resident;
use self::pass::Pass;
pub use self::profile::{OPS, Op, Spent};
use super::kernels::product::{BF16, F32, TileKernel, best};
use super::{AttentionSpec, BitLinearSpec, Codes, Ops, codes};
use crate::nn::parameters::Parameters;
use crate::nn::transformer::{Sequences, Transformer};
use crate::optim::Gradients;

/// Layers from which on the numbers of products, by which stochastic rounding draws, would run into those of the next batch.
pub const MOST_INT8_LAYERS: usize = (PRODUCTS / PRODUCTS_PER_BLOCK) as usize;

/// In what the float products of a step are computed; sums are f32 in both. A loss without gradients is exact in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Factors are f32.
    #[default]
    F32,
    /// Factors are rounded to bf16, except for codes, which are exact in it.
    Bf16,
}

/// What enters the backward products of projections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Backward {
    /// Gradients as they are.
    #[default]
    Float,
    /// Gradients quantized to int8 by rows with stochastic rounding, for research.
    Int8,
}

impl Precision {
    /// The tiles that this CPU computes products with.
    pub fn tiles(self) -> &'static TileKernel {
        best(match self {
            Self::F32 => F32,
            Self::Bf16 => BF16,
        })
    }
}

impl TileKernel {
    fn f32() -> &'static Self {
        best(F32)
    }
}

/// How passes are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FusedSettings {
    /// Of the backward pass.
    pub precision: Precision,
    /// Whether backward computes each block again instead of keeping what it needs of all of them.
    pub recompute: bool,
    /// Of the gradients that enter projections' products.
    pub backward: Backward,
    /// Of the stochastic rounding.
    pub seed: u64,
}

/// Whole passes on slices, and few, coarse custom ops.
pub struct FusedOps {
    settings: FusedSettings,
    pass: Mutex<Pass>,
}

impl FusedOps {
    /// Ops with buffers of their own, which grow with the first step.
    pub fn new(settings: FusedSettings) -> Self {
        Self { settings, pass: Mutex::new(Pass::new(settings)) }
    }
}

impl Default for FusedOps {
    fn default() -> Self {
        Self::new(FusedSettings::default())
    }
}

impl Ops for FusedOps {
    fn name(&self) -> &'static str {
        "fused"
    }

    fn bit_linear(&self, x: &Tensor, w_nk: &Tensor, spec: &BitLinearSpec) -> Result<Tensor> {
        x.apply_op2(w_nk, graph::BitLinear::new(*spec))
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        x.apply_op2(weight, graph::RmsNorm::new(eps))
    }

    fn attention(&self, q_btq: &Tensor, k_btk: &Tensor, v_btk: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
        q_btq.apply_op3(k_btk, v_btk, graph::Attention::new(spec.clone()))
    }

    fn gated(&self, gate: &Tensor, up: &Tensor, act: HiddenAct) -> Result<Tensor> {
        gate.apply_op2(up, graph::Gated { act })
    }

    fn cross_entropy(&self, x_bth: &Tensor, head_vh: &Tensor, targets: &[u32]) -> Result<Tensor> {
        let with_gradient = x_bth.track_op() || head_vh.track_op();
        x_bth.apply_op2(head_vh, graph::CrossEntropy::new(targets, with_gradient))
    }

    fn loss(&self, model: &Transformer, parameters: &Parameters, batch: Sequences) -> anyhow::Result<f64> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner).run(model, parameters, batch, None)
    }

    fn differentiate(
        &self,
        model: &Transformer,
        parameters: &Parameters,
        batch: Sequences,
        gradients: &mut Gradients,
    ) -> anyhow::Result<f64> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner).run(model, parameters, batch, Some(gradients))
    }

    fn codes(&self, model: &Transformer, parameters: &Parameters) -> anyhow::Result<Codes> {
        let kept = self.pass.lock().unwrap_or_else(PoisonError::into_inner).codes(parameters);
        kept.map_or_else(|| codes(&model.config, parameters), Ok)
    }

    fn memory(&self, config: &ModelConfig, tokens: usize) -> Option<usize> {
        Some(self.settings.memory(config, tokens))
    }

    fn take_profile(&self) -> Option<Vec<Spent>> {
        Some(self.pass.lock().unwrap_or_else(PoisonError::into_inner).profile.take())
    }
}
