//! The `.bin` files of karpathy's llama2.c: seven numbers and f32 weights, with a vocabulary in a file of its own.

use super::gguf::TokenLists;
use super::source::{ROTATED, TableBytes, TableView, TensorRecord, WeightSource, row_of_neighbours, rows_from};
use super::tensors::FloatBytes;
use crate::config::{HiddenAct, ModelConfig, Quantization, Storage};
use crate::error::{Error, Result};
use crate::finite::complaint;
use crate::weights::{FloatMatrix, FloatType, LinearWeights};

/// A llama2.c checkpoint as a model (version 0: no magic number; the head is the embedding if the vocabulary is positive).
pub struct Llama2c<'a> {
    bytes: &'a [u8],
    origin: String,
    config: ModelConfig,
}

/// The parts of a file, in order. Those of a block stand for all blocks one after the other.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Embedding,
    Norm(usize),
    Projection(usize),
    FinalNorm,
    /// Tables of angles that nobody needs.
    Angles,
    Head,
}

const ORDER: [Part; 13] = [
    Part::Embedding,
    Part::Norm(0),
    Part::Projection(0),
    Part::Projection(1),
    Part::Projection(2),
    Part::Projection(3),
    Part::Norm(1),
    Part::Projection(4),
    Part::Projection(6),
    Part::Projection(5),
    Part::FinalNorm,
    Part::Angles,
    Part::Head,
];

const HEADER: usize = 28;

/// llama2.c's names of the norms of a block.
const NORMS: [&str; 2] = ["rms_att_weight", "rms_ffn_weight"];
/// llama2.c's names of the projections, in the order of [`ModelConfig::projections`].
const PROJECTIONS: [&str; 7] = ["wq", "wk", "wv", "wo", "w1", "w3", "w2"];

impl<'a> Llama2c<'a> {
    /// Whether `bytes` begin like such a file and have exactly the length that this asks for.
    pub fn fits(bytes: &[u8]) -> bool {
        Llama2c::parse(bytes, "").is_ok()
    }

    /// Reads the header; `origin` names the file in errors.
    ///
    /// # Errors
    /// If the sizes cannot be, or the file has not the length that they ask for.
    pub fn parse(bytes: &'a [u8], origin: &str) -> Result<Self> {
        if bytes.len() < HEADER {
            return Err(Error::format(origin, format!("has {} bytes, expected a header of {HEADER}", bytes.len())));
        }
        let number = |i: usize| i32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().expect("four bytes"));
        let size = |i: usize, key: &str| {
            let n = number(i);
            usize::try_from(n.unsigned_abs())
                .ok()
                .filter(|_| n > 0 || (n < 0 && i == VOCABULARY))
                .ok_or_else(|| Error::config(origin, key, format!("is {n}, expected a positive number")))
        };
        let (hidden, heads) = (size(0, "dim")?, size(3, "n_heads")?);
        if !hidden.is_multiple_of(heads) {
            return Err(Error::config(origin, "n_heads", format!("is {heads}, which does not divide dim = {hidden}")));
        }
        let config = ModelConfig {
            vocab_size: size(VOCABULARY, "vocab_size")?,
            hidden_size: hidden,
            intermediate_size: size(1, "hidden_dim")?,
            num_hidden_layers: size(2, "n_layers")?,
            num_attention_heads: heads,
            num_key_value_heads: size(4, "n_kv_heads")?,
            head_dim: hidden / heads,
            hidden_act: HiddenAct::Silu,
            max_position_embeddings: size(6, "seq_len")?,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: None,
            tie_word_embeddings: number(VOCABULARY) > 0,
            sub_norms: false,
            quantization: Quantization::NONE,
            storage: Storage::Float,
            // llama2.c begins every text with token 1 and ends at it; its vocabularies have 2 as the end of a text.
            bos_token_id: Some(1),
            eos_token_ids: vec![2, 1],
        };
        config.validate(origin)?;
        let model = Self { bytes, origin: origin.to_owned(), config };
        let floats = ORDER.iter().try_fold(0usize, |sum, &part| sum.checked_add(model.floats_of(part)?));
        let expected = floats.and_then(|floats| floats.checked_mul(4)).and_then(|n| n.checked_add(HEADER));
        if expected != Some(bytes.len()) {
            let reason =
                format!("has {} bytes, expected {} for its sizes", bytes.len(), expected.unwrap_or(usize::MAX));
            return Err(Error::format(origin, reason));
        }
        Ok(model)
    }

    /// Numbers of a part, of all blocks together; `None` if they leave `usize`.
    fn floats_of(&self, part: Part) -> Option<usize> {
        let config = &self.config;
        let table = config.vocab_size.checked_mul(config.hidden_size);
        let blocks = config.num_hidden_layers;
        match part {
            Part::Embedding => table,
            Part::Head if config.tie_word_embeddings => Some(0),
            Part::Head => table,
            Part::FinalNorm => Some(config.hidden_size),
            Part::Norm(_) => config.hidden_size.checked_mul(blocks),
            Part::Projection(index) => {
                let (_, rows, cols) = config.projections()[index];
                rows.checked_mul(cols)?.checked_mul(blocks)
            }
            Part::Angles => config.max_position_embeddings.checked_mul(config.head_dim),
        }
    }

    /// The bytes of a part, or of one block of it.
    fn bytes_of(&self, part: Part, block: Option<usize>) -> &'a [u8] {
        let count = |part| self.floats_of(part).expect("checked when the file was parsed");
        let start: usize = ORDER.iter().take_while(|&&before| before != part).map(|&before| count(before)).sum();
        let (start, len) = match block {
            None => (start, count(part)),
            Some(block) => {
                let one = count(part) / self.config.num_hidden_layers;
                (start + block * one, one)
            }
        };
        &self.bytes[HEADER + 4 * start..HEADER + 4 * (start + len)]
    }

    fn floats(&self, part: Part, block: Option<usize>, name: &str) -> Result<FloatBytes<'a>> {
        let floats = FloatBytes { float_type: FloatType::F32, bytes: self.bytes_of(part, block) };
        match floats.first_not_finite() {
            Some(at) => {
                let of_block = block.map_or(String::new(), |block| format!(" of block {block}"));
                Err(Error::tensor(&self.origin, name, complaint(at) + &of_block))
            }
            None => Ok(floats),
        }
    }

    fn vector(&self, part: Part, block: Option<usize>, name: &str) -> Result<Vec<f32>> {
        let floats = self.floats(part, block, name)?;
        let mut values = vec![0f32; floats.bytes.len() / 4];
        floats.to_f32(&mut values);
        Ok(values)
    }

    fn table(&self, part: Part) -> TableView<'_> {
        let floats = FloatBytes { float_type: FloatType::F32, bytes: self.bytes_of(part, None) };
        TableView {
            rows: self.config.vocab_size,
            cols: self.config.hidden_size,
            data: TableBytes::Floats(floats),
            name: if part == Part::Head { "wcls" } else { "token_embedding_table" },
            origin: &self.origin,
        }
    }
}

