//! One transformer block, forward and backward, in buffers that outlive the step.
//!
//! ```text
//! x ─ norm ─ codes ─ q|k|v ─ attention ─ norm ─ codes ─ o ─ + x ─ norm ─ codes ─ gate|up ─ act * up ─ norm ─ codes ─ down ─ +
//! ```
//!
//! Kept for backward: the residual stream before both halves, q|k|v, what attention gives, gate|up, the codes with their
//! steps, and a number for each norm and softmax. Normed values and gated values are computed again. The gradients of q|k|v
//! and of gate|up are written over the values themselves.

use bitnet_infer::kernels::Kernel;
use bitnet_model::ModelConfig;
use bitnet_model::config::HiddenAct;

use super::attention::{Attention, sized};
use super::int8::Noise;
use super::profile::{Op, Profile};
use super::rows::{self, Gate, Input, Norm};
use super::stack::{Backward, ProductBuffers, Stack};
use crate::ops::kernels::product::{Output, TileKernel};
use crate::ops::{AttentionSpec, BitLinearSpec};
use crate::optim::Gradients;

/// What a block keeps from its forward to its backward pass.
pub(super) struct Saved {
    inverse_input: Vec<f32>,
    input: Input,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    log_sums: Vec<f32>,
    inverse_mixed: Vec<f32>,
    mixed_input: Input,
    middle: Vec<f32>,
    inverse_middle: Vec<f32>,
    middle_input: Input,
    gate_up: Vec<f32>,
    inverse_gated: Vec<f32>,
    gated_input: Input,
}

impl Saved {
    pub(super) fn new(spec: BitLinearSpec) -> Self {
        let input = || Input::new(spec.quantization.activation);
        let [inverse_input, qkv, mixed, log_sums, inverse_mixed, middle, inverse_middle, gate_up, inverse_gated] =
            [const { Vec::new() }; 9];
        Self {
            inverse_input,
            input: input(),
            qkv,
            mixed,
            log_sums,
            inverse_mixed,
            mixed_input: input(),
            middle,
            inverse_middle,
            middle_input: input(),
            gate_up,
            inverse_gated,
            gated_input: input(),
        }
    }
}

/// Names of a block's parameters after `model.layers.N.`, projections as they are stacked.
const STACKS: [&[&str]; 4] = [
    &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    &["self_attn.o_proj"],
    &["mlp.gate_proj", "mlp.up_proj"],
    &["mlp.down_proj"],
];
const NORMS: [&str; 4] = ["input_layernorm", "self_attn.attn_sub_norm", "post_attention_layernorm", "mlp.ffn_sub_norm"];

/// The projections of a block, quantized.
pub(super) struct BlockStacks {
    stacks: [Stack; 4],
    names: [Vec<String>; 4],
    norm_names: [Option<String>; 4],
}

/// The latent weights of a block, in the order of [`BlockStacks`].
pub(super) struct BlockWeights<'a> {
    stacks: [Vec<&'a [f32]>; 4],
    norms: [Option<&'a [f32]>; 4],
}

impl BlockStacks {
    pub(super) fn new(config: &ModelConfig, spec: BitLinearSpec, layer: usize) -> Self {
        let full = |name: &str| format!("model.layers.{layer}.{name}.weight");
        let projections = config.projections();
        let stack = |names: &[&str]| {
            let of = |name: &&str| projections.iter().find(|(of, ..)| of == name).expect("a projection of every block");
            Stack::new(spec, names.iter().map(|name| of(name).1).collect(), of(&names[0]).2)
        };
        let norm = |name: &str| config.norms().iter().any(|(of, _)| *of == name).then(|| full(name));
        Self {
            stacks: STACKS.map(stack),
            names: STACKS.map(|names| names.iter().map(|name| full(name)).collect()),
            norm_names: NORMS.map(norm),
        }
    }

    /// Finds the weights by name.
    pub(super) fn weights<'a>(&self, values: impl Fn(&str) -> &'a [f32]) -> BlockWeights<'a> {
        BlockWeights {
            stacks: self.names.each_ref().map(|names| names.iter().map(|name| values(name)).collect()),
            norms: self.norm_names.each_ref().map(|name| name.as_deref().map(&values)),
        }
    }

    /// The codes of each projection, by name; nothing if weights are not quantized.
    pub(super) fn codes(&self) -> impl Iterator<Item = (&str, &[i8])> {
        let each = self.names.iter().zip(&self.stacks);
        each.flat_map(|(names, stack)| names.iter().map(String::as_str).zip(stack.codes()))
    }

    /// Quantizes the projections.
    ///
    /// # Errors
    /// The name of a projection that is not finite, and where.
    pub(super) fn quantize(&mut self, weights: &BlockWeights, kernel: &'static Kernel) -> Result<(), String> {
        let mut each = self.stacks.iter_mut().zip(&weights.stacks).zip(&self.names);
        each.try_for_each(|((stack, latent), names)| {
            let named = |(part, reason): (usize, String)| format!("parameter `{}` {reason}", names[part]);
            stack.quantize(latent, kernel).map_err(named)
        })
    }
}

