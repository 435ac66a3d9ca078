//! One arithmetic: for the same input a BitLinear gives the same integers in the trainer, in the scalar reference and in
//! every kernel, and the model that is exported is the model that was trained, down to the bits of its scales.

use bitnet_infer::kernels;
use bitnet_infer::linear::{Activations, Linear};
use bitnet_model::ModelConfig;
use bitnet_model::config::{Quantization, Storage};
use bitnet_model::files::hugging_face::{self, CONFIG_FILE, WEIGHTS_FILE, WeightReader, quantize};
use bitnet_model::files::tensors::TensorFile;
use bitnet_model::quant::rescale;
use bitnet_model::reference::{self, Reference};
use bitnet_model::weights::{FloatType, LinearWeights};
use bitnet_train::export;
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::Transformer;
use bitnet_train::ops::{FusedOps, Ops, ReferenceOps};
use proptest::prelude::*;

use crate::support::{every_ops, flat, quantized_weights, random, relative, spec, tensor, weight_schemes};

/// A product under one scheme, computed by everything there is.
fn check_parity(weight: &str, [t, n, k]: [usize; 3], seed: u64) {
    let what = format!("{weight}, {t} tokens, {n} x {k}");
    let spec = spec(weight, "int8", "ste");
    let activation = spec.quantization.activation.expect("int8");
    let scheme = spec.quantization.weight.expect("a scheme");
    // Tokens of very different sizes, a token of zeros, and weights as small as training makes them.
    let mut x = random(seed, t * k);
    x.chunks_mut(k).enumerate().for_each(|(i, x)| x.iter_mut().for_each(|x| *x *= [1.0, 300.0, 0.0, 1e-3][i % 4]));
    let w: Vec<f32> = random(seed ^ 1, n * k).into_iter().map(|w| w * 0.03 + 0.002).collect();
    let packed = quantize(scheme, &w, n, k).expect("finite weights");

    let mut codes = vec![0i8; t * k];
    let steps: Vec<f32> =
        x.chunks(k).zip(codes.chunks_mut(k)).map(|(x, codes)| activation.quantize(x, codes)).collect();
    let weight_codes = packed.unpack();
    let integers: Vec<i32> =
        codes.chunks(k).flat_map(|x| weight_codes.chunks(k).map(move |w| reference::integer_dot(w, x))).collect();
    let expected: Vec<f32> =
        integers.iter().enumerate().map(|(i, &sum)| rescale(sum, steps[i / n], packed.scale_of(i % n))).collect();

    let weights = LinearWeights::Packed(packed.clone());
    assert_eq!(reference::bit_linear(&x, &weights, Some(activation)), expected, "{what}: scalar reference");
    let (x_t, w_t) = (tensor(&x, &[1, t, k]), tensor(&w, &[n, k]));
    let fused = flat(&FusedOps::default().bit_linear(&x_t, &w_t, &spec).expect("computes"));
    assert_eq!(fused, expected, "{what}: fused training op");

    let readable = flat(&ReferenceOps.bit_linear(&x_t, &w_t, &spec).expect("computes"));
    for (i, (y, expected)) in readable.iter().zip(&expected).enumerate() {
        // A float sum is as exact as its terms are large, however much of them cancels.
        let products = codes[i / n * k..][..k].iter().zip(&weight_codes[i % n * k..][..k]);
        let terms: f64 = products.map(|(&x, &w)| (f64::from(x) * f64::from(w)).abs()).sum();
        let limit = 1e-6 * terms * f64::from(steps[i / n]) * f64::from(packed.scale_of(i % n));
        let error = (f64::from(*y) - f64::from(*expected)).abs();
        assert!(error <= limit, "{what}: readable training op: output {i} is {y}, expected {expected}");
    }
    let found: Vec<i32> = readable
        .iter()
        .enumerate()
        .map(|(i, y)| (f64::from(*y) / (f64::from(steps[i / n]) * f64::from(packed.scale_of(i % n)))).round() as i32)
        .collect();
    assert_eq!(found, integers, "{what}: integers of the readable training op");

    for kernel in kernels::supported() {
        let inputs = Activations::new(&x, k, Some(activation));
        assert_eq!(inputs.codes().expect("quantized").flatten().copied().collect::<Vec<i8>>(), codes, "{what}");
        assert_eq!(inputs.steps().expect("quantized"), steps, "{what}, {kernel:?}");
        let linear = Linear::new(&weights, kernel);
        let (mut sums, mut y) = (vec![0; t * n], vec![0.0; t * n]);
        linear.integer_sums(&inputs, &mut sums);
        linear.forward(&inputs, &mut y);
        assert_eq!(sums, integers, "{what}, {kernel:?}");
        assert_eq!(y, expected, "{what}, {kernel:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn everything_gives_the_same_integers(t in 1usize..7, n in 1usize..46, k in 1usize..260, seed in any::<u64>()) {
        for weight in quantized_weights() {
            check_parity(weight, [t, n, k], seed);
        }
    }
}

#[test]
fn everything_gives_the_same_integers_in_a_large_layer() {
    println!("kernels: {:?}", kernels::supported().map(|kernel| kernel.name).collect::<Vec<_>>());
    for weight in quantized_weights() {
        // Enough columns for the trainer to split them under int8, enough work for several threads.
        check_parity(weight, [5, 130, 2560], 3);
    }
}

const TINY: &str = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 40, "hidden_size": 24, "intermediate_size": 50,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "hidden_act": "relu2",
    "tie_word_embeddings": false}"#;

