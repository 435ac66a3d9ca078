//! The health of the quantizers: shares of codes, scales, and how many codes changed, by the last step and since the last
//! report.

use anyhow::Result;
use bitnet_model::ModelConfig;
use serde::Serialize;

use crate::nn::parameters::Parameters;
use crate::ops::{Codes, quantized};

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
    /// Share of codes that differ from those that the step just taken multiplied by.
    pub flipped_in_step: f64,
    /// The scale, or the mean of the rows' scales.
    pub scale: f64,
}

/// Reports every projection and makes the present codes the last ones. `used` are the codes that the step just taken
/// multiplied by, `last` those of the last report, which are part of a run's state, so that a resumed run reports what an
/// uninterrupted one would.
///
/// # Errors
/// If a parameter is missing.
pub fn report(
    config: &ModelConfig,
    parameters: &Parameters,
    used: &Codes,
    last: &mut Codes,
) -> Result<Vec<CodeReport>> {
    let earlier = &*last;
    let reported = quantized(config, parameters, |name, codes, scales| {
        let share = |count: usize| count as f64 / codes.len() as f64;
        let of = |f: fn(i8) -> bool| share(codes.iter().filter(|&&c| f(c)).count());
        let differs = |old: &Vec<i8>| old.iter().zip(&codes).filter(|(a, b)| a != b).count();
        let since = |old: &Codes| share(old.get(&name).map_or(0, differs));
        let report = CodeReport {
            name: name.trim_start_matches("model.").trim_end_matches(".weight").to_owned(),
            minus: of(|c| c < 0),
            zero: of(|c| c == 0),
            plus: of(|c| c > 0),
            flipped: since(earlier),
            flipped_in_step: since(used),
            scale: scales.iter().map(|&s| f64::from(s)).sum::<f64>() / scales.len() as f64,
        };
        (report, (name, codes))
    })?;
    let (reports, codes): (_, Codes) = reported.into_iter().unzip();
    *last = codes;
    Ok(reports)
}
