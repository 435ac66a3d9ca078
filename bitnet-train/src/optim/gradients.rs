//! The gradients of one step, by parameter name.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use candle_core::Tensor;
use rayon::prelude::*;

use crate::nn::parameters::Parameters;
use crate::ops::values;

/// Flat gradients in name order, summed over micro-batches.
pub struct Gradients {
    by_name: BTreeMap<String, Vec<f32>>,
}

impl Gradients {
    /// No gradients yet.
    pub fn new() -> Self {
        Self { by_name: BTreeMap::new() }
    }

    /// Differentiates `loss` (a scalar) and adds the gradient of every parameter.
    ///
    /// # Errors
    /// If a trainable parameter has no gradient: candle loses one silently at `round`, `sign`, `floor` and in some fused
    /// ops, and a model would then train in part and print a plausible loss.
    pub fn accumulate(&mut self, loss: &Tensor, parameters: &Parameters) -> Result<()> {
        let mut store = loss.backward()?;
        for (name, var) in parameters.iter() {
            let Some(gradient) = store.remove(var) else {
                bail!("parameter `{name}` has no gradient: an operation on its way to the loss cuts the graph");
            };
            let gradient = gradient.detach().contiguous()?;
            let fresh = values(&gradient)?;
            match self.by_name.get_mut(name) {
                Some(sum) => sum.par_iter_mut().zip(&*fresh).for_each(|(sum, g)| *sum += g),
                None => {
                    self.by_name.insert(name.to_owned(), fresh.to_vec());
                }
            }
        }
        Ok(())
    }

    /// Every gradient, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.by_name.iter().map(|(name, g)| (name.as_str(), g.as_slice()))
    }

    /// The gradient of a parameter.
    pub fn of(&self, name: &str) -> Option<&[f32]> {
        self.by_name.get(name).map(Vec::as_slice)
    }

    /// Euclidean norm of all gradients together, in one fixed order.
    pub fn norm(&self) -> f64 {
        let squares = |g: &Vec<f32>| -> f64 {
            let parts: Vec<f64> = g
                .par_chunks(1 << 14)
                .map(|chunk| {
                    let mut lanes = [0f64; 8];
                    for (i, &v) in chunk.iter().enumerate() {
                        lanes[i % 8] += f64::from(v) * f64::from(v);
                    }
                    lanes.iter().sum()
                })
                .collect();
            parts.iter().sum()
        };
        self.by_name.values().map(squares).sum::<f64>().sqrt()
    }
}

impl Default for Gradients {
    fn default() -> Self {
        Self::new()
    }
}
