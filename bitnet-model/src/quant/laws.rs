//! The laws every scheme must satisfy; a scheme in the table is tested by being there.

use proptest::prelude::*;

use super::*;
use crate::packed::{Layout, PackedMatrix};

fn matrix() -> impl Strategy<Value = (usize, Vec<f32>)> {
    (1usize..9, 1usize..140)
        .prop_flat_map(|(rows, cols)| (Just(rows), proptest::collection::vec(-4f32..4.0, rows * cols)))
}

/// Infinities and NaNs of either sign.
fn not_finite() -> impl Strategy<Value = f32> {
    any::<u32>().prop_map(|bits| f32::from_bits(bits | 0x7f80_0000))
}

fn quantized(scheme: &dyn WeightScheme, weights: &[f32], rows: usize) -> (Vec<i8>, Vec<f32>) {
    let mut codes = vec![0; weights.len()];
    let scales = scheme.quantize(weights, rows, &mut codes);
    (codes, scales)
}

fn check_weight_laws(scheme: &dyn WeightScheme, weights: &[f32], rows: usize) {
    // What the codes' memory held before plays no part either.
    let mut other = vec![77; weights.len()];
    let other_scales = scheme.quantize(weights, rows, &mut other);
    let again = (other, other_scales);
    let (codes, scales) = quantized(scheme, weights, rows);
    assert_eq!((&codes, &scales), (&again.0, &again.1), "{}: two results for one matrix", scheme.name());
    let cols = weights.len() / rows;
    assert_eq!(scales.len(), scheme.granularity().scale_count(rows, cols));
    assert!(scales.iter().all(|s| s.is_finite() && *s > 0.0), "{}: scale {scales:?}", scheme.name());
    assert!(codes.iter().all(|&c| scheme.is_code(c)), "{}: codes {codes:?}", scheme.name());
    // Scaling by a power of two is exact, so the codes must not move and the scale must follow exactly; the floor of the
    // scale is the documented exception.
    if scales.iter().all(|s| *s > 1e-3) {
        let doubled: Vec<f32> = weights.iter().map(|w| w * 2.0).collect();
        let (codes_2, scales_2) = quantized(scheme, &doubled, rows);
        assert_eq!(codes, codes_2, "{}: equivariance", scheme.name());
        let twice: Vec<f32> = scales.iter().map(|scale| scale * 2.0).collect();
        assert_eq!(twice, scales_2, "{}: equivariance", scheme.name());
    }
    // Where zero is a code, each weight has the nearest one under its scale (binary looks at the centred weight instead).
    if scheme.is_code(0) {
        let (low, high) = scheme.code_range();
        let per_row = scales.len() / rows;
        for (i, (&w, &code)) in weights.iter().zip(&codes).enumerate() {
            let column_group = i % cols / scheme.granularity().group_cols().unwrap_or(cols);
            let scale = if scales.len() == 1 { scales[0] } else { scales[i / cols * per_row + column_group] };
            let steps = f64::from(w) / f64::from(scale);
            let nearest = steps.clamp(f64::from(low), f64::from(high));
            let distance = (nearest - f64::from(code)).abs();
            assert!(distance < 0.5 + 1e-4, "{}: {w} of scale {scale} has code {code}", scheme.name());
        }
    }
    let group = scheme.granularity().group_cols();
    let packed = PackedMatrix::pack_grouped(scheme.layout(), [rows, cols], group, &codes, scales)
        .expect("codes of the scheme pack");
    assert_eq!(packed.unpack(), codes, "{}: pack round trip", scheme.name());
}

