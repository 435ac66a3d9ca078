//! Learning rate and weight decay as pure functions of the step.

use bitnet_model::error::readable;
use serde::{Deserialize, Serialize};

use super::AdamWConfig;

/// `[schedule]`: what follows a linear warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// BitNet b1.58: two full-length linear decays, the second with a lower peak, switched at a fraction of the steps
    /// ("Training Tips, Code and FAQ", Figure 1c).
    TwoStage {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// Fraction of the steps after warm-up at which the second line takes over.
        #[serde(default = "half")]
        switch: f64,
        /// Peak of the second line over that of the first.
        #[serde(default = "two_thirds")]
        second_peak: f64,
    },
    /// Half a cosine from the peak to `min_ratio` of it.
    Cosine {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// Final learning rate over the peak.
        #[serde(default = "tenth")]
        min_ratio: f64,
    },
    /// A straight line from the peak to `min_ratio` of it.
    Linear {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// Final learning rate over the peak.
        #[serde(default)]
        min_ratio: f64,
    },
    /// The peak, then a straight line to `min_ratio` of it over the last `decay_fraction` of the steps.
    ConstantThenDecay {
        /// Steps of linear warm-up.
        warmup_steps: u64,
        /// Fraction of all steps that the decay takes.
        #[serde(default = "fifth")]
        decay_fraction: f64,
        /// Final learning rate over the peak.
        #[serde(default)]
        min_ratio: f64,
    },
}

fn half() -> f64 {
    0.5
}
fn two_thirds() -> f64 {
    2.0 / 3.0
}
fn tenth() -> f64 {
    0.1
}
fn fifth() -> f64 {
    0.2
}

impl ScheduleConfig {
    /// Checks the numbers against the length of the run.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn check(&self, steps: u64) -> Result<(), (&'static str, String)> {
        let (warmup, fractions): (u64, &[(&'static str, f64)]) = match self {
            Self::TwoStage { warmup_steps, switch, second_peak } => {
                (*warmup_steps, &[("schedule.switch", *switch), ("schedule.second_peak", *second_peak)])
            }
            Self::Cosine { warmup_steps, min_ratio } | Self::Linear { warmup_steps, min_ratio } => {
                (*warmup_steps, &[("schedule.min_ratio", *min_ratio)])
            }
            Self::ConstantThenDecay { warmup_steps, decay_fraction, min_ratio } => {
                (*warmup_steps, &[("schedule.decay_fraction", *decay_fraction), ("schedule.min_ratio", *min_ratio)])
            }
        };
        if warmup >= steps {
            return Err(("schedule.warmup_steps", format!("is {warmup}, expected fewer than train.steps = {steps}")));
        }
        match fractions.iter().find(|(_, f)| !(0.0..=1.0).contains(f)) {
            Some((key, value)) => Err((key, format!("is {}, expected 0 to 1", readable(*value)))),
            None => Ok(()),
        }
    }
}

/// Learning rate and weight decay of a run.
pub struct Schedule {
    config: ScheduleConfig,
    peak: f64,
    weight_decay: f64,
    weight_decay_until: f64,
    steps: u64,
}

impl Schedule {
    /// The schedule of a run of `steps` steps.
    pub fn new(config: &ScheduleConfig, optimizer: &AdamWConfig, steps: u64) -> Self {
        Self {
            config: config.clone(),
            peak: optimizer.learning_rate,
            weight_decay: optimizer.weight_decay,
            weight_decay_until: optimizer.weight_decay_until,
            steps,
        }
    }

    /// The learning rate of step `step`, counted from 0.
    pub fn learning_rate(&self, step: u64) -> f64 {
        use ScheduleConfig::{ConstantThenDecay, Cosine, Linear, TwoStage};
        let (TwoStage { warmup_steps: warmup, .. }
        | Cosine { warmup_steps: warmup, .. }
        | Linear { warmup_steps: warmup, .. }
        | ConstantThenDecay { warmup_steps: warmup, .. }) = self.config;
        if step < warmup {
            return self.peak * (step + 1) as f64 / warmup as f64;
        }
        // From 0 at the end of warm-up to 1 at the end of the run.
        let z = (step - warmup) as f64 / (self.steps - warmup).max(1) as f64;
        self.peak
            * match self.config {
                TwoStage { switch, second_peak, .. } => (1.0 - z) * if z < switch { 1.0 } else { second_peak },
                Cosine { min_ratio, .. } => {
                    min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + (std::f64::consts::PI * z).cos())
                }
                Linear { min_ratio, .. } => min_ratio + (1.0 - min_ratio) * (1.0 - z),
                ConstantThenDecay { decay_fraction, min_ratio, .. } => {
                    let left = (self.steps - step) as f64 / (decay_fraction * self.steps as f64).max(1.0);
                    min_ratio + (1.0 - min_ratio) * left.min(1.0)
                }
            }
    }

    /// The weight decay of step `step`, counted from 0.
    pub fn weight_decay(&self, step: u64) -> f64 {
        if (step as f64) < self.weight_decay_until * self.steps as f64 { self.weight_decay } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(config: ScheduleConfig) -> Schedule {
        let optimizer = AdamWConfig {
            learning_rate: 3.0,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            weight_decay_until: 0.5,
            clip_norm: 1.0,
        };
        Schedule::new(&config, &optimizer, 110)
    }

    #[test]
    fn two_stage_is_two_full_length_lines() {
        let s = schedule(ScheduleConfig::TwoStage { warmup_steps: 10, switch: 0.5, second_peak: 2.0 / 3.0 });
        let check = |step, expected: f64| {
            assert!((s.learning_rate(step) - expected).abs() < 1e-12, "{step}: {}", s.learning_rate(step));
        };
        check(0, 0.3);
        check(9, 3.0);
        check(10, 3.0);
        check(59, 3.0 * 0.51);
        check(60, 2.0 * 0.5);
        check(109, 2.0 * 0.01);
        assert_eq!([s.weight_decay(54), s.weight_decay(55)], [0.1, 0.0]);
    }

    #[test]
    fn the_others_start_at_the_peak_and_end_where_they_should() {
        let ends = |config| {
            let s = schedule(config);
            [s.learning_rate(10), s.learning_rate(60), s.learning_rate(109)]
        };
        let close =
            |a: [f64; 3], b: [f64; 3]| assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-3), "{a:?} {b:?}");
        close(ends(ScheduleConfig::Cosine { warmup_steps: 10, min_ratio: 0.1 }), [3.0, 1.65, 0.3007]);
        close(ends(ScheduleConfig::Linear { warmup_steps: 10, min_ratio: 0.0 }), [3.0, 1.5, 0.03]);
        let wsd = ScheduleConfig::ConstantThenDecay { warmup_steps: 10, decay_fraction: 0.2, min_ratio: 0.0 };
        close(ends(wsd), [3.0, 3.0, 3.0 / 22.0]);
    }

    #[test]
    fn impossible_numbers_are_refused() {
        let config = ScheduleConfig::Linear { warmup_steps: 100, min_ratio: 0.0 };
        assert_eq!(config.check(100).expect_err("too long").0, "schedule.warmup_steps");
        let config = ScheduleConfig::Linear { warmup_steps: 1, min_ratio: 2.0 };
        assert_eq!(config.check(100).expect_err("above one").1, "is 2, expected 0 to 1");
    }
}