fn tiny(weight: &str) -> (ModelConfig, Parameters) {
    let mut config = ModelConfig::from_json(TINY.as_bytes(), "config.json").expect("valid");
    config.quantization = Quantization::by_name(weight, if weight == "none" { "none" } else { "int8" }).expect("known");
    let parameters = Parameters::initialize(&config, 9, 0.1).expect("parameters");
    (config, parameters)
}

/// Writes the packed model and gives its configuration and the bytes of its weights as they were read back.
fn exported(config: &ModelConfig, parameters: &Parameters) -> (ModelConfig, Vec<u8>) {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("model");
    let (packed_config, parts) = export::pack(config, parameters, FloatType::F32).expect("packs");
    hugging_face::write(&path, &parts.into_model_parts(&packed_config, None)).expect("written");
    let bytes = std::fs::read(path.join(WEIGHTS_FILE)).expect("readable");
    (ModelConfig::read(&path.join(CONFIG_FILE)).expect("own output"), bytes)
}

/// Multiplying the identity shows the weights that the trainer multiplies by: they must be the stored codes times the
/// stored scales, bit for bit.
#[test]
fn the_stored_scale_is_the_trained_scale() {
    for weight in quantized_weights() {
        let (config, parameters) = tiny(weight);
        let (read_config, bytes) = exported(&config, &parameters);
        assert_eq!(read_config.storage, Storage::Packed);
        let file = TensorFile::parse(&bytes, "model.safetensors").expect("own output");
        let reader = WeightReader::new(&read_config, &file);
        for layer in 0..config.num_hidden_layers {
            let weights = reader.layer(layer).expect("own output");
            for ((name, n, k), weights) in config.projections().into_iter().zip(weights.projections()) {
                let LinearWeights::Packed(packed) = weights else { panic!("{name} is packed") };
                let latent = parameters.tensor(&format!("model.layers.{layer}.{name}.weight")).expect("a parameter");
                let identity: Vec<f32> = (0..k * k).map(|i| f32::from(u8::from(i / k == i % k))).collect();
                for ops in every_ops() {
                    let trained_kn =
                        ops.bit_linear(&tensor(&identity, &[1, k, k]), &latent, &spec(weight, "none", "ste"));
                    let trained_kn = flat(&trained_kn.expect("computes"));
                    let codes = packed.unpack();
                    for (i, &code) in codes.iter().enumerate() {
                        let stored = f32::from(code) * packed.scale_of(i / k);
                        let trained = trained_kn[i % k * n + i / k];
                        // Adding zeros makes -0 of +0 and the other way round, and changes nothing else.
                        let equal = trained.to_bits() == stored.to_bits() || (trained == 0.0 && stored == 0.0);
                        assert!(equal, "{weight}, {name} of layer {layer}, {}: {trained} for {stored}", ops.name());
                    }
                }
            }
        }
    }
}

#[test]
fn the_exported_model_is_the_trained_model() {
    let tokens: Vec<u32> = (0..60).map(|i| i * i * 7 % 40).collect();
    for weight in weight_schemes() {
        let (config, parameters) = tiny(weight);
        let (read_config, bytes) = exported(&config, &parameters);
        let file = TensorFile::parse(&bytes, "model.safetensors").expect("own output");
        let scalar = Reference::load(read_config, &file).expect("own output");
        let expected: Vec<f32> = tokens.chunks(20).flat_map(|tokens| scalar.logits(tokens)).collect();
        let ste = estimator::by_name("ste").expect("known");
        for ops in every_ops() {
            let name = ops.name();
            let model = Transformer::new(&config, &parameters, 20, ste, ops).expect("a network");
            let error = relative(&flat(&model.logits(&tokens, 3).expect("logits")), &expected);
            println!("{weight}, {name}: logits differ by {error:.1e} of their norm from those of the exported model");
            // A value that crosses a rounding boundary of the activations moves a whole step, 1/127 of the largest.
            assert!(error < if weight == "none" { 1e-5 } else { 2e-2 }, "{weight}, {name}: {error}");
        }
    }
}
