//! The gradients of one step, by parameter name.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use candle_core::Tensor;
use rayon::prelude::*;

use crate::nn::parameters::Parameters;
use crate::ops::kernels::elementwise::square_sum;
use crate::ops::kernels::product::Output;
use crate::ops::values;

/// Gradients in name order, summed over micro-batches. The memory is used again from step to step.
#[derive(Default)]
pub struct Gradients {
    by_name: BTreeMap<String, Gradient>,
    /// Micro-batches that are complete.
    micro_batches: u32,
}

struct Gradient {
    values: Vec<f32>,
    /// Micro-batches in it.
    micro_batches: u32,
}

impl Gradients {
    /// No gradients yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Room for the gradients of `parameters`, none of them there yet.
    pub fn of_parameters(parameters: &Parameters) -> Self {
        let room = |var: &candle_core::Var| Gradient { values: vec![0.0; var.elem_count()], micro_batches: 0 };
        let by_name = parameters.iter().map(|(name, var)| (name.to_owned(), room(var))).collect();
        Self { by_name, micro_batches: 0 }
    }

    /// Forgets all gradients and keeps the memory.
    pub fn clear(&mut self) {
        self.micro_batches = 0;
        self.by_name.values_mut().for_each(|g| g.micro_batches = 0);
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
            self.reserve(name, fresh.len());
            let (sum, output) = self.slot(name);
            match output {
                Output::Replace => sum.copy_from_slice(&fresh),
                Output::Add => sum.par_iter_mut().zip(&*fresh).for_each(|(sum, g)| *sum += g),
            }
        }
        self.finish();
        Ok(())
    }

    fn reserve(&mut self, name: &str, len: usize) {
        if !self.by_name.contains_key(name) {
            self.by_name.insert(name.to_owned(), Gradient { values: vec![0.0; len], micro_batches: 0 });
        }
    }

    /// Where the gradient of a parameter in the present micro-batch goes, and whether it is added to those before. A second
    /// time in the same micro-batch (a tied embedding) it is added.
    ///
    /// # Panics
    /// If there is no room for it: see [`Gradients::of_parameters`].
    pub fn slot(&mut self, name: &str) -> (&mut [f32], Output) {
        self.slots(&[name]).pop().expect("one")
    }

    /// As [`Gradients::slot`] of each name.
    ///
    /// # Panics
    /// As [`Gradients::slot`], and if a name comes twice.
    pub fn slots<S: AsRef<str>>(&mut self, names: &[S]) -> Vec<(&mut [f32], Output)> {
        let present = self.micro_batches + 1;
        let mut found: Vec<Option<(&mut [f32], Output)>> = names.iter().map(|_| None).collect();
        for (name, gradient) in &mut self.by_name {
            let Some(at) = names.iter().position(|n| n.as_ref() == name) else { continue };
            let output = if gradient.micro_batches == 0 { Output::Replace } else { Output::Add };
            gradient.micro_batches = present;
            found[at] = Some((&mut gradient.values, output));
        }
        found.into_iter().map(|slot| slot.expect("room for every parameter, and each asked for once")).collect()
    }

    /// Micro-batches that are complete since the last [`Gradients::clear`].
    pub fn micro_batches(&self) -> u32 {
        self.micro_batches
    }

    /// Ends a micro-batch.
    pub fn finish(&mut self) {
        self.micro_batches += 1;
    }

    /// Every gradient, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.by_name.iter().filter(|(_, g)| g.micro_batches > 0).map(|(name, g)| (name.as_str(), g.values.as_slice()))
    }

    /// The gradient of a parameter, if it is there for all micro-batches.
    pub fn of(&self, name: &str) -> Option<&[f32]> {
        let gradient = self.by_name.get(name).filter(|g| g.micro_batches > 0 && g.micro_batches == self.micro_batches);
        gradient.map(|g| g.values.as_slice())
    }

    /// Euclidean norm of all gradients together, in one fixed order.
    pub fn norm(&self) -> f64 {
        let chunks: Vec<&[f32]> = self.iter().flat_map(|(_, g)| g.chunks(CHUNK)).collect();
        let parts: Vec<f64> = chunks.into_par_iter().with_min_len(4).map(square_sum).collect();
        parts.iter().sum::<f64>().sqrt()
    }
}

/// Numbers of a partial sum.
const CHUNK: usize = 1 << 14;
