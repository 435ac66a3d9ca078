//! Float loops between the matrix products. The order of every sum is fixed: it depends on nothing but the length.

use bitnet_model::config::HiddenAct;
use bitnet_model::reference;

use super::kernels::Vectors;
use crate::kernels::team;

/// Rows that one task works on: enough to outweigh handing the task out.
pub(super) const ROWS_PER_TASK: usize = 8;

/// `x / sqrt(mean(x^2) + eps) * weight` over rows of `weight.len()` (arXiv:1910.07467), from `x` into `out`, in f64.
pub(super) fn rms_norm(vectors: Vectors, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for_rows(x, weight.len(), out, |(x, out)| vectors.rms_norm_row(x, weight, eps, out));
}

/// `activate(gate) * up` of one row, a gate and an up of the length of `out` each.
pub(super) fn gated_row(vectors: Vectors, act: HiddenAct, gate_up: &[f32], out: &mut [f32]) {
    let (gate, up) = gate_up.split_at(out.len());
    out.copy_from_slice(gate);
    match act {
        HiddenAct::Relu2 => vectors.gated_relu2(out, up),
        HiddenAct::Silu => out.iter_mut().zip(up).for_each(|(g, &u)| *g = reference::activate(act, *g) * u),
    }
}

/// The rows of `x` cut at the ends of the parts: columns of q, k and v into a matrix each, of `widths` columns.
pub(super) fn split(x: &[f32], [q, k, v]: [&mut [f32]; 3], widths: [usize; 3]) {
    let width: usize = widths.iter().sum();
    let some = widths.map(|width| width * ROWS_PER_TASK);
    let tasks = x.chunks(width * ROWS_PER_TASK).zip(q.chunks_mut(some[0]));
    let tasks = tasks.zip(k.chunks_mut(some[1])).zip(v.chunks_mut(some[2]));
    team::each(tasks.collect(), |(((x, q), k), v)| {
        let rows = x.chunks(width).zip(q.chunks_mut(widths[0]));
        for (((x, q), k), v) in rows.zip(k.chunks_mut(widths[1])).zip(v.chunks_mut(widths[2])) {
            q.copy_from_slice(&x[..widths[0]]);
            k.copy_from_slice(&x[widths[0]..][..widths[1]]);
            v.copy_from_slice(&x[widths[0] + widths[1]..]);
        }
    });
}

/// `x += y`, over rows of `width`.
pub(super) fn add(vectors: Vectors, x: &mut [f32], y: &[f32], width: usize) {
    for_rows(y, width, x, |(y, x)| vectors.add(x, y));
}

/// Rows of `width` values of `x`, each with its row of `out`.
fn for_rows(x: &[f32], width: usize, out: &mut [f32], row: impl Fn((&[f32], &mut [f32])) + Send + Sync) {
    if !x.is_empty() {
        let out_width = out.len() * width / x.len();
        let tasks = x.chunks(width * ROWS_PER_TASK).zip(out.chunks_mut(out_width * ROWS_PER_TASK));
        team::each(tasks.collect(), |(x, out)| {
            x.chunks_exact(width).zip(out.chunks_exact_mut(out_width)).for_each(&row);
        });
    }
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
                    let mut gate = vec![0f32; a.len()];
                    gated_row(vectors, act, &[a.clone(), b.clone()].concat(), &mut gate);
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
