//! A tiny model with random weights: in memory, in a folder, and read back whole.

use std::path::Path;

use bitnet_model::config::{Quantization, Storage};
use bitnet_model::files::hugging_face::{self, ModelParts, WeightReader, quantize};
use bitnet_model::files::tensors::TensorFile;
use bitnet_model::rng::{Stream, generator};
use bitnet_model::weights::{FloatMatrix, FloatType, LayerWeights, LinearWeights};
use bitnet_model::{ModelConfig, Result};
use rand::Rng;

pub const WEIGHT_SCHEMES: [&str; 6] = ["ternary", "binary", "int8", "int4", "int4-g32", "int8-g128"];

/// Two blocks of odd widths, so that no packed row count divides by the codes in a byte.
pub fn config(weight_scheme: &str) -> ModelConfig {
    let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 11, "hidden_size": 10, "intermediate_size": 13,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 2, "hidden_act": "relu2",
        "tie_word_embeddings": false}"#;
    let mut config = ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid");
    config.quantization = Quantization::by_name(weight_scheme, "int8").expect("known");
    config.storage = if weight_scheme == "none" { Storage::Float } else { Storage::Packed };
    config
}

/// All weights of a model, to be compared bit for bit.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    pub embedding: FloatMatrix,
    pub head: Option<FloatMatrix>,
    pub final_norm: Vec<f32>,
    pub layers: Vec<LayerWeights>,
}

impl Weights {
    /// Random weights; projections are quantized by the configuration's scheme unless it stores floats.
    pub fn random(config: &ModelConfig, float_type: FloatType, seed: u64) -> Self {
        let mut rng = generator(seed, Stream::Bench);
        let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-2.0..2.0)).collect() };
        let mut linear = |(_, rows, cols): (&str, usize, usize)| {
            let latent = numbers(rows * cols);
            match config.quantization.weight {
                Some(scheme) if config.storage != Storage::Float => {
                    LinearWeights::Packed(quantize(scheme, &latent, rows, cols).expect("finite weights"))
                }
                _ => LinearWeights::Float(FloatMatrix::new(rows, cols, &latent, float_type)),
            }
        };
        let mut layers = Vec::new();
        for layer in 0..config.num_hidden_layers {
            let norm = |len: usize| (0..len).map(|i| 1.0 + (i + layer) as f32 / 7.0).collect::<Vec<f32>>();
            let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] = config.projections().map(&mut linear);
            layers.push(LayerWeights {
                input_layernorm: norm(config.hidden_size),
                q_proj,
                k_proj,
                v_proj,
                attn_sub_norm: config.sub_norms.then(|| norm(config.query_size())),
                o_proj,
                post_attention_layernorm: norm(config.hidden_size),
                gate_proj,
                up_proj,
                ffn_sub_norm: config.sub_norms.then(|| norm(config.intermediate_size)),
                down_proj,
            });
        }
        let (rows, cols) = (config.vocab_size, config.hidden_size);
        let mut table = || FloatMatrix::new(rows, cols, &numbers(rows * cols), float_type);
        Self {
            embedding: table(),
            head: (!config.tie_word_embeddings).then(table),
            final_norm: (0..cols).map(|i| 0.5 + i as f32).collect(),
            layers,
        }
    }

    /// Writes the model folder `path`.
    pub fn write(&self, path: &Path, config: &ModelConfig) -> Result<()> {
        let Self { embedding, head, final_norm, layers } = self.clone();
        hugging_face::write(path, &ModelParts { config, embedding, head, final_norm, layers, tokenizer_json: None })
    }

    /// Every part that `config` promises of the bytes of a `model.safetensors`.
    pub fn read(config: &ModelConfig, bytes: &[u8]) -> Result<Self> {
        let file = TensorFile::parse(bytes, "model.safetensors")?;
        let reader = WeightReader::new(config, &file);
        Ok(Self {
            embedding: reader.embedding()?,
            head: reader.head()?,
            final_norm: reader.final_norm()?,
            layers: (0..config.num_hidden_layers).map(|i| reader.layer(i)).collect::<Result<_>>()?,
        })
    }
}

/// The bytes of the `model.safetensors` of a random model of this scheme.
pub fn model_bytes(config: &ModelConfig, seed: u64) -> Vec<u8> {
    let root = tempfile::tempdir().expect("temp dir");
    let path = root.path().join("model");
    Weights::random(config, FloatType::Bf16, seed).write(&path, config).expect("written");
    std::fs::read(path.join(hugging_face::WEIGHTS_FILE)).expect("readable")
}
