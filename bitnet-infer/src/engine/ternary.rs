//! How a model is arranged in memory, and the choice between two and 1.6 bits for ternary codes.
//!
//! Decoding reads every weight once a token. From a cache two-bit codes are faster, as they take fewer instructions; from
//! memory it depends on how fast the memory is beside the cores. So where a model exceeds the caches, loading it measures
//! both, on the threads that will compute. The sums are the same integers either way: the choice changes no output.

use std::fmt;
use std::time::{Duration, Instant};

use bitnet_model::ModelConfig;
use bitnet_model::packed::Layout;

use super::error::{Error, Result};
use crate::kernels::{Kernel, Ternary};
use crate::linear::{Activations, Linear};

/// How to arrange a model.
#[derive(Clone, Copy, Debug)]
pub struct Arrangement {
    /// What computes.
    pub kernel: &'static Kernel,
    /// How ternary codes are held; `None`: as `BITNET_TERNARY` says, else whichever decodes faster.
    pub ternary: Option<Ternary>,
}

impl From<&'static Kernel> for Arrangement {
    fn from(kernel: &'static Kernel) -> Self {
        Self { kernel, ternary: None }
    }
}

/// How ternary codes are held, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TernaryChoice {
    /// What was chosen.
    pub ternary: Ternary,
    /// Weights a second of a lone token at two bits and in base three; `None` if there was nothing to measure.
    pub rates: Option<[f64; 2]>,
}

impl fmt::Display for TernaryChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ternary.name())?;
        let Some([two_bit, base3]) = self.rates.map(|rates| rates.map(|rate| rate / 1e9)) else { return Ok(()) };
        write!(f, " (measured: 2bit {two_bit:.1}, base3 {base3:.1} G weights/s from memory)")
    }
}

impl Arrangement {
    /// Decides for a model of `config`, on the current pool.
    ///
    /// # Errors
    /// If base three was asked for by name and the kernel has none, or `BITNET_TERNARY` is no name.
    pub(super) fn choose(self, config: &ModelConfig) -> Result<TernaryChoice> {
        let named = match (self.ternary, std::env::var(TERNARY_VARIABLE)) {
            (Some(ternary), _) => Some(ternary),
            (None, Ok(name)) => {
                Some(Ternary::by_name(&name).map_err(|reason| Error::Input(format!("{TERNARY_VARIABLE}: {reason}")))?)
            }
            (None, Err(_)) => None,
        };
        match named {
            Some(Ternary::Base3) if !self.kernel.has_base3() => Err(Error::Input(format!(
                "kernel `{}` cannot hold ternary codes as base3, expected 2bit or another kernel",
                self.kernel.name
            ))),
            Some(ternary) => Ok(TernaryChoice { ternary, rates: None }),
            None => Ok(self.fastest(config)),
        }
    }

    fn fastest(self, config: &ModelConfig) -> TernaryChoice {
        self.fastest_by(config, last_level_cache_bytes(), rates)
    }

    /// The choice on a machine whose largest cache has `cache` bytes, with `measure(kernel, bytes, cols)` for [`rates`].
    fn fastest_by(
        self,
        config: &ModelConfig,
        cache: usize,
        measure: impl FnOnce(&'static Kernel, usize, usize) -> [f64; 2],
    ) -> TernaryChoice {
        let is_ternary = config.quantization.weight.is_some_and(|scheme| scheme.layout() == Layout::TwoBit);
        let bytes = usize::try_from(config.projection_parameters() / 4).unwrap_or(usize::MAX);
        // With unquantized inputs a product waits for arithmetic, not for weights.
        let to_measure = is_ternary && config.quantization.activation.is_some() && self.kernel.has_base3();
        if !to_measure || bytes <= cache {
            return TernaryChoice { ternary: Ternary::TwoBit, rates: None };
        }
        let rates = measure(self.kernel, bytes.min(4 * cache), config.hidden_size);
        let ternary = if rates[1] > rates[0] { Ternary::Base3 } else { Ternary::TwoBit };
        TernaryChoice { ternary, rates: Some(rates) }
    }
}

/// Weights a second of one token times a matrix of `cols` columns, at two bits and in base three.
///
/// As many matrices as `bytes` hold at two bits are read in turn, so that each has left the caches when its turn comes. One
/// takes well under a time slice: the fastest is one that no other program interrupted.
fn rates(kernel: &'static Kernel, bytes: usize, cols: usize) -> [f64; 2] {
    let rows = MATRIX_WEIGHTS.div_ceil(cols);
    let x = Activations::from_codes(&vec![1; cols], vec![1.0], cols);
    let pair = |_| [Ternary::TwoBit, Ternary::Base3].map(|ternary| Linear::of_zeros(rows, cols, kernel, ternary));
    let pairs: Vec<[Linear; 2]> = (0..bytes.div_ceil(MATRIX_WEIGHTS / 4)).map(pair).collect();
    let mut out = vec![0i32; rows];
    let mut seconds = [f64::MAX; 2];
    let begun = Instant::now();
    for pair in (0..PASSES).flat_map(|_| &pairs) {
        for (linear, seconds) in pair.iter().zip(&mut seconds) {
            let started = Instant::now();
            linear.integer_sums(&x, &mut out);
            *seconds = seconds.min(started.elapsed().as_secs_f64());
        }
        if begun.elapsed() > LONGEST {
            break;
        }
    }
    seconds.map(|seconds| (rows * cols) as f64 / seconds)
}

/// The largest cache that the system tells of.
fn last_level_cache_bytes() -> usize {
    let size = |index| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size")).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok()
    };
    (0..8).filter_map(size).max().map_or(USUAL_CACHE_BYTES, |kib| kib << 10)
}

