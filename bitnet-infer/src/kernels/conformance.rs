//! What every row of the kernel table must satisfy: sums equal to the reference, integer for integer; floats close to it;
//! results that depend neither on the batch nor on the threads.

use bitnet_model::packed::{Layout, PackedMatrix};
use bitnet_model::quant::{ACTIVATION_SCHEMES, ActivationScheme, GROUPED_SCHEMES, WEIGHT_SCHEMES};
use bitnet_model::reference::{bit_linear, integer_dot};
use bitnet_model::rng::{Stream, generator};
use bitnet_model::weights::{FloatMatrix, FloatType, LinearWeights};
use proptest::prelude::*;
use rand::Rng;

use super::*;
use crate::linear::{Activations, Linear};

/// The kernels to test. Those that this CPU lacks are printed, and fail the test if `BITNET_REQUIRE_KERNELS` (names
/// separated by commas) asks for them.
fn kernels() -> Vec<&'static Kernel> {
    let required = std::env::var("BITNET_REQUIRE_KERNELS").unwrap_or_default();
    for name in required.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if let Err(reason) = by_name(name) {
            panic!("BITNET_REQUIRE_KERNELS: {reason}");
        }
    }
    for kernel in KERNELS.iter().filter(|kernel| !kernel.is_supported()) {
        println!("skipped: kernel `{}` needs instructions that this CPU or system lacks", kernel.name);
    }
    supported().collect()
}

const LAYOUTS: [Layout; 5] = [Layout::TwoBit, Layout::Base3, Layout::OneBit, Layout::Int8, Layout::Int4];

/// The way to hold ternary codes that corresponds to a layout of the file.
fn ternary_as(layout: Layout) -> Ternary {
    if layout == Layout::Base3 { Ternary::Base3 } else { Ternary::TwoBit }
}

/// Patterns of codes; the values stand for the smallest, the middle and the largest code of a layout.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    Lowest,
    Zero,
    Highest,
    Alternating,
    Random(u64),
}

const PATTERNS: [Pattern; 5] =
    [Pattern::Lowest, Pattern::Zero, Pattern::Highest, Pattern::Alternating, Pattern::Random(1)];

fn codes(pattern: Pattern, layout: Layout, len: usize) -> Vec<i8> {
    let (low, high) = match layout {
        Layout::TwoBit | Layout::Base3 | Layout::OneBit => (-1, 1),
        Layout::Int8 => (-128, 127),
        Layout::Int4 => (-8, 7),
    };
    // Binary has no zero.
    let fix = |code: i8| if layout == Layout::OneBit && code == 0 { 1 } else { code };
    let mut rng = generator(if let Pattern::Random(seed) = pattern { seed } else { 0 }, Stream::Bench);
    let code = |i: usize| match pattern {
        Pattern::Lowest => low,
        Pattern::Zero => 0,
        Pattern::Highest => high,
        Pattern::Alternating => [low, high, 0][i % 3],
        Pattern::Random(_) => rng.random_range(low..=high),
    };
    (0..len).map(code).map(fix).collect()
}

fn activation_codes(pattern: Pattern, len: usize) -> Vec<i8> {
    match pattern {
        Pattern::Lowest => vec![-127; len],
        Pattern::Zero => vec![0; len],
        Pattern::Highest => vec![127; len],
        Pattern::Alternating => (0..len).map(|i| if i % 2 == 0 { 127 } else { -127 }).collect(),
        Pattern::Random(seed) => {
            let mut rng = generator(seed ^ 0xac, Stream::Bench);
            (0..len).map(|_| rng.random_range(-127..=127)).collect()
        }
    }
}

