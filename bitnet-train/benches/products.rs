//! Multiplications and additions a second of the products of the backward pass, on all threads.
//!
//! `cargo bench -p bitnet-train --bench products [-- FILTER]`; names are `TILES/PRODUCT/PROJECTIONS`, for instance
//! `avx512/weights/A gate|up`: gradients of weights or inputs of the projections of the sizes A and B of
//! `bitnet-train bench`, for 4,096 tokens. Operands come from memory, as in a step: something else passes through the
//! caches before each product. What the instructions give at most is told first.

use std::time::{Duration, Instant};

use bitnet_train::ops::kernels::product::{
    BF16, Codes, F32, Matrix, Output, Packed, Threads, TileKernel, multiply, peak,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// As in the program: its buffers lie on large pages.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOKENS: usize = 4096;

/// Rows of each projection, and their columns.
const PROJECTIONS: [(&str, &[usize], usize); 8] = [
    ("A q|k|v", &[256, 256, 256], 256),
    ("A out", &[256], 256),
    ("A gate|up", &[768, 768], 256),
    ("A down", &[256], 768),
    ("B q|k|v", &[512, 512, 512], 512),
    ("B out", &[512], 512),
    ("B gate|up", &[1536, 1536], 512),
    ("B down", &[512], 1536),
];

fn products(criterion: &mut Criterion) {
    let mut elsewhere = vec![1f32; 24 << 20];
    for kernel in F32.iter().chain(BF16).copied().filter(|kernel| (kernel.supported)()) {
        println!("{}: at most {:.0} GFLOP/s", kernel.name, peak(kernel) / 1e9);
        for (name, parts, cols) in PROJECTIONS {
            let rows: usize = parts.iter().sum();
            let dy: Vec<f32> = (0..TOKENS * rows).map(|i| (i % 1013) as f32 * 1e-3 - 0.5).collect();
            // The median of the times is criterion's; each leaves out the passage through the caches.
            let mut measure = |product: &str, mut run: Box<dyn FnMut() + '_>| {
                let mut group = criterion.benchmark_group(format!("{}/{product}", kernel.name));
                group.throughput(Throughput::Elements(2 * (TOKENS * rows * cols) as u64));
                group.bench_function(name, |bencher| {
                    bencher.iter_custom(|times| {
                        let mut spent = Duration::ZERO;
                        for _ in 0..times {
                            elsewhere.iter_mut().for_each(|x| *x += 1.0);
                            let start = Instant::now();
                            run();
                            spent += start.elapsed();
                        }
                        spent
                    });
                });
                group.finish();
            };
            measure("weights", Box::new(weights(kernel, &dy, parts, cols)));
            measure("inputs", Box::new(inputs(kernel, &dy, rows, cols)));
        }
    }
}

/// `dW = dy^T x`, with the codes and steps of `x`, for each projection.
fn weights(kernel: &'static TileKernel, dy: &[f32], parts: &[usize], cols: usize) -> impl FnMut() {
    let rows: usize = parts.iter().sum();
    let codes: Vec<i8> = (0..TOKENS * cols).map(|i| (i % 255) as i8).collect();
    let steps: Vec<f32> = (0..TOKENS).map(|i| 0.01 + (i % 7) as f32 * 1e-3).collect();
    let (mut packed, mut dw) = (Packed::default(), vec![0f32; rows * cols]);
    move || {
        let x = Codes { codes: &codes, rows: TOKENS, cols, stride: cols, factors: &steps };
        let x = packed.codes(kernel, x, Threads::All);
        let mut first = 0;
        for &part in parts {
            let dy = Matrix::strided(&dy[first..], TOKENS, part, rows);
            multiply(&mut dw[first * cols..], cols, dy.t(), x, Output::Replace, Threads::All);
            first += part;
        }
    }
}

/// `dX = dy W`, with ternary codes and one scale.
fn inputs(kernel: &'static TileKernel, dy: &[f32], rows: usize, cols: usize) -> impl FnMut() {
    let codes: Vec<i8> = (0..rows * cols).map(|i| (i % 3) as i8 - 1).collect();
    let (mut packed, mut dx) = (Packed::default(), vec![0f32; TOKENS * cols]);
    move || {
        let w = Codes { codes: &codes, rows, cols, stride: cols, factors: &[0.02] };
        let w = packed.codes(kernel, w, Threads::All);
        multiply(&mut dx, cols, Matrix::new(dy, TOKENS, rows), w, Output::Replace, Threads::All);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = products
}
criterion_main!(benches);
