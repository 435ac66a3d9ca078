//! Float loops between the matrix products. The order of every sum is fixed: it depends on nothing but the length.

use bitnet_model::config::HiddenAct;
use bitnet_model::reference;
use rayon::prelude::*;

use super::kernels::Vectors;

/// Rows that one task works on: enough to outweigh handing the task out.
const ROWS_PER_TASK: usize = 8;

/// `x / sqrt(mean(x^2) + eps) * weight` over rows of `weight.len()` (arXiv:1910.07467), from `x` into `out`, in f64.
pub(super) fn rms_norm(vectors: Vectors, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for_rows(x, weight.len(), out, |(x, out)| vectors.rms_norm_row(x, weight, eps, out));
}

/// `activate(gate) * up`, into `gate`.
pub(super) fn gated(vectors: Vectors, act: HiddenAct, gate: &mut [f32], up: &[f32], width: usize) {
    for_rows(up, width, gate, |(up, gate)| match act {
        HiddenAct::Relu2 => vectors.gated_relu2(gate, up),
        HiddenAct::Silu => gate.iter_mut().zip(up).for_each(|(g, &u)| *g = reference::activate(act, *g) * u),
    });
}

/// `x += y`, over rows of `width`.
pub(super) fn add(vectors: Vectors, x: &mut [f32], y: &[f32], width: usize) {
    for_rows(y, width, x, |(y, x)| vectors.add(x, y));
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn loops_agree_with_plain_f64_sums(
            (a, b) in (1usize..70).prop_flat_map(|n| (proptest::collection::vec(-2f32..2.0, n), proptest::collection::vec(-2f32..2.0, n))),
        ) {
            for vectors in Vectors::supported() {
                let mut normed = vec![0f32; a.len()];
                rms_norm(vectors, &a, &b, 1e-5, &mut normed);
                let expected = reference::rms_norm(&a, &b, 1e-5);
                prop_assert!(normed.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs()));

                for act in [HiddenAct::Relu2, HiddenAct::Silu] {
                    let mut gate = a.clone();
                    gated(vectors, act, &mut gate, &b, a.len());
                    let expected: Vec<f32> = a.iter().zip(&b).map(|(&g, &u)| reference::activate(act, g) * u).collect();
                    prop_assert_eq!(gate, expected);
                }

                let mut sum = a.clone();
                add(vectors, &mut sum, &b, a.len());
                prop_assert!(sum.iter().zip(a.iter().zip(&b)).all(|(sum, (a, b))| *sum == a + b));
            }
        }
    }
}
