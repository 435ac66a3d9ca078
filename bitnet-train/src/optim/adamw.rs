//! AdamW with its moments in the open, so that a run can be stored and resumed exactly.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitnet_model::finite;
use candle_core::Var;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::gradients::{Gradients, norm};
use super::places::Places;
use crate::nn::parameters::{Parameters, decays};
use crate::ops::kernels::elementwise::{AdamWStep, adamw};
use crate::ops::values_mut;

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
pub struct Moments<M = Vec<f32>> {
    /// Running mean of the gradient.
    pub first: M,
    /// Running mean of its square.
    pub second: M,
}

/// The optimizer's state: moments by name, and the number of steps taken.
pub struct AdamW {
    config: AdamWConfig,
    places: Places,
    moments: Moments,
    steps: u64,
}

impl AdamW {
    /// A fresh optimizer.
    pub fn new(config: AdamWConfig, parameters: &Parameters) -> Self {
        let places = Places::of_parameters(parameters);
        let moments = Moments { first: vec![0.0; places.total()], second: vec![0.0; places.total()] };
        Self { config, places, moments, steps: 0 }
    }

    /// An optimizer that goes on where a checkpoint stopped, after `steps` steps.
    ///
    /// # Errors
    /// If the moments are not those of `parameters`, or not finite.
    pub fn resume(
        config: AdamWConfig,
        parameters: &Parameters,
        mut moments_of: impl FnMut(&str, &[usize]) -> Result<Moments>,
        steps: u64,
    ) -> Result<Self> {
        let mut resumed = Self::new(config, parameters);
        let Self { places, moments: Moments { first, second }, .. } = &mut resumed;
        for (index, (name, var)) in parameters.iter().enumerate() {
            let stored = moments_of(name, var.dims())?;
            let sizes = [stored.first.len(), stored.second.len()];
            ensure!(sizes == [var.elem_count(); 2], "moments of `{name}`: {sizes:?} numbers for {:?}", var.dims());
            first[places.range(index)].copy_from_slice(&stored.first);
            second[places.range(index)].copy_from_slice(&stored.second);
        }
        resumed.check_moments()?;
        resumed.steps = steps;
        Ok(resumed)
    }

    /// Every parameter's moments, in name order.
    pub fn moments(&self) -> impl Iterator<Item = (&str, Moments<&[f32]>)> {
        let Moments { first, second } = &self.moments;
        (0..self.places.count()).map(|index| {
            let range = self.places.range(index);
            (self.places.name(index), Moments { first: &first[range.clone()], second: &second[range] })
        })
    }

    /// One step on all parameters. `gradients` are used as they are times `1 / micro_batches`, clipped to the global norm.
    /// Returns the norm before clipping.
    ///
    /// # Errors
    /// If a parameter has no gradient, or the norm is not finite; then nothing has changed. Or if the step made a weight or a
    /// moment of it NaN or infinite: that names the first, and the parameters are lost.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        micro_batches: u32,
        learning_rate: f64,
        weight_decay: f64,
    ) -> Result<f64> {
        ensure!(Places::of_parameters(parameters) == self.places, "the moments are those of other parameters");
        let gradients = gradients.all(&self.places)?;
        let mean_factor = 1.0 / f64::from(micro_batches);
        let norm = norm(gradients) * mean_factor;
        if !norm.is_finite() {
            parameters.check_finite()?;
            bail!("the gradient norm is {norm}");
        }
        self.steps += 1;
        let clip = self.config.clip_norm;
        // The constant is PyTorch's (`clip_grad_norm_`).
        let clip_factor = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let [beta1, beta2] = self.config.betas;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let step = |decay: f64| AdamWStep {
            gradient_factor: (mean_factor * clip_factor) as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            step_size: (learning_rate / (1.0 - beta1.powi(power))) as f32,
            inverse_root_bias2: (1.0 / (1.0 - beta2.powi(power)).sqrt()) as f32,
            eps: self.config.eps as f32,
            decay_factor: (1.0 - learning_rate * decay) as f32,
        };
        let vars: Vec<&Var> = parameters.iter().map(|(_, var)| var).collect();
        let steps = vars.iter().map(|var| step(if decays(var.dims()) { weight_decay } else { 0.0 })).collect();
        let (places, moments) = (&self.places, &mut self.moments);
        let mut is_finite = true;
        values_mut(&vars, |weights| is_finite = update(weights, places, moments, gradients, steps))?;
        if !is_finite {
            parameters.check_finite().context("its result cannot be used")?;
            self.check_moments()?;
        }
        Ok(norm)
    }

    fn check_moments(&self) -> Result<()> {
        for (name, moments) in self.moments() {
            for (which, values) in [("first", moments.first), ("second", moments.second)] {
                finite::check(values).map_err(|reason| anyhow!("the {which} moment of `{name}` {reason}"))?;
            }
        }
        Ok(())
    }
}

/// Numbers of one task.
const CHUNK: usize = 1 << 14;

