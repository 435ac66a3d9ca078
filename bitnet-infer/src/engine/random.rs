//! Models of random weights, for benchmarks and tests: real shapes without a download.

use half::{bf16, f16};
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, Quantization, Storage};
use bitnet_model::files::hugging_face::ModelParts;
use bitnet_model::packed::{Layout, PackedMatrix};
use bitnet_model::rng::{Stream, generator};
use bitnet_model::weights::{FloatData, FloatMatrix, FloatType, LayerWeights, LinearWeights};

use super::error::{Error, Result};
use super::model::{Model, Tables};
use super::table::Table;
use super::ternary::Arrangement;

/// A recipe for random weights.
#[derive(Clone, Debug)]
pub struct RandomModel {
    /// The shape and the quantizers.
    pub config: ModelConfig,
    /// Type of the embedding, of the head, and of projections without a weight scheme.
    pub float_type: FloatType,
    /// Same seed, same weights.
    pub seed: u64,
}

/// Named shapes: name, layers, hidden, feed-forward, heads, key-value heads, vocabulary, context, tied.
const SHAPES: &[(&str, [usize; 7], bool)] = &[
    // The published BitNet b1.58 2B4T.
    ("2b-4t", [30, 2560, 6912, 20, 5, 128_256, 4096], true),
    // The published bitnet_b1_58-large.
    ("700m", [24, 1536, 4096, 16, 16, 32_002, 2048], true),
    ("125m", [12, 768, 2048, 12, 12, 50_257, 2048], true),
    ("30m", [8, 512, 1408, 8, 4, 12_288, 1024], true),
    ("tiny", [2, 64, 160, 4, 2, 256, 256], true),
];

