//! Numbers that tell models apart by what decides their keys and values.
//!
//! XXH3 of 64 bits: it finds another model and damage, not malice.

use std::hash::Hasher;

use bitnet_model::weights::{LayerWeights, LinearWeights};
use twox_hash::XxHash3_64;

use super::model::{Layer, Model};
use crate::kernels::Floats;

/// Bytes on their way into one number.
#[derive(Clone)]
pub(super) struct Digest(XxHash3_64);

impl Digest {
    pub fn new() -> Self {
        Self(XxHash3_64::new())
    }

    pub fn add(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Numbers, with how many they are: a list that ends earlier is another list.
    fn add_numbers(&mut self, numbers: &[f32]) {
        self.add(&(numbers.len() as u64).to_le_bytes());
        numbers.iter().for_each(|number| self.add(&number.to_le_bytes()));
    }

    pub fn value(&self) -> u64 {
        self.0.finish()
    }
}

/// Of a block: every code, scale and number as the files hold them, before a kernel arranges them. So it does not depend on
/// the machine, nor on how fast its memory is.
pub(super) fn of_layer(weights: &LayerWeights) -> u64 {
    let mut digest = Digest::new();
    for projection in weights.projections() {
        digest.add(&[projection.rows() as u64, projection.cols() as u64].map(u64::to_le_bytes).concat());
        match projection {
            LinearWeights::Packed(codes) => {
                digest.add(format!("{:?} {:?}", codes.layout(), codes.group()).as_bytes());
                digest.add(codes.bytes());
                digest.add_numbers(codes.scales());
            }
            LinearWeights::Float(matrix) => {
                digest.add(matrix.float_type().name().as_bytes());
                digest.add(Floats::bytes_of(&matrix.data));
            }
        }
    }
    for norm in [
        Some(&weights.input_layernorm),
        weights.attn_sub_norm.as_ref(),
        Some(&weights.post_attention_layernorm),
        weights.ffn_sub_norm.as_ref(),
    ] {
        digest.add_numbers(norm.map_or(&[], Vec::as_slice));
    }
    digest.value()
}

/// Of what decides the keys and values of `tokens`: the configuration, the rotary frequencies, every block, and the rows of
/// the embedding that the tokens read; and the kernel, where products are sums of floats. Final norm and head play no part in
/// keys and values.
pub(super) fn of_prompt(model: &Model, tokens: &[u32]) -> u64 {
    let mut digest = Digest::new();
    digest.add(model.config.to_json().as_bytes());
    digest.add_numbers(model.rope.frequencies());
    // Sums of codes are exact on every kernel; those of floats are rounded in another order on another one.
    if !model.layers.iter().all(Layer::is_exact) || model.config.quantization.activation.is_none() {
        digest.add(model.kernel.name.as_bytes());
    }
    model.layers.iter().for_each(|layer| digest.add(&layer.fingerprint.to_le_bytes()));
    let mut row = vec![0f32; model.config.hidden_size];
    for &token in tokens {
        digest.add(&token.to_le_bytes());
        // A token beyond the vocabulary, in a file that lies, has no row.
        if (token as usize) < model.config.vocab_size {
            model.embedding.row_to_f32(token as usize, 0..row.len(), &mut row);
            digest.add_numbers(&row);
        }
    }
    digest.value()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::RandomModel;
    use crate::engine::{Arrangement, HeadFormat};
    use crate::kernels::{self, KERNELS, Ternary};
    use bitnet_model::ModelConfig;
    use bitnet_model::config::Quantization;
    use bitnet_model::files::hugging_face::ModelParts;
    use bitnet_model::packed::PackedMatrix;
    use bitnet_model::weights::FloatData;

    const TOKENS: [u32; 5] = [3, 1, 4, 1, 5];

    fn recipe(weight: &str) -> RandomModel {
        let mut recipe = RandomModel::named("tiny").expect("known");
        recipe.config.tie_word_embeddings = false;
        let activation = if weight == "none" { "none" } else { "int8" };
        recipe.config.quantization = Quantization::by_name(weight, activation).expect("known");
        recipe
    }

    /// The fingerprint of a model after a change.
    fn after(recipe: &RandomModel, change: impl FnOnce(&mut ModelParts)) -> u64 {
        let mut parts = recipe.parts().expect("possible");
        change(&mut parts);
        of_prompt(&Model::from_parts(parts, kernels::best().expect("a kernel")), &TOKENS)
    }

    fn projection(layer: &mut LayerWeights, index: usize) -> &mut LinearWeights {
        let LayerWeights { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = layer;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj].into_iter().nth(index).expect("seven")
    }

    /// Another number in the first place, or another code and scale there.
    fn changed(weights: &LinearWeights, scale_only: bool) -> LinearWeights {
        match weights {
            LinearWeights::Float(matrix) => {
                let mut matrix = matrix.clone();
                let FloatData::F16(numbers) = &mut matrix.data else { panic!("random models are of f16") };
                numbers[0] = -numbers[0];
                LinearWeights::Float(matrix)
            }
            LinearWeights::Packed(packed) => {
                let (mut codes, mut scales) = (packed.unpack(), packed.scales().to_vec());
                if scale_only {
                    scales[0] *= 1.0 + f32::EPSILON;
                } else {
                    codes[0] = if codes[0] == 1 { -1 } else { 1 };
                }
                let sizes = [packed.rows(), packed.cols()];
                let packed = PackedMatrix::pack_grouped(packed.layout(), sizes, packed.group(), &codes, scales);
                LinearWeights::Packed(packed.expect("valid"))
            }
        }
    }

    #[test]
    fn every_number_that_decides_keys_and_values_changes_it() {
        for weight in ["ternary", "binary", "int8", "int4", "int4-g32", "none"] {
            let recipe = recipe(weight);
            let own = after(&recipe, |_| {});
            assert_eq!(own, after(&recipe, |_| {}), "{weight}: the same model");
            for layer in 0..2 {
                for index in 0..7 {
                    for scale_only in [false, true] {
                        let found = after(&recipe, |parts| {
                            let weights = projection(&mut parts.layers[layer], index);
                            *weights = changed(weights, scale_only);
                        });
                        assert_ne!(found, own, "{weight}: layer {layer}, projection {index}, scale {scale_only}");
                    }
                }
                type Norm = fn(&mut LayerWeights) -> &mut Vec<f32>;
                let norms: [Norm; 4] = [
                    |layer| &mut layer.input_layernorm,
                    |layer| layer.attn_sub_norm.as_mut().expect("a BitNet"),
                    |layer| &mut layer.post_attention_layernorm,
                    |layer| layer.ffn_sub_norm.as_mut().expect("a BitNet"),
                ];
                for norm in norms {
                    let found = after(&recipe, |parts| norm(&mut parts.layers[layer])[7] += 1e-3);
                    assert_ne!(found, own, "{weight}: a norm of layer {layer}");
                }
            }
            let row_of = |token: usize| {
                after(&recipe, |parts| {
                    let FloatData::F16(numbers) = &mut parts.embedding.data else { panic!("f16") };
                    numbers[token * 64] = -numbers[token * 64];
                })
            };
            assert_ne!(row_of(4), own, "{weight}: the row of a token of the prompt");
            assert_eq!(row_of(100), own, "{weight}: a row that no token of the prompt reads");
            assert_eq!(after(&recipe, |parts| parts.final_norm[0] = 2.0), own, "{weight}: behind the last keys");
        }
    }

    #[test]
    fn configuration_and_tokens_change_it_and_the_machine_does_not() {
        let own = recipe("ternary");
        let model = |recipe: &RandomModel| recipe.build(kernels::best().expect("a kernel")).expect("possible");
        let built = model(&own);
        let expected = of_prompt(&built, &TOKENS);
        assert_ne!(of_prompt(&built, &[3, 1, 4, 1, 6]), expected);
        assert_ne!(of_prompt(&built, &TOKENS[..4]), expected);
        let changes: [fn(&mut ModelConfig); 3] = [
            |config| config.rms_norm_eps = 1e-6,
            |config| config.rope_theta = 10_000.0,
            |config| config.quantization.activation = None,
        ];
        for change in changes {
            let mut other = own.clone();
            change(&mut other.config);
            assert_ne!(of_prompt(&model(&other), &TOKENS), expected);
        }
        for kernel in KERNELS.iter().copied().filter(|kernel| kernel.is_supported()) {
            for ternary in [Ternary::TwoBit, Ternary::Base3] {
                let ways =
                    Model::from_parts(own.parts().expect("possible"), Arrangement { kernel, ternary: Some(ternary) });
                assert_eq!(of_prompt(&ways, &TOKENS), expected, "{} {ternary:?}", kernel.name);
            }
        }
        // Sums of floats are rounded as a kernel has it.
        for (weight, activation) in [("none", "none"), ("none", "int8"), ("ternary", "none")] {
            let mut floats = recipe("none");
            floats.config.quantization = Quantization::by_name(weight, activation).expect("known");
            let scalar = floats.build(kernels::by_name("scalar").expect("always there")).expect("possible");
            let best = model(&floats);
            let is_same = scalar.kernel.name == best.kernel.name;
            assert_eq!(of_prompt(&scalar, &TOKENS) == of_prompt(&best, &TOKENS), is_same, "{weight}, {activation}");
        }
        // Heads in other forms read another copy of the table; the embedding's rows stay.
        let tied = RandomModel::named("tiny").expect("known");
        let expected = of_prompt(&model(&tied), &TOKENS);
        for head in [HeadFormat::Int8, HeadFormat::Int4, HeadFormat::Exact] {
            assert_eq!(of_prompt(&model(&tied).with_head(head), &TOKENS), expected);
        }
    }
}
