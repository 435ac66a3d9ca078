//! Every loop in every width: the same bits, and near what f64 gives.

use proptest::prelude::*;

use super::product::Product;
use super::*;

fn value(i: usize, seed: u32) -> f32 {
    ((i as f32 + seed as f32 * 1e-6) * 12.9898).sin()
}

fn values(n: usize, seed: u32) -> Vec<f32> {
    (0..n).map(|i| value(i, seed)).collect()
}

/// Runs `work` in every width and returns what it gave, the same bits each time.
fn in_every_width(work: impl Fn(Vectors) -> Vec<f32>) -> Vec<f32> {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let mut results = Vectors::supported().into_iter().map(|vectors| (vectors, work(vectors)));
    let (_, first) = results.next().expect("portable");
    for (vectors, result) in results {
        assert_eq!(bits(&result), bits(&first), "{vectors:?}");
    }
    first
}

#[test]
fn exponentials_are_within_two_units_in_the_last_place() {
    let x: Vec<f32> = (0..400_000).map(|i| -87.0 + i as f32 * (175.0 / 400_000.0)).collect();
    let found = in_every_width(|vectors| {
        let mut x = x.clone();
        vectors.exp(&mut x);
        x
    });
    for (&x, &found) in x.iter().zip(&found) {
        let exact = f64::from(x).exp();
        let unit = f64::from(f32::from_bits((exact as f32).to_bits() + 1)) - f64::from(exact as f32);
        assert!((f64::from(found) - exact).abs() <= 2.0 * unit, "e^{x}: {found}, exactly {exact}");
    }
    let ends = in_every_width(|vectors| {
        let mut x = vec![0.0, -0.0, -87.1, -1e30, f32::NEG_INFINITY];
        vectors.exp(&mut x);
        x
    });
    assert_eq!(ends, [1.0, 1.0, 0.0, 0.0, 0.0]);
}

#[test]
fn every_finite_f16_widens_exactly() {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|x| x.is_finite()).collect();
    let wide = in_every_width(|vectors| {
        let mut wide = vec![0f32; all.len()];
        vectors.widen_f16(&all, &mut wide);
        wide
    });
    assert!(all.iter().zip(&wide).all(|(narrow, wide)| narrow.to_f32().to_bits() == wide.to_bits()));
}

proptest! {
    #[test]
    fn products_are_those_of_f64((m, k, chunks, more) in (1usize..14, 1usize..70, 1usize..9, 0usize..5), seed in any::<u32>()) {
        let (n, a_stride) = (chunks * LANES, k + more);
        let (a, b, start) = (values(m * a_stride, seed), values(k * n, seed / 2), values(m * n, seed / 3));
        let found = in_every_width(|vectors| {
            let mut c = start.clone();
            vectors.add_product(&Product { a: &a, a_stride, b: &b, k, n }, &mut c);
            c
        });
        for (i, found) in found.iter().enumerate() {
            let (row, column) = (i / n, i % n);
            let sum: f64 = (0..k).map(|i| f64::from(a[row * a_stride + i]) * f64::from(b[i * n + column])).sum();
            prop_assert!((f64::from(*found) - f64::from(start[i]) - sum).abs() < 1e-5);
        }
    }

    #[test]
    fn loops_over_rows_give_the_same_bits(n in 1usize..140, seed in any::<u32>()) {
        let (x, y) = (values(n, seed), values(n, seed / 2));
        in_every_width(|vectors| {
            let mut out = vec![0.0; n];
            vectors.rms_norm_row(&x, &y, 1e-5, &mut out);
            out
        });
        let in_place = |work: fn(Vectors, &mut [f32], &[f32])| {
            in_every_width(|vectors| {
                let mut out = x.clone();
                work(vectors, &mut out, &y);
                out
            })
        };
        in_place(|vectors, x, y| vectors.gated_relu2(x, y));
        in_place(|vectors, x, y| vectors.add(x, y));
        in_place(|vectors, x, y| {
            let half = x.len() / 2;
            vectors.rotate_head(&mut x[..half * 2], &y[..half], &y[half..half * 2]);
        });
    }

    #[test]
    fn int8_widens_exactly(d in 1usize..40, codes in proptest::collection::vec(-127i8..=127, 40 * BLOCK), seed in any::<u32>()) {
        let (codes, steps) = (&codes[..d * BLOCK], values(BLOCK, seed));
        let check = |widen: fn(Vectors, &[i8], &[f32], &mut [f32]), position: &dyn Fn(usize) -> usize| {
            let wide = in_every_width(|vectors| {
                let mut wide = vec![0.0; codes.len()];
                widen(vectors, codes, &steps, &mut wide);
                wide
            });
            (0..codes.len()).all(|i| wide[i] == f32::from(codes[i]) * steps[position(i)])
        };
        prop_assert!(check(|vectors, codes, steps, wide| vectors.widen_int8_columns(codes, steps, wide), &|i| i % BLOCK));
        prop_assert!(check(|vectors, codes, steps, wide| vectors.widen_int8_rows(codes, steps, wide), &|i| i / d));
    }
}
