//! A model in memory: every matrix arranged for one kernel.

use std::sync::Arc;

use rayon::prelude::*;

use bitnet_model::ModelConfig;
use bitnet_model::files::hugging_face::ModelParts;
use bitnet_model::oddities;
use bitnet_model::packed::Layout;
use bitnet_model::weights::{LayerWeights, LinearWeights};

use super::buffers::SpareBuffers;
use super::error::{Error, Result};
use super::fingerprint;
use super::head::{Head, HeadFormat};
use super::kernels::Vectors;
use super::rope::RopeTable;
use super::table::Table;
use super::ternary::{Arrangement, TernaryChoice};
use crate::kernels::{Kernel, MAX_COLS, Ternary};
use crate::linear::Linear;

/// A loaded model. It is not changed by running, so one model serves any number of sequences.
pub struct Model {
    pub(super) config: ModelConfig,
    pub(super) kernel: &'static Kernel,
    ternary: TernaryChoice,
    pub(super) embedding: Arc<Table>,
    pub(super) layers: Vec<Layer>,
    pub(super) final_norm: Vec<f32>,
    pub(super) head: Head,
    pub(super) rope: RopeTable,
    pub(super) vectors: Vectors,
    pub(super) spare_buffers: SpareBuffers,
    /// What looks wrong in its weights.
    warnings: Vec<String>,
}

/// One transformer block.
pub(super) struct Layer {
    pub input_layernorm: Vec<f32>,
    /// q, k and v one below the other: one product, one hand-out to the threads.
    pub qkv_proj: Linear,
    pub attn_sub_norm: Option<Vec<f32>>,
    pub o_proj: Linear,
    pub post_attention_layernorm: Vec<f32>,
    /// gate above up.
    pub gate_up_proj: Linear,
    pub ffn_sub_norm: Option<Vec<f32>>,
    pub down_proj: Linear,
    /// Of all its weights, as [`fingerprint::of_layer`] has it.
    pub fingerprint: u64,
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
    /// Arranges the parts of a model. Nothing is measured: ternary codes are held at two bits unless the arrangement names
    /// another way that its kernel has.
    ///
    /// # Panics
    /// If the parts are not those of their configuration.
    pub fn from_parts(parts: ModelParts, arrangement: impl Into<Arrangement>) -> Self {
        let Arrangement { kernel, ternary } = arrangement.into();
        let ternary = ternary.filter(|_| kernel.has_base3()).unwrap_or(Ternary::TwoBit);
        let ternary = TernaryChoice { ternary, rates: None };
        let ModelParts { config, embedding, head, final_norm, layers, .. } = parts;
        assert_eq!(layers.len(), config.num_hidden_layers, "one part per block");
        let odd = layers.iter().enumerate().flat_map(|(index, weights)| oddities::of_block(config, index, weights));
        let warnings = odd.collect();
        let layers = layers.into_iter().map(|weights| Layer::new(weights, kernel, ternary.ternary)).collect();
        let tables = Tables { embedding: Table::new(embedding), head: head.map(Table::new), final_norm };
        Self { warnings, ..Self::assemble(config.clone(), tables, layers, (kernel, ternary)) }
    }

    /// Takes the blocks one by one from `next`, and drops each as soon as it is arranged.
    pub(super) fn from_layers(
        config: ModelConfig,
        tables: Tables,
        next: impl Fn(usize) -> Result<LayerWeights> + Sync,
        arrangement: Arrangement,
    ) -> Result<Self> {
        check_columns(&config)?;
        let (kernel, ternary) = (arrangement.kernel, arrangement.choose(&config)?);
        let (mut layers, mut warnings) = (Vec::new(), Vec::new());
        let indices: Vec<usize> = (0..config.num_hidden_layers).collect();
        for indices in indices.chunks(BLOCKS_AT_ONCE) {
            let arrange = |&index: &usize| {
                let weights = next(index)?;
                check_packed(&weights)?;
                let odd = oddities::of_block(&config, index, &weights);
                Ok((Layer::new(weights, kernel, ternary.ternary), odd))
            };
            let some = indices.par_iter().map(arrange);
            // In order, so that the first of several errors is reported.
            for layer in some.collect::<Vec<Result<_>>>() {
                let (layer, odd) = layer?;
                layers.push(layer);
                warnings.extend(odd);
            }
        }
        Ok(Self { warnings, ..Self::assemble(config, tables, layers, (kernel, ternary)) })
    }