/// A block with everything it is computed with.
pub(super) struct Block<'a> {
    pub(super) stacks: &'a BlockStacks,
    pub(super) weights: BlockWeights<'a>,
    pub(super) attention: &'a AttentionSpec,
    pub(super) act: HiddenAct,
    pub(super) eps: f32,
    /// Tokens of a sequence.
    pub(super) seq: usize,
    /// For all float products.
    pub(super) tiles: &'static TileKernel,
    /// For quantized gradients: the random numbers of this block, and the kernel.
    pub(super) int8: Option<(Noise, &'static Kernel)>,
    pub(super) profile: &'a Profile,
}

/// Memory that blocks share.
#[derive(Default)]
pub(super) struct BlockBuffers {
    pub(super) products: ProductBuffers,
    narrow: Vec<f32>,
    wide: Vec<f32>,
}

const QKV: usize = 0;
const OUT: usize = 1;
const GATE_UP: usize = 2;
const DOWN: usize = 3;

/// The number of the first product of stack `i` in the pass.
fn noise_of(block: Noise, i: usize) -> u64 {
    block.product + (i as u64) * PRODUCTS_PER_STACK
}

/// Products of a stack with quantized gradients: one for the input, one for each part.
const PRODUCTS_PER_STACK: u64 = 4;

/// Those of a block.
pub(super) const PRODUCTS_PER_BLOCK: u64 = 4 * PRODUCTS_PER_STACK;

