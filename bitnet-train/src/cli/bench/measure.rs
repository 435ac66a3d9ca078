//! The measurement: training steps on random tokens, timed part by part.

use std::time::Instant;

use anyhow::{Result, ensure};
use bitnet_infer::tell;
use bitnet_model::ModelConfig;
use bitnet_model::rng::{Stream, generator};
use bitnet_train::config::Run;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::{Sequences, Transformer};
use bitnet_train::ops::kernels::product::{BF16, F32, best, peak};
use bitnet_train::ops::{OPS, Spent};
use bitnet_train::optim::{AdamW, Gradients, Schedule};
use rand::Rng;
use serde::Serialize;

/// What was measured.
#[derive(Serialize)]
pub struct Measured {
    /// The config's name.
    pub name: String,
    /// The CPU's own name, where the system tells it.
    pub cpu: String,
    pub threads: usize,
    pub ops: String,
    pub precision: String,
    pub weights: String,
    pub parameters: u64,
    /// What another program needs to train the same model.
    pub model: Shape,
    pub tokens_per_step: u64,
    pub steps: usize,
    /// Of the median step.
    pub tokens_per_second: f64,
    /// Medians, in milliseconds.
    pub step_ms: f64,
    pub data_ms: f64,
    pub forward_ms: f64,
    pub backward_ms: f64,
    pub optimizer_ms: f64,
    /// Multiplications and additions of a step's matrix products, in units of 10^9 (a block computed twice counts once).
    pub gflop_per_step: f64,
    /// The tiles of the peaks, f32 and bf16.
    pub tiles: [&'static str; 2],
    /// What all threads together reach with multiply-adds on registers, in 10^9 operations a second.
    pub peak_f32_gflops: f64,
    pub peak_bf16_gflops: f64,
    /// Share of those peaks that the whole step reaches.
    pub utilisation_f32: f64,
    pub utilisation_bf16: f64,
    /// Largest resident memory of the process, where the system tells it.
    pub peak_memory_mb: Option<f64>,
    /// What was expected of it.
    pub estimated_memory_mb: Option<f64>,
    pub profile: Vec<OpMeasured>,
    pub loss: f64,
}

/// A model and a batch in numbers.
#[derive(Serialize)]
pub struct Shape {
    pub vocabulary: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub batch_size: usize,
    pub sequence_length: usize,
}

/// One kind of work in the median step.
#[derive(Serialize)]
pub struct OpMeasured {
    pub op: &'static str,
    pub backward: bool,
    pub ms: f64,
    /// Of the step.
    pub share: f64,
    /// 10^9 operations of matrix products a second; 0 for what is none.
    pub gflops: f64,
}

/// Tokens that batches are drawn from.
const TOKENS: usize = 1 << 20;

/// Steps before the clock starts: buffers grow, pages are touched.
const WARM_UP: usize = 2;

/// Trains `steps` steps of `run` on random tokens of `vocabulary` and measures each.
///
/// # Errors
/// If the model cannot be made or a step fails.
pub fn measure(run: &Run, vocabulary: usize, steps: usize) -> Result<Measured> {
    let config = run.model_config(vocabulary, None)?;
    if let Some(bytes) = run.memory_of_steps(&config) {
        tell!("about {:.0} MB of memory", bytes as f64 / 1e6);
    }
    let train = &run.config.train;
    ensure!(
        train.sequence_length < TOKENS,
        "`train.sequence_length` is {}, and bench draws from {TOKENS} tokens",
        train.sequence_length
    );
    let parameters = Parameters::initialize(&config, run.config.run.seed, run.config.model.init_std)?;
    let model = Transformer::new(&config, &parameters, train.sequence_length, run.estimator, run.ops.clone())?;
    let mut optimizer = AdamW::new(run.config.optimizer.clone(), &parameters);
    let schedule = Schedule::new(&run.config.schedule, &run.config.optimizer, train.steps);
    let mut gradients = Gradients::of_parameters(&parameters);
    let mut rng = generator(run.config.run.seed, Stream::Bench);
    let tokens: Vec<u32> = (0..TOKENS).map(|_| rng.random_range(0..vocabulary as u32)).collect();

    let mut times = Vec::with_capacity(steps);
    let mut loss = 0.0;
    for step in 0..WARM_UP + steps {
        let start = Instant::now();
        let mut batches = Vec::new();
        for _ in 0..train.gradient_accumulation {
            let (mut inputs, mut targets) = (Vec::new(), Vec::new());
            for _ in 0..train.batch_size {
                let at = rng.random_range(0..TOKENS - train.sequence_length);
                inputs.extend_from_slice(&tokens[at..at + train.sequence_length]);
                targets.extend_from_slice(&tokens[at + 1..at + 1 + train.sequence_length]);
            }
            batches.push((inputs, targets));
        }
        let drawn = Instant::now();
        gradients.clear();
        for (micro, (inputs, targets)) in batches.iter().enumerate() {
            let index = (step * batches.len() + micro) as u64;
            let batch = Sequences { inputs, targets, count: train.batch_size, index };
            loss = model.differentiate(&parameters, batch, &mut gradients)?;
        }
        let differentiated = Instant::now();
        let at = (step as u64).min(train.steps - 1);
        let (rate, decay) = (schedule.learning_rate(at), schedule.weight_decay(at));
        optimizer.step(&parameters, &gradients, train.gradient_accumulation, rate, decay)?;
        let stepped = Instant::now();
        let profile = run.ops.take_profile();
        if step >= WARM_UP {
            let between = |a: Instant, b: Instant| (b - a).as_secs_f64();
            let [data, passes, optimizer] =
                [between(start, drawn), between(drawn, differentiated), between(differentiated, stepped)];
            times.push(Step { all: between(start, stepped), data, passes, optimizer, profile });
        }
    }
    Ok(report(run, &config, times, loss))
}

struct Step {
    all: f64,
    data: f64,
    passes: f64,
    optimizer: f64,
    profile: Option<Vec<Spent>>,
}

fn report(run: &Run, config: &ModelConfig, times: Vec<Step>, loss: f64) -> Measured {
    let of = |f: &dyn Fn(&Step) -> f64| median(times.iter().map(f).collect());
    let step = of(&|t| t.all);
    let profiled = times.iter().all(|t| t.profile.is_some());
    let spent = |t: &Step, i: usize| t.profile.as_ref().map_or(Spent::default(), |p| p[i]);
    let side =
        |backward: bool| of(&|t| (0..OPS.len()).filter(|&i| OPS[i].2 == backward).map(|i| spent(t, i).seconds).sum());
    // Without a profile the two passes cannot be told apart.
    let (forward, backward) = if profiled { (side(false), side(true)) } else { (0.0, of(&|t| t.passes)) };
    let profile = OPS.iter().enumerate().filter(|_| profiled).map(|(i, &(_, op, backward))| {
        let (seconds, operations) = (of(&|t| spent(t, i).seconds), of(&|t| spent(t, i).operations));
        OpMeasured { op, backward, ms: seconds * 1e3, share: seconds / step, gflops: operations / seconds / 1e9 }
    });
    let profile: Vec<_> = profile.filter(|op| op.ms > 0.0).collect();
    let train = &run.config.train;
    // Before the peaks are measured.
    let peak_memory = bitnet_train::run::peak_memory().map(|bytes| bytes as f64 / 1e6);
    let operations = run.operations_per_step(config);
    let tiles = [F32, BF16].map(best);
    let [f32_peak, bf16_peak] = tiles.map(peak);
    let tokens = run.tokens_per_step();
    Measured {
        name: run.config.run.name.clone(),
        cpu: bitnet_train::run::cpu_model().unwrap_or_else(|| "unknown".into()),
        threads: rayon::current_num_threads(),
        ops: run.ops.name().into(),
        precision: format!("{:?}", train.precision).to_lowercase(),
        weights: run.config.quantization.weight.clone(),
        parameters: config.parameters(),
        model: Shape {
            vocabulary: config.vocab_size,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            batch_size: train.batch_size,
            sequence_length: train.sequence_length,
        },
        tokens_per_step: tokens,
        steps: times.len(),
        tokens_per_second: tokens as f64 / step,
        step_ms: step * 1e3,
        data_ms: of(&|t| t.data) * 1e3,
        forward_ms: forward * 1e3,
        backward_ms: backward * 1e3,
        optimizer_ms: of(&|t| t.optimizer) * 1e3,
        gflop_per_step: operations / 1e9,
        tiles: tiles.map(|kernel| kernel.name),
        peak_f32_gflops: f32_peak / 1e9,
        peak_bf16_gflops: bf16_peak / 1e9,
        utilisation_f32: operations / step / f32_peak,
        utilisation_bf16: operations / step / bf16_peak,
        peak_memory_mb: peak_memory,
        estimated_memory_mb: run.memory_of_steps(config).map(|bytes| bytes as f64 / 1e6),
        profile,
        loss,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