/// Where the system does not tell.
const USUAL_CACHE_BYTES: usize = 32 << 20;

/// Weights of a measured matrix: about those of a projection of a model of two billion, 4 MiB at two bits.
const MATRIX_WEIGHTS: usize = 1 << 24;

/// After this the best so far counts: where readings are that slow, memory does not set the pace.
const LONGEST: Duration = Duration::from_millis(300);

/// Readings of each matrix; with the first the pages and clocks settle.
const PASSES: usize = 5;

/// Overrides the measurement.
pub const TERNARY_VARIABLE: &str = "BITNET_TERNARY";

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_model::config::Quantization;

    use crate::engine::RandomModel;
    use crate::kernels;

    #[test]
    fn small_models_stay_at_two_bits_and_names_are_obeyed() {
        let config = RandomModel::named("tiny").expect("a shape").config;
        for kernel in kernels::supported() {
            let two_bit = TernaryChoice { ternary: Ternary::TwoBit, rates: None };
            assert_eq!(Arrangement::from(kernel).fastest(&config), two_bit, "fits the caches");
            let base3 = Arrangement { kernel, ternary: Some(Ternary::Base3) }.choose(&config);
            match base3 {
                Ok(choice) => assert!(kernel.has_base3() && choice.ternary == Ternary::Base3),
                Err(error) => assert!(!kernel.has_base3() && error.to_string().contains("expected 2bit"), "{error}"),
            }
        }
    }

    /// The choice for a model under made-up rates, and what was to be measured.
    fn decided(
        config: &ModelConfig,
        kernel: &'static Kernel,
        cache: usize,
        rates: [f64; 2],
    ) -> (Ternary, Option<[usize; 2]>) {
        let mut asked = None;
        let choice = Arrangement::from(kernel).fastest_by(config, cache, |measured, bytes, cols| {
            assert!(std::ptr::eq(measured, kernel));
            asked = Some([bytes, cols]);
            rates
        });
        assert_eq!(choice.rates, asked.map(|_| rates));
        let text = choice.to_string();
        let told = asked.map_or(String::new(), |_| {
            format!(" (measured: 2bit {:.1}, base3 {:.1} G weights/s from memory)", rates[0] / 1e9, rates[1] / 1e9)
        });
        assert_eq!(text, format!("{}{told}", choice.ternary.name()));
        (choice.ternary, asked)
    }

    #[test]
    fn large_models_take_what_was_measured_faster() {
        let mut config = RandomModel::named("2b-4t").expect("a shape").config;
        // Two bits for each weight of the projections of 30 blocks: 2560 x 2560 twice, 640 x 2560 twice, 6912 x 2560 three times.
        let bytes = 30 * (2 * 2560 * 2560 + 2 * 640 * 2560 + 3 * 6912 * 2560) / 4;
        for kernel in kernels::supported() {
            if !kernel.has_base3() {
                assert_eq!(decided(&config, kernel, 1 << 20, [1e9, 2e9]), (Ternary::TwoBit, None));
                continue;
            }
            for (rates, expected) in
                [([1e9, 2e9], Ternary::Base3), ([2e9, 1e9], Ternary::TwoBit), ([1e9, 1e9], Ternary::TwoBit)]
            {
                // Four caches are enough for each matrix to have left them when its turn comes.
                assert_eq!(decided(&config, kernel, 1 << 20, rates), (expected, Some([4 << 20, 2560])));
                assert_eq!(decided(&config, kernel, bytes - 1, rates), (expected, Some([bytes, 2560])));
                assert_eq!(decided(&config, kernel, bytes, rates), (Ternary::TwoBit, None), "fits the cache");
            }
            config.quantization = Quantization::by_name("ternary", "none").expect("known");
            assert_eq!(decided(&config, kernel, 1 << 20, [1e9, 2e9]), (Ternary::TwoBit, None), "float inputs");
            config.quantization = Quantization::by_name("binary", "int8").expect("known");
            assert_eq!(decided(&config, kernel, 1 << 20, [1e9, 2e9]), (Ternary::TwoBit, None), "not ternary");
            config.quantization = Quantization::by_name("ternary", "int8").expect("known");
        }
    }

    /// No machine reads a billion matrices a second, and none takes a millisecond for a weight.
    #[test]
    fn rates_are_weights_a_second() {
        let Some(kernel) = kernels::supported().filter(|kernel| kernel.has_base3() && kernel.name != "scalar").last()
        else {
            println!("skipped: no fast kernel here has base3");
            return;
        };
        let rates = rates(kernel, 1, 256);
        assert!(rates.iter().all(|rate| (1e6..1e14).contains(rate)), "{rates:?}");
    }
}
