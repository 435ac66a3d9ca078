//! Every kernel of both tables against plain loops, on sizes that leave remainders everywhere.

use proptest::prelude::*;

use super::*;

fn kernels() -> impl Iterator<Item = &'static TileKernel> {
    F32.iter().chain(BF16).copied().chain([&amx::EMULATED]).filter(|kernel| (kernel.supported)())
}

/// Small integers, exact in both precisions, as are their products and sums.
fn integers(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 20) as f32 % 7.0 - 3.0).collect()
}

/// Numbers of no particular kind.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    (0..count as u32)
        .map(|i| (i.wrapping_mul(747_796_405).wrapping_add(seed).rotate_left(13) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        .collect()
}

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn products_of_small_integers_are_exact(
        m in 1usize..150, n in 1usize..90, k in 1usize..40, long in any::<bool>(), extra in 0usize..3, seed in any::<u32>(),
    ) {
        // Now and then more than one block of the inner dimension.
        let k = if long { k + 520 } else { k };
        let (a, b) = (integers(m * k, seed), integers((k + extra) * (n + extra), seed ^ 1));
        let (a_t, b_t) = (transposed(&a, m, k), transposed(&b, k + extra, n + extra));
        let dot = |i: usize, j: usize| -> f32 { (0..k).map(|l| a[i * k + l] * b[l * (n + extra) + j]).sum() };
        let expected: Vec<f32> = (0..m * n).map(|i| dot(i / n, i % n)).collect();
        for kernel in kernels() {
            let mut packed = Packed::default();
            for (a, threads) in [(Matrix::new(&a, m, k), Threads::All), (Matrix::new(&a_t, k, m).t(), Threads::One)] {
                for b in [Matrix::new(&b, k + extra, n + extra), Matrix::new(&b_t, n + extra, k + extra).t()] {
                    packed.floats(kernel, b, threads);
                    let b = packed.first(k, n);
                    let mut out = vec![7f32; m * (n + 1)];
                    multiply(&mut out, n + 1, a, b, Output::Replace, threads);
                    let replaced = out.chunks(n + 1).flat_map(|row| &row[..n]);
                    prop_assert!(replaced.eq(&expected), "{}", kernel.name);
                    multiply(&mut out, n + 1, a, b, Output::Add, threads);
                    let doubled: Vec<f32> = expected.iter().map(|x| 2.0 * x).collect();
                    prop_assert!(out.chunks(n + 1).flat_map(|row| &row[..n]).eq(&doubled), "{}", kernel.name);
                    prop_assert!(out.chunks(n + 1).all(|row| row[n] == 7.0), "{}: beyond the columns", kernel.name);
                }
            }
        }
    }

    #[test]
    fn codes_meet_the_floats_they_stand_for(m in 1usize..40, n in 1usize..70, k in 1usize..90, one in any::<bool>(), seed in any::<u32>()) {
        let a = numbers(m * k, seed);
        let codes: Vec<i8> = (0..k * n).map(|i| (i as u32).wrapping_mul(seed | 1).to_le_bytes()[3] as i8).collect();
        let factors: Vec<f32> = numbers(if one { 1 } else { k }, seed ^ 2).iter().map(|x| x + 1.5).collect();
        let factor = |l: usize| factors[if one { 0 } else { l }];
        for kernel in kernels() {
            let mut packed = Packed::default();
            let b = Codes { codes: &codes, rows: k, cols: n, stride: n, factors: &factors };
            let b = packed.codes(kernel, b, Threads::One);
            let mut out = vec![0f32; m * n];
            multiply(&mut out, n, Matrix::new(&a, m, k), b, Output::Replace, Threads::All);
            for (i, out) in out.iter().enumerate() {
                // In bf16 the left operand alone is rounded, with the factor in it.
                let term = |l: usize| match kernel.depth {
                    1 => f64::from(a[i / n * k + l]) * f64::from(f32::from(codes[l * n + i % n]) * factor(l)),
                    _ => f64::from(f32::from_bits(pack::bf16(a[i / n * k + l] * factor(l)) << 16)) * f64::from(codes[l * n + i % n]),
                };
                let (exact, size): (f64, f64) = (0..k).map(term).fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                prop_assert!((f64::from(*out) - exact).abs() <= 1e-6 * size, "{}: {out} for {exact}", kernel.name);
            }
        }
    }
}

/// A product of numbers of no particular kind, and the sizes that it has.
fn product(kernel: &'static TileKernel, [m, n, k]: [usize; 3]) -> Vec<f32> {
    let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
    let mut packed = Packed::default();
    let mut out = vec![0f32; m * n];
    let b = packed.floats(kernel, Matrix::new(&b, k, n), Threads::One);
    multiply(&mut out, n, Matrix::new(&a, m, k), b, Output::Replace, Threads::One);
    out
}

