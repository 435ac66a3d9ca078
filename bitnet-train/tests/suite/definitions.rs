//! What each smooth op is, in f64 and straight from its formula: independent of candle and of the fused kernels.

use bitnet_model::config::HiddenAct;
use bitnet_train::ops::AttentionSpec;

/// `x W^T`: `x [.., k]`, `w [n, k]`.
pub fn linear(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    x.chunks(k).flat_map(|x| w.chunks(k).map(move |w| dot(x, w))).collect()
}

/// `x / sqrt(mean(x^2) + eps) * weight` for each row.
pub fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let n = weight.len();
    let row = |x: &[f64]| {
        let root = (dot(x, x) / n as f64 + eps).sqrt();
        x.iter().zip(weight).map(|(x, w)| x / root * w).collect::<Vec<_>>()
    };
    x.chunks(n).flat_map(row).collect()
}

/// `act(gate) * up`.
pub fn gated(gate: &[f64], up: &[f64], act: HiddenAct) -> Vec<f64> {
    let activate = |g: f64| match act {
        HiddenAct::Relu2 => g.max(0.0).powi(2),
        HiddenAct::Silu => g / (1.0 + (-g).exp()),
    };
    gate.iter().zip(up).map(|(&g, u)| activate(g) * u).collect()
}

/// `mean(logsumexp(x head^T) - (x head^T)[target])`.
pub fn cross_entropy(x: &[f64], head: &[f64], targets: &[u32]) -> Vec<f64> {
    let h = x.len() / targets.len();
    let loss = |(x, &target): (&[f64], &u32)| {
        let logits: Vec<f64> = head.chunks(h).map(|w| dot(x, w)).collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = logits.iter().map(|l| (l - largest).exp()).sum();
        largest + total.ln() - logits[target as usize]
    };
    vec![x.chunks(h).zip(targets).map(loss).sum::<f64>() / targets.len() as f64]
}

/// Rotary positions and causal softmax attention of `q [b, t, heads * d]`, `k` and `v` `[b, t, kv_heads * d]`.
pub fn attention(q: &[f64], k: &[f64], v: &[f64], t: usize, spec: &AttentionSpec) -> Vec<f64> {
    let (d, heads, kv_heads) = (spec.head_dim, spec.heads, spec.kv_heads);
    let (q_width, kv_width) = (heads * d, kv_heads * d);
    let (q, k) = (rotated(q, q_width, t, spec), rotated(k, kv_width, t, spec));
    let mut out = vec![0.0; q.len()];
    for row in 0..q.len() / q_width {
        let first = row / t * t;
        for head in 0..heads {
            let kv = head / (heads / kv_heads) * d;
            let query = &q[row * q_width + head * d..][..d];
            let key = |s: usize| &k[s * kv_width + kv..][..d];
            let scores: Vec<f64> = (first..=row).map(|s| dot(query, key(s)) / (d as f64).sqrt()).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
            for (s, score) in (first..=row).zip(&scores) {
                let p = (score - largest).exp() / total;
                for i in 0..d {
                    out[row * q_width + head * d + i] += p * v[s * kv_width + kv + i];
                }
            }
        }
    }
    out
}

/// Pairs `(x[j], x[j + d / 2])` of each head turned by the table's angles.
fn rotated(x: &[f64], width: usize, t: usize, spec: &AttentionSpec) -> Vec<f64> {
    let (d, half) = (spec.head_dim, spec.head_dim / 2);
    let mut out = x.to_vec();
    for (row, (x, out)) in x.chunks(width).zip(out.chunks_mut(width)).enumerate() {
        for (x, out) in x.chunks(d).zip(out.chunks_mut(d)) {
            for j in 0..half {
                let angle = row % t * half + j;
                let (cos, sin) = (f64::from(spec.rope.cos[angle]), f64::from(spec.rope.sin[angle]));
                out[j] = x[j] * cos - x[j + half] * sin;
                out[j + half] = x[j + half] * cos + x[j] * sin;
            }
        }
    }
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
