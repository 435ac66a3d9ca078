//! The emulated tiles against the definitions.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bitnet_model::rng::{Stream, generator};
use rand::Rng;

use super::{Config, Emulated, Tiles};

const B: [usize; 2] = [16, 64];

#[test]
fn tiles_multiply_matrices() {
    let mut rng = generator(1, Stream::Bench);
    for [m, n, k] in [[16, 16, 16], [1, 1, 1], [3, 16, 2], [16, 5, 16], [7, 4, 9]] {
        let mut tiles = Emulated::new();
        tiles.configure(&Config::new([[m, 4 * n], [m, 4 * k], [k, 4 * n], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
        let mut a: Vec<i8> = (0..m * 4 * k).map(|_| rng.random()).collect();
        let mut b: Vec<u8> = (0..k * 4 * n).map(|_| rng.random()).collect();
        (a[0], b[0]) = (-128, 255);
        let start: Vec<i32> = (0..m * n).map(|_| rng.random_range(-1000..1000)).collect();
        let mut sums = start.clone();
        tiles.load::<0, _>(&sums, n);
        tiles.load::<1, _>(&a, 4 * k);
        tiles.load::<2, _>(&b, 4 * n);
        tiles.add_products::<0, 1, 2>();
        tiles.add_products::<0, 1, 2>();
        tiles.store::<0, _>(&mut sums, n);
        for (i, sum) in sums.into_iter().enumerate() {
            // Column 4k + j of a meets byte j of word n in row k of b.
            let product =
                |c: usize| i32::from(a[i / n * 4 * k + c]) * i32::from(b[c / 4 * 4 * n + 4 * (i % n) + c % 4]);
            assert_eq!(sum, start[i] + 2 * (0..4 * k).map(product).sum::<i32>(), "{m} x {n} x {k}, sum {i}");
        }
    }
}

fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    assert!(x.is_nan() || bits as u16 == 0, "{x} is no bf16 number");
    (bits >> 16) as u16
}

fn word([low, high]: [f32; 2]) -> u32 {
    u32::from(bf16(low)) | u32::from(bf16(high)) << 16
}

#[test]
fn tiles_multiply_matrices_of_bf16() {
    let mut rng = generator(2, Stream::Bench);
    for [m, n, k] in [[16, 16, 16], [1, 1, 1], [3, 16, 2], [16, 5, 16], [7, 4, 9]] {
        let mut tiles = Emulated::new();
        tiles.configure(&Config::new([[m, 4 * n], [m, 4 * k], [k, 4 * n], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
        let mut integers = |count: usize| -> Vec<[f32; 2]> {
            (0..count).map(|_| std::array::from_fn(|_| rng.random_range(-128i16..=128).into())).collect()
        };
        let (a, b) = (integers(m * k), integers(k * n));
        let start: Vec<f32> = integers(m * n).into_iter().map(|[x, _]| x).collect();
        let words = |numbers: &[[f32; 2]]| -> Vec<u32> { numbers.iter().copied().map(word).collect() };
        let mut sums = start.clone();
        tiles.load::<0, _>(&sums, n);
        tiles.load::<1, _>(&words(&a), k);
        tiles.load::<2, _>(&words(&b), n);
        tiles.add_bf16_products::<0, 1, 2>();
        tiles.add_bf16_products::<0, 1, 2>();
        tiles.store::<0, _>(&mut sums, n);
        for (i, sum) in sums.into_iter().enumerate() {
            // Word l of a row of a meets word n of row l of b.
            let product = |l: usize, half: usize| a[i / n * k + l][half] * b[l * n + i % n][half];
            let expected: f32 = (0..k).flat_map(|l| [product(l, 0), product(l, 1)]).sum();
            assert_eq!(sum, start[i] + 2.0 * expected, "{m} x {n} x {k}, sum {i}");
        }
    }
}

/// One sum that starts at `sum`, of the products of the words `a` and `b`.
fn bf16_sum(sum: f32, a: &[[f32; 2]], b: &[[f32; 2]]) -> f32 {
    let mut tiles = Emulated::new();
    let k = a.len();
    tiles.configure(&Config::new([[1, 4], [1, 4 * k], [k, 4], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
    let mut out = [sum];
    tiles.load::<0, _>(&out, 1);
    tiles.load::<1, _>(&a.iter().copied().map(word).collect::<Vec<_>>(), k);
    tiles.load::<2, _>(&b.iter().copied().map(word).collect::<Vec<_>>(), 1);
    tiles.add_bf16_products::<0, 1, 2>();
    tiles.store::<0, _>(&mut out, 1);
    out[0]
}

#[test]
fn bf16_products_are_added_in_the_order_of_the_manual() {
    let ones = |k| vec![[1.0; 2]; k];
    // Beyond 2^24 the ones are lost, to an even number.
    const BIG: f32 = (1 << 24) as f32;
    // The chains, of even and of odd numbers, run apart: 2^24 + 1 is 2^24, 1 - 2^24 is exact, and what is left is 1.
    assert_eq!(bf16_sum(5.0, &[[BIG, 1.0], [1.0, -BIG]], &ones(2)), 6.0);
    // In their order: ones before the large number count, those after it do not.
    assert_eq!(bf16_sum(0.0, &[[1.0, 0.0], [1.0, 0.0], [BIG, 0.0]], &ones(3)), BIG + 2.0);
    assert_eq!(bf16_sum(0.0, &[[BIG, 0.0], [1.0, 0.0], [1.0, 0.0]], &ones(3)), BIG);
    // They start at 0 and meet the sum last: 2^24 + (1 + 1), and not (2^24 + 1) + 1.
    assert_eq!(bf16_sum(BIG, &[[1.0, 1.0]], &ones(1)), BIG + 2.0);
    // To each other first, then to the sum: (2^24 + 1) + 1 from the chains.
    assert_eq!(bf16_sum(1.0, &[[BIG, 1.0]], &ones(1)), BIG);
    // Ties go to the even number, upwards as well.
    assert_eq!(bf16_sum(0.0, &[[BIG + (1 << 17) as f32, 0.0], [2.0, 1.0]], &ones(2)), BIG + ((1 << 17) + 4) as f32);
    // Multiplication and addition are one step: a product alone would be infinite here.
    const HUGE: f32 = (1u128 << 127) as f32;
    assert_eq!(bf16_sum(0.0, &[[-HUGE, 0.0], [HUGE, 0.0]], &[[1.0; 2], [2.0; 2]]), HUGE);
    assert_eq!(bf16_sum(0.0, &[[HUGE, 0.0]], &[[2.0; 2]]), f32::INFINITY);
    assert!(bf16_sum(0.0, &[[f32::NAN, 0.0]], &ones(1)).is_nan());
    assert!(bf16_sum(0.0, &[[f32::INFINITY, 0.0]], &[[0.0; 2]]).is_nan());
}

#[test]
fn subnormal_numbers_count_as_zero() {
    const LEAST: f32 = f32::MIN_POSITIVE;
    let subnormal = LEAST / 4.0;
    let large = (1u128 << 100) as f32;
    assert_eq!(bf16_sum(0.0, &[[LEAST, LEAST]], &[[large; 2]]), 2.0 * LEAST * large);
    assert_eq!(bf16_sum(0.0, &[[subnormal, large]], &[[large, subnormal]]), 0.0);
    assert_eq!(bf16_sum(subnormal, &[[0.0; 2]], &[[1.0; 2]]), 0.0);
    // Between two steps of a chain, between the chains, and at the end.
    assert_eq!(bf16_sum(0.0, &[[subnormal * 4.0, 0.0], [LEAST, 0.0]], &[[0.5; 2], [1.0; 2]]), LEAST);
    assert_eq!(bf16_sum(LEAST, &[[1.5 * LEAST, -LEAST]], &[[1.0; 2]]), LEAST);
    assert_eq!(bf16_sum(-LEAST, &[[1.5 * LEAST, 0.0]], &[[1.0; 2]]), 0.0);
    assert!(bf16_sum(-0.0, &[[-subnormal, 0.0]], &[[1.0, 0.0]]) == 0.0);
}

#[test]
fn rows_lie_a_stride_apart_and_the_rest_of_memory_is_left_alone() {
    let mut tiles = Emulated::new();
    tiles.configure(&Config::new([[3, 8], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
    let numbers: Vec<i32> = (0..12).collect();
    tiles.load::<0, _>(&numbers, 5);
    let mut out = [-1; 10];
    tiles.store::<0, _>(&mut out, 4);
    assert_eq!(out, [0, 1, -1, -1, 5, 6, -1, -1, 10, 11]);
    tiles.zero::<0>();
    tiles.store::<0, _>(&mut out, 3);
    assert_eq!(out, [0, 0, -1, 0, 0, 6, 0, 0, 10, 11]);
}

#[test]
fn sums_wrap_as_the_instruction_does() {
    let mut tiles = Emulated::new();
    tiles.configure(&Config::new([[1, 4], [1, 4], [1, 4], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
    let mut sum = [i32::MAX];
    tiles.load::<0, _>(&sum, 1);
    tiles.load::<1, _>(&[1i8, 0, 0, 0], 4);
    tiles.load::<2, _>(&[1u8, 0, 0, 0], 4);
    tiles.add_products::<0, 1, 2>();
    tiles.store::<0, _>(&mut sum, 1);
    assert_eq!(sum, [i32::MIN]);
}

#[test]
fn what_the_cpu_refuses_is_refused() {
    let fault = |expected: &str, run: &dyn Fn(&mut Emulated)| {
        let mut tiles = Emulated::new();
        let panic = catch_unwind(AssertUnwindSafe(|| run(&mut tiles))).expect_err(expected);
        let text = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(ToString::to_string));
        assert!(text.as_ref().is_some_and(|text| text.contains(expected)), "{text:?}, expected: {expected}");
    };
    let shaped = |shapes: [[usize; 2]; 3]| {
        let [sums, a, b] = shapes;
        move |tiles: &mut Emulated| {
            tiles.configure(&Config::new([sums, a, b, [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
            tiles.add_products::<0, 1, 2>();
        }
    };
    shaped([[2, 8], [2, 16], [4, 8]])(&mut Emulated::new());
    fault("#UD: rows of sums and a", &shaped([[3, 8], [2, 16], [4, 8]]));
    fault("#UD: columns of sums and b", &shaped([[2, 12], [2, 16], [4, 8]]));
    fault("#UD: columns of a and rows of b", &shaped([[2, 8], [2, 12], [4, 8]]));
    fault("#UD: tile 2 has no shape", &shaped([[2, 8], [2, 12], [0, 0]]));
    fault("#UD: tiles are not configured", &|tiles| tiles.zero::<0>());
    fault("#UD: a tile is named twice", &|tiles| {
        tiles.configure(&Config::new([B; 8]));
        tiles.add_products::<1, 1, 2>();
    });
    // What memory does not hold is refused before the instruction.
    for (len, stride, fits) in [(15 * 18 + 16, 18, true), (15 * 18 + 15, 18, false), (256, 16, true), (255, 16, false)]
    {
        let run = |access: &dyn Fn(&mut Emulated)| {
            let mut tiles = Emulated::new();
            tiles.configure(&Config::new([B; 8]));
            catch_unwind(AssertUnwindSafe(|| access(&mut tiles))).is_ok()
        };
        assert_eq!(run(&|tiles| tiles.load::<7, _>(&vec![0i32; len], stride)), fits, "{len}, {stride} apart");
        assert_eq!(run(&|tiles| tiles.load::<7, _>(&vec![0i8; 4 * len], 4 * stride)), fits, "{len}, {stride} apart");
        assert_eq!(run(&|tiles| tiles.store::<7, _>(&mut vec![0; len], stride)), fits, "{len}, {stride} apart");
    }
    // Byte, value.
    for (at, value) in
        [(0, 0), (0, 2), (2, 1), (15, 1), (16, 65), (17, 1), (48, 17), (48, 0), (16, 0), (32, 4), (56, 1)]
    {
        let mut config = [0; 64];
        (config[0], config[16], config[48]) = (1, 64, 16);
        Emulated::new().load_config(&config);
        config[at] = value;
        fault("#GP", &|tiles| tiles.load_config(&config));
    }
}
