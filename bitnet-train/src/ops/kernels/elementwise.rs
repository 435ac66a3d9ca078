//! Loops over rows and elements, written once and compiled for each instruction set.

use bitnet_model::quant::{AbsMaxInt8, ActivationScheme};

use super::softmax::exp;
use super::{lane_sum, multiversion};

/// Codes of one token by `scheme`, and its step.
pub fn quantize(scheme: &dyn ActivationScheme, x: &[f32], codes: &mut [i8]) -> f32 {
    if scheme.name() == AbsMaxInt8.name() { quantize_absmax(x, codes) } else { scheme.quantize(x, codes) }
}

multiversion! {
/// [`AbsMaxInt8`]'s own arithmetic, compiled for this CPU's vectors.
pub fn quantize_absmax(x: &[f32], codes: &mut [i8]) -> f32 {
    AbsMaxInt8.quantize(x, codes)
}
}

multiversion! {
/// `out = code * factor`.
pub fn expand(codes: &[i8], factor: f32, out: &mut [f32]) {
    for (o, &c) in out.iter_mut().zip(codes) {
        *o = f32::from(c) * factor;
    }
}
}

multiversion! {
/// `sum += x`.
pub fn add_to(sum: &mut [f32], x: &[f32]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += x);
}
}

multiversion! {
/// `out = x + y`.
pub fn add(x: &[f32], y: &[f32], out: &mut [f32]) {
    for ((o, &x), &y) in out.iter_mut().zip(x).zip(y) {
        *o = x + y;
    }
}
}

multiversion! {
/// RMSNorm of one row; returns the inverse root mean square, for the backward pass.
pub fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> f32 {
    let square = lane_sum(x.len(), |i| x[i] * x[i]);
    let inverse = 1.0 / (square / x.len() as f32 + eps).sqrt();
    for ((o, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * inverse * w;
    }
    inverse
}
}

multiversion! {
/// Backward pass of one row of RMSNorm: `dx = r (w dy) - x r^3 / n sum(w dy x)`, and `dw += dy x r`.
pub fn rms_norm_backward_row(x: &[f32], weight: &[f32], dy: &[f32], inverse: f32, dx: &mut [f32], dw: &mut [f32]) {
    let n = x.len();
    let (x, weight, dy, dx, dw) = (&x[..n], &weight[..n], &dy[..n], &mut dx[..n], &mut dw[..n]);
    let dot = lane_sum(n, |i| weight[i] * dy[i] * x[i]);
    let correction = dot * inverse * inverse * inverse / n as f32;
    for i in 0..n {
        dx[i] = inverse * weight[i] * dy[i] - x[i] * correction;
        dw[i] += dy[i] * x[i] * inverse;
    }
}
}

multiversion! {
/// `max(gate, 0)^2 * up`.
pub fn relu2_gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        let r = if g > 0.0 { g } else { 0.0 };
        *o = r * r * u;
    }
}
}

multiversion! {
/// Gradients of [`relu2_gate`].
pub fn relu2_gate_backward(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    for ((((&g, &u), &d), dg), du) in gate.iter().zip(up).zip(dy).zip(dgate.iter_mut()).zip(dup.iter_mut()) {
        let r = if g > 0.0 { g } else { 0.0 };
        *dg = d * u * 2.0 * r;
        *du = d * r * r;
    }
}
}

multiversion! {
/// `gate * sigmoid(gate) * up`.
pub fn silu_gate(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        *o = g / (1.0 + exp(-g)) * u;
    }
}
}

multiversion! {
/// Gradients of [`silu_gate`].
pub fn silu_gate_backward(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    for ((((&g, &u), &d), dg), du) in gate.iter().zip(up).zip(dy).zip(dgate.iter_mut()).zip(dup.iter_mut()) {
        let s = 1.0 / (1.0 + exp(-g));
        *dg = d * u * s * (1.0 + g * (1.0 - s));
        *du = d * g * s;
    }
}
}

