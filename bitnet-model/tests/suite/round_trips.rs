//! What is written is what is read: codes, scales and floats to the bit, and the same bytes for the same model.

use std::collections::BTreeSet;

use bitnet_model::ModelConfig;
use bitnet_model::config::Storage;
use bitnet_model::files::hugging_face::{CONFIG_FILE, WEIGHTS_FILE, quantize};
use bitnet_model::files::tensors::TensorFile;
use bitnet_model::packed::{Layout, PackedMatrix};
use bitnet_model::weights::{FloatMatrix, FloatType, LayerWeights, LinearWeights};

use crate::folder::{self, WEIGHT_SCHEMES, Weights};

#[test]
fn every_scheme_reads_back_to_the_bit() {
    for scheme in WEIGHT_SCHEMES.into_iter().chain(["none"]) {
        for float_type in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            let root = tempfile::tempdir().expect("temp dir");
            let path = root.path().join("model");
            let config = folder::config(scheme);
            let weights = Weights::random(&config, float_type, 5);
            weights.write(&path, &config).expect("written");
            let read_config = ModelConfig::read(&path.join(CONFIG_FILE)).expect("own output");
            assert_eq!(read_config, config, "{scheme}");
            let bytes = std::fs::read(path.join(WEIGHTS_FILE)).expect("readable");
            let read = Weights::read(&read_config, &bytes).expect("own output");
            assert_eq!(read, weights, "{scheme} {float_type:?}");
            assert_eq!(scale_bits(&read), scale_bits(&weights), "{scheme} {float_type:?}");

            weights.write(&path, &config).expect("over an earlier one");
            assert_eq!(std::fs::read(path.join(WEIGHTS_FILE)).expect("readable"), bytes, "{scheme}: the same bytes");
        }
    }
}

#[test]
fn latent_weights_read_as_the_codes_that_quantizing_gives() {
    for scheme in WEIGHT_SCHEMES {
        let mut config = folder::config(scheme);
        config.storage = Storage::Float;
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("model");
        let latent = Weights::random(&config, FloatType::F32, 6);
        latent.write(&path, &config).expect("written");
        let bytes = std::fs::read(path.join(WEIGHTS_FILE)).expect("readable");
        let read_config = ModelConfig::read(&path.join(CONFIG_FILE)).expect("own output");
        assert_eq!(read_config.storage, Storage::Float, "{scheme}: latent weights are marked as such");
        let read = Weights::read(&read_config, &bytes).expect("own output");
        for (read, latent) in read.layers.iter().zip(&latent.layers) {
            for (read, latent) in read.projections().into_iter().zip(latent.projections()) {
                let LinearWeights::Float(matrix) = latent else { panic!("latent weights are floats") };
                let scheme = config.quantization.weight.expect("a scheme");
                let expected = quantize(scheme, &matrix.to_f32(), matrix.rows, matrix.cols).expect("finite");
                assert_eq!(read, &LinearWeights::Packed(expected));
            }
        }
    }
}

#[test]
fn base3_storage_holds_the_same_codes_in_a_fifth_less() {
    let mut config = folder::config("ternary");
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("model");
    let weights = Weights::random(&config, FloatType::F16, 8);
    config.storage = Storage::PackedBase3;
    for written in [weights.clone(), base3(&weights)] {
        written.write(&path, &config).expect("written");
        let read_config = ModelConfig::read(&path.join(CONFIG_FILE)).expect("own output");
        assert_eq!(read_config, config);
        let read = Weights::read(&read_config, &std::fs::read(path.join(WEIGHTS_FILE)).expect("readable"))
            .expect("own output");
        assert_eq!(read, base3(&weights));
        for (read, weights) in packed(&read).into_iter().zip(packed(&weights)) {
            assert_eq!((read.unpack(), read.scales()), (weights.unpack(), weights.scales()));
            assert_eq!(read.bytes().len(), read.rows().div_ceil(5) * read.cols());
        }
    }
}

