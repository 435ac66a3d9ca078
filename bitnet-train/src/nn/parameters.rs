//! The trainable numbers, by name, in name order.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use bitnet_model::rng::{Stream, generator};
use bitnet_model::{ModelConfig, finite};
use candle_core::{Device, Tensor, Var};
use rand::Rng;

use crate::ops::values;

/// The latent weights of a model under their Hugging Face names.
///
/// Invariant: exactly the parameters of the configuration, each f32, contiguous and of the right shape. They begin finite;
/// whoever changes them sees to it that they stay so.
pub struct Parameters {
    vars: BTreeMap<String, Var>,
    id: u64,
}

/// The name and shape of every parameter of a model, in name order.
pub fn shapes(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, config.hidden_size]),
        ("model.norm.weight".to_owned(), vec![config.hidden_size]),
    ]);
    if !config.tie_word_embeddings {
        shapes.insert("lm_head.weight".to_owned(), vec![config.vocab_size, config.hidden_size]);
    }
    for layer in 0..config.num_hidden_layers {
        for (name, rows, cols) in config.projections() {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), vec![rows, cols]);
        }
        for (name, len) in config.norms() {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), vec![len]);
        }
    }
    shapes
}

/// Whether weight decay applies: to matrices, the embedding among them, and not to norms.
pub fn decays(shape: &[usize]) -> bool {
    shape.len() > 1
}

impl Parameters {
    /// Fresh parameters: matrices from a normal distribution of standard deviation `std`, norms 1. The numbers are drawn in
    /// name order from the seed's [`Stream::Init`].
    ///
    /// # Errors
    /// If candle cannot make a tensor.
    pub fn initialize(config: &ModelConfig, seed: u64, std: f64) -> Result<Self> {
        let mut rng = generator(seed, Stream::Init);
        Self::from_values(config, |_, shape| {
            let count = shape.iter().product();
            Ok(if shape.len() == 1 { vec![1.0; count] } else { normal(&mut rng, count, std) })
        })
    }

    /// Parameters whose numbers come from `values(name, shape)`.
    ///
    /// # Errors
    /// Those of `values`, or if the count does not fit the shape, or a number is NaN or infinite.
    pub fn from_values(
        config: &ModelConfig,
        mut values: impl FnMut(&str, &[usize]) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let mut vars = BTreeMap::new();
        for (name, shape) in shapes(config) {
            let values = values(&name, &shape)?;
            ensure!(values.len() == shape.iter().product::<usize>(), "{name}: {} values for {shape:?}", values.len());
            finite::check(&values).map_err(|reason| anyhow!("parameter `{name}` {reason}"))?;
            vars.insert(name, Var::from_vec(values, shape, &Device::Cpu)?);
        }
        Ok(Self { vars, id: NEXT_ID.fetch_add(1, Ordering::Relaxed) })
    }

    /// A number that no other parameters of this process have.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Every parameter, in name order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// The parameter of this name as a tensor of the graph.
    ///
    /// # Errors
    /// If there is none.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.vars.get(name).with_context(|| format!("no parameter `{name}`"))?.as_tensor().clone())
    }

    /// Fails if a number is NaN or infinite.
    ///
    /// # Errors
    /// The name of the first such parameter, and where.
    pub fn check_finite(&self) -> Result<()> {
        for (name, var) in self.iter() {
            finite::check(&values(var)?).map_err(|reason| anyhow!("parameter `{name}` {reason}"))?;
        }
        Ok(())
    }

    /// The numbers of a parameter, row-major.
    ///
    /// # Errors
    /// If there is none.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.tensor(name)?.flatten_all()?.to_vec1()?)
    }
}

/// Normal numbers by the Box-Muller transform, in f64.
fn normal(rng: &mut impl Rng, count: usize, std: f64) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // 1 - u is in (0, 1], so the logarithm is finite.
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        let radius = std * (-2.0 * u.ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * v).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(count);
    values
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);
