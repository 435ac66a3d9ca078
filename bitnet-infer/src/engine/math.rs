//! Float loops between the matrix products. The order of every sum is fixed: it depends on nothing but the length.

use bitnet_model::config::HiddenAct;
use bitnet_model::reference;
use rayon::prelude::*;

/// Rows that one task works on: enough to outweigh handing the task out.
const ROWS_PER_TASK: usize = 8;

/// `x / sqrt(mean(x^2) + eps) * weight` over rows of `weight.len()` (arXiv:1910.07467), from `x` into `out`.
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let row = |(x, out): (&[f32], &mut [f32])| {
        let mean_square = sum_of_squares(x) / width as f64;
        let inverse = 1.0 / (mean_square + f64::from(eps)).sqrt();
        for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
            *out = (f64::from(x) * inverse * f64::from(w)) as f32;
        }
    };
    for_rows(x, width, out, row);
}

/// `activate(gate) * up`, into `gate`.
pub(super) fn gated(act: HiddenAct, gate: &mut [f32], up: &[f32], width: usize) {
    for_rows(up, width, gate, |(up, gate)| match act {
        HiddenAct::Relu2 => gate.iter_mut().zip(up).for_each(|(g, &u)| *g = (g.max(0.0) * g.max(0.0)) * u),
        HiddenAct::Silu => gate.iter_mut().zip(up).for_each(|(g, &u)| *g = reference::activate(act, *g) * u),
    });
}

/// `x += y`.
pub(super) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// Turns scores into `softmax(scale * scores)` in place, for a positive `scale`.
pub(super) fn softmax(scores: &mut [f32], scale: f32) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0f64;
    for score in scores.iter_mut() {
        *score = (scale * (*score - largest)).exp();
        total += f64::from(*score);
    }
    let inverse = (1.0 / total) as f32;
    scores.iter_mut().for_each(|score| *score *= inverse);
}

fn for_rows(x: &[f32], width: usize, out: &mut [f32], row: impl Fn((&[f32], &mut [f32])) + Sync) {
    let task = width * ROWS_PER_TASK;
    if x.len() <= task {
        return x.chunks_exact(width).zip(out.chunks_exact_mut(width)).for_each(row);
    }
    x.par_chunks(task)
        .zip(out.par_chunks_mut(task))
        .for_each(|(x, out)| x.chunks_exact(width).zip(out.chunks_exact_mut(width)).for_each(&row));
}

/// In f64 over eight lanes: a norm's sum decides every code behind it, and is too short to matter for speed.
fn sum_of_squares(x: &[f32]) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = x.chunks_exact(8);
    let rest: f64 = chunks.remainder().iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(v) * f64::from(v);
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn loops_agree_with_plain_f64_sums(
            (a, b) in (1usize..70).prop_flat_map(|n| (proptest::collection::vec(-2f32..2.0, n), proptest::collection::vec(-2f32..2.0, n))),
        ) {
            let mut normed = vec![0f32; a.len()];
            rms_norm(&a, &b, 1e-5, &mut normed);
            let expected = reference::rms_norm(&a, &b, 1e-5);
            prop_assert!(normed.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()));

            for act in [HiddenAct::Relu2, HiddenAct::Silu] {
                let mut gate = a.clone();
                gated(act, &mut gate, &b, a.len());
                let expected: Vec<f32> = a.iter().zip(&b).map(|(&g, &u)| reference::activate(act, g) * u).collect();
                prop_assert_eq!(gate, expected);
            }

            let mut weights = a.clone();
            softmax(&mut weights, 0.7);
            prop_assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let total: f64 = a.iter().map(|&v| (0.7 * f64::from(v)).exp()).sum();
            let expected = |v: f32| (0.7 * f64::from(v)).exp() / total;
            prop_assert!(weights.iter().zip(&a).all(|(&w, &v)| (f64::from(w) - expected(v)).abs() < 1e-6));
        }
    }
}
