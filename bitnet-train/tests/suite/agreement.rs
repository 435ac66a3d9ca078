//! The fused ops against the readable ones on random shapes, and BitLinear's gradients against their definition.

use std::sync::Arc;

use bitnet_model::config::HiddenAct;
use bitnet_model::quant::{ActivationScheme, WeightScheme};
use bitnet_train::ops::{AttentionSpec, FusedOps, Ops, ReferenceOps, RopeTable};
use candle_core::{Result, Tensor};
use proptest::prelude::*;

use crate::support::{
    activation_schemes, differentiate, estimators, every_ops, random, relative, spec, tensor, weight_schemes,
};

/// Both implementations on the same inputs: outputs and all gradients within [`TOLERANCE`] in norm.
///
/// `size` is the usual magnitude of one output and of one gradient. Where everything happens to cancel (a handful of
/// numbers, a softmax that is sure of itself), the error is measured by that instead: it is as large as the terms were.
fn check_agreement(
    what: &str,
    inputs: &[(Vec<f32>, Vec<usize>)],
    size: [f64; 2],
    compute: impl Fn(&dyn Ops, &[Tensor]) -> Result<Tensor>,
) {
    let fused = differentiate(inputs, 5, |x| compute(&FusedOps::default(), x));
    let reference = differentiate(inputs, 5, |x| compute(&ReferenceOps, x));
    let norm = |x: &[f32]| x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let distance = |a: &[f32], b: &[f32]| norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f32>>());
    let usual = |x: &[f32], size: f64| norm(x).max(size * (x.len() as f64).sqrt());

    let error = distance(&fused.output, &reference.output) / usual(&reference.output, size[0]);
    assert!(error < TOLERANCE, "{what}: outputs differ by {error:.2e} of their norm");
    // Of the largest gradient: that of attention's queries and keys is all cancellation when there is one token.
    let largest = reference.gradients.iter().map(|g| usual(g, size[1])).fold(0.0, f64::max);
    for (i, (a, b)) in fused.gradients.iter().zip(&reference.gradients).enumerate() {
        let error = distance(a, b) / largest;
        assert!(error < TOLERANCE, "{what}: gradients of input {i} differ by {error:.2e} of the largest norm");
    }
}

