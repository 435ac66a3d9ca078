//! A whole model in f64, straight from its formulas: its loss, and a smooth stand-in whose slopes are the straight-through
//! gradients.
//!
//! A quantizer is a staircase, and its gradient is an agreement: that of the identity (or of a constant, where `clipped-ste`
//! cuts a weight off). So the stand-in adds to each input what its rounding added at one point and holds that fixed. There it
//! has the quantized model's loss, and its derivative is what the estimators promise, which central differences then measure.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitnet_model::ModelConfig;
use bitnet_train::ops::{AttentionSpec, RopeTable};

use crate::definitions::{attention, cross_entropy, gated, linear, rms_norm};

/// Numbers of each parameter, by name.
pub type Values = BTreeMap<String, Vec<f64>>;

/// A term of the definition that a wrong program might lack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Term {
    InputNorm,
    AttentionSubNorm,
    MiddleNorm,
    FeedForwardSubNorm,
    FinalNorm,
    /// Added to the mean square in all norms: the tenth of it.
    Epsilon,
    /// Queries and keys stay as they are.
    Rotation,
    AttentionResidual,
    FeedForwardResidual,
    /// The gate's function.
    Activation,
    /// `1 / sqrt(head_dim)`.
    AttentionScale,
    /// A token sees those after it too: the other way round, so that none is left out.
    CausalMask,
}

impl Term {
    pub const ALL: [Self; 12] = [
        Self::InputNorm,
        Self::AttentionSubNorm,
        Self::MiddleNorm,
        Self::FeedForwardSubNorm,
        Self::FinalNorm,
        Self::Epsilon,
        Self::Rotation,
        Self::AttentionResidual,
        Self::FeedForwardResidual,
        Self::Activation,
        Self::AttentionScale,
        Self::CausalMask,
    ];
}

/// A model and a batch.
pub struct Whole {
    /// What is left out, to see how far the result is then off.
    pub without: Option<Term>,
    pub config: ModelConfig,
    pub estimator: &'static str,
    pub inputs: Vec<u32>,
    pub targets: Vec<u32>,
    pub count: usize,
}

/// What quantizing added at one point.
#[derive(Default)]
pub struct Rounding {
    /// To the input of each projection, in the order of their use.
    inputs: Vec<Vec<f64>>,
    /// To each projection: a number to add, or a value that takes the weight's place.
    weights: BTreeMap<String, Vec<Moved>>,
    /// Whether a value lay so near the boundary between two codes that f32 may put it on the other side.
    pub doubtful: bool,
}

#[derive(Clone, Copy)]
enum Moved {
    By(f64),
    To(f64),
}

impl Whole {
    /// The loss at `values`, and what quantizing added there.
    pub fn quantized(&self, values: &Values) -> (f64, Rounding) {
        let mut rounding = Rounding::default();
        for layer in 0..self.config.num_hidden_layers {
            for (name, rows, _) in self.config.projections() {
                let name = format!("model.layers.{layer}.{name}.weight");
                rounding.weights.insert(name.clone(), self.moved(&values[&name], rows));
            }
        }
        let loss = self.pass(
            values,
            &mut |x, cols, rounding: &mut Rounding| {
                let moved: Vec<f64> =
                    x.chunks(cols).flat_map(|token| self.rounded(token, &mut rounding.doubtful)).collect();
                rounding.inputs.push(moved.iter().zip(x).map(|(q, x)| q - x).collect());
                moved
            },
            &mut rounding,
        );
        (loss, rounding)
    }

    /// The loss of the stand-in for the model with this rounding.
    pub fn smooth(&self, values: &Values, rounding: &mut Rounding) -> f64 {
        let mut at = 0;
        self.pass(
            values,
            &mut |x, _, rounding: &mut Rounding| {
                at += 1;
                x.iter().zip(&rounding.inputs[at - 1]).map(|(x, moved)| x + moved).collect()
            },
            rounding,
        )
    }

    /// One token as `code * step`.
    fn rounded(&self, x: &[f64], doubtful: &mut bool) -> Vec<f64> {
        if self.config.quantization.activation.is_none() {
            return x.to_vec();
        }
        let step = x.iter().fold(1e-5, |largest: f64, x| largest.max(x.abs())) / 127.0;
        let round = |x: &f64| {
            let steps = x / step;
            // The f32 passes are off by a few millionths of a value.
            *doubtful |= (steps - steps.floor() - 0.5).abs() < 1e-5 * steps.abs() + 2e-5;
            steps.round_ties_even() * step
        };
        x.iter().map(round).collect()
    }

