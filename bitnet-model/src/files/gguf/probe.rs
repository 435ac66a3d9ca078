//! Which of the three layouts a file's I2_S codes have. The file does not say; its weights do.
//!
//! Where the norm in front of a projection has a larger or smaller weight, training leaves more or fewer zeros in that column.
//! So the share of non-zero codes of a column goes with the norm's weight of that column, if the columns are where they belong.
//! Under a wrong layout the columns are shuffled, and the correlation `r` is that of chance: `r^2 * columns` is about 1 for a
//! matrix, and the sum over `n` matrices about `n`, give or take `sqrt(2 n)`.

use super::layout::I2sLayout;
use super::model::GgufModel;
use super::types::TensorType;
use crate::files::source::WeightSource;

/// A layout and the reason for it.
pub(super) struct Decision {
    pub layout: I2sLayout,
    pub why: String,
}

/// The layout whose columns go with the norms; that of the published files where none stands out.
pub(super) fn layout(model: &GgufModel) -> Decision {
    let mut sums = I2sLayout::ALL.map(|layout| (layout, 0f64));
    let mut matrices = 0usize;
    let layers = model.config().num_hidden_layers;
    let step = layers.div_ceil(LAYERS).max(1);
    for layer in (0..layers).step_by(step) {
        for (projection, norm) in INPUT_NORMS.into_iter().enumerate() {
            let Ok((_, info)) = model.projection_info(layer, projection) else { continue };
            if info.kind != TensorType::I2S || norm >= model.config().norms().len() {
                continue;
            }
            let Ok(norm) = model.norm(layer, norm) else { continue };
            let (rows, cols, bytes) = (info.shape[0].min(ROWS) / 4 * 4, info.shape[1], model.file().bytes(info));
            matrices += 1;
            for (layout, sum) in &mut sums {
                let r = correlation(&density(*layout, rows, cols, bytes), &norm);
                *sum += r * r * cols as f64;
            }
        }
    }
    sums.sort_by(|a, b| b.1.total_cmp(&a.1));
    let [(best, high), (_, next), _] = sums;
    let listed: Vec<String> = sums.iter().map(|(layout, sum)| format!("{layout}: {sum:.1}")).collect();
    let evidence = format!("{} over {matrices} matrices ({} by chance)", listed.join(", "), matrices);
    let chance = matrices as f64 + 6.0 * (2.0 * matrices as f64).sqrt();
    if matrices > 0 && high > chance && high > 2.0 * next {
        return Decision { layout: best, why: format!("its columns go with the norms: {evidence}") };
    }
    let why = format!("that of the published files, as no layout's columns go with the norms: {evidence}");
    Decision { layout: I2sLayout::Group128, why }
}

/// The share of non-zero codes of each column over the first `rows` rows.
fn density(layout: I2sLayout, rows: usize, cols: usize, bytes: &[u8]) -> Vec<f32> {
    let mut counts = vec![0f32; cols];
    for row in 0..rows {
        for (col, count) in counts.iter_mut().enumerate() {
            let (byte, field) = layout.place(row, col, cols);
            *count += f32::from(u8::from(bytes[byte] >> (6 - 2 * field) & 3 != 1));
        }
    }
    counts
}

/// Pearson's; 0 where one side is constant.
fn correlation(a: &[f32], b: &[f32]) -> f64 {
    let mean = |x: &[f32]| x.iter().map(|&v| f64::from(v)).sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut product, mut square_a, mut square_b) = (0.0, 0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        let (a, b) = (f64::from(a) - mean_a, f64::from(b) - mean_b);
        product += a * b;
        square_a += a * a;
        square_b += b * b;
    }
    if square_a == 0.0 || square_b == 0.0 { 0.0 } else { product / (square_a * square_b).sqrt() }
}

/// The norm in front of each projection, in the order of [`crate::ModelConfig::norms`].
const INPUT_NORMS: [usize; 7] = [0, 0, 0, 2, 1, 1, 3];

/// Layers and rows that are looked at.
const LAYERS: usize = 8;
const ROWS: usize = 256;
