//! A model in memory: every matrix arranged for one kernel.

use std::sync::Arc;

use rayon::prelude::*;

use bitnet_model::ModelConfig;
use bitnet_model::files::hugging_face::ModelParts;
use bitnet_model::weights::LayerWeights;

use super::error::{Error, Result};
use super::head::{Head, HeadFormat};
use super::kernels::Vectors;
use super::rope::RopeTable;
use super::table::Table;
use crate::kernels::{Kernel, MAX_COLS};
use crate::linear::Linear;

/// A loaded model. It is not changed by running, so one model serves any number of sequences.
pub struct Model {
    pub(super) config: ModelConfig,
    pub(super) kernel: &'static Kernel,
    pub(super) embedding: Arc<Table>,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Vec<f32>,
    pub(super) head: Head,
    pub(super) rope: RopeTable,
    pub(super) vectors: Vectors,
}

/// One transformer block.
pub(super) struct Layer {
    pub input_layernorm: Vec<f32>,
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    pub attn_sub_norm: Option<Vec<f32>>,
    pub o_proj: Linear,
    pub post_attention_layernorm: Vec<f32>,
    pub gate_proj: Linear,
    pub up_proj: Linear,
    pub ffn_sub_norm: Option<Vec<f32>>,
    pub down_proj: Linear,
}

/// What a model has outside its blocks.
pub(super) struct Tables {
    /// Token embedding, `[vocab, hidden]`.
    pub embedding: Table,
    /// Head, `[vocab, hidden]`, unless it is the embedding.
    pub head: Option<Table>,
    /// Norm before the head, `[hidden]`.
    pub final_norm: Vec<f32>,
}

impl Model {
    /// Arranges the parts of a model for `kernel`.
    ///
    /// # Panics
    /// If the parts are not those of their configuration.
    pub fn from_parts(parts: ModelParts, kernel: &'static Kernel) -> Self {
        let ModelParts { config, embedding, head, final_norm, layers, .. } = parts;
        assert_eq!(layers.len(), config.num_hidden_layers, "one part per block");
        let layers = layers.into_iter().map(|weights| Layer::new(weights, kernel)).collect();
        let tables = Tables { embedding: Table::new(embedding), head: head.map(Table::new), final_norm };
        Self::assemble(config.clone(), tables, layers, kernel)
    }

    /// Takes the blocks one by one from `next`, and drops each as soon as it is arranged.
    pub(super) fn from_layers(
        config: ModelConfig,
        tables: Tables,
        next: impl Fn(usize) -> Result<LayerWeights> + Sync,
        kernel: &'static Kernel,
    ) -> Result<Self> {
        check_columns(&config)?;
        let mut layers = Vec::new();
        let indices: Vec<usize> = (0..config.num_hidden_layers).collect();
        for indices in indices.chunks(BLOCKS_AT_ONCE) {
            let some = indices.par_iter().map(|&index| Ok(Layer::new(next(index)?, kernel)));
            // In order, so that the first of several errors is reported.
            for layer in some.collect::<Vec<Result<Layer>>>() {
                layers.push(layer?);
            }
        }
        Ok(Self::assemble(config, tables, layers, kernel))
    }

    fn assemble(config: ModelConfig, tables: Tables, layers: Vec<Layer>, kernel: &'static Kernel) -> Self {
        let Tables { embedding, head, final_norm } = tables;
        let embedding = Arc::new(embedding);
        let head = Head::new(head.map_or_else(|| Arc::clone(&embedding), Arc::new), kernel);
        let (rope, vectors) = (RopeTable::new(&config), Vectors::of(kernel));
        Self { rope, vectors, config, kernel, embedding, layers, final_norm, head }
    }

    /// Changes how the head is computed. The stored head is as a loaded model has it.
    pub fn with_head(mut self, format: HeadFormat) -> Self {
        self.head = self.head.with_format(format);
        self
    }

    /// How the head is computed.
    pub fn head_format(&self) -> HeadFormat {
        self.head.format()
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The kernel that the model was arranged for.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// Bytes of all projections, scales included, as the kernel reads them.
    pub fn projection_bytes(&self) -> usize {
        self.layers.iter().flat_map(Layer::projections).map(Linear::byte_count).sum()
    }

    /// Bytes of weights that one decoded token reads: projections, norms and head.
    pub fn weight_bytes_per_token(&self) -> usize {
        let norms: usize = self.config.norms().iter().map(|(_, len)| len * 4).sum();
        let norms = norms * self.layers.len() + self.final_norm.len() * 4;
        self.projection_bytes() + norms + self.head.byte_count()
    }
}

/// The integer sums of a wider matrix could leave `i32`.
fn check_columns(config: &ModelConfig) -> Result<()> {
    let widest = config.projections().iter().map(|(_, _, cols)| *cols).max().unwrap_or(0);
    if config.quantization.weight.is_none() || widest <= MAX_COLS {
        return Ok(());
    }
    Err(Error::Input(format!("the model has projections of {widest} input features, expected at most {MAX_COLS}")))
}

impl Layer {
    fn new(weights: LayerWeights, kernel: &'static Kernel) -> Self {
        let linears: Vec<Linear> = weights.projections().par_iter().map(|w| Linear::new(w, kernel)).collect();
        let mut linears = linears.into_iter();
        let mut next = || linears.next().expect("a block has seven projections");
        Self {
            q_proj: next(),
            k_proj: next(),
            v_proj: next(),
            o_proj: next(),
            gate_proj: next(),
            up_proj: next(),
            down_proj: next(),
            input_layernorm: weights.input_layernorm,
            attn_sub_norm: weights.attn_sub_norm,
            post_attention_layernorm: weights.post_attention_layernorm,
            ffn_sub_norm: weights.ffn_sub_norm,
        }
    }

    fn projections(&self) -> [&Linear; 7] {
        [&self.q_proj, &self.k_proj, &self.v_proj, &self.o_proj, &self.gate_proj, &self.up_proj, &self.down_proj]
    }
}

/// Blocks that are read and arranged at the same time, each with a copy of its bytes.
const BLOCKS_AT_ONCE: usize = 4;