/// transformers multiplies floats of a quantized model as they are in the file, so they must have one type.
#[test]
fn norms_have_the_type_of_the_tables_where_it_holds_them() {
    let config = folder::config("ternary");
    let root = tempfile::tempdir().expect("temp dir");
    let mut weights = Weights::random(&config, FloatType::F16, 9);
    let written = |weights: &Weights, name: &str| {
        let path = root.path().join(name);
        weights.write(&path, &config).expect("written");
        let bytes = std::fs::read(path.join(WEIGHTS_FILE)).expect("readable");
        let file = TensorFile::parse(&bytes, name).expect("valid");
        let norms = file.names().into_iter().filter(|name| name.contains("norm"));
        let types: BTreeSet<String> =
            norms.map(|name| format!("{:?}", file.view(name).expect("listed").dtype())).collect();
        let text = std::fs::read_to_string(path.join(CONFIG_FILE)).expect("readable");
        (types.into_iter().collect::<Vec<_>>().join(" "), text)
    };
    let (types, text) = written(&weights, "as they are");
    assert!(types == "F32" && text.contains(r#""torch_dtype": "float32""#), "sevenths are no numbers of f16: {types}");
    let rounded = |values: &mut Vec<f32>| {
        *values = FloatMatrix::new(1, values.len(), values, FloatType::F16).to_f32();
    };
    rounded(&mut weights.final_norm);
    for layer in &mut weights.layers {
        let LayerWeights { input_layernorm, post_attention_layernorm, attn_sub_norm, ffn_sub_norm, .. } = layer;
        [input_layernorm, post_attention_layernorm].into_iter().for_each(rounded);
        [attn_sub_norm, ffn_sub_norm].into_iter().flatten().for_each(rounded);
    }
    let (types, text) = written(&weights, "rounded");
    assert!(types == "F16" && text.contains(r#""torch_dtype": "float16""#), "{types}");
    let bytes = std::fs::read(root.path().join("rounded").join(WEIGHTS_FILE)).expect("readable");
    assert_eq!(Weights::read(&config, &bytes).expect("own output"), weights, "to the bit");
}

fn base3(weights: &Weights) -> Weights {
    let mut weights = weights.clone();
    for layer in &mut weights.layers {
        let LayerWeights { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = layer;
        for linear in [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] {
            let LinearWeights::Packed(matrix) = linear else { panic!("packed weights") };
            *matrix = matrix.repack(Layout::Base3).expect("ternary codes");
        }
    }
    weights
}

#[test]
fn an_inverse_scale_divides() {
    let mut config = folder::config("ternary");
    config.sub_norms = false;
    let weights = Weights::random(&config, FloatType::F32, 7);
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("model");
    config.storage = Storage::PackedInverseScale;
    weights.write(&path, &config).expect("written");
    let read_config = ModelConfig::read(&path.join(CONFIG_FILE)).expect("own output");
    assert_eq!(read_config.storage, Storage::PackedInverseScale);
    let bytes = std::fs::read(path.join(WEIGHTS_FILE)).expect("readable");
    let read = Weights::read(&read_config, &bytes).expect("own output");
    for (read, written) in packed(&read).into_iter().zip(packed(&weights)) {
        assert_eq!(read.bytes(), written.bytes());
        let inverse: Vec<f32> = written.scales().iter().map(|s| 1.0 / s).collect();
        assert_eq!(read.scales(), inverse);
    }
}

/// All packed projections in order.
fn packed(weights: &Weights) -> Vec<&PackedMatrix> {
    let projections = weights.layers.iter().flat_map(|layer| layer.projections());
    let matrices = projections.filter_map(|w| match w {
        LinearWeights::Packed(matrix) => Some(matrix),
        LinearWeights::Float(_) => None,
    });
    matrices.collect()
}

fn scale_bits(weights: &Weights) -> Vec<u32> {
    packed(weights).into_iter().flat_map(|m| m.scales()).map(|s| s.to_bits()).collect()
}
