//! A small valid GGUF model of any type, built byte by byte.

use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, Quantization, Storage};
use bitnet_model::files::gguf::{
    HeaderWriter, I2sLayout, NORMS, PROJECTIONS, PlannedTensor, TensorType, config_keys, encode_codes, encode_row,
    pack_i2s,
};
use bitnet_model::rng::{Stream, generator};
use rand::Rng;

/// Every type that is read.
pub const KINDS: [TensorType; 13] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::Bf16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q8_0,
    TensorType::Q4K,
    TensorType::Q6K,
    TensorType::Tq1_0,
    TensorType::Tq2_0,
    TensorType::I2S,
    TensorType::Q1_0,
    TensorType::Q2_0,
];

/// One block with all widths of one size, so that every type has whole blocks.
pub fn config(kind: TensorType, sub_norms: bool) -> ModelConfig {
    let width = kind.block().max(32);
    let weight = match kind {
        TensorType::Q1_0 => "binary",
        kind if kind.is_ternary() => "ternary",
        _ => "none",
    };
    let activation = if weight == "none" { "none" } else { "int8" };
    ModelConfig {
        vocab_size: 7,
        hidden_size: width,
        intermediate_size: width,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 2,
        head_dim: width / 2,
        hidden_act: HiddenAct::Silu,
        max_position_embeddings: 16,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tie_word_embeddings: false,
        sub_norms,
        quantization: Quantization::by_name(weight, activation).expect("known"),
        storage: if weight == "none" { Storage::Float } else { Storage::Packed },
        bos_token_id: Some(0),
        eos_token_ids: vec![1],
    }
}

/// Random bytes of a row of `kind`, its scales ordinary numbers.
pub fn random_row(kind: TensorType, cols: usize, rng: &mut impl Rng) -> Vec<u8> {
    let mut bytes = Vec::new();
    let code = |rng: &mut dyn rand::RngCore| rng.random_range(-1..=1i8);
    match kind {
        TensorType::F32 | TensorType::F16 | TensorType::Bf16 | TensorType::Q8_0 | TensorType::Q6K => {
            let values: Vec<f32> = (0..cols).map(|_| rng.random_range(-1.0..1.0)).collect();
            encode_row(kind, &values, &mut bytes);
        }
        TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q4K => {
            for _ in 0..cols / kind.block() {
                let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| rng.random()).collect();
                for scale in block[..if kind == TensorType::Q4_0 { 2 } else { 4 }].chunks_exact_mut(2) {
                    scale.copy_from_slice(&half::f16::from_f32(rng.random_range(0.001..0.1)).to_le_bytes());
                }
                bytes.extend(block);
            }
        }
        TensorType::Q1_0 => {
            let codes: Vec<i8> = (0..cols).map(|_| if rng.random() { 1 } else { -1 }).collect();
            encode_codes(kind, &codes, 0.25, &mut bytes).expect("binary codes");
        }
        _ => {
            let codes: Vec<i8> = (0..cols).map(|_| code(rng)).collect();
            encode_codes(kind, &codes, 0.25, &mut bytes).expect("ternary codes");
        }
    }
    bytes
}

/// The bytes of a model of `config` whose projections are of `kind`, with a small tokenizer.
pub fn model_bytes(config: &ModelConfig, kind: TensorType, layout: I2sLayout, seed: u64) -> Vec<u8> {
    model_bytes_with(config, kind, layout, seed, |_| {})
}

/// The same with `more` keys.
pub fn model_bytes_with(
    config: &ModelConfig,
    kind: TensorType,
    layout: I2sLayout,
    seed: u64,
    more: impl FnOnce(&mut HeaderWriter),
) -> Vec<u8> {
    let mut rng = generator(seed, Stream::Bench);
    let mut keys = config_keys(config, 0);
    more(&mut keys);
    keys.text("tokenizer.ggml.model", "llama");
    let tokens = ["<unk>", "<s>", "a", "b", "ab", "\u{2581}", "<0x0A>"].map(String::from);
    keys.texts("tokenizer.ggml.tokens", &tokens);
    keys.floats("tokenizer.ggml.scores", &[0.0, 0.0, -1.0, -2.0, -0.5, -3.0, 0.0]);
    keys.integers("tokenizer.ggml.token_type", &[2, 3, 1, 1, 1, 1, 6]);
    keys.u32("tokenizer.ggml.bos_token_id", 0);
    let tensor = |name: String, kind, shape: &[usize]| PlannedTensor { name, kind, shape: shape.to_vec() };
    let table_kind = if kind.is_ternary() || kind == TensorType::Q1_0 { TensorType::F16 } else { kind };
    let table = [config.vocab_size, config.hidden_size];
    let mut plan = vec![
        tensor("token_embd.weight".into(), table_kind, &table),
        tensor("output_norm.weight".into(), TensorType::F32, &[config.hidden_size]),
        tensor("output.weight".into(), table_kind, &table),
    ];
    for layer in 0..config.num_hidden_layers {
        for ((_, len), name) in config.norms().into_iter().zip(NORMS) {
            plan.push(tensor(format!("blk.{layer}.{name}.weight"), TensorType::F32, &[len]));
        }
        for ((_, rows, cols), name) in config.projections().into_iter().zip(PROJECTIONS) {
            plan.push(tensor(format!("blk.{layer}.{name}.weight"), kind, &[rows, cols]));
        }
    }
    let mut bytes = keys.finish(&plan).expect("whole blocks");
    for tensor in &plan {
        let (rows, cols) =
            if tensor.shape.len() == 2 { (tensor.shape[0], tensor.shape[1]) } else { (1, tensor.shape[0]) };
        let start = bytes.len();
        if tensor.kind == TensorType::I2S {
            let codes: Vec<i8> = (0..rows * cols).map(|_| rng.random_range(-1..=1)).collect();
            bytes.extend(pack_i2s(layout, rows, cols, &codes, 0.25).expect("multiples of 128"));
        } else {
            (0..rows).for_each(|_| bytes.extend(random_row(tensor.kind, cols, &mut rng)));
        }
        assert_eq!(bytes.len() - start, tensor.byte_count().expect("whole blocks"));
        bytes.resize(bytes.len() + PlannedTensor::padding(bytes.len() - start), 0);
    }
    bytes
}
