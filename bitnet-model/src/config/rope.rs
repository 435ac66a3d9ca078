//! Frequencies of rotary positions, stretched for texts longer than those a model was first trained on.

use std::f32::consts::TAU;

/// How the frequencies of a model differ from `theta^(-2j / head_dim)`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// All frequencies are divided by one factor (position interpolation, arXiv:2306.15595).
    Linear {
        /// The factor.
        factor: f32,
    },
    /// Low frequencies are divided by a factor, high ones kept, those between blended (LLaMA 3.1; `llama3` of transformers).
    Llama3 {
        /// Divides low frequencies.
        factor: f32,
        /// A wavelength above `original_max_position_embeddings / low_freq_factor` is a low frequency.
        low_freq_factor: f32,
        /// A wavelength below `original_max_position_embeddings / high_freq_factor` is a high frequency.
        high_freq_factor: f32,
        /// The context of the first training.
        original_max_position_embeddings: usize,
    },
    /// What each frequency is divided by, one for each pair (GGUF's tensor `rope_freqs.weight`).
    Divisors(Vec<f32>),
}

impl RopeScaling {
    /// The scaled frequency of pair `pair`, whose plain one is `frequency`, rounded as PyTorch does (f32 throughout).
    ///
    /// # Panics
    /// If there are divisors, but none for `pair`.
    pub fn scale(&self, pair: usize, frequency: f32) -> f32 {
        match self {
            Self::Linear { factor } => frequency / factor,
            Self::Divisors(divisors) => frequency / divisors[pair],
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let context = *original_max_position_embeddings as f32;
                let wavelength = TAU / frequency;
                if wavelength < context / high_freq_factor {
                    return frequency;
                }
                let low = frequency / factor;
                if wavelength > context / low_freq_factor {
                    return low;
                }
                let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * low + smooth * frequency
            }
        }
    }

    /// Checks the numbers; the error is a sentence.
    pub(super) fn validate(&self, head_dim: usize) -> Result<(), String> {
        let positive = |name: &str, value: f32| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(format!("has {name} {value}, expected a positive number"))
            }
        };
        match self {
            Self::Linear { factor } => positive("factor", *factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(format!("has high_freq_factor {high_freq_factor}, expected more than low_freq_factor"));
                }
                positive("original_max_position_embeddings", *original_max_position_embeddings as f32)
            }
            Self::Divisors(divisors) if divisors.len() != head_dim / 2 => {
                Err(format!("has {} divisors, expected {} (half of head_dim)", divisors.len(), head_dim / 2))
            }
            Self::Divisors(divisors) => divisors.iter().try_for_each(|&divisor| positive("a divisor", divisor)),
        }
    }

    /// `Llama3` with the parameters of a published LLaMA 3 that give exactly these divisors, if there is one.
    pub fn recognize(&self, theta: f32) -> Option<Self> {
        let Self::Divisors(divisors) = self else { return Some(self.clone()) };
        let published = [(8.0, 1.0, 4.0), (32.0, 1.0, 4.0)].map(|(factor, low_freq_factor, high_freq_factor)| {
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings: 8192 }
        });
        let head_dim = 2 * divisors.len();
        let same = |scaling: &Self| {
            divisors.iter().enumerate().all(|(pair, &divisor)| {
                let frequency = super::rope_frequency(pair, head_dim, theta);
                let scaled = scaling.scale(pair, frequency);
                (frequency / scaled - divisor).abs() <= 1e-5 * divisor
            })
        };
        published.into_iter().find(same)
    }
}