proptest! {
    #[test]
    fn every_weight_scheme_keeps_the_laws((rows, weights) in matrix()) {
        for scheme in WEIGHT_SCHEMES.iter().chain(GROUPED_SCHEMES) {
            check_weight_laws(*scheme, &weights, rows);
        }
    }

    #[test]
    fn weights_that_are_not_finite_leave_no_healthy_scale(
        (rows, weights) in matrix(),
        places in prop::collection::vec((any::<prop::sample::Index>(), not_finite()), 1..4),
    ) {
        let mut broken = weights.clone();
        let mut indices: Vec<usize> = places.iter().map(|(place, _)| place.index(weights.len())).collect();
        indices.iter().zip(&places).for_each(|(&index, &(_, value))| broken[index] = value);
        indices.sort_unstable();
        let cols = weights.len() / rows;
        for scheme in WEIGHT_SCHEMES.iter().chain(GROUPED_SCHEMES) {
            let mut codes = vec![0; weights.len()];
            prop_assert!(quantize(*scheme, &weights, rows, &mut codes).is_ok());
            let refused = quantize(*scheme, &broken, rows, &mut codes);
            prop_assert_eq!(refused, Err(format!("holds NaN or infinity at element {}", indices[0])), "{}", scheme.name());
            // Every scale tells of its own weights.
            let scales = scheme.quantize(&broken, rows, &mut codes);
            let group = scheme.granularity().group_cols().unwrap_or(cols);
            let of_row = cols.div_ceil(group);
            for (i, scale) in scales.iter().enumerate() {
                let (row, first) = (i / of_row, i % of_row * group);
                let mine = match scheme.granularity() {
                    Granularity::Tensor => &broken[..],
                    _ => &broken[row * cols..][..cols][first..(first + group).min(cols)],
                };
                prop_assert_eq!(scale.is_finite(), mine.iter().all(|w| w.is_finite()), "{}: {}", scheme.name(), scale);
            }
        }
    }

    #[test]
    fn a_token_that_is_not_finite_has_no_finite_step(
        mut x in proptest::collection::vec(-1e4f32..1e4, 1..300),
        place in any::<prop::sample::Index>(),
        value in not_finite(),
    ) {
        let place = place.index(x.len());
        x[place] = value;
        for scheme in ACTIVATION_SCHEMES {
            prop_assert!(!scheme.quantize(&x, &mut vec![0; x.len()]).is_finite());
        }
    }

    #[test]
    fn every_activation_scheme_reconstructs_within_half_a_step(x in proptest::collection::vec(-1e4f32..1e4, 1..300)) {
        for scheme in ACTIVATION_SCHEMES {
            let mut codes = vec![0; x.len()];
            let step = scheme.quantize(&x, &mut codes);
            prop_assert!(step > 0.0 && step.is_finite());
            for (&v, &c) in x.iter().zip(&codes) {
                prop_assert!(c.unsigned_abs() <= scheme.max_code() as u8);
                prop_assert!((v - f32::from(c) * step).abs() <= step * 0.5001);
            }
        }
    }

    #[test]
    fn rounding_is_half_to_even(x in -4_000_000f32..4_000_000.0) {
        prop_assert_eq!(round_half_even(x), x.round_ties_even());
    }

    #[test]
    fn codes_are_rounded_and_limited(
        bits in any::<u32>(),
        near in -200f32..200.0,
        limit in prop::sample::select([1f32, 7.0, 127.0].as_slice()),
    ) {
        // Any float at all, infinities and every NaN among them, and those that matter most.
        for x in [f32::from_bits(bits), f32::from_bits(bits | 0x7f80_0000), near, near.round() + 0.5] {
            let expected = x.clamp(-limit, limit).round_ties_even() as i8;
            prop_assert_eq!(to_code(x, 1.0, limit), expected, "{}", x);
        }
    }
}

#[test]
fn zero_and_constant_matrices_have_positive_scales() {
    for scheme in WEIGHT_SCHEMES.iter().chain(GROUPED_SCHEMES) {
        let limit = f32::from(scheme.code_range().1);
        for (value, size) in [(0.0, 1e-5), (1e-9, 1e-5), (-3.0, 3.0)] {
            check_weight_laws(*scheme, &[value; 12], 3);
            let (_, scales) = quantized(*scheme, &[value; 12], 3);
            assert!(scales.iter().all(|scale| *scale == size / limit), "{}, {value}: {scales:?}", scheme.name());
        }
    }
}

#[test]
fn ties_round_to_even_in_codes() {
    // mean|W| of these is exactly 1, so 0.5 is a tie between 0 and 1 and 1.5 one between 1 and 2 (clamped).
    let (codes, scales) = quantized(&ternary::AbsMean, &[0.5, -0.5, 1.5, -1.5], 1);
    assert_eq!((codes, scales), (vec![0, 0, 1, -1], vec![1.0]));
}

#[test]
fn binary_is_centred_and_zero_is_minus_one() {
    // mean 1, mean|W| 2: 1 - 1 = 0 counts as -1.
    let (codes, scales) = quantized(&binary::CentredSign, &[3.0, -1.0, 3.0, -1.0, 1.0, 1.0], 2);
    assert_eq!((codes, scales), (vec![1, -1, 1, -1, -1, -1], vec![10.0 / 6.0]));
}

#[test]
fn normal_weights_give_the_known_share_of_zeros() {
    // 31.0 % for N(0, 1) under absmean: P(|w| < 0.5 * sqrt(2 / pi)).
    use rand::Rng;
    let mut rng = crate::rng::generator(1, crate::rng::Stream::Bench);
    let normal: Vec<f32> = (0..200_000)
        .map(|_| {
            let (u, v): (f64, f64) = (rng.random_range(1e-12..1.0), rng.random());
            ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
        })
        .collect();
    let (codes, scales) = quantized(&ternary::AbsMean, &normal, 1);
    let zeros = codes.iter().filter(|&&c| c == 0).count() as f64 / codes.len() as f64;
    assert!((zeros - 0.310).abs() < 0.004, "{zeros}");
    assert!((scales[0] - 0.7979).abs() < 0.005, "{scales:?}");
}

