//! Weights a second on one thread: every supported kernel, kind of weights and batch.
//!
//! `cargo bench -p bitnet-infer --bench kernels [-- FILTER]`; names are `KERNEL/KIND/TOKENS`, for instance `avx2/ternary/1`.
//! The matrix is that of a small projection, 1024 x 2560: 655 KB as ternary codes, so one token reads it from the
//! second-level cache. Throughput counts a weight once for each token that it is multiplied with.

use bitnet_infer::kernels;
use bitnet_infer::linear::{Activations, Linear};
use bitnet_model::packed::PackedMatrix;
use bitnet_model::quant::{WEIGHT_SCHEMES, activation_scheme};
use bitnet_model::rng::{Stream, generator};
use bitnet_model::weights::{FloatMatrix, FloatType, LinearWeights};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::Rng;

fn products(criterion: &mut Criterion) {
    let [rows, cols] = [1024, 2560];
    let mut rng = generator(1, Stream::Bench);
    let mut uniform = |len: usize| -> Vec<f32> { (0..len).map(|_| rng.random_range(-1.0..1.0)).collect() };
    let (weights, x) = (uniform(rows * cols), uniform(MOST_TOKENS * cols));
    let packed = WEIGHT_SCHEMES.iter().map(|scheme| {
        let mut codes = vec![0; weights.len()];
        let scales = scheme.quantize(&weights, rows, &mut codes);
        let packed = PackedMatrix::pack(scheme.layout(), rows, cols, &codes, scales).expect("codes of the scheme");
        (scheme.name(), LinearWeights::Packed(packed))
    });
    let float = [("f32", FloatType::F32), ("f16", FloatType::F16), ("bf16", FloatType::Bf16)]
        .map(|(name, float_type)| (name, LinearWeights::Float(FloatMatrix::new(rows, cols, &weights, float_type))));
    let int8 = activation_scheme("int8").expect("a known scheme");
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread starts");

    for (kind, weights) in packed.chain(float) {
        for kernel in kernels::supported() {
            let linear = Linear::new(&weights, kernel);
            let scheme = if matches!(weights, LinearWeights::Packed(_)) { int8 } else { None };
            let mut group = criterion.benchmark_group(format!("{}/{kind}", kernel.name));
            for tokens in [1, 4, MOST_TOKENS] {
                let activations = Activations::new(&x[..tokens * cols], cols, scheme);
                let mut out = vec![0f32; tokens * rows];
                group.throughput(Throughput::Elements((rows * cols * tokens) as u64));
                group.bench_function(tokens.to_string(), |bencher| {
                    one_thread.install(|| bencher.iter(|| linear.forward(&activations, &mut out)));
                });
            }
            group.finish();
        }
    }
}

const MOST_TOKENS: usize = 64;

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = products
}
criterion_main!(benches);
