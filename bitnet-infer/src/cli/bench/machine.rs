//! What this machine can do, measured in the same run as the model: every speed is told as a share of it.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;

use bitnet_infer::engine::Model;
use bitnet_infer::kernels::Kernel;
use bitnet_infer::linear::{Activations, Linear};
use bitnet_model::packed::PackedMatrix;
use bitnet_model::weights::{FloatMatrix, FloatType, LinearWeights};

/// The limits that decode and prefill run against.
#[derive(Serialize)]
pub struct Machine {
    /// The CPU's own name, where the system tells it.
    pub cpu: String,
    /// Threads of every measurement.
    pub threads: usize,
    /// The kernel of the model's projections.
    pub kernel: &'static str,
    /// Bytes that all threads together read from memory in a second, in units of 10^9.
    pub read_gb_per_s: f64,
    /// Multiply-adds of all threads together, on weights of the model's scheme that lie in cache, in units of 10^9.
    pub kernel_gmac_per_s: f64,
}

impl Machine {
    /// Measures for about a second.
    ///
    /// # Errors
    /// If the model's weight scheme refuses the codes that are made for it.
    pub fn measure(model: &Model) -> Result<Self> {
        Ok(Self {
            cpu: cpu_name(),
            threads: rayon::current_num_threads(),
            kernel: model.kernel().name,
            read_gb_per_s: read_rate(),
            kernel_gmac_per_s: kernel_rate(model, model.kernel())?,
        })
    }
}

/// Sums of a buffer beyond every cache, each thread its own part; the best of several.
fn read_rate() -> f64 {
    let threads = rayon::current_num_threads();
    let words = READ_BYTES / 8 / threads;
    // Each thread touches its part first, so that the system places it near.
    let parts: Vec<Vec<u64>> =
        (0..threads).into_par_iter().with_max_len(1).map(|i| vec![i as u64 + 1; words]).collect();
    let seconds = best_of(READ_REPEATS, || {
        let sum: u64 = parts.par_iter().with_max_len(1).map(|part| sum_of(part)).reduce(|| 0, u64::wrapping_add);
        black_box(sum);
    });
    (threads * words * 8) as f64 / seconds / 1e9
}

fn sum_of(part: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for words in part.as_chunks::<32>().0 {
        sums.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

/// The products of a matrix that stays in the caches with a batch, as prefill has them.
fn kernel_rate(model: &Model, kernel: &'static Kernel) -> Result<f64> {
    let config = model.config();
    let (rows, cols) = (RATE_ROWS * rayon::current_num_threads(), config.hidden_size);
    let weights = match config.quantization.weight {
        Some(scheme) => {
            let values: Vec<f32> = (0..rows * cols).map(|i| (i * 7919 % 1013) as f32 - 506.0).collect();
            let mut codes = vec![0; rows * cols];
            let scales = scheme.quantize(&values, rows, &mut codes);
            let packed = PackedMatrix::pack(scheme.layout(), rows, cols, &codes, scales);
            LinearWeights::Packed(packed.map_err(anyhow::Error::msg)?)
        }
        None => LinearWeights::Float(FloatMatrix::new(rows, cols, &vec![0.5; rows * cols], FloatType::F16)),
    };
    let linear = Linear::new(&weights, kernel);
    let x: Vec<f32> = (0..RATE_TOKENS * cols).map(|i| (i * 31 % 255) as f32 - 127.0).collect();
    let x = Activations::new(&x, cols, config.quantization.activation);
    let mut out = vec![0f32; RATE_TOKENS * rows];
    let seconds = best_of(RATE_REPEATS, || rayon::scope(|_| linear.forward(&x, &mut out)));
    black_box(out[0]);
    Ok((rows * cols * RATE_TOKENS) as f64 / seconds / 1e9)
}

fn best_of(repeats: usize, mut run: impl FnMut()) -> f64 {
    let mut time = || {
        let started = Instant::now();
        run();
        started.elapsed().as_secs_f64()
    };
    (0..repeats).map(|_| time()).fold(f64::MAX, f64::min)
}

fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| format!("unknown {} CPU", std::env::consts::ARCH), |(_, name)| name.trim().to_owned())
}

const READ_BYTES: usize = 512 << 20;
const READ_REPEATS: usize = 8;

/// Rows for each thread: with 2560 columns, 0.6 MB of ternary codes.
const RATE_ROWS: usize = 1024;
const RATE_TOKENS: usize = 128;
const RATE_REPEATS: usize = 20;