/// The vocabulary of `vocab_size` tokens that is kept beside a checkpoint: the length of the longest token, then of each token
/// its score (f32), its length (i32) and its bytes. `None` if `bytes` are no such file.
pub fn token_lists(bytes: &[u8], vocab_size: usize) -> Option<TokenLists> {
    let mut rest = bytes.get(4..)?;
    let (mut tokens, mut scores, mut types) = (Vec::new(), Vec::new(), Vec::new());
    for id in 0..vocab_size {
        let (score, after) = rest.split_first_chunk::<4>()?;
        let (len, after) = after.split_first_chunk::<4>()?;
        let len = usize::try_from(i32::from_le_bytes(*len)).ok().filter(|&len| len <= after.len())?;
        let (text, after) = after.split_at(len);
        rest = after;
        scores.push(f32::from_le_bytes(*score));
        // Token 0 is the unknown one, 1 and 2 begin and end a text, and then come the 256 bytes.
        let (token, kind) = match id {
            0 => ("<unk>".to_owned(), 2),
            1 => ("<s>".to_owned(), 3),
            2 => ("</s>".to_owned(), 3),
            3..259 => (format!("<0x{:02X}>", id - 3), 6),
            _ => (std::str::from_utf8(text).ok()?.replace(' ', "\u{2581}"), 1),
        };
        tokens.push(token);
        types.push(kind);
    }
    rest.is_empty().then_some(TokenLists {
        model: "llama",
        pre: None,
        tokens,
        scores: Some(scores),
        types,
        merges: Vec::new(),
        add_space_prefix: true,
        around: [Some(1), None],
    })
}

/// Place of the vocabulary in the header: negative if the head is a matrix of its own.
const VOCABULARY: usize = 5;

impl WeightSource for Llama2c<'_> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn embedding_table(&self) -> Result<TableView<'_>> {
        Ok(self.table(Part::Embedding))
    }

    fn head_table(&self) -> Result<Option<TableView<'_>>> {
        Ok((!self.config.tie_word_embeddings).then(|| self.table(Part::Head)))
    }

    fn final_norm(&self) -> Result<Vec<f32>> {
        self.vector(Part::FinalNorm, None, "rms_final_weight")
    }

    fn norm(&self, layer: usize, index: usize) -> Result<Vec<f32>> {
        self.vector(Part::Norm(index), Some(layer), NORMS[index])
    }

    fn projection(&self, layer: usize, index: usize) -> Result<LinearWeights> {
        let (_, rows, cols) = self.config.projections()[index];
        let data = self.floats(Part::Projection(index), Some(layer), PROJECTIONS[index])?.to_data();
        let weights = LinearWeights::Float(FloatMatrix { rows, cols, data });
        if !ROTATED.contains(&index) {
            return Ok(weights);
        }
        Ok(rows_from(weights, |row| row_of_neighbours(row, self.config.head_dim)))
    }

    fn latent(&self, _layer: usize, _index: usize) -> Result<Option<FloatMatrix>> {
        Ok(None)
    }

    fn tensors(&self) -> Vec<TensorRecord> {
        let config = &self.config;
        let record = |&part: &Part| {
            let bytes = self.bytes_of(part, None);
            let (h, v, blocks) = (config.hidden_size, config.vocab_size, config.num_hidden_layers);
            let (name, shape) = match part {
                Part::Embedding => ("token_embedding_table", vec![v, h]),
                Part::Head => ("wcls", vec![v, h]),
                Part::FinalNorm => ("rms_final_weight", vec![h]),
                Part::Norm(index) => (NORMS[index], vec![blocks, h]),
                Part::Projection(index) => {
                    let (_, rows, cols) = config.projections()[index];
                    (PROJECTIONS[index], vec![blocks, rows, cols])
                }
                Part::Angles => ("freq_cis", vec![2, config.max_position_embeddings, config.head_dim / 2]),
            };
            let offset = bytes.as_ptr().addr() - self.bytes.as_ptr().addr();
            TensorRecord { name: name.into(), kind: "F32".into(), shape, bytes: bytes.len(), offset }
        };
        ORDER.iter().map(record).filter(|record| record.bytes > 0).collect()
    }

    fn notes(&self) -> Vec<String> {
        vec!["llama2.c: activation silu, rms_norm_eps 1e-5 and rope_theta 10000, which its files do not hold".into()]
    }
}
