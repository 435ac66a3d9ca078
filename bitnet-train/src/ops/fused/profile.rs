//! Where the time of a pass goes.

use std::cell::Cell;
use std::time::Instant;

/// A kind of work within a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Latent weights to codes in a kernel's layout.
    QuantizeWeights,
    /// Rows of the embedding.
    Embedding,
    /// Norms and the quantization of what they give, forward.
    Norm,
    /// Projections, forward.
    Project,
    /// Rotary positions and attention, forward.
    Attention,
    /// Gate, sub-norm and quantization, forward.
    Gate,
    /// Logits and loss.
    Head,
    /// Gradients of the head and of its input.
    HeadGradient,
    /// Gradients of projections' inputs.
    InputGradient,
    /// Gradients of projections' weights.
    WeightGradient,
    /// Attention, backward.
    AttentionGradient,
    /// Norms, backward.
    NormGradient,
    /// Gate and sub-norm, backward.
    GateGradient,
    /// Gradient of the embedding.
    EmbeddingGradient,
}

/// Every kind, in the order of a step, with its name in reports and whether it belongs to the backward pass.
pub const OPS: [(Op, &str, bool); 14] = [
    (Op::QuantizeWeights, "quantize-weights", false),
    (Op::Embedding, "embedding", false),
    (Op::Norm, "norm", false),
    (Op::Project, "project", false),
    (Op::Attention, "attention", false),
    (Op::Gate, "gate", false),
    (Op::Head, "head", false),
    (Op::HeadGradient, "head-gradient", true),
    (Op::InputGradient, "input-gradient", true),
    (Op::WeightGradient, "weight-gradient", true),
    (Op::AttentionGradient, "attention-gradient", true),
    (Op::NormGradient, "norm-gradient", true),
    (Op::GateGradient, "gate-gradient", true),
    (Op::EmbeddingGradient, "embedding-gradient", true),
];

/// Time and work by kind since the last [`Profile::take`].
#[derive(Default)]
pub struct Profile {
    spent: [Cell<Spent>; OPS.len()],
}

/// What one kind of work took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Wall time in seconds.
    pub seconds: f64,
    /// Multiplications and additions of matrix products; 0 for what is none.
    pub operations: f64,
}

impl Profile {
    /// Counts `work` as `op`, with `multiply_adds` of matrix products in it.
    pub fn time<R>(&self, op: Op, multiply_adds: usize, work: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let result = work();
        let cell = &self.spent[op as usize];
        let before = cell.get();
        cell.set(Spent {
            seconds: before.seconds + start.elapsed().as_secs_f64(),
            operations: before.operations + 2.0 * multiply_adds as f64,
        });
        result
    }

    /// What was counted, in the order of [`OPS`]; counting begins anew.
    pub fn take(&self) -> Vec<Spent> {
        self.spent.iter().map(Cell::take).collect()
    }
}
