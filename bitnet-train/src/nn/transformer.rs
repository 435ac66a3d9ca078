//! The whole model: embedding, blocks, norm, head and loss.

use std::sync::Arc;

use anyhow::{Result, ensure};
use bitnet_model::ModelConfig;
use candle_core::{Device, Tensor};

use super::attention::Attention;
use super::bit_linear::BitLinear;
use super::block::Block;
use super::estimator::Estimator;
use super::feed_forward::FeedForward;
use super::parameters::Parameters;
use crate::ops::{AttentionSpec, BitLinearSpec, Ops, RopeTable};
use crate::optim::Gradients;

/// Some sequences of equal length, with the token that follows each position.
#[derive(Clone, Copy)]
pub struct Sequences<'a> {
    /// `count` sequences, one after the other.
    pub inputs: &'a [u32],
    /// As many targets.
    pub targets: &'a [u32],
    /// Sequences.
    pub count: usize,
    /// The batch's number in the run, for what is random in a step.
    pub index: u64,
}

/// A decoder whose parameters candle can differentiate.
pub struct Transformer {
    pub(crate) config: ModelConfig,
    pub(crate) spec: BitLinearSpec,
    pub(crate) attention_spec: AttentionSpec,
    embedding_vh: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head_vh: Tensor,
    ops: Arc<dyn Ops>,
}

impl Transformer {
    /// The network over `parameters`, for sequences of at most `max_seq` tokens, computed by `ops`.
    ///
    /// # Errors
    /// If a parameter is missing.
    pub fn new(
        config: &ModelConfig,
        parameters: &Parameters,
        max_seq: usize,
        estimator: &'static dyn Estimator,
        ops: Arc<dyn Ops>,
    ) -> Result<Self> {
        let attention_spec = AttentionSpec {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            rope: Arc::new(RopeTable::new(max_seq, config.head_dim, config.rope_theta)),
        };
        let spec = BitLinearSpec { quantization: config.quantization, estimator };
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| block(config, parameters, layer, spec, &attention_spec))
            .collect::<Result<_>>()?;
        let embedding_vh = parameters.tensor("model.embed_tokens.weight")?;
        let head_vh =
            if config.tie_word_embeddings { embedding_vh.clone() } else { parameters.tensor("lm_head.weight")? };
        let norm = parameters.tensor("model.norm.weight")?;
        Ok(Self { config: config.clone(), spec, attention_spec, embedding_vh, blocks, norm, head_vh, ops })
    }

    /// The normed output of the last block for `tokens` (`batch` sequences of equal length): `[batch, seq, hidden]`.
    ///
    /// # Errors
    /// If the tokens do not divide into sequences or one is not in the vocabulary.
    pub fn hidden(&self, tokens: &[u32], batch: usize) -> Result<Tensor> {
        let mut x_bth = self.embedded(tokens, batch)?;
        for block in &self.blocks {
            x_bth = block.forward(&*self.ops, &x_bth)?;
        }
        Ok(self.ops.rms_norm(&x_bth, &self.norm, self.config.rms_norm_eps)?)
    }

    /// For each block the magnitudes of [`Block::measured`] on `tokens`, of a network without sub-norms.
    ///
    /// # Errors
    /// As [`Transformer::hidden`].
    pub fn magnitudes(&self, tokens: &[u32], batch: usize) -> Result<Vec<[f32; 2]>> {
        let mut x_bth = self.embedded(tokens, batch)?;
        let mut found = Vec::new();
        for block in &self.blocks {
            let (next_bth, magnitudes) = block.measured(&*self.ops, &x_bth)?;
            found.push(magnitudes);
            x_bth = next_bth;
        }
        Ok(found)
    }

    /// The rows of the embedding, `[batch, seq, hidden]`.
    fn embedded(&self, tokens: &[u32], batch: usize) -> Result<Tensor> {
        self.check(tokens, batch)?;
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let hidden = self.embedding_vh.dim(1)?;
        Ok(self.embedding_vh.index_select(&ids, 0)?.reshape((batch, tokens.len() / batch, hidden))?)
    }

    /// Logits `[batch, seq, vocab]`: for tests and small inputs, the loss never makes them all.
    ///
    /// # Errors
    /// As [`Transformer::hidden`].
    pub fn logits(&self, tokens: &[u32], batch: usize) -> Result<Tensor> {
        let x_bth = self.hidden(tokens, batch)?;
        let (b, t, h) = x_bth.dims3()?;
        Ok(x_bth.reshape((b * t, h))?.matmul(&self.head_vh.t()?)?.reshape((b, t, self.config.vocab_size))?)
    }

    /// The loss as a scalar tensor that candle can differentiate.
    ///
    /// # Errors
    /// As [`Transformer::loss`].
    pub fn graph(&self, batch: Sequences) -> Result<Tensor> {
        self.check_batch(batch)?;
        Ok(self.ops.cross_entropy(&self.hidden(batch.inputs, batch.count)?, &self.head_vh, batch.targets)?)
    }

    /// Mean negative log-likelihood of the targets after the inputs, in nats per token.
    ///
    /// # Errors
    /// As [`Transformer::hidden`], if the numbers of inputs and targets differ, or the loss is lost to a parameter that is not
    /// finite, by its name.
    pub fn loss(&self, parameters: &Parameters, batch: Sequences) -> Result<f64> {
        self.check_batch(batch)?;
        blamed(parameters, self.ops.loss(self, parameters, batch))
    }

    /// The same, adding the gradients of all parameters to `gradients`.
    ///
    /// # Errors
    /// As [`Transformer::loss`], or if a parameter has no gradient.
    pub fn differentiate(&self, parameters: &Parameters, batch: Sequences, gradients: &mut Gradients) -> Result<f64> {
        self.check_batch(batch)?;
        blamed(parameters, self.ops.differentiate(self, parameters, batch, gradients))
    }

    fn check_batch(&self, Sequences { inputs, targets, count, .. }: Sequences) -> Result<()> {
        ensure!(inputs.len() == targets.len(), "{} inputs and {} targets", inputs.len(), targets.len());
        self.check(inputs, count)?;
        self.check(targets, count)
    }

    fn check(&self, tokens: &[u32], sequences: usize) -> Result<()> {
        let (count, vocabulary) = (tokens.len(), self.config.vocab_size);
        ensure!(
            sequences > 0 && count > 0 && count.is_multiple_of(sequences),
            "{count} tokens in {sequences} sequences"
        );
        let (t, rope) = (count / sequences, &self.attention_spec.rope);
        ensure!(t * rope.half <= rope.cos.len(), "sequences of {t} tokens, longer than the network was made for");
        let bad = tokens.iter().find(|&&token| token as usize >= vocabulary);
        ensure!(bad.is_none(), "token {} is not below the vocabulary of {vocabulary}", bad.unwrap_or(&0));
        Ok(())
    }
}