/// The update of all parameters, in one loop over pieces of them: most parameters are too small to be shared out by
/// themselves. Returns whether all that it wrote is finite.
fn update(
    weights: Vec<&mut [f32]>,
    places: &Places,
    moments: &mut Moments,
    gradients: &[f32],
    steps: Vec<AdamWStep>,
) -> bool {
    let firsts = places.split_mut(&mut moments.first, 0..places.count());
    let seconds = places.split_mut(&mut moments.second, 0..places.count());
    let mut tasks = Vec::with_capacity(places.count() + places.total() / CHUNK);
    for (index, ((weights, step), (first, second))) in
        weights.into_iter().zip(steps).zip(firsts.into_iter().zip(seconds)).enumerate()
    {
        let moments = first.chunks_mut(CHUNK).zip(second.chunks_mut(CHUNK));
        let pieces = weights.chunks_mut(CHUNK).zip(moments).zip(gradients[places.range(index)].chunks(CHUNK));
        tasks.extend(pieces.map(|((w, (m, v)), g)| (w, m, v, g, step)));
    }
    tasks.into_par_iter().map(|(w, m, v, g, step)| adamw(w, m, v, g, &step)).reduce(|| true, |a, b| a & b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_model::ModelConfig;

    /// Matrices of several tasks among norms of a fraction of one.
    fn model() -> ModelConfig {
        let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 700, "hidden_size": 52, "intermediate_size": 4,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_act": "relu2",
            "tie_word_embeddings": true}"#;
        ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid")
    }

    fn gradient(step: usize, parameter: usize, i: usize) -> f32 {
        ((step * 7 + parameter * 13 + i) as f32 * 0.37).sin()
    }

    /// Weights after three steps of rising learning rates, on so many threads.
    fn trained(threads: usize) -> (Vec<Vec<f32>>, Vec<f64>) {
        let parameters = Parameters::initialize(&model(), 1, 0.1).expect("fits");
        let config = toml::from_str("learning_rate = 0.1\nclip_norm = 100").expect("the rest has defaults");
        let mut optimizer = AdamW::new(config, &parameters);
        let mut gradients = Gradients::of_parameters(&parameters);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let steps = 1..=3;
        let norms = steps.map(|step| {
            gradients.clear();
            for (parameter, (name, _)) in parameters.iter().enumerate() {
                let (slot, _) = gradients.slot(name);
                slot.iter_mut().enumerate().for_each(|(i, g)| *g = gradient(step, parameter, i));
            }
            gradients.finish();
            let rate = 0.01 * step as f64;
            pool.install(|| optimizer.step(&parameters, &gradients, 1, rate, 0.1)).expect("a step")
        });
        let norms = norms.collect();
        (parameters.iter().map(|(name, _)| parameters.values(name).expect("its own name")).collect(), norms)
    }

    #[test]
    fn steps_are_those_of_the_definition_on_any_number_of_threads() {
        let (found, norms) = trained(1);
        assert!((found.clone(), norms.clone()) == trained(5), "the same bits");
        let fresh = Parameters::initialize(&model(), 1, 0.1).expect("fits");
        let sizes: Vec<usize> = found.iter().map(Vec::len).collect();
        let mut factors = Vec::new();
        for (step, found) in (1..=3).zip(&norms) {
            let squares = sizes
                .iter()
                .enumerate()
                .flat_map(|(p, &n)| (0..n).map(move |i| f64::from(gradient(step, p, i)).powi(2)));
            let norm = squares.sum::<f64>().sqrt();
            assert!((found / norm - 1.0).abs() < 1e-12, "{found} and {norm}");
            factors.push(100.0 / norm);
        }
        assert!(factors.iter().all(|&factor| factor < 1.0), "clipped: {factors:?}");
        for (parameter, ((name, var), found)) in fresh.iter().zip(&found).enumerate() {
            let decay = if var.dims().len() > 1 { 0.1 } else { 0.0 };
            for (i, (start, found)) in fresh.values(name).expect("there").iter().zip(found).enumerate() {
                let (mut w, mut m, mut v) = (f64::from(*start), 0f64, 0f64);
                for step in 1..=3 {
                    let (rate, g) = (0.01 * step as f64, f64::from(gradient(step, parameter, i)) * factors[step - 1]);
                    m = 0.9 * m + 0.1 * g;
                    v = 0.95 * v + 0.05 * g * g;
                    let corrected = v / (1.0 - 0.95f64.powi(step as i32));
                    w -= rate * (decay * w + m / (1.0 - 0.9f64.powi(step as i32)) / (corrected.sqrt() + 1e-8));
                }
                assert!((w - f64::from(*found)).abs() < 1e-6, "{name}[{i}]: {found} and {w}");
            }
        }
    }

    #[test]
    fn a_step_without_gradients_changes_nothing() {
        let parameters = Parameters::initialize(&model(), 1, 0.1).expect("fits");
        let values = |parameters: &Parameters| -> Vec<Vec<f32>> {
            parameters.iter().map(|(name, _)| parameters.values(name).expect("its own name")).collect()
        };
        let before = values(&parameters);
        let config = toml::from_str("learning_rate = 0.1").expect("the rest has defaults");
        let mut optimizer = AdamW::new(config, &parameters);
        let error =
            optimizer.step(&parameters, &Gradients::of_parameters(&parameters), 1, 0.1, 0.1).expect_err("no gradients");
        assert!(error.to_string().starts_with("no gradient of `"), "{error}");
        assert_eq!((optimizer.steps, values(&parameters)), (0, before));
        assert!(optimizer.moments().all(|(_, m)| m.first.iter().chain(m.second).all(|&m| m == 0.0)));
    }
}