fn input(seed: u64, shape: &[usize]) -> (Vec<f32>, Vec<usize>) {
    (random(seed, shape.iter().product()), shape.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn rms_norms_agree(b in 1usize..4, t in 1usize..50, h in 1usize..80, seed in any::<u64>()) {
        let inputs = [input(seed, &[b, t, h]), input(seed ^ 1, &[h])];
        check_agreement("rms_norm", &inputs, [1.0, 1.0], |ops, x| ops.rms_norm(&x[0], &x[1], 1e-5));
    }

    #[test]
    fn attentions_agree(b in 1usize..3, t in 1usize..140, kv in 1usize..4, group in 1usize..4, half in 1usize..9, seed in any::<u64>()) {
        let (heads, head_dim) = (kv * group, half * 2);
        let rope = Arc::new(RopeTable::new(t, head_dim, 500_000.0));
        let spec = AttentionSpec { heads, kv_heads: kv, head_dim, rope };
        let (q, k) = ([b, t, heads * head_dim], [b, t, kv * head_dim]);
        let inputs = [input(seed, &q), input(seed ^ 1, &k), input(seed ^ 2, &k)];
        check_agreement("attention", &inputs, [0.1, 0.1], |ops, x| ops.attention(&x[0], &x[1], &x[2], &spec));
    }

    #[test]
    fn gates_agree(b in 1usize..4, t in 1usize..40, f in 1usize..300, silu in any::<bool>(), seed in any::<u64>()) {
        let act = if silu { HiddenAct::Silu } else { HiddenAct::Relu2 };
        let inputs = [input(seed, &[b, t, f]), input(seed ^ 1, &[b, t, f])];
        check_agreement("gated", &inputs, [0.5, 0.5], |ops, x| ops.gated(&x[0], &x[1], act));
    }

    #[test]
    fn cross_entropies_agree(t in 1usize..600, v in 1usize..70, h in 1usize..40, seed in any::<u64>()) {
        let targets: Vec<u32> = (0..t).map(|i| (i as u64).wrapping_mul(seed | 1) as u32 % v as u32).collect();
        let inputs = [input(seed, &[1, t, h]), input(seed ^ 1, &[v, h])];
        check_agreement("cross_entropy", &inputs, [1.0, 0.3 / t as f64], |ops, x| ops.cross_entropy(&x[0], &x[1], &targets));
    }

    #[test]
    fn bit_linears_agree_under_every_scheme(b in 1usize..3, t in 1usize..40, n in 1usize..70, k in 1usize..150, seed in any::<u64>()) {
        let inputs = [input(seed, &[b, t, k]), input(seed ^ 1, &[n, k])];
        for weight in weight_schemes() {
            for activation in activation_schemes() {
                for estimator in estimators() {
                    let what = format!("bit_linear {weight}/{activation}/{estimator}");
                    let spec = spec(weight, activation, estimator);
                    check_agreement(&what, &inputs, [(k as f64).sqrt(), 0.5], |ops, x| ops.bit_linear(&x[0], &x[1], &spec));
                }
            }
        }
    }
}

/// A query that sees one key gives it all its weight, whatever both are: no gradient, not even a rounding.
#[test]
fn attention_to_one_key_has_no_gradient_of_queries_and_keys() {
    for seed in 0..20 {
        let (heads, kv_heads, head_dim) = (6, 2, 14);
        let rope = Arc::new(RopeTable::new(1, head_dim, 10_000.0));
        let spec = AttentionSpec { heads, kv_heads, head_dim, rope };
        let (q, k) = ([3, 1, heads * head_dim], [3, 1, kv_heads * head_dim]);
        let inputs = [input(seed, &q), input(seed ^ 1, &k), input(seed ^ 2, &k)];
        let found = differentiate(&inputs, 5, |x| FusedOps::default().attention(&x[0], &x[1], &x[2], &spec));
        assert!(found.gradients[..2].iter().flatten().all(|&g| g == 0.0), "{:?}", &found.gradients[..2]);
        assert!(found.gradients[2].iter().all(|&g| g != 0.0));
    }
}

/// Codes times scale, row by row, as the scheme says; the values themselves without a scheme.
fn dequantized_weights(scheme: Option<&dyn WeightScheme>, w: &[f32], rows: usize) -> (Vec<f64>, Vec<f32>, f32) {
    let Some(scheme) = scheme else { return (w.iter().map(|&w| f64::from(w)).collect(), vec![], f32::INFINITY) };
    let mut codes = vec![0; w.len()];
    let mut scales = scheme.quantize(w, rows, &mut codes);
    if scales.len() == 1 {
        scales = vec![scales[0]; rows];
    }
    let cols = w.len() / rows;
    let values = codes.iter().enumerate().map(|(i, &c)| f64::from(c) * f64::from(scales[i / cols])).collect();
    (values, scales, f32::from(scheme.code_range().1))
}

fn dequantized_inputs(scheme: Option<&dyn ActivationScheme>, x: &[f32], cols: usize) -> Vec<f64> {
    let Some(scheme) = scheme else { return x.iter().map(|&x| f64::from(x)).collect() };
    let mut codes = vec![0; cols];
    let row = |x: &[f32]| -> Vec<f64> {
        let step = scheme.quantize(x, &mut codes);
        codes.iter().map(|&c| f64::from(c) * f64::from(step)).collect()
    };
    x.chunks(cols).flat_map(row).collect()
}

/// `dX = dY W_q` (the input's quantizer is the identity to the gradient) and `dW = dY^T x_q`, which `clipped-ste` sets to
/// zero where `|w|` is beyond the outermost code plus a half.
#[test]
fn bit_linear_has_the_gradient_that_its_estimator_says() {
    let (t, n, k) = (13, 9, 31);
    let (x, w) = (input(1, &[1, t, k]), input(2, &[n, k]));
    let r = random(5, t * n);
    for weight in weight_schemes() {
        for activation in activation_schemes() {
            for estimator in estimators() {
                let what = format!("{weight}/{activation}/{estimator}");
                let spec = spec(weight, activation, estimator);
                let x_q = dequantized_inputs(spec.quantization.activation, &x.0, k);
                let (w_q, scales, max_code) = dequantized_weights(spec.quantization.weight, &w.0, n);
                let dy = |token: usize, row: usize| f64::from(r[token * n + row]);
                let dx: Vec<f32> = (0..t * k)
                    .map(|i| (0..n).map(|row| dy(i / k, row) * w_q[row * k + i % k]).sum::<f64>() as f32)
                    .collect();
                let clipped = |i: usize| {
                    estimator == "clipped-ste" && !scales.is_empty() && w.0[i].abs() > (max_code + 0.5) * scales[i / k]
                };
                let dw: Vec<f32> = (0..n * k)
                    .map(|i| (0..t).map(|token| dy(token, i / k) * x_q[token * k + i % k]).sum::<f64>() as f32)
                    .enumerate()
                    .map(|(i, g)| if clipped(i) { 0.0 } else { g })
                    .collect();
                let clipped_count = (0..n * k).filter(|&i| clipped(i)).count();
                let expect_clipping = estimator == "clipped-ste" && ["ternary", "binary"].contains(&weight);
                assert_eq!(clipped_count > 0, expect_clipping, "{what}: {clipped_count} clipped");

                for ops in every_ops() {
                    let found = differentiate(&[x.clone(), w.clone()], 5, |x| ops.bit_linear(&x[0], &x[1], &spec));
                    let errors = [relative(&found.gradients[0], &dx), relative(&found.gradients[1], &dw)];
                    assert!(errors.iter().all(|&e| e < 1e-6), "{what}, {}: dX, dW differ by {errors:?}", ops.name());
                    let zeros = found.gradients[1].iter().filter(|&&g| g == 0.0).count();
                    assert_eq!(zeros, clipped_count, "{what}, {}: zeros where nothing is clipped", ops.name());
                }
            }
        }
    }
}

/// With all codes at the limit a sum passes 2^24, beyond which f32 holds no odd integers: the columns must be split.
#[test]
fn large_int8_products_are_exact_integers() {
    let spec = spec("int8", "int8", "ste");
    let (t, n) = (3, 5);
    for k in [1040, 1041, 3000, 9001] {
        for alternate in [false, true] {
            let sign = |i: usize, period: usize| if alternate && (i / period).is_multiple_of(3) { -1.0 } else { 1.0 };
            // Magnitudes just below a power of two make the steps inexact; the largest of each row makes its code 127.
            let x: Vec<f32> = (0..t * k).map(|i| 1.9 * sign(i, 7) * (1.0 + (i / k) as f32)).collect();
            let mut w: Vec<f32> = (0..n * k).map(|i| 0.7 * sign(i, 11)).collect();
            // One weight of another code makes the sums odd.
            w.chunks_mut(k).enumerate().for_each(|(row, w)| w[row] = 0.7 * (row as f32) / 127.0);
            let (mut x_codes, mut w_codes) = (vec![0i8; t * k], vec![0i8; n * k]);
            let quantize =
                |(x, codes): (&[f32], &mut [i8])| spec.quantization.activation.expect("int8").quantize(x, codes);
            let steps: Vec<f32> = x.chunks(k).zip(x_codes.chunks_mut(k)).map(quantize).collect();
            let scales = spec.quantization.weight.expect("int8").quantize(&w, n, &mut w_codes);
            assert!(
                x_codes.iter().all(|c| c.abs() == 127)
                    && w_codes.iter().filter(|c| c.abs() == 127).count() == n * (k - 1)
            );

            let sums = |i: usize| -> i64 {
                let (x, w) = (&x_codes[i / n * k..][..k], &w_codes[i % n * k..][..k]);
                x.iter().zip(w).map(|(&x, &w)| i64::from(x) * i64::from(w)).sum()
            };
            let expected: Vec<f32> = (0..t * n).map(|i| sums(i) as f32 * steps[i / n] * scales[i % n]).collect();
            let y =
                FusedOps::default().bit_linear(&tensor(&x, &[1, t, k]), &tensor(&w, &[n, k]), &spec).expect("computes");
            assert_eq!(crate::support::flat(&y), expected, "K = {k}, alternating signs: {alternate}");
        }
    }
}

/// A few roundings of f32 in another order, of the norm.
const TOLERANCE: f64 = 1e-5;
