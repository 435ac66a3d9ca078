use bitnet_model::rng::{Stream, generator};
use bitnet_model::weights::{FloatMatrix, FloatType};
use proptest::prelude::*;
use rand::Rng;

use super::super::sampler::{Sampler, SamplerConfig, argmax};
use super::*;
use crate::kernels::supported;

const FORMATS: [HeadFormat; 4] = HeadFormat::ALL;
const TYPES: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

fn floats(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = generator(seed, Stream::Bench);
    // A product of two: more small values than large ones.
    (0..len).map(|_| rng.random_range(-2.0f32..2.0) * rng.random_range(-1.0f32..1.0)).collect()
}

fn table(seed: u64, rows: usize, cols: usize, float_type: FloatType) -> FloatMatrix {
    FloatMatrix::new(rows, cols, &floats(seed, rows * cols), float_type)
}

fn head(matrix: &FloatMatrix, kernel: &'static Kernel, format: HeadFormat) -> Head {
    Head::new(Arc::new(Table::new(matrix.clone())), kernel).with_format(format)
}

fn logits(head: &Head, x_th: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; x_th.len() / head.table.cols() * head.table.rows()];
    head.forward(x_th, &mut out);
    out
}

fn one(head: &Head, x_h: &[f32], wanted: &Wanted) -> NextLogits {
    head.next(x_h, std::slice::from_ref(wanted)).pop().expect("one for one state")
}

/// What a format may be off, relative to the sum of the magnitudes of the products: f32 sums; half a step of the largest
/// weight of a row, or of 32 columns, beside a sum of magnitudes that these random rows keep above an eighth of that of rows
/// of largest weights only.
fn tolerance(format: HeadFormat) -> f64 {
    match format {
        HeadFormat::Stored | HeadFormat::Exact => 1e-6,
        HeadFormat::Int8 => 8.0 * 0.5 / 127.0,
        HeadFormat::Int4 => 8.0 * 0.5 / 7.0,
    }
}

#[test]
fn every_format_is_close_to_the_formula() {
    for (rows, cols, tokens) in [(1, 1, 1), (5, 33, 3), (70, 300, 2), (301, 96, 35)] {
        let x_th = floats(1, tokens * cols);
        for (kernel, float_type) in supported().flat_map(|kernel| TYPES.map(|float_type| (kernel, float_type))) {
            let matrix = table(2, rows, cols, float_type);
            let w = matrix.to_f32();
            for format in FORMATS {
                let out = logits(&head(&matrix, kernel, format), &x_th);
                for (i, &out) in out.iter().enumerate() {
                    let row = w[i % rows * cols..].iter().zip(&x_th[i / rows * cols..]).take(cols);
                    let products = row.map(|(&w, &x)| f64::from(w) * f64::from(x));
                    let (sum, magnitude) = products.fold((0.0, 0.0), |(s, m), p| (s + p, m + p.abs()));
                    let error = (f64::from(out) - sum).abs();
                    assert!(error <= tolerance(format) * magnitude, "{kernel:?} {format} {rows} x {cols}: {out} {sum}");
                }
            }
        }
    }
}

#[test]
fn logits_depend_on_neither_batch_nor_threads() {
    let (rows, cols, tokens) = (1203, 70, 37);
    let (matrix, x_th) = (table(3, rows, cols, FloatType::F16), floats(4, tokens * cols));
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
    let (one, three) = (pool(1), pool(3));
    for (kernel, format) in supported().flat_map(|kernel| FORMATS.map(|format| (kernel, format))) {
        let head = head(&matrix, kernel, format);
        let together = one.install(|| logits(&head, &x_th));
        assert!(three.install(|| logits(&head, &x_th)) == together, "{kernel:?} {format}: threads");
        let alone: Vec<f32> = x_th.chunks(cols).flat_map(|x| logits(&head, x)).collect();
        assert!(alone == together, "{kernel:?} {format}: batch");
    }
}

#[test]
fn coded_logits_are_the_same_bits_on_every_kernel() {
    let (matrix, x_th) = (table(5, 99, 130, FloatType::Bf16), floats(6, 3 * 130));
    for format in [HeadFormat::Int8, HeadFormat::Int4] {
        let mut all = supported().map(|kernel| logits(&head(&matrix, kernel, format), &x_th));
        let first = all.next().expect("the scalar kernel");
        assert!(all.all(|other| other == first), "{format}");
    }
}

/// Checks that the wanted logits are the stored head's bits, that all others are below them, and returns the rows that were
/// rescored.
fn check_exact(exact: &Head, x_h: &[f32], wanted: &Wanted) -> usize {
    let Wanted::Largest { count, also } = wanted else { panic!("some") };
    let expected = logits(exact, x_h);
    let next = one(exact, x_h, wanted);
    let mut ranked = expected.clone();
    ranked.sort_unstable_by(|a, b| b.total_cmp(a));
    let least = ranked[(*count).min(ranked.len()) - 1];
    for (row, (found, expected)) in next.logits.iter().zip(&expected).enumerate() {
        let must = *expected >= least || also.contains(&(row as u32));
        let right = if must {
            found.to_bits() == expected.to_bits()
        } else {
            found.to_bits() == expected.to_bits() || *found == f32::NEG_INFINITY
        };
        assert!(right, "row {row}: {found}, expected {expected}, the smallest wanted is {least}");
    }
    next.rescored.expect("a choice")
}

