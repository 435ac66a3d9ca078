//! What looks wrong in weights that can be: no reason to refuse a model, but worth a warning. Everything that reads or writes
//! a model asks here, so that all say the same.

use crate::config::ModelConfig;
use crate::packed::PackedMatrix;
use crate::weights::{LayerWeights, LinearWeights};

/// What looks wrong in block `layer`, a sentence each.
pub fn of_block(config: &ModelConfig, layer: usize, weights: &LayerWeights) -> Vec<String> {
    let LayerWeights { input_layernorm, post_attention_layernorm, attn_sub_norm, ffn_sub_norm, .. } = weights;
    let norms = [Some(input_layernorm), Some(post_attention_layernorm), attn_sub_norm.as_ref(), ffn_sub_norm.as_ref()];
    let mut found: Vec<String> = Vec::new();
    for ((name, _), values) in config.norms().iter().zip(norms) {
        found.extend(values.and_then(|values| of_norm(&full_name(layer, name), values)));
    }
    for ((name, ..), projection) in config.projections().iter().zip(weights.projections()) {
        found.extend(of_projection(config, &full_name(layer, name), projection));
    }
    found
}

/// What looks wrong in the norm `name`.
pub fn of_norm(name: &str, values: &[f32]) -> Option<String> {
    values.iter().all(|&value| value == 0.0).then(|| all_zeros(name))
}

/// What looks wrong in the projection `name`.
pub fn of_projection(config: &ModelConfig, name: &str, weights: &LinearWeights) -> Vec<String> {
    let mut found = Vec::new();
    if is_all_zeros(weights) {
        found.push(all_zeros(name));
    }
    match weights {
        LinearWeights::Packed(matrix) => {
            let scale = mean_scale(matrix);
            if !USUAL_SCALES.contains(&scale) {
                found.push(format!("tensor `{name}` has a scale of {scale:e}, which no trained model has"));
            }
        }
        LinearWeights::Float(_) if config.quantization.weight.is_some() => found.push(format!(
            "tensor `{name}` is read as floats, not as codes: its scales differ within a row, or those of a matrix that is \
             multiplied together with it"
        )),
        LinearWeights::Float(_) => {}
    }
    found
}

/// The name that a tensor of block `layer` has in Hugging Face's files, whatever it is called in others.
pub fn full_name(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}.weight")
}

/// The mean of the scales of a matrix.
pub fn mean_scale(matrix: &PackedMatrix) -> f64 {
    let sum: f64 = matrix.scales().iter().map(|&scale| f64::from(scale)).sum();
    sum / matrix.scales().len() as f64
}

fn all_zeros(name: &str) -> String {
    format!("tensor `{name}` is all zeros: its layer adds nothing")
}

/// The first row says it of nearly every matrix, so this costs next to nothing.
fn is_all_zeros(weights: &LinearWeights) -> bool {
    match weights {
        LinearWeights::Packed(matrix) => {
            let mut codes = vec![0i8; matrix.cols()];
            (0..matrix.rows()).all(|row| {
                matrix.unpack_row(row, &mut codes);
                codes.iter().all(|&code| code == 0)
            })
        }
        LinearWeights::Float(matrix) => {
            let mut values = vec![0f32; matrix.cols];
            (0..matrix.rows).all(|row| {
                matrix.row_to_f32(row, &mut values);
                values.iter().all(|&value| value == 0.0)
            })
        }
    }
}

/// Scales between these are nothing to wonder about.
const USUAL_SCALES: std::ops::Range<f64> = 1e-7..1e3;