    fn assemble(
        config: ModelConfig,
        tables: Tables,
        layers: Vec<Layer>,
        (kernel, ternary): (&'static Kernel, TernaryChoice),
    ) -> Self {
        let Tables { embedding, head, final_norm } = tables;
        let embedding = Arc::new(embedding);
        let head = Head::new(head.map_or_else(|| Arc::clone(&embedding), Arc::new), kernel);
        let (rope, vectors) = (RopeTable::new(&config), Vectors::of(kernel));
        let (spare_buffers, warnings) = (SpareBuffers::default(), Vec::new());
        Self { rope, vectors, spare_buffers, config, kernel, ternary, embedding, layers, final_norm, head, warnings }
    }

    /// Changes how the head is computed. The stored head is as a loaded model has it.
    pub fn with_head(mut self, format: HeadFormat) -> Self {
        let tied = Arc::ptr_eq(self.head.table(), &self.embedding);
        self.head = self.head.with_format(format);
        if tied {
            self.embedding = Arc::clone(self.head.table());
        }
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

    /// What looks wrong in its weights and keeps nothing from running, a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The kernel that the model was arranged for.
    pub fn kernel(&self) -> &'static Kernel {
        self.kernel
    }

    /// How ternary codes are held; `None` if the model has none.
    pub fn ternary(&self) -> Option<TernaryChoice> {
        let is_ternary = self.config.quantization.weight.is_some_and(|scheme| scheme.layout() == Layout::TwoBit);
        is_ternary.then_some(self.ternary)
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

/// The same for what was read, whatever the configuration says.
fn check_packed(weights: &LayerWeights) -> Result<()> {
    let packed = weights.projections().into_iter().filter(|part| matches!(part, LinearWeights::Packed(_)));
    match packed.map(LinearWeights::cols).find(|&cols| cols > MAX_COLS) {
        Some(cols) => {
            Err(Error::Input(format!("a projection has codes of {cols} columns, expected at most {MAX_COLS}")))
        }
        None => Ok(()),
    }
}

impl Layer {
    fn new(weights: LayerWeights, kernel: &'static Kernel, ternary: Ternary) -> Self {
        let fingerprint = fingerprint::of_layer(&weights);
        let LayerWeights { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = &weights;
        let stacks: [&[&LinearWeights]; 4] =
            [&[q_proj, k_proj, v_proj], &[o_proj], &[gate_proj, up_proj], &[down_proj]];
        let [qkv_proj, o_proj, gate_up_proj, down_proj] = stacks.map(|stack| Linear::stacked(stack, kernel, ternary));
        Self {
            qkv_proj,
            o_proj,
            gate_up_proj,
            down_proj,
            input_layernorm: weights.input_layernorm,
            attn_sub_norm: weights.attn_sub_norm,
            post_attention_layernorm: weights.post_attention_layernorm,
            ffn_sub_norm: weights.ffn_sub_norm,
            fingerprint,
        }
    }

    /// Whether no projection has weights of floats.
    pub(super) fn is_exact(&self) -> bool {
        self.projections().into_iter().all(Linear::is_coded)
    }

    fn projections(&self) -> [&Linear; 4] {
        [&self.qkv_proj, &self.o_proj, &self.gate_up_proj, &self.down_proj]
    }
}

/// Blocks that are read and arranged at the same time, each with a copy of its bytes.
const BLOCKS_AT_ONCE: usize = 4;