proptest! {
    #[test]
    fn the_screen_loses_no_wanted_logit(
        rows in 1usize..700, cols in 1usize..200, count in 1usize..50, seed in any::<u64>(),
        magnitude in -20i32..20, doubles in any::<bool>(), float_type in 0usize..3,
    ) {
        let mut values = floats(seed, rows * cols);
        values.iter_mut().for_each(|w| *w *= 0.02);
        if doubles {
            // Equal rows, and rows that differ by the last bit of a weight.
            let (first, second) = values.split_at_mut(rows / 2 * cols);
            first.iter_mut().zip(second).for_each(|(a, b)| *a = *b);
            values.iter_mut().step_by(3 * cols).for_each(|w| *w *= 1.001);
        }
        let matrix = FloatMatrix::new(rows, cols, &values, TYPES[float_type]);
        let x_h: Vec<f32> = floats(seed ^ 1, cols).iter().map(|x| x * 2f32.powi(magnitude)).collect();
        for kernel in supported() {
            let exact = head(&matrix, kernel, HeadFormat::Exact);
            check_exact(&exact, &x_h, &Wanted::Largest { count, also: vec![0, rows as u32 - 1, rows as u32 + 5] });
        }
    }
}

#[test]
fn few_rows_survive_the_screen() {
    let (rows, cols) = (20_000, 256);
    let (matrix, x_h) = (table(7, rows, cols, FloatType::F16), floats(8, cols));
    let kernel = supported().last().expect("a kernel");
    let exact = head(&matrix, kernel, HeadFormat::Exact);
    let [one, forty] = [1, 40].map(|count| check_exact(&exact, &x_h, &Wanted::Largest { count, also: Vec::new() }));
    assert!(one < 200 && forty < 1000, "{one} and {forty} of {rows} rows");
}

#[test]
fn extreme_states_get_the_stored_logits() {
    let matrix = FloatMatrix::new(40, 8, &floats(9, 320).iter().map(|w| w * 1e30).collect::<Vec<_>>(), FloatType::F32);
    let wanted = Wanted::Largest { count: 1, also: Vec::new() };
    for kernel in supported() {
        let exact = head(&matrix, kernel, HeadFormat::Exact);
        for x in [0.0, 1e-45, 1e-38, 1.0, 1e20, f32::MAX, f32::INFINITY, f32::NAN] {
            let x_h = vec![x; 8];
            let (found, expected) = (one(&exact, &x_h, &wanted).logits, logits(&exact, &x_h));
            assert_eq!(argmax(&found), argmax(&expected), "{kernel:?} {x}");
        }
    }
}

#[test]
fn every_sampler_draws_the_same_from_wanted_logits() {
    let (matrix, kernel) = (table(10, 900, 64, FloatType::F16), supported().last().expect("a kernel"));
    let [stored, exact] = [HeadFormat::Stored, HeadFormat::Exact].map(|format| head(&matrix, kernel, format));
    for (temperature, top_k, repeat_penalty) in
        [(0.0, 0, 1.0), (0.0, 40, 1.4), (0.8, 40, 1.0), (1.5, 3, 1.3), (1.0, 10, 0.7), (1.0, 0, 1.1), (0.7, 5000, 1.0)]
    {
        let config = SamplerConfig { temperature, top_k, repeat_penalty, repeat_window: 8, ..SamplerConfig::default() };
        let mut samplers = [(); 2].map(|()| Sampler::new(config.clone()).expect("valid"));
        let mut history = vec![1u32, 2, 3];
        for step in 0..60 {
            let x_h = floats(100 + step, 64);
            let [a, b] = &mut samplers;
            let token = a.sample(&one(&stored, &x_h, &Wanted::All).logits, &history).expect("finite");
            let wanted = b.wanted(&history);
            assert_eq!(b.sample(&one(&exact, &x_h, &wanted).logits, &history).expect("finite"), token, "{config:?}");
            history.push(token);
        }
    }
}

#[test]
fn states_that_go_through_together_get_what_each_gets_alone() {
    let (rows, cols) = (1203, 70);
    let matrix = table(11, rows, cols, FloatType::F16);
    let mut x_nh = floats(12, 7 * cols);
    // A state that no screen can take.
    x_nh[3 * cols] = f32::INFINITY;
    let wanted: Vec<Wanted> = (0..7)
        .map(|i| match i {
            2 => Wanted::All,
            i => Wanted::Largest { count: 1 + i * 5, also: vec![i as u32, 5000] },
        })
        .collect();
    for format in FORMATS {
        let head = head(&matrix, crate::kernels::best().expect("a kernel"), format);
        let together = head.next(&x_nh, &wanted);
        for ((x_h, wanted), together) in x_nh.chunks(cols).zip(&wanted).zip(together) {
            let alone = one(&head, x_h, wanted);
            let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
            assert_eq!(alone.rescored, together.rescored, "{format} {wanted:?}");
            assert_eq!(bits(&alone.logits), bits(&together.logits), "{format} {wanted:?}");
        }
    }
}
