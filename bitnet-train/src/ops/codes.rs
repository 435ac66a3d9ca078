//! The codes of a model's projections, by parameter name.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use bitnet_model::{ModelConfig, quant};
use rayon::prelude::*;

use super::values;
use crate::nn::parameters::Parameters;

/// Row-major codes of every quantized projection; empty for a model without weight quantization.
pub type Codes = BTreeMap<String, Vec<i8>>;

/// Calls `each` with name, codes and scales of every quantized projection of `parameters` as they are now, on all threads,
/// and gives what it returns, in the order of layers.
///
/// # Errors
/// If a parameter is missing or not finite.
pub fn quantized<T: Send>(
    config: &ModelConfig,
    parameters: &Parameters,
    each: impl Fn(String, Vec<i8>, Vec<f32>) -> T + Sync,
) -> Result<Vec<T>> {
    let Some(scheme) = config.quantization.weight else { return Ok(Vec::new()) };
    let names = (0..config.num_hidden_layers).flat_map(|layer| {
        config.projections().map(|(name, rows, _)| (format!("model.layers.{layer}.{name}.weight"), rows))
    });
    names
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|(name, rows)| {
            let latent = parameters.tensor(&name)?;
            let latent = values(&latent).with_context(|| name.clone())?;
            let mut codes = vec![0i8; latent.len()];
            let scales = quant::quantize(scheme, &latent, rows, &mut codes);
            let scales = scales.map_err(|reason| anyhow!("parameter `{name}` {reason}"))?;
            Ok(each(name, codes, scales))
        })
        .collect()
}

/// The codes of `parameters` as they are now.
///
/// # Errors
/// If a parameter is missing.
pub fn codes(config: &ModelConfig, parameters: &Parameters) -> Result<Codes> {
    Ok(quantized(config, parameters, |name, codes, _| (name, codes))?.into_iter().collect())
}
