//! AdamW with its moments in the open, so that a run can be stored and resumed exactly.

use std::collections::BTreeMap;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, InplaceOp1, Layout, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Gradients;
use crate::nn::parameters::{Parameters, decays};
use crate::ops::kernels::elementwise::{AdamWStep, adamw};

/// `[optimizer]`: AdamW (arXiv:1711.05101).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// The schedule's peak.
    pub learning_rate: f64,
    /// Decays of the first and second moment.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled decay of matrices, the embedding among them; norms do not decay.
    #[serde(default = "default_weight_decay")]
    pub weight_decay: f64,
    /// Fraction of the steps after which weight decay is off (b1.58: 0.5; 1 never turns it off). Decay acts on latent weights, whose size is the
    /// confidence in a code, and keeps codes flipping.
    #[serde(default = "default_weight_decay_until")]
    pub weight_decay_until: f64,
    /// Largest global gradient norm; larger ones are scaled down to it. 0 turns clipping off.
    #[serde(default = "default_clip_norm")]
    pub clip_norm: f64,
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.95]
}
fn default_eps() -> f64 {
    1e-8
}
fn default_weight_decay() -> f64 {
    0.1
}
fn default_weight_decay_until() -> f64 {
    1.0
}
fn default_clip_norm() -> f64 {
    1.0
}

/// First and second moment of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient.
    pub first: Vec<f32>,
    /// Running mean of its square.
    pub second: Vec<f32>,
}

/// The optimizer's state: moments by name, and the number of steps taken.
pub struct AdamW {
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
    steps: u64,
}

impl AdamW {
    /// A fresh optimizer.
    pub fn new(config: AdamWConfig, parameters: &Parameters) -> Self {
        let zeros = |n| Moments { first: vec![0.0; n], second: vec![0.0; n] };
        let moments = parameters.iter().map(|(name, var)| (name.to_owned(), zeros(var.elem_count()))).collect();
        Self { config, moments, steps: 0 }
    }

    /// An optimizer that goes on where a checkpoint stopped, after `steps` steps.
    ///
    /// # Errors
    /// If the moments are not those of `parameters`.
    pub fn resume(
        config: AdamWConfig,
        parameters: &Parameters,
        mut moments_of: impl FnMut(&str, &[usize]) -> Result<Moments>,
        steps: u64,
    ) -> Result<Self> {
        let mut moments = BTreeMap::new();
        for (name, var) in parameters.iter() {
            let m = moments_of(name, var.dims())?;
            let sizes = [m.first.len(), m.second.len()];
            ensure!(sizes == [var.elem_count(); 2], "moments of `{name}`: {sizes:?} numbers for {:?}", var.dims());
            moments.insert(name.to_owned(), m);
        }
        Ok(Self { config, moments, steps })
    }

    /// Every parameter's moments, in name order.
    pub fn moments(&self) -> impl Iterator<Item = (&str, &Moments)> {
        self.moments.iter().map(|(name, m)| (name.as_str(), m))
    }

    /// One step on all parameters. `gradients` are used as they are times `1 / micro_batches`, clipped to the global norm.
    /// Returns the norm before clipping.
    ///
    /// # Errors
    /// If a parameter has no gradient, or the norm is not finite; then nothing has changed.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        micro_batches: u32,
        learning_rate: f64,
        weight_decay: f64,
    ) -> Result<f64> {
        let mean_factor = 1.0 / f64::from(micro_batches);
        let norm = gradients.norm() * mean_factor;
        ensure!(norm.is_finite(), "the gradient norm is {norm}");
        // All that a parameter needs, found before the first one changes.
        let mut work = Vec::with_capacity(self.moments.len());
        let mut in_order = self.moments.iter_mut();
        for (name, var) in parameters.iter() {
            let gradient = gradients.of(name).with_context(|| format!("no gradient of `{name}`"))?;
            let moments = in_order.next().filter(|(of, _)| *of == name).map(|(_, moments)| moments);
            work.push((var, gradient, moments.with_context(|| format!("no moments of `{name}`"))?));
        }
        self.steps += 1;
        let clip = self.config.clip_norm;
        // The constant is PyTorch's (`clip_grad_norm_`).
        let clip_factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let [beta1, beta2] = self.config.betas;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        for (var, gradient, moments) in work {
            let decay = if decays(var.dims()) { weight_decay } else { 0.0 };
            let step = AdamWStep {
                gradient_factor: (mean_factor * clip_factor) as f32,
                beta1: beta1 as f32,
                beta2: beta2 as f32,
                step_size: (learning_rate / (1.0 - beta1.powi(power))) as f32,
                inverse_root_bias2: (1.0 / (1.0 - beta2.powi(power)).sqrt()) as f32,
                eps: self.config.eps as f32,
                decay_factor: (1.0 - learning_rate * decay) as f32,
            };
            var.as_tensor().inplace_op1(&InPlace { gradient, moments: Mutex::new(moments), step })?;
        }
        Ok(norm)
    }
}

/// Elements of one task.
const CHUNK: usize = 1 << 14;

/// The update of one parameter, as candle lets one write to a variable.
struct InPlace<'a> {
    gradient: &'a [f32],
    moments: Mutex<&'a mut Moments>,
    step: AdamWStep,
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(weights), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("adamw: parameters are contiguous f32");
        };
        let mut moments = self.moments.lock().expect("no panic while held");
        let Moments { first, second } = &mut **moments;
        let weights = weights[start..end].par_chunks_mut(CHUNK).zip(self.gradient.par_chunks(CHUNK));
        weights
            .zip(first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK)))
            .for_each(|((w, g), (m, v))| adamw(w, m, v, g, &self.step));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_model::ModelConfig;

    #[test]
    fn a_step_without_gradients_changes_nothing() {
        let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 5, "hidden_size": 4, "intermediate_size": 4,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_act": "relu2",
            "tie_word_embeddings": true}"#;
        let config = ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid");
        let parameters = Parameters::initialize(&config, 1, 0.1).expect("fits");
        let values = |parameters: &Parameters| -> Vec<Vec<f32>> {
            parameters.iter().map(|(name, _)| parameters.values(name).expect("its own name")).collect()
        };
        let before = values(&parameters);
        let config = toml::from_str("learning_rate = 0.1").expect("the rest has defaults");
        let mut optimizer = AdamW::new(config, &parameters);
        let error = optimizer.step(&parameters, &Gradients::new(), 1, 0.1, 0.1).expect_err("no gradients");
        assert!(error.to_string().starts_with("no gradient of `"), "{error}");
        assert_eq!((optimizer.steps, values(&parameters)), (0, before));
        assert!(optimizer.moments().all(|(_, m)| m.first.iter().chain(&m.second).all(|&m| m == 0.0)));
    }
}
