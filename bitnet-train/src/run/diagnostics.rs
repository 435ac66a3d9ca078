//! The health of the quantizers: shares of codes, scales, and how many codes changed since the last report.

use std::collections::BTreeMap;

use anyhow::Result;
use bitnet_model::ModelConfig;
use rayon::prelude::*;
use serde::Serialize;

use crate::nn::parameters::Parameters;

/// What one projection's codes look like.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CodeReport {
    /// `layers.N.self_attn.q_proj` and the like.
    pub name: String,
    /// Share of negative codes.
    pub minus: f64,
    /// Share of zeros.
    pub zero: f64,
    /// Share of positive codes.
    pub plus: f64,
    /// Share of codes that differ from those of the last report.
    pub flipped: f64,
    /// The scale, or the mean of the rows' scales.
    pub scale: f64,
}

/// The codes of the last report, by parameter name: part of a run's state, so that a resumed run reports what an
/// uninterrupted one would.
pub type LastCodes = BTreeMap<String, Vec<i8>>;

/// The codes of every quantized projection as they are now; empty for a model without weight quantization.
///
/// # Errors
/// If a parameter is missing.
pub fn codes(config: &ModelConfig, parameters: &Parameters) -> Result<LastCodes> {
    Ok(quantized(config, parameters)?.into_iter().map(|(name, codes, _)| (name, codes)).collect())
}

/// Reports every projection and makes the present codes the last ones.
///
/// # Errors
/// If a parameter is missing.
pub fn report(config: &ModelConfig, parameters: &Parameters, last: &mut LastCodes) -> Result<Vec<CodeReport>> {
    let mut reports = Vec::new();
    for (name, codes, scales) in quantized(config, parameters)? {
        let count = codes.len() as f64;
        let share = |f: fn(i8) -> bool| codes.iter().filter(|&&c| f(c)).count() as f64 / count;
        let flipped = last.get(&name).map_or(0, |old| old.iter().zip(&codes).filter(|(a, b)| a != b).count());
        reports.push(CodeReport {
            name: name.trim_start_matches("model.").trim_end_matches(".weight").to_owned(),
            minus: share(|c| c < 0),
            zero: share(|c| c == 0),
            plus: share(|c| c > 0),
            flipped: flipped as f64 / count,
            scale: scales.iter().map(|&s| f64::from(s)).sum::<f64>() / scales.len() as f64,
        });
        last.insert(name, codes);
    }
    Ok(reports)
}

type Quantized = (String, Vec<i8>, Vec<f32>);

fn quantized(config: &ModelConfig, parameters: &Parameters) -> Result<Vec<Quantized>> {
    let Some(scheme) = config.quantization.weight else { return Ok(Vec::new()) };
    let names = (0..config.num_hidden_layers).flat_map(|layer| {
        config.projections().map(|(name, rows, _)| (format!("model.layers.{layer}.{name}.weight"), rows))
    });
    names
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|(name, rows)| {
            let latent = parameters.values(&name)?;
            let mut codes = vec![0i8; latent.len()];
            let scales = scheme.quantize(&latent, rows, &mut codes);
            Ok((name, codes, scales))
        })
        .collect()
}