#[test]
fn bf16_kernels_give_the_bits_of_the_readable_one() {
    let sizes = [37, 53, 777];
    // The matrix unit has an order of its own.
    let kernels = BF16.iter().filter(|kernel| (kernel.supported)() && kernel.left == tiles::Layout::Strided);
    for kernel in kernels {
        assert!(product(kernel, sizes) == product(BF16[0], sizes), "{}", kernel.name);
    }
}

#[test]
fn sums_of_the_matrix_unit_are_as_near_as_those_of_the_readable_kernel() {
    let [m, n, k] = [37, 53, 777];
    let (a, b) = (numbers(m * k, 3), numbers(k * n, 4));
    let rounded = |x: f32| f64::from(f32::from_bits(pack::bf16(x) << 16));
    let errors = |kernel| -> Vec<f64> {
        let error = |(i, out): (usize, &f32)| {
            let terms = (0..k).map(|l| rounded(a[i / n * k + l]) * rounded(b[l * n + i % n]));
            let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
            (f64::from(*out) - exact).abs() / size
        };
        product(kernel, [m, n, k]).iter().enumerate().map(error).collect()
    };
    let (unit, readable) = (errors(&amx::EMULATED), errors(BF16[0]));
    // Chains of 16, then one sum a step: the errors of fewer roundings in a row.
    let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
    assert!(unit.iter().all(|error| *error < 1e-6), "{unit:?}");
    assert!(mean(&unit) < mean(&readable), "{} and {}", mean(&unit), mean(&readable));
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_tiles_of_the_cpu_give_the_bits_of_the_emulated_ones() {
    if !(amx::KERNEL.supported)() {
        return println!("skipped: no AMX with bf16 on this CPU, or none that the system lets programs use");
    }
    for sizes in [[37, 53, 777], [32, 32, 32], [1, 1, 1], [33, 1, 31], [130, 70, 96]] {
        assert!(product(&amx::KERNEL, sizes) == product(&amx::EMULATED, sizes), "{sizes:?}");
    }
}

#[test]
fn rows_of_the_right_operand_beyond_those_in_use_are_not_read() {
    let (m, n, all) = (35, 40, 90);
    // 0 times infinity is no number. (Numbers of a word are one: sizes are even.)
    for k in [2, 30, 32, 34, 64, 88] {
        let (a, mut b) = (integers(m * k, 7), integers(all * n, 8));
        b[k * n..].fill(f32::INFINITY);
        let a_t = transposed(&a, m, k);
        for kernel in kernels() {
            let mut packed = Packed::default();
            packed.floats(kernel, Matrix::new(&b, all, n), Threads::One);
            for a in [Matrix::new(&a, m, k), Matrix::new(&a_t, k, m).t()] {
                let mut out = vec![0f32; m * n];
                multiply(&mut out, n, a, packed.first(k, n), Output::Replace, Threads::One);
                assert!(out.iter().all(|x| x.is_finite()), "{}, {k}", kernel.name);
            }
        }
    }
}

#[test]
fn rounding_to_bf16_is_to_nearest_even() {
    // Seven bits after the point: half a step above 1 goes down to it, one and a half go up.
    const STEP: f32 = 1.0 / 128.0;
    for (x, expected) in [(0.0, 0.0), (0.25, 0.0), (0.5, 0.0), (0.51, 1.0), (1.49, 1.0), (1.5, 2.0), (2.5, 2.0)] {
        let rounded = f32::from_bits(pack::bf16(1.0 + x * STEP) << 16);
        assert_eq!(rounded, 1.0 + expected * STEP, "{x} steps above 1");
    }
    assert_eq!(f32::from_bits(pack::bf16(f32::INFINITY) << 16), f32::INFINITY);
    assert!(f32::from_bits(pack::bf16(f32::NAN) << 16).is_nan());
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (m, n, k) = (300, 200, 700);
    let (a, b) = (numbers(m * k, 5), numbers(k * n, 6));
    for kernel in kernels() {
        let product = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| {
                let mut packed = Packed::default();
                let mut out = vec![0f32; m * n];
                let b = packed.floats(kernel, Matrix::new(&b, k, n), Threads::All);
                multiply(&mut out, n, Matrix::new(&a, m, k), b, Output::Replace, Threads::All);
                out
            })
        };
        assert!(product(1) == product(5), "{}", kernel.name);
    }
}
