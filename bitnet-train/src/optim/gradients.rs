//! The gradients of one step, by parameter name.

use anyhow::{Result, bail};
use candle_core::Tensor;
use rayon::prelude::*;

use super::places::Places;
use crate::nn::parameters::Parameters;
use crate::ops::kernels::elementwise::square_sum;
use crate::ops::kernels::product::Output;
use crate::ops::values;

/// Gradients of all parameters in one buffer, summed over micro-batches. The memory is used again from step to step.
pub struct Gradients {
    places: Places,
    values: Vec<f32>,
    /// Micro-batches in the gradient of each parameter.
    summed: Vec<u32>,
    /// Micro-batches that are complete.
    micro_batches: u32,
}

impl Gradients {
    /// Room for the gradients of `parameters`, none of them there yet.
    pub fn of_parameters(parameters: &Parameters) -> Self {
        let places = Places::of_parameters(parameters);
        let (values, summed) = (vec![0.0; places.total()], vec![0; places.count()]);
        Self { places, values, summed, micro_batches: 0 }
    }

    /// Forgets all gradients and keeps the memory.
    pub fn clear(&mut self) {
        self.micro_batches = 0;
        self.summed.fill(0);
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
            let (sum, output) = self.slot(name);
            match output {
                Output::Replace => sum.copy_from_slice(&fresh),
                Output::Add => sum.par_iter_mut().zip(&*fresh).for_each(|(sum, g)| *sum += g),
            }
        }
        self.finish();
        Ok(())
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
        let index = |name: &S| self.places.index(name.as_ref()).expect("room for every parameter");
        let mut asked: Vec<(usize, usize)> = names.iter().map(index).zip(0..).collect();
        asked.sort_unstable();
        let present = self.micro_batches + 1;
        let pieces = self.places.split_mut(&mut self.values, asked.iter().map(|&(index, _)| index));
        let mut slots: Vec<_> = asked
            .into_iter()
            .zip(pieces)
            .map(|((index, at), piece)| {
                let output = if self.summed[index] == 0 { Output::Replace } else { Output::Add };
                self.summed[index] = present;
                (at, (piece, output))
            })
            .collect();
        slots.sort_unstable_by_key(|&(at, _)| at);
        slots.into_iter().map(|(_, slot)| slot).collect()
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
        let there = (0..self.places.count()).filter(|&index| self.summed[index] > 0);
        there.map(|index| (self.places.name(index), &self.values[self.places.range(index)]))
    }

    /// The gradients of all of `places`, one after the other, if each is there for all micro-batches.
    ///
    /// # Errors
    /// That names the first one that is missing.
    pub(super) fn all(&self, places: &Places) -> Result<&[f32]> {
        for index in 0..places.count() {
            let name = places.name(index);
            let summed = self.places.index(name).map(|index| self.summed[index]);
            if summed.is_none_or(|summed| summed == 0 || summed != self.micro_batches) {
                bail!("no gradient of `{name}`");
            }
        }
        if self.places != *places {
            bail!("the gradients are those of other parameters");
        }
        Ok(&self.values)
    }
}

/// Euclidean norm, in one fixed order.
pub(super) fn norm(values: &[f32]) -> f64 {
    let parts: Vec<f64> = values.par_chunks(CHUNK).with_min_len(4).map(square_sum).collect();
    parts.iter().sum::<f64>().sqrt()
}

/// Numbers of a partial sum.
const CHUNK: usize = 1 << 14;