impl Block<'_> {
    fn norm(&self, i: usize) -> Option<Norm<'_>> {
        self.weights.norms[i].map(|weight| Norm { weight, eps: self.eps })
    }

    fn gate(&self) -> Gate<'_> {
        Gate { act: self.act, width: self.stacks.stacks[DOWN].cols(), norm: self.norm(3) }
    }

    fn attention(&self) -> Attention<'_> {
        Attention { spec: self.attention, t: self.seq, tiles: self.tiles }
    }

    fn project(&self, i: usize, input: &Input, t: usize, out: &mut [f32], buffers: &mut ProductBuffers) {
        let stack = &self.stacks.stacks[i];
        self.profile.time(Op::Project, t * stack.rows() * stack.cols(), || {
            stack.forward(&self.weights.stacks[i], input, t, out, self.tiles, buffers);
        });
    }

    /// The residual stream `[t, h]` through the block, into `out`.
    pub(super) fn forward(&self, x: &[f32], out: &mut [f32], saved: &mut Saved, buffers: &mut BlockBuffers) {
        let h = self.stacks.stacks[QKV].cols();
        let t = x.len() / h;
        let attention = self.attention();
        let (width, q_width) = (attention.width(), attention.q_width());
        let BlockBuffers { products, narrow, .. } = buffers;
        let narrow = sized(narrow, t * h);
        self.profile.time(Op::Norm, 0, || {
            rows::norm(x, h, self.norm(0), &mut saved.inverse_input, &mut saved.input, &mut products.floats);
        });
        let qkv = sized(&mut saved.qkv, t * width);
        self.project(QKV, &saved.input, t, qkv, products);
        let mixed = sized(&mut saved.mixed, t * q_width);
        self.profile.time(Op::Attention, attention.multiply_adds(t / self.seq), || {
            attention.forward(qkv, mixed, sized(&mut saved.log_sums, t * self.attention.heads));
        });
        self.profile.time(Op::Norm, 0, || {
            let (inverses, input) = (&mut saved.inverse_mixed, &mut saved.mixed_input);
            rows::norm(mixed, q_width, self.norm(1), inverses, input, &mut products.floats);
        });
        self.project(OUT, &saved.mixed_input, t, narrow, products);
        let middle = sized(&mut saved.middle, t * h);
        self.profile.time(Op::Norm, 0, || {
            let norm = self.norm(2).expect("a norm of every block");
            let (inverses, input) = (&mut saved.inverse_middle, &mut saved.middle_input);
            rows::norm_of_sum([x, narrow], middle, norm, inverses, input, &mut products.floats);
        });
        let gate_up = sized(&mut saved.gate_up, t * self.stacks.stacks[GATE_UP].rows());
        self.project(GATE_UP, &saved.middle_input, t, gate_up, products);
        self.profile.time(Op::Gate, 0, || {
            self.gate().forward(gate_up, &mut saved.inverse_gated, &mut saved.gated_input, &mut products.floats);
        });
        self.project(DOWN, &saved.gated_input, t, narrow, products);
        self.profile.time(Op::Norm, 0, || rows::sum(middle, narrow, out));
    }

    /// Both gradients of a stack of projections: of its weights, and of its input into `dx`.
    fn project_backward(
        &self,
        i: usize,
        dy: &[f32],
        input: &Input,
        dx: &mut [f32],
        gradients: &mut Gradients,
        buffers: &mut ProductBuffers,
    ) {
        let (stack, latent) = (&self.stacks.stacks[i], &self.weights.stacks[i]);
        let multiply_adds = dy.len() * stack.cols();
        let noise = |(noise, kernel)| (Noise { product: noise_of(noise, i), ..noise }, kernel);
        let how = &mut Backward { tiles: self.tiles, int8: self.int8.map(noise), buffers };
        self.profile.time(Op::WeightGradient, multiply_adds, || {
            stack.weight_gradients(latent, dy, input, how, gradients.slots(&self.stacks.names[i]));
        });
        self.profile.time(Op::InputGradient, multiply_adds, || stack.input_gradient(latent, dy, dx, how));
    }

    /// Turns `d`, the gradient of the block's output, into that of its input `x`, and writes or adds those of its weights.
    pub(super) fn backward(
        &self,
        x: &[f32],
        d: &mut [f32],
        saved: &mut Saved,
        gradients: &mut Gradients,
        buffers: &mut BlockBuffers,
    ) {
        let h = self.stacks.stacks[QKV].cols();
        let t = x.len() / h;
        let BlockBuffers { products, narrow, wide } = buffers;
        let narrow = sized(narrow, t * h);
        let profile = self.profile;

        // The feed-forward half.
        let gate = self.gate();
        let gate_up = sized(&mut saved.gate_up, t * 2 * gate.width);
        if saved.gated_input.codes().is_none() {
            profile.time(Op::GateGradient, 0, || {
                gate.forward(gate_up, &mut saved.inverse_gated, &mut saved.gated_input, &mut products.floats);
            });
        }
        let d_gated = sized(wide, t * gate.width);
        self.project_backward(DOWN, d, &saved.gated_input, d_gated, gradients, products);
        profile.time(Op::GateGradient, 0, || {
            let slot = self.stacks.norm_names[3].as_deref().map(|name| gradients.slot(name));
            let (dw, output) = slot.unzip();
            let inverses = &saved.inverse_gated[..t];
            gate.backward(gate_up, inverses, d_gated, dw, output == Some(Output::Add));
        });
        if saved.middle_input.codes().is_none() {
            let (norm, middle) = (self.norm(2), &saved.middle[..t * h]);
            profile.time(Op::NormGradient, 0, || {
                rows::norm(middle, h, norm, &mut saved.inverse_middle, &mut saved.middle_input, &mut products.floats);
            });
        }
        self.project_backward(GATE_UP, gate_up, &saved.middle_input, narrow, gradients, products);
        self.norm_backward(2, [&saved.middle[..t * h], narrow], &saved.inverse_middle, (d, true), gradients);

        // The attention half.
        let attention = self.attention();
        let (width, q_width) = (attention.width(), attention.q_width());
        let (qkv, mixed) = (sized(&mut saved.qkv, t * width), &saved.mixed[..t * q_width]);
        if saved.mixed_input.codes().is_none() {
            profile.time(Op::NormGradient, 0, || {
                let (inverses, input) = (&mut saved.inverse_mixed, &mut saved.mixed_input);
                rows::norm(mixed, q_width, self.norm(1), inverses, input, &mut products.floats);
            });
        }
        let (d_mixed, d_out) = sized(wide, 2 * t * q_width).split_at_mut(t * q_width);
        self.project_backward(OUT, d, &saved.mixed_input, d_mixed, gradients, products);
        let d_out = if self.weights.norms[1].is_some() {
            self.norm_backward(1, [mixed, d_mixed], &saved.inverse_mixed, (d_out, false), gradients);
            d_out
        } else {
            d_mixed
        };
        profile.time(Op::AttentionGradient, attention.multiply_adds(t / self.seq) / 2 * 5, || {
            attention.backward(qkv, d_out, &saved.log_sums[..t * self.attention.heads]);
        });
        if saved.input.codes().is_none() {
            profile.time(Op::NormGradient, 0, || {
                rows::norm(x, h, self.norm(0), &mut saved.inverse_input, &mut saved.input, &mut products.floats);
            });
        }
        self.project_backward(QKV, qkv, &saved.input, narrow, gradients, products);
        self.norm_backward(0, [x, narrow], &saved.inverse_input, (d, true), gradients);
    }

    fn norm_backward(
        &self,
        i: usize,
        inputs: [&[f32]; 2],
        inverses: &[f32],
        (dx, add): (&mut [f32], bool),
        gradients: &mut Gradients,
    ) {
        self.profile.time(Op::NormGradient, 0, || {
            let (Some(weight), Some(name)) = (self.weights.norms[i], &self.stacks.norm_names[i]) else { return };
            let (dw, output) = gradients.slot(name);
            rows::norm_backward(inputs, weight, inverses, dx, dw, [add, output == Output::Add]);
        });
    }
}