multiversion! {
/// Rotates one head at one position: pairs `(x[j], x[j + half])` by angles given as cosines and sines. `direction` is 1,
/// or -1 for the inverse, which is also the gradient. `out` receives `factor` times the result.
pub fn rotate(x: &[f32], cos: &[f32], sin: &[f32], direction: f32, factor: f32, out: &mut [f32]) {
    let half = cos.len();
    let ((a, b), (out_a, out_b)) = (x.split_at(half), out.split_at_mut(half));
    // Of one length, so that no element is checked by itself.
    let (sin, b, out_b) = (&sin[..half], &b[..half], &mut out_b[..half]);
    for j in 0..half {
        let s = sin[j] * direction;
        out_a[j] = (a[j] * cos[j] - b[j] * s) * factor;
        out_b[j] = (b[j] * cos[j] + a[j] * s) * factor;
    }
}
}

multiversion! {
/// The sum of squares in f64, in interleaved partial sums.
pub fn square_sum(x: &[f32]) -> f64 {
    let mut lanes = [0f64; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(v) * f64::from(v);
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(v) * f64::from(v);
    }
    lanes.iter().sum()
}
}

/// What AdamW does to one parameter tensor in one step.
#[derive(Clone, Copy)]
pub struct AdamWStep {
    /// Factor on gradients (global-norm clipping).
    pub gradient_factor: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// `learning_rate / (1 - beta1^step)`.
    pub step_size: f32,
    /// `1 / sqrt(1 - beta2^step)`.
    pub inverse_root_bias2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// `1 - learning_rate * weight_decay`.
    pub decay_factor: f32,
}

multiversion! {
/// One AdamW step in place (arXiv:1711.05101, Algorithm 2, in PyTorch's order of operations). Returns whether all that it wrote
/// is finite; a first moment that is not spoils its weight.
pub fn adamw(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], step: &AdamWStep) -> bool {
    // Magnitudes as integers, in whose order no NaN is lost and infinity is below every NaN.
    let mut largest = 0i32;
    for (((w, m), v), &g) in w.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(g) {
        let g = g * step.gradient_factor;
        *m = step.beta1 * *m + (1.0 - step.beta1) * g;
        *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
        let root = v.sqrt() * step.inverse_root_bias2 + step.eps;
        *w = *w * step.decay_factor - step.step_size * *m / root;
        largest = largest.max((w.to_bits() & 0x7fff_ffff) as i32).max((v.to_bits() & 0x7fff_ffff) as i32);
    }
    largest < f32::INFINITY.to_bits() as i32
}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_scheme_bit_for_bit() {
        let scheme: &dyn ActivationScheme = &AbsMaxInt8;
        for len in (0..70).chain([255, 256, 257, 1000]) {
            for special in [None, Some(0.0), Some(f32::NAN), Some(f32::INFINITY), Some(1e-7)] {
                let mut x: Vec<f32> = (0..len).map(|i| ((i * i + 7 * len) as f32 * 0.37).sin() * 3.0).collect();
                match special {
                    Some(tiny) if tiny == 1e-7 => x.iter_mut().for_each(|x| *x *= tiny),
                    Some(special) => x.iter_mut().step_by(5).for_each(|x| *x = special),
                    None => {}
                }
                let [mut expected, mut found] = [0; 2].map(|_| vec![1i8; len]);
                let steps = [scheme.quantize(&x, &mut expected), quantize(scheme, &x, &mut found)];
                assert_eq!(steps[0].to_bits(), steps[1].to_bits(), "{len}, {special:?}");
                assert_eq!(expected, found, "{len}, {special:?}");
            }
        }
    }

    #[test]
    fn sums_of_squares_are_exact_in_f64() {
        for len in [0, 1, 15, 16, 17, 1000] {
            let x: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let exact: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            assert_eq!(square_sum(&x), exact, "{len}");
        }
    }
}