/// A loss that is none has a reason: the first parameter that is not finite, if there is one.
fn blamed(parameters: &Parameters, loss: Result<f64>) -> Result<f64> {
    if !loss.as_ref().is_ok_and(|loss| loss.is_finite()) {
        parameters.check_finite()?;
    }
    loss
}

fn block(
    config: &ModelConfig,
    parameters: &Parameters,
    layer: usize,
    spec: BitLinearSpec,
    attention_spec: &AttentionSpec,
) -> Result<Block> {
    let weight = |name: &str| parameters.tensor(&format!("model.layers.{layer}.{name}.weight"));
    let linear = |name| Ok::<_, anyhow::Error>(BitLinear::new(weight(name)?, spec));
    let sub_norm = |name| config.sub_norms.then(|| weight(name)).transpose();
    let eps = config.rms_norm_eps;
    Ok(Block {
        input_layernorm: weight("input_layernorm")?,
        attention: Attention {
            q_proj: linear("self_attn.q_proj")?,
            k_proj: linear("self_attn.k_proj")?,
            v_proj: linear("self_attn.v_proj")?,
            o_proj: linear("self_attn.o_proj")?,
            sub_norm: sub_norm("self_attn.attn_sub_norm")?,
            eps,
            spec: attention_spec.clone(),
        },
        post_attention_layernorm: weight("post_attention_layernorm")?,
        feed_forward: FeedForward {
            gate_proj: linear("mlp.gate_proj")?,
            up_proj: linear("mlp.up_proj")?,
            down_proj: linear("mlp.down_proj")?,
            sub_norm: sub_norm("mlp.ffn_sub_norm")?,
            eps,
            act: config.hidden_act,
        },
        eps,
    })
}
