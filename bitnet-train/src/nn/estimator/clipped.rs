//! The identity inside the quantizer's range, zero outside (binarized networks, arXiv:1602.02830, Eq. 4).

use super::{Estimator, Grid};

/// `clipped-ste`: no gradient for latent weights more than half a level beyond the outermost level.
///
/// For ternary weights that is 1.5 scales: a weight that has to come back sees its gradient again long before it reaches
/// the threshold at half a scale.
pub struct Clipped;

impl Estimator for Clipped {
    fn name(&self) -> &'static str {
        "clipped-ste"
    }

    fn weight_gradient(&self, latent: &[f32], grid: &Grid, gradient: &mut [f32]) {
        let cols = latent.len() / grid.rows;
        for (row, (latent, gradient)) in latent.chunks(cols).zip(gradient.chunks_mut(cols)).enumerate() {
            let limit = (f32::from(grid.max_code) + 0.5) * grid.scale_of(row);
            for (w, g) in latent.iter().zip(gradient) {
                if w.abs() > limit {
                    *g = 0.0;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_stop_beyond_the_limit_of_each_row() {
        let mut gradient = [1.0; 4];
        let grid = Grid { rows: 2, scales: &[1.0, 2.0], max_code: 1 };
        Clipped.weight_gradient(&[1.4, -1.6, 3.1, 2.9], &grid, &mut gradient);
        assert_eq!(gradient, [1.0, 0.0, 0.0, 1.0]);
    }
}