    fn moved(&self, w: &[f64], rows: usize) -> Vec<Moved> {
        let Some(scheme) = self.config.quantization.weight else { return vec![Moved::By(0.0); w.len()] };
        // The weights are f32, and all sides call this one quantizer, so there is no doubt about their codes.
        let single: Vec<f32> = w.iter().map(|&w| w as f32).collect();
        let mut codes = vec![0; w.len()];
        let scales = scheme.quantize(&single, rows, &mut codes);
        let cols = w.len() / rows;
        let largest = f64::from(scheme.code_range().1);
        let each = w.iter().zip(&codes).enumerate().map(|(i, (&w, &code))| {
            let scale = f64::from(scales[if scales.len() == 1 { 0 } else { i / cols }]);
            let quantized = f64::from(code) * scale;
            let cut = self.estimator == "clipped-ste" && w.abs() > (largest + 0.5) * scale;
            if cut { Moved::To(quantized) } else { Moved::By(quantized - w) }
        });
        each.collect()
    }

    fn pass(
        &self,
        values: &Values,
        quantize: &mut impl FnMut(&[f64], usize, &mut Rounding) -> Vec<f64>,
        rounding: &mut Rounding,
    ) -> f64 {
        let config = &self.config;
        let has = |term| self.without != Some(term);
        let h = config.hidden_size;
        let eps = f64::from(config.rms_norm_eps) * if has(Term::Epsilon) { 1.0 } else { 0.1 };
        let norm = |x: Vec<f64>, name: &str, term| if has(term) { rms_norm(&x, &values[name], eps) } else { x };
        let seq = self.inputs.len() / self.count;
        let spec = AttentionSpec {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            rope: Arc::new(RopeTable::new(seq, config.head_dim, config.rope_theta)),
        };
        let still = RopeTable {
            cos: vec![1.0; seq * spec.rope.half],
            sin: vec![0.0; seq * spec.rope.half],
            half: spec.rope.half,
        };
        let spec = if has(Term::Rotation) { spec } else { AttentionSpec { rope: Arc::new(still), ..spec } };
        let embedding = &values["model.embed_tokens.weight"];
        let rows = self.inputs.iter().flat_map(|&token| &embedding[token as usize * h..][..h]);
        let mut stream: Vec<f64> = rows.copied().collect();
        for layer in 0..config.num_hidden_layers {
            let name = |of: &str| format!("model.layers.{layer}.{of}.weight");
            let mut project = |x: &[f64], of: &str| {
                let (_, rows, cols) =
                    config.projections().into_iter().find(|(name, ..)| *name == of).expect("one of seven");
                let (name, x) = (name(of), quantize(x, cols, rounding));
                let moved = values[&name].iter().zip(&rounding.weights[&name]);
                let w: Vec<f64> = moved
                    .map(|(w, moved)| match moved {
                        Moved::By(more) => w + more,
                        Moved::To(value) => *value,
                    })
                    .collect();
                assert_eq!(w.len(), rows * cols);
                linear(&x, &w, cols)
            };
            let normed = norm(stream.clone(), &name("input_layernorm"), Term::InputNorm);
            let [mut q, mut k, mut v] =
                ["q_proj", "k_proj", "v_proj"].map(|of| project(&normed, &format!("self_attn.{of}")));
            if !has(Term::AttentionScale) {
                q.iter_mut().for_each(|q| *q *= (config.head_dim as f64).sqrt());
            }
            let turn = |x: &mut Vec<f64>| *x = backwards(x, seq, self.count);
            if !has(Term::CausalMask) {
                [&mut q, &mut k, &mut v].into_iter().for_each(turn);
            }
            let mut mixed = attention(&q, &k, &v, seq, &spec);
            if !has(Term::CausalMask) {
                turn(&mut mixed);
            }
            if config.sub_norms {
                mixed = norm(mixed, &name("self_attn.attn_sub_norm"), Term::AttentionSubNorm);
            }
            let attended = project(&mixed, "self_attn.o_proj");
            stream = if has(Term::AttentionResidual) { sum(&stream, &attended) } else { attended };
            let normed = norm(stream.clone(), &name("post_attention_layernorm"), Term::MiddleNorm);
            let [gate, up] = ["mlp.gate_proj", "mlp.up_proj"].map(|of| project(&normed, of));
            let mut inner = gated(&gate, &up, config.hidden_act);
            if !has(Term::Activation) {
                inner = gate.iter().zip(&up).map(|(gate, up)| gate * up).collect();
            }
            if config.sub_norms {
                inner = norm(inner, &name("mlp.ffn_sub_norm"), Term::FeedForwardSubNorm);
            }
            let fed = project(&inner, "mlp.down_proj");
            stream = if has(Term::FeedForwardResidual) { sum(&stream, &fed) } else { fed };
        }
        let normed = norm(stream, "model.norm.weight", Term::FinalNorm);
        let head = values.get("lm_head.weight").unwrap_or(embedding);
        cross_entropy(&normed, head, &self.targets)[0]
    }
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// The rows of each of `count` sequences in the opposite order.
fn backwards(x: &[f64], seq: usize, count: usize) -> Vec<f64> {
    let width = x.len() / seq / count;
    x.chunks(seq * width).flat_map(|sequence| sequence.chunks(width).rev().flatten()).copied().collect()
}