impl RandomModel {
    /// Names of the shapes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|(name, ..)| *name)
    }

    /// A ternary BitNet of a named shape with an f16 embedding and seed 0.
    ///
    /// # Errors
    /// The list of names, if `name` is none of them.
    pub fn named(name: &str) -> Result<Self> {
        let Some((_, [layers, hidden, ffn, heads, kv_heads, vocab, context], tied)) =
            SHAPES.iter().find(|(known, ..)| *known == name)
        else {
            let known: Vec<_> = Self::names().collect();
            return Err(Error::Input(format!("shape is `{name}`, expected one of: {}", known.join(", "))));
        };
        let config = ModelConfig {
            vocab_size: *vocab,
            hidden_size: *hidden,
            intermediate_size: *ffn,
            num_hidden_layers: *layers,
            num_attention_heads: *heads,
            num_key_value_heads: *kv_heads,
            head_dim: hidden / heads,
            hidden_act: HiddenAct::Relu2,
            max_position_embeddings: *context,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: None,
            tie_word_embeddings: *tied,
            sub_norms: true,
            quantization: Quantization::by_name("ternary", "int8").expect("both are in the table"),
            storage: Storage::Packed,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        };
        Ok(Self { config, float_type: FloatType::F16, seed: 0 })
    }

    /// The model, arranged one block at a time.
    ///
    /// # Errors
    /// If the configuration or the arrangement cannot be.
    pub fn build(&self, arrangement: impl Into<Arrangement>) -> Result<Model> {
        self.config.validate("shape")?;
        let tables = self.tables();
        Model::from_layers(self.config.clone(), tables, |index| Ok(self.layer(index)), arrangement.into())
    }

    /// The weights as a file would hold them.
    ///
    /// # Errors
    /// If the configuration cannot be.
    pub fn parts(&self) -> Result<ModelParts<'_>> {
        self.config.validate("shape")?;
        let (embedding, final_norm) = (self.table(0), vec![1.0; self.config.hidden_size]);
        let head = (!self.config.tie_word_embeddings).then(|| self.table(1));
        let layers = (0..self.config.num_hidden_layers).map(|index| self.layer(index)).collect();
        Ok(ModelParts { config: &self.config, embedding, head, final_norm, layers, tokenizer_json: None })
    }

    fn tables(&self) -> Tables {
        let table = |part| Table::new(self.table(part));
        Tables {
            embedding: table(0),
            head: (!self.config.tie_word_embeddings).then(|| table(1)),
            final_norm: vec![1.0; self.config.hidden_size],
        }
    }

    /// The embedding (0) or the head (1).
    fn table(&self, part: usize) -> FloatMatrix {
        self.float_matrix(self.config.vocab_size, self.config.hidden_size, &mut self.rng(usize::MAX - part))
    }

    fn layer(&self, index: usize) -> LayerWeights {
        let shapes: Vec<_> = self.config.projections().into_iter().enumerate().collect();
        let linears: Vec<LinearWeights> = shapes
            .par_iter()
            .map(|&(part, (_, rows, cols))| self.linear(rows, cols, &mut self.rng(index * shapes.len() + part)))
            .collect();
        let mut linears = linears.into_iter();
        let mut next = || linears.next().expect("a block has seven projections");
        let norm = |len| vec![1.0; len];
        let sub_norm = |len| self.config.sub_norms.then(|| norm(len));
        LayerWeights {
            q_proj: next(),
            k_proj: next(),
            v_proj: next(),
            o_proj: next(),
            gate_proj: next(),
            up_proj: next(),
            down_proj: next(),
            input_layernorm: norm(self.config.hidden_size),
            attn_sub_norm: sub_norm(self.config.query_size()),
            post_attention_layernorm: norm(self.config.hidden_size),
            ffn_sub_norm: sub_norm(self.config.intermediate_size),
        }
    }

    /// Every matrix has a generator of its own, so that they can be made in any order.
    fn rng(&self, part: usize) -> ChaCha8Rng {
        generator(self.seed.wrapping_mul(1_000_003).wrapping_add(part as u64), Stream::Bench)
    }

    fn linear(&self, rows: usize, cols: usize, rng: &mut ChaCha8Rng) -> LinearWeights {
        let Some(scheme) = self.config.quantization.weight else {
            return LinearWeights::Float(self.float_matrix(rows, cols, rng));
        };
        let layout = self.config.storage.layout(scheme);
        let [byte_rows, byte_cols] = layout.byte_shape(rows, cols);
        let mut bytes = vec![0u8; byte_rows * byte_cols];
        rng.fill_bytes(&mut bytes);
        make_valid(layout, &mut bytes);
        // Outputs of about the magnitude of the inputs, whatever the code width.
        let spread = match layout {
            Layout::OneBit => 1.0,
            Layout::TwoBit | Layout::Base3 => 0.8,
            Layout::Int4 => 4.3,
            Layout::Int8 => 73.0,
        };
        let count = scheme.granularity().scale_count(rows, cols);
        let scales = (0..count).map(|_| rng.random_range(0.9..1.1) / (spread * (cols as f32).sqrt())).collect();
        let group = scheme.granularity().group_cols();
        let packed = PackedMatrix::from_grouped_bytes(layout, [rows, cols], group, bytes, scales);
        LinearWeights::Packed(packed.expect("the codes were made valid and the scales positive"))
    }

    /// Numbers of random sign between 1/2 and 1 divided by the root of `cols`, made from bits: no f32 matrix in between.
    fn float_matrix(&self, rows: usize, cols: usize, rng: &mut ChaCha8Rng) -> FloatMatrix {
        let exponent = -((cols as f32).log2() / 2.0).round() as i32;
        let mut bits = vec![0u8; rows * cols * 2];
        rng.fill_bytes(&mut bits);
        let bits = bits.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        // Keep sign and mantissa, set the exponent field.
        let (f16_exponent, bf16_exponent) = (((exponent + 14) as u16) << 10, ((exponent + 126) as u16) << 7);
        let to_f16 = |bits: u16| f16::from_bits((bits & 0x83ff) | f16_exponent);
        let data = match self.float_type {
            FloatType::F32 => FloatData::F32(bits.map(|bits| to_f16(bits).to_f32()).collect()),
            FloatType::F16 => FloatData::F16(bits.map(to_f16).collect()),
            FloatType::Bf16 => {
                FloatData::Bf16(bits.map(|bits| bf16::from_bits((bits & 0x807f) | bf16_exponent)).collect())
            }
        };
        FloatMatrix { rows, cols, data }
    }
}

/// Turns random bytes into bytes that hold codes of the layout's scheme only.
fn make_valid(layout: Layout, bytes: &mut [u8]) {
    match layout {
        Layout::OneBit => {}
        // All 81 bytes of four codes 0, 1 or 2, the digits of the byte's value in base three.
        Layout::TwoBit => {
            let digits = |n: u8| [27, 9, 3, 1].iter().fold(0, |byte, place| (byte << 2) | (n / place % 3));
            let table: Vec<u8> = (0..81).map(digits).collect();
            bytes.iter_mut().for_each(|byte| *byte = table[usize::from(*byte) % 81]);
        }
        Layout::Base3 => bytes.iter_mut().for_each(|byte| *byte %= 243),
        // The schemes are symmetric: the lowest number of the type is no code.
        Layout::Int4 => bytes.iter_mut().for_each(|byte| {
            for nibble in [0x0f, 0xf0] {
                if *byte & nibble == 0x88 & nibble {
                    *byte &= !nibble;
                }
            }
        }),
        Layout::Int8 => bytes.iter_mut().filter(|byte| **byte == 0x80).for_each(|byte| *byte = 0),
    }
}
