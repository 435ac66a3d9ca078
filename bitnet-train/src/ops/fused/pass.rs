//! The whole model, forward and backward, without a graph: what is kept for backward lies in buffers that are used again
//! from step to step, and every gradient is written once, where the optimizer reads it.

use anyhow::{Result, anyhow};
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;
use rayon::prelude::*;

use super::attention::sized;
use super::block::{Block, BlockBuffers, BlockStacks, PRODUCTS_PER_BLOCK, Saved};
use super::embedding::{self, Scatter};
use super::head::{HeadBuffers, HeadGradients, cross_entropy};
use super::int8::Noise;
use super::profile::{Op, Profile};
use super::rows::{self, Input, Norm};
use super::{Backward, FusedSettings};
use crate::nn::parameters::Parameters;
use crate::nn::transformer::{Sequences, Transformer};
use crate::ops::kernels::product::{Output, TileKernel};
use crate::ops::{Codes, Values, values};
use crate::optim::Gradients;

/// The memory of passes.
pub(super) struct Pass {
    settings: FusedSettings,
    /// The residual stream before each block, and after the last.
    stream: Vec<Vec<f32>>,
    /// One for each block; one for all where blocks are computed again in backward, or there is no backward.
    saved: Vec<Saved>,
    stacks: Vec<BlockStacks>,
    buffers: BlockBuffers,
    head: HeadBuffers,
    final_inverse: Vec<f32>,
    final_norm: Vec<f32>,
    d_stream: Vec<f32>,
    d_norm: Vec<f32>,
    scatter: Scatter,
    /// The model that blocks were made for.
    of: Option<(ModelConfig, &'static str)>,
    /// The parameters whose codes the blocks hold.
    quantized: Option<u64>,
    pub(super) profile: Profile,
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

impl Pass {
    pub(super) fn new(settings: FusedSettings) -> Self {
        Self {
            settings,
            stream: Vec::new(),
            saved: Vec::new(),
            stacks: Vec::new(),
            buffers: BlockBuffers::default(),
            head: HeadBuffers::default(),
            final_inverse: Vec::new(),
            final_norm: Vec::new(),
            d_stream: Vec::new(),
            d_norm: Vec::new(),
            scatter: Scatter::default(),
            of: None,
            quantized: None,
            profile: Profile::default(),
        }
    }

    /// The codes that the blocks hold, if they are those of `parameters`.
    pub(super) fn codes(&self, parameters: &Parameters) -> Option<Codes> {
        let copy = |(name, codes): (&str, &[i8])| (name.to_owned(), codes.to_vec());
        let held = self.quantized == Some(parameters.id());
        held.then(|| self.stacks.iter().flat_map(BlockStacks::codes).map(copy).collect())
    }

    /// The loss of a batch; with `gradients`, adds those of every parameter.
    pub(super) fn run(
        &mut self,
        model: &Transformer,
        parameters: &Parameters,
        batch: Sequences,
        mut gradients: Option<&mut Gradients>,
    ) -> Result<f64> {
        let (config, spec) = (&model.config, model.spec);
        let (h, t, layers) = (config.hidden_size, batch.inputs.len(), config.num_hidden_layers);
        let again = self.settings.recompute || gradients.is_none();
        let guards: Vec<(&str, Values)> =
            parameters.iter().map(|(name, var)| Ok((name, values(var)?))).collect::<Result<_>>()?;
        let parameter = |name: &str| -> &[f32] {
            let at = guards.binary_search_by(|(of, _)| (*of).cmp(name)).expect("a parameter of this configuration");
            &guards[at].1
        };
        // A loss without gradients is a measurement: exact in every precision.
        let tiles = if gradients.is_some() { self.settings.precision.tiles() } else { TileKernel::f32() };

        let Self { stream, saved, stacks, buffers, head, profile, of, quantized, .. } = self;
        if of.as_ref().is_none_or(|(of, estimator)| of != config || *estimator != spec.estimator.name()) {
            *stacks = (0..layers).map(|layer| BlockStacks::new(config, spec, layer)).collect();
            saved.clear();
            *quantized = None;
            *of = Some((config.clone(), spec.estimator.name()));
        }
        let wanted = if again { 1 } else { layers };
        if saved.len() < wanted {
            saved.resize_with(wanted, || Saved::new(spec));
        }
        stream.resize_with(layers + 1, Vec::new);

        let kernel = kernels::best().map_err(|e| anyhow!(e))?;
        // Gradients that are summed are those of the same weights, so later micro-batches find the codes there.
        let later = gradients.as_ref().is_some_and(|gradients| gradients.micro_batches() > 0);
        let fresh = !later || *quantized != Some(parameters.id());
        *quantized = None;
        profile.time(Op::QuantizeWeights, 0, || {
            if !fresh {
                return Ok(());
            }
            let quantize = |stacks: &mut BlockStacks| {
                let weights = stacks.weights(parameter);
                stacks.quantize(&weights, kernel).map_err(|e| anyhow!(e))
            };
            stacks.par_iter_mut().try_for_each(quantize)
        })?;
        *quantized = Some(parameters.id());
        let block = |layer: usize| Block {
            stacks: &stacks[layer],
            weights: stacks[layer].weights(parameter),
            attention: &model.attention_spec,
            act: config.hidden_act,
            eps: config.rms_norm_eps,
            seq: t / batch.count,
            tiles,
            int8: (self.settings.backward == Backward::Int8).then_some({
                let product = layer as u64 * PRODUCTS_PER_BLOCK;
                (Noise { seed: self.settings.seed, batch: batch.index, product }, kernel)
            }),
            profile,
        };

        profile.time(Op::Embedding, 0, || {
            embedding::gather(parameter(EMBEDDING), h, batch.inputs, sized(&mut stream[0], t * h));
        });
        for layer in 0..layers {
            let (x, out) = pair(stream, layer, t * h);
            block(layer).forward(x, out, &mut saved[if again { 0 } else { layer }], buffers);
        }

        let tied = config.tie_word_embeddings;
        let head_name = if tied { EMBEDDING } else { HEAD };
        let norm = Norm { weight: parameter(FINAL_NORM), eps: config.rms_norm_eps };
        let last = &stream[layers][..t * h];
        profile.time(Op::Norm, 0, || {
            rows::norm(last, h, Some(norm), &mut self.final_inverse, &mut Input::new(None), &mut self.final_norm);
        });
        let d_norm = sized(&mut self.d_norm, t * h);
        let head_gradients = gradients.as_deref_mut().map(|gradients| {
            let (d_head, output) = gradients.slot(head_name);
            HeadGradients { dx: d_norm, d_head, add: output == Output::Add }
        });
        let x = &self.final_norm[..t * h];
        let loss = cross_entropy(x, parameter(head_name), batch.targets, head_gradients, tiles, (head, profile));
        let Some(gradients) = gradients else { return Ok(f64::from(loss)) };

        let d = sized(&mut self.d_stream, t * h);
        profile.time(Op::NormGradient, 0, || {
            let (dw, output) = gradients.slot(FINAL_NORM);
            let inverses = &self.final_inverse[..t];
            rows::norm_backward([last, &self.d_norm], norm.weight, inverses, d, dw, [false, output == Output::Add]);
        });
        for layer in (0..layers).rev() {
            let block = block(layer);
            let kept = &mut saved[if again { 0 } else { layer }];
            if again && layer + 1 < layers {
                // What the block kept has been overwritten by the blocks after it.
                let (x, out) = pair(stream, layer, t * h);
                block.forward(x, out, kept, buffers);
            }
            block.backward(&stream[layer][..t * h], d, kept, gradients, buffers);
        }
        profile.time(Op::EmbeddingGradient, 0, || {
            let (out, output) = gradients.slot(EMBEDDING);
            self.scatter.add(d, h, batch.inputs, out, output);
        });
        gradients.finish();
        Ok(f64::from(loss))
    }
}

/// The stream before a block, and room for that after it.
fn pair(stream: &mut [Vec<f32>], layer: usize, len: usize) -> (&[f32], &mut [f32]) {
    let (before, after) = stream.split_at_mut(layer + 1);
    (&before[layer][..len], sized(&mut after[0], len))
}