fn check_sums(
    kernel: &'static Kernel,
    (layout, ternary): (Layout, Ternary),
    [rows, cols]: [usize; 2],
    weights: &[i8],
    tokens: &[usize],
    x: &[i8],
) {
    let packed = PackedMatrix::pack(layout, rows, cols, weights, vec![1.0]).expect("codes of the layout");
    let linear = Linear::stacked(&[&LinearWeights::Packed(packed)], kernel, ternary);
    for &tokens in tokens {
        let x = &x[..tokens * cols];
        let activations = Activations::from_codes(x, vec![1.0; tokens], cols);
        let mut sums = vec![i32::MIN; tokens * rows];
        linear.integer_sums(&activations, &mut sums);
        for (i, &sum) in sums.iter().enumerate() {
            let (token, row) = (i / rows, i % rows);
            let expected = integer_dot(&weights[row * cols..][..cols], &x[token * cols..][..cols]);
            assert_eq!(
                sum, expected,
                "{kernel:?} {layout:?} {ternary:?} {rows} x {cols}, token {token} of {tokens}, row {row}"
            );
        }
    }
}

#[test]
fn sums_equal_the_reference_on_all_edges() {
    for kernel in kernels() {
        for layout in LAYOUTS {
            let (group, block) = (kernel.group_rows(), 4 * layout.codes_per_byte());
            let edges = |n: usize| [0, 1, n - 1, n, n + 1, 2 * n + 1];
            // And around the 64 that inputs are padded to.
            let cols = || edges(block).into_iter().chain([63, 64, 65]);
            for (rows, cols) in edges(group).into_iter().flat_map(|rows| cols().map(move |cols| (rows, cols))) {
                for (pattern, x_pattern) in PATTERNS.into_iter().flat_map(|p| PATTERNS.map(|x| (p, x))) {
                    let (weights, x) = (codes(pattern, layout, rows * cols), activation_codes(x_pattern, 33 * cols));
                    check_sums(kernel, (layout, ternary_as(layout)), [rows, cols], &weights, &[1, 2, 3, 7, 8, 33], &x);
                }
            }
        }
    }
}

#[test]
fn sums_equal_the_reference_on_real_shapes() {
    // 67 tokens are more than `Linear` computes together.
    let shapes: [([usize; 2], &[usize]); 3] =
        [([256, 768], &[1, 2, 5, 67]), ([2560, 640], &[1, 3]), ([5, 4500], &[1, 18, 67])];
    for kernel in kernels() {
        for (layout, (shape, tokens)) in LAYOUTS.into_iter().flat_map(|layout| shapes.map(|shape| (layout, shape))) {
            for pattern in [Pattern::Highest, Pattern::Random(2)] {
                let (weights, x) =
                    (codes(pattern, layout, shape[0] * shape[1]), activation_codes(pattern, 67 * shape[1]));
                check_sums(kernel, (layout, ternary_as(layout)), shape, &weights, tokens, &x);
            }
        }
    }
}

#[test]
fn sums_equal_the_reference_for_many_tokens() {
    // The edges of a look-up: its fewest rows and tokens, spans of 14 blocks of 16 columns, tiles of 32 tokens, panels.
    let shapes = [[383, 33], [385, 225], [392, 479], [1300, 17]];
    for (kernel, shape) in kernels().into_iter().flat_map(|kernel| shapes.map(|shape| (kernel, shape))) {
        let check = |pattern, tokens: &[usize], x: &[i8]| {
            let weights = codes(pattern, Layout::TwoBit, shape[0] * shape[1]);
            check_sums(kernel, (Layout::TwoBit, Ternary::TwoBit), shape, &weights, tokens, x);
        };
        for pattern in [Pattern::Lowest, Pattern::Highest, Pattern::Alternating] {
            let len = 65 * shape[1];
            for x in [vec![-128; len], vec![127; len], activation_codes(Pattern::Alternating, len)] {
                check(pattern, &[28, 65], &x);
            }
        }
        let x = activation_codes(Pattern::Random(8), 130 * shape[1]);
        check(Pattern::Random(9), &[15, 16, 17, 27, 28, 31, 32, 33, 63, 64, 130], &x);
    }
}

