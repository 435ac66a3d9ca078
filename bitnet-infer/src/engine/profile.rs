//! Where the time of forward passes goes.

use std::time::{Duration, Instant};

/// The parts of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Rows of the embedding.
    Embedding,
    /// RMSNorm and the quantization of what it gives.
    Norm,
    /// The products with q, k and v.
    Qkv,
    /// Rotary positions, and writing keys and values into the cache.
    Rope,
    /// Scores, softmax and the mix of values.
    Attention,
    /// The product behind attention.
    Output,
    /// The products with gate and up.
    GateUp,
    /// The gate's activation times up, the norm and the quantization of what it gives.
    Activation,
    /// The product back to the hidden size.
    Down,
    /// Residual sums.
    Residual,
    /// The product with the vocabulary.
    Head,
}

/// Time by [`Op`], summed over any number of passes.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    spent: [Duration; OPS.len()],
}

/// In the order of the variants of [`Op`].
const OPS: [&str; 11] = [
    "embedding",
    "norm",
    "qkv",
    "rope",
    "attention",
    "output",
    "gate and up",
    "activation",
    "down",
    "residual",
    "head",
];

impl Profile {
    /// Runs `work` and adds its time to `op`.
    pub fn time<T>(&mut self, op: Op, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = work();
        self.spent[op as usize] += started.elapsed();
        result
    }

    /// Seconds of each operation, by name.
    pub fn seconds(&self) -> impl Iterator<Item = (&'static str, f64)> {
        OPS.into_iter().zip(self.spent).map(|(name, spent)| (name, spent.as_secs_f64()))
    }
}