#[test]
fn unknown_names_list_the_known_ones() {
    let reason = weight_scheme("trinary").err().expect("unknown");
    assert_eq!(
        reason,
        "is `trinary`, expected one of: none, ternary, binary, int8, int4, int8-g32, int8-g64, int8-g128, int4-g32, int4-g64, int4-g128"
    );
    assert!(weight_scheme("none").expect("known").is_none());
}

#[test]
fn codes_reach_the_ends_of_their_range_and_no_further() {
    let weights: Vec<f32> = (-60..=60).map(|i| i as f32).collect();
    for scheme in WEIGHT_SCHEMES.iter().chain(GROUPED_SCHEMES) {
        let (codes, _) = quantized(*scheme, &weights, 1);
        let ends = (*codes.iter().min().expect("some"), *codes.iter().max().expect("some"));
        assert_eq!(scheme.code_range(), ends, "{}", scheme.name());
        assert!(scheme.is_code(ends.0) && scheme.is_code(ends.1), "{}", scheme.name());
        let beyond = [ends.0.checked_sub(1), ends.1.checked_add(1)];
        assert!(beyond.into_iter().flatten().all(|code| !scheme.is_code(code)), "{}", scheme.name());
        assert_eq!(scheme.is_code(0), codes.contains(&0), "{}", scheme.name());
    }
    for scheme in ACTIVATION_SCHEMES {
        let mut codes = vec![0; weights.len()];
        scheme.quantize(&weights, &mut codes);
        assert_eq!(codes.iter().max(), Some(&scheme.max_code()), "{}", scheme.name());
        assert_eq!(codes.iter().min(), Some(&-scheme.max_code()), "{}", scheme.name());
    }
}

#[test]
fn scales_belong_to_the_matrix_a_row_or_a_group() {
    let counted = |granularity: Granularity| [(1, 1), (3, 64), (3, 65)].map(|(r, c)| granularity.scale_count(r, c));
    assert_eq!(counted(Granularity::Tensor), [1, 1, 1]);
    assert_eq!(counted(Granularity::Row), [1, 3, 3]);
    assert_eq!(counted(Granularity::Group(32)), [1, 6, 9]);
    assert_eq!([Granularity::Tensor, Granularity::Row].map(Granularity::group_cols), [None; 2]);
    assert_eq!(Granularity::Group(64).group_cols(), Some(64));
    assert_eq!([scale_of(&[2.0], 5), scale_of(&[2.0, 3.0], 0), scale_of(&[2.0, 3.0], 1)], [2.0, 2.0, 3.0]);
    // One row's sizes leave another row's codes alone.
    let (codes, scales) = quantized(&integer::INT8, &[1.0, -2.0, 100.0, 60.0], 2);
    assert_eq!((codes, scales), (vec![64, -127, 127, 76], vec![2.0 / 127.0, 100.0 / 127.0]));
}

#[test]
fn the_floats_behind_a_sum_are_rounded_in_one_order() {
    // (3 * 0.1) * 0.9 and 3 * (0.1 * 0.9) differ in the last bit.
    let (step, scale) = (0.1f32, 0.9f32);
    assert_eq!(rescale(3, step, scale), (3.0 * step) * scale);
    assert_ne!(rescale(3, step, scale), 3.0 * (step * scale));
    assert_eq!(rescale(-7, 0.5, 4.0), -14.0);
    assert_eq!(add_group(add_group(0.0, 3, 2.0), -5, 0.5), 3.5);
}

#[test]
fn schemes_are_known_by_name() {
    for scheme in ACTIVATION_SCHEMES {
        let found = activation_scheme(scheme.name()).expect("known").expect("not none");
        assert_eq!(found.name(), scheme.name());
    }
    for scheme in WEIGHT_SCHEMES.iter().chain(GROUPED_SCHEMES) {
        let found = weight_scheme(scheme.name()).expect("known").expect("not none");
        let (kind, group) = scheme.name().split_once("-g").unwrap_or((scheme.name(), ""));
        let (layout, whole) = match kind {
            "ternary" => (Layout::TwoBit, Granularity::Tensor),
            "binary" => (Layout::OneBit, Granularity::Tensor),
            "int8" => (Layout::Int8, Granularity::Row),
            _ => (Layout::Int4, Granularity::Row),
        };
        let granularity = group.parse().map_or(whole, Granularity::Group);
        let told = (found.name(), found.layout(), found.granularity());
        assert_eq!(told, (scheme.name(), layout, granularity));
    }
    assert!(activation_scheme("none").expect("known").is_none());
    assert_eq!(activation_scheme("int4").err().expect("unknown"), "is `int4`, expected one of: none, int8");
}

/// A count that does not divide has no rows; no rows have no columns.
#[test]
fn weights_that_make_no_rows_are_a_panic() {
    for rows in [0, 4] {
        let caught = std::panic::catch_unwind(|| quantized(&integer::INT4, &[1.0; 6], rows));
        let message = *caught.expect_err("6 weights").downcast::<&str>().expect("a text");
        assert_eq!(message, "a whole number of columns");
    }
}