#[test]
fn no_sum_overflows_at_the_largest_number_of_columns() {
    for kernel in kernels() {
        for layout in LAYOUTS {
            for pattern in [Pattern::Lowest, Pattern::Highest] {
                let weights = codes(pattern, layout, 4 * MAX_COLS);
                for x in [-128, 127] {
                    let x = vec![x; 17 * MAX_COLS];
                    check_sums(kernel, (layout, ternary_as(layout)), [4, MAX_COLS], &weights, &[1, 17], &x);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn sums_equal_the_reference_on_random_shapes(
        rows in 1usize..100, cols in 1usize..700, tokens in 1usize..24, layout in prop::sample::select(&LAYOUTS[..]),
        base3 in any::<bool>(), seed in any::<u64>()
    ) {
        let ternary = if base3 { Ternary::Base3 } else { Ternary::TwoBit };
        for kernel in kernels() {
            let weights = codes(Pattern::Random(seed), layout, rows * cols);
            let x = activation_codes(Pattern::Random(seed), tokens * cols);
            check_sums(kernel, (layout, ternary), [rows, cols], &weights, &[tokens], &x);
        }
    }
}

fn random_floats(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = generator(seed, Stream::Bench);
    (0..len).map(|_| rng.random_range(-2.0..2.0)).collect()
}

/// Every kind of weights: all schemes, all float types, ternary codes in both ways.
fn every_weights(rows: usize, cols: usize) -> Vec<(LinearWeights, Ternary)> {
    let values = random_floats(3, rows * cols);
    let packed = WEIGHT_SCHEMES.iter().chain(GROUPED_SCHEMES).flat_map(|scheme| {
        let mut codes = vec![0; values.len()];
        let scales = scheme.quantize(&values, rows, &mut codes);
        let group = scheme.granularity().group_cols();
        let packed = PackedMatrix::pack_grouped(scheme.layout(), [rows, cols], group, &codes, scales);
        let packed = LinearWeights::Packed(packed.expect("codes of the scheme"));
        let base3 = (scheme.layout() == Layout::TwoBit).then(|| (packed.clone(), Ternary::Base3));
        base3.into_iter().chain([(packed, Ternary::TwoBit)])
    });
    let float = [FloatType::F32, FloatType::F16, FloatType::Bf16]
        .map(|float_type| (LinearWeights::Float(FloatMatrix::new(rows, cols, &values, float_type)), Ternary::TwoBit));
    packed.chain(float).collect()
}

fn every_activation() -> impl Iterator<Item = Option<&'static dyn ActivationScheme>> {
    std::iter::once(None).chain(ACTIVATION_SCHEMES.iter().map(|&scheme| Some(scheme)))
}

fn forward(linear: &Linear, x: &[f32], scheme: Option<&'static dyn ActivationScheme>) -> Vec<f32> {
    let activations = Activations::new(x, linear.cols(), scheme);
    let mut out = vec![f32::NAN; activations.tokens() * linear.rows()];
    linear.forward(&activations, &mut out);
    out
}

/// An f32 sum of a few hundred products in interleaved lanes, relative to the sum of their magnitudes.
const FLOAT_SUM_TOLERANCE: f32 = 1e-6;

#[test]
fn forward_equals_the_reference() {
    for (rows, cols, tokens) in [(5, 33, 3), (70, 300, 1), (9, 768, 4), (1, 1, 2)] {
        let x = random_floats(4, tokens * cols);
        for (weights, ternary) in every_weights(rows, cols) {
            for (kernel, scheme) in kernels().into_iter().flat_map(|k| every_activation().map(move |s| (k, s))) {
                let linear = Linear::stacked(&[&weights], kernel, ternary);
                assert_eq!((linear.rows(), linear.cols()), (rows, cols));
                let out = forward(&linear, &x, scheme);
                let expected = bit_linear(&x, &weights, scheme);
                if matches!(weights, LinearWeights::Packed(_)) && scheme.is_some() {
                    assert_eq!(out, expected, "{kernel:?}: one rescale of equal integers");
                    continue;
                }
                for (i, (out, expected)) in out.iter().zip(&expected).enumerate() {
                    let magnitude = sum_of_magnitudes(&weights, i % rows, &x[i / rows * cols..][..cols]);
                    assert!((out - expected).abs() <= FLOAT_SUM_TOLERANCE * magnitude, "{kernel:?} {out} {expected}");
                }
            }
        }
    }
}

#[test]
fn groups_of_columns_equal_the_reference_in_several_panels() {
    let int8 = ACTIVATION_SCHEMES[0];
    for (rows, cols, tokens) in [(300, 160, 9), (300, 160, 40), (140, 515, 33)] {
        let (values, x) = (random_floats(6, rows * cols), random_floats(7, tokens * cols));
        for scheme in GROUPED_SCHEMES {
            let mut codes = vec![0; values.len()];
            let scales = scheme.quantize(&values, rows, &mut codes);
            let group = scheme.granularity().group_cols();
            let packed = PackedMatrix::pack_grouped(scheme.layout(), [rows, cols], group, &codes, scales);
            let weights = LinearWeights::Packed(packed.expect("codes of the scheme"));
            let expected = bit_linear(&x, &weights, Some(int8));
            for kernel in kernels() {
                let linear = Linear::new(&weights, kernel);
                assert!(forward(&linear, &x, Some(int8)) == expected, "{kernel:?} {}: {rows} x {cols}", scheme.name());
            }
        }
    }
}

fn sum_of_magnitudes(weights: &LinearWeights, row: usize, x: &[f32]) -> f32 {
    let mut w = vec![0f32; x.len()];
    match weights {
        LinearWeights::Packed(packed) => {
            let mut codes = vec![0; x.len()];
            packed.unpack_row(row, &mut codes);
            let scale_of = |col: usize| packed.scales_of(row)[packed.group().map_or(0, |group| col / group)];
            let weights = w.iter_mut().zip(codes).enumerate();
            weights.for_each(|(col, (w, code))| *w = f32::from(code) * scale_of(col));
        }
        LinearWeights::Float(matrix) => matrix.row_to_f32(row, &mut w),
    }
    w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum()
}

#[test]
fn results_depend_on_neither_batch_nor_threads() {
    // Large enough to be split over threads: by rows, or by tokens too where a kernel wants more rows a thread.
    for (rows, cols, tokens) in [(203, 517, 19), (410, 83, 150)] {
        check_batch_and_threads(rows, cols, tokens);
    }
}

fn check_batch_and_threads(rows: usize, cols: usize, tokens: usize) {
    let x = random_floats(5, tokens * cols);
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads start");
    let (one, three) = (pool(1), pool(3));
    for (weights, ternary) in every_weights(rows, cols) {
        for (kernel, scheme) in kernels().into_iter().flat_map(|k| every_activation().map(move |s| (k, s))) {
            let linear = Linear::stacked(&[&weights], kernel, ternary);
            let together = one.install(|| forward(&linear, &x, scheme));
            assert_eq!(three.install(|| forward(&linear, &x, scheme)), together, "{kernel:?}: threads");
            let alone: Vec<f32> = x.chunks(cols).flat_map(|x| forward(&linear, x, scheme)).collect();
            assert_eq!(alone, together, "{kernel:?}: batch");
        }
    }
}

#[test]
fn layout_takes_no_more_than_padding() {
    for kernel in kernels() {
        for layout in LAYOUTS {
            let ternary = if kernel.has_base3() { ternary_as(layout) } else { Ternary::TwoBit };
            // Five to a byte: the last block of 20 columns begins at 1020.
            let row_bytes = match layout {
                Layout::TwoBit => 256,
                Layout::Base3 => {
                    if ternary == Ternary::Base3 {
                        208
                    } else {
                        256
                    }
                }
                Layout::OneBit => 128,
                Layout::Int8 => 1024,
                Layout::Int4 => 512,
            };
            let packed = PackedMatrix::pack(layout, 64, 1024, &codes(Pattern::Highest, layout, 1 << 16), vec![0.5; 64]);
            let packed = LinearWeights::Packed(packed.expect("codes of the layout"));
            let linear = Linear::stacked(&[&packed], kernel, ternary_as(layout));
            assert_eq!(linear.byte_count(), 64 * row_bytes + 64 * 4, "{kernel:?} {layout:?}");
        }
    }
}

#[test]
fn kernels_are_found_by_name() {
    assert_eq!(by_name("scalar").expect("runs everywhere").name, "scalar");
    let reason = by_name("sse17").expect_err("unknown");
    assert!(reason.starts_with("there is no kernel `sse17`, expected one of: scalar"), "{reason}");
    for kernel in supported() {
        assert_eq!(by_name(kernel.name).expect("supported").name, kernel.name);
    }
}
