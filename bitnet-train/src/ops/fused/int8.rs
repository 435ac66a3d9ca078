//! `backward = "int8"`, for research: gradients that enter the products of projections are quantized too, and both backward
//! products are exact integer sums on the engine's kernels.
//!
//! ```text
//! dx = dy W_q      rows of dy times the scales of W's rows, a step for each token
//! dW = dy^T x_q    rows of dy^T times the steps of x's tokens, a step for each output feature
//! ```
//!
//! Codes are rounded up or down at random, in proportion to the distance, so that their mean is the gradient. The random
//! numbers are a function of the run's seed, the batch, the product and the row: a resumed run draws the same ones.

use bitnet_infer::kernels::Kernel;
use bitnet_infer::linear::{Activations, Linear};
use bitnet_model::packed::{Layout, PackedMatrix};
use bitnet_model::rng::{Stream, generator};
use bitnet_model::weights::LinearWeights;
use rand::RngCore;
use rayon::prelude::*;

/// Where the random numbers of a pass come from.
#[derive(Clone, Copy)]
pub(super) struct Noise {
    /// The run's.
    pub(super) seed: u64,
    /// The batch's number in the run.
    pub(super) batch: u64,
    /// The product's number in the pass, below [`PRODUCTS`].
    pub(super) product: u64,
}

/// Largest magnitude of a code.
const MAX_CODE: f32 = 127.0;

/// Products of a pass, at most.
pub(super) const PRODUCTS: u64 = 1 << 14;

impl Noise {
    /// A seed for this product alone.
    fn product_seed(self) -> u64 {
        let mut rng = generator(self.seed, Stream::Rounding);
        rng.set_word_pos(2 * (u128::from(self.batch) * u128::from(PRODUCTS) + u128::from(self.product)));
        rng.next_u64()
    }

    /// Quantizes `rows` rows of `cols` numbers, which `row(i, out)` writes.
    pub(super) fn quantize(self, [rows, cols]: [usize; 2], row: impl Fn(usize, &mut [f32]) + Sync) -> Activations {
        let seed = self.product_seed();
        let mut codes = vec![0i8; rows * cols];
        let quantize = |(i, codes): (usize, &mut [i8])| {
            let mut values = vec![0f32; cols];
            row(i, &mut values);
            let mut rng = generator(seed, Stream::Rounding);
            rng.set_word_pos(i as u128 * cols as u128);
            round_at_random(&values, codes, || rng.next_u32())
        };
        let steps = codes.par_chunks_mut(cols).enumerate().map(quantize).collect();
        Activations::from_codes(&codes, steps, cols)
    }
}

/// Codes of one row and its step: the largest magnitude becomes 127. Where a value is not finite, neither is the step, so
/// that what is computed with it is not mistaken for a gradient.
fn round_at_random(values: &[f32], codes: &mut [i8], mut bits: impl FnMut() -> u32) -> f32 {
    let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    if !values.iter().all(|x| x.is_finite()) {
        codes.fill(0);
        return f32::NAN;
    }
    if largest == 0.0 {
        codes.fill(0);
        return 1.0;
    }
    let step = largest / MAX_CODE;
    for (code, x) in codes.iter_mut().zip(values) {
        // 24 bits: in [0, 1), exactly.
        let uniform = (bits() >> 8) as f32 / (1 << 24) as f32;
        *code = (x / step + uniform).floor().clamp(-MAX_CODE, MAX_CODE) as i8;
    }
    step
}

/// The transpose of `codes`, `[rows, cols]` in rows of `stride`, ready for products; its scales are 1.
///
/// # Panics
/// If the codes do not fit the layout.
pub(super) fn transposed(
    codes: &[i8],
    [rows, cols, stride]: [usize; 3],
    layout: Layout,
    kernel: &'static Kernel,
) -> Linear {
    let mut turned = vec![0i8; rows * cols];
    turned.par_chunks_mut(rows).enumerate().for_each(|(col, out)| {
        out.iter_mut().enumerate().for_each(|(row, out)| *out = codes[row * stride + col]);
    });
    let packed = PackedMatrix::pack(
        layout,
        cols,
        rows,
        &turned,
        vec![1.0; if layout_has_row_scales(layout) { cols } else { 1 }],
    );
    Linear::new(&LinearWeights::Packed(packed.expect("codes that a scheme made")), kernel)
}

/// Whether a matrix of this layout has a scale for each row.
fn layout_has_row_scales(layout: Layout) -> bool {
    matches!(layout, Layout::Int8 | Layout::Int4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_does_not_become_a_number() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let rounded = Noise { seed: 3, batch: 0, product: 1 }.quantize([2, 8], |row, out| {
                out.fill(0.5);
                if row == 1 {
                    out[3] = bad;
                }
            });
            let steps = rounded.steps().expect("steps");
            assert!(steps[0] > 0.0 && steps[1].is_nan(), "{bad}: {steps:?}");
        }
    }

    #[test]
    fn codes_are_right_on_average_and_never_a_whole_step_off() {
        let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.7).sin() * 0.01).collect();
        let mut sums = vec![0f64; values.len()];
        const DRAWS: u64 = 4000;
        for batch in 0..DRAWS {
            let noise = Noise { seed: 3, batch, product: 1 };
            let rounded = noise.quantize([2, values.len()], |_, out| out.copy_from_slice(&values));
            let rows: Vec<&[i8]> = rounded.codes().expect("codes").collect();
            assert_ne!(rows[0], rows[1], "rows draw numbers of their own");
            let step = rounded.steps().expect("steps")[0];
            for ((sum, &code), &x) in sums.iter_mut().zip(rows[0]).zip(&values) {
                assert!((f32::from(code) * step - x).abs() < step * 1.001);
                *sum += f64::from(code) * f64::from(step);
            }
        }
        let step = f64::from(values.iter().fold(0f32, |m, x| m.max(x.abs()))) / 127.0;
        for (sum, &x) in sums.iter().zip(&values) {
            // Five standard deviations of a mean of numbers that are at most half a step apart.
            assert!((sum / DRAWS as f64 - f64::from(x)).abs() < 5.0 * 0.5 * step / (DRAWS as f64).sqrt(), "{x}");
        }
    }

    #[test]
    fn the_same_place_draws_the_same_numbers() {
        let codes = |batch, product| -> Vec<i8> {
            let noise = Noise { seed: 1, batch, product };
            let x = noise
                .quantize([3, 50], |i, out| out.iter_mut().enumerate().for_each(|(j, x)| *x = (i + j) as f32 * 0.3));
            x.codes().expect("codes").flatten().copied().collect()
        };
        assert_eq!(codes(5, 7), codes(5, 7));
        assert_ne!(codes(5, 7), codes(6, 7));
        assert_ne!(codes(5, 7), codes(5, 8));
    }
}
