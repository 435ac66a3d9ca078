//! Gradients of the smooth ops against central differences of their definitions in f64, and gradients that are missing.

use std::sync::Arc;

use bitnet_model::ModelConfig;
use bitnet_model::config::HiddenAct;
use bitnet_model::rng::{Stream, generator};
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::{Sequences, Transformer};
use bitnet_train::ops::{AttentionSpec, BitLinearSpec, FusedOps, Ops, RopeTable};
use bitnet_train::optim::Gradients;
use candle_core::{Result, Tensor};
use rand::Rng;

use crate::definitions;
use crate::support::{differentiate, every_ops, flat, random, spec, variable};

/// Numbers and their shape.
type Input = (Vec<f32>, Vec<usize>);

/// An op on tensors, by any implementation.
type Compute<'a> = &'a dyn Fn(&dyn Ops, &[Tensor]) -> Result<Tensor>;

/// An op on inputs, and what it is.
struct Case<'a> {
    name: String,
    inputs: Vec<Input>,
    compute: Compute<'a>,
    definition: &'a dyn Fn(&[Vec<f64>]) -> Vec<f64>,
}

/// Inputs of standard deviation 1 with these shapes.
fn inputs(seed: u64, shapes: &[&[usize]]) -> Vec<Input> {
    let numbered = shapes.iter().enumerate();
    numbered.map(|(i, shape)| (random(seed + i as u64, shape.iter().product()), shape.to_vec())).collect()
}

/// Holds output and gradients of both implementations against the definition.
fn check(case: &Case) {
    let inputs: Vec<Vec<f64>> = case.inputs.iter().map(|(x, _)| x.iter().map(|&x| f64::from(x)).collect()).collect();
    let truth = (case.definition)(&inputs);
    let r: Vec<f64> = random(SEED_OF_R, truth.len()).into_iter().map(f64::from).collect();
    let loss = |inputs: &[Vec<f64>]| -> f64 { (case.definition)(inputs).iter().zip(&r).map(|(y, r)| y * r).sum() };
    let slopes = slopes(&inputs, loss);
    // All zeros are possible (a closed gate) and must then be met exactly.
    let largest_slope = slopes.iter().map(|s| s.value.abs()).fold(f64::MIN_POSITIVE, f64::max);
    let largest_output = truth.iter().map(|y| y.abs()).fold(f64::MIN_POSITIVE, f64::max);
    for ops in every_ops() {
        let name = ops.name();
        let found = differentiate(&case.inputs, SEED_OF_R, |tensors| (case.compute)(&*ops, tensors));
        assert_eq!(found.output.len(), truth.len(), "{}, {name}", case.name);
        let differences = found.output.iter().zip(&truth).map(|(&a, b)| (f64::from(a) - b).abs());
        // `f64::max` would drop a NaN.
        let output_error = differences.max_by(f64::total_cmp).expect("outputs");
        let errors = slopes.iter().map(|slope| {
            let gradient = &found.gradients[slope.input];
            let along: f64 = slope.direction.iter().map(|&(i, d)| f64::from(gradient[i]) * d).sum();
            ((along - slope.value).abs(), slope)
        });
        let (error, worst) = errors.max_by(|a, b| a.0.total_cmp(&b.0)).expect("inputs");
        let (output_error, error) = (output_error / largest_output, error / largest_slope);
        println!("{}, {name}: output {output_error:.1e}, gradients {error:.1e}", case.name);
        assert!(output_error < TOLERANCE, "{}, {name}: output differs by {output_error:.2e}", case.name);
        assert!(
            error < TOLERANCE,
            "{}, {name}: gradient of input {} along {:?} differs by {error:.2e} of {largest_slope}",
            case.name,
            worst.input,
            &worst.direction[..worst.direction.len().min(3)],
        );
    }
}

/// A derivative by central differences: of which input, along which sparse unit direction, and its value.
struct Slope {
    input: usize,
    direction: Vec<(usize, f64)>,
    value: f64,
}

/// Slopes along single numbers (first, last and random ones) and along two random directions through all of them.
fn slopes(inputs: &[Vec<f64>], loss: impl Fn(&[Vec<f64>]) -> f64) -> Vec<Slope> {
    let mut rng = generator(11, Stream::Bench);
    let mut slopes = Vec::new();
    for (input, values) in inputs.iter().enumerate() {
        let mut places = vec![0, values.len() - 1];
        places.extend((0..SINGLE_SLOPES).map(|_| rng.random_range(0..values.len())));
        let mut directions: Vec<Vec<(usize, f64)>> = places.into_iter().map(|i| vec![(i, 1.0)]).collect();
        for seed in 0..2 {
            let length = (values.len() as f64).sqrt();
            let numbers = random(77 + seed, values.len()).into_iter().enumerate();
            directions.push(numbers.map(|(i, d)| (i, f64::from(d) / length)).collect());
        }
        for direction in directions {
            let at = |step: f64| {
                let mut moved = inputs.to_vec();
                direction.iter().for_each(|&(i, d)| moved[input][i] += step * d);
                loss(&moved)
            };
            slopes.push(Slope { input, value: (at(STEP) - at(-STEP)) / (2.0 * STEP), direction });
        }
    }
    slopes
}

#[test]
fn rms_norm_has_the_gradient_of_its_definition() {
    for (shape, seed) in [([1, 1, 1], 10), ([1, 1, 7], 20), ([3, 11, 33], 30), ([2, 50, 64], 40)] {
        for eps in [1e-5f32, 0.5] {
            check(&Case {
                name: format!("rms_norm {shape:?}, eps {eps}"),
                inputs: inputs(seed, &[&shape, &shape[2..]]),
                compute: &|ops, x| ops.rms_norm(&x[0], &x[1], eps),
                definition: &|x| definitions::rms_norm(&x[0], &x[1], f64::from(eps)),
            });
        }
    }
}

#[test]
fn attention_has_the_gradient_of_its_definition() {
    // Around the fused op's block of 64 queries: one token, a block less one, one more, and two blocks and a bit.
    for (seq, batch, heads, kv_heads, head_dim) in
        [(1, 2, 2, 1, 4), (5, 3, 6, 2, 2), (63, 1, 3, 3, 6), (64, 2, 2, 1, 8), (65, 1, 4, 2, 4), (130, 2, 3, 1, 8)]
    {
        let rope = Arc::new(RopeTable::new(seq + 3, head_dim, 10_000.0));
        let spec = AttentionSpec { heads, kv_heads, head_dim, rope };
        let (q, kv) = ([batch, seq, heads * head_dim], [batch, seq, kv_heads * head_dim]);
        check(&Case {
            name: format!("attention batch {batch}, seq {seq}, heads {heads}/{kv_heads} of {head_dim}"),
            inputs: inputs(50, &[&q, &kv, &kv]),
            compute: &|ops, x| ops.attention(&x[0], &x[1], &x[2], &spec),
            definition: &|x| definitions::attention(&x[0], &x[1], &x[2], seq, &spec),
        });
    }
}

#[test]
fn gates_have_the_gradient_of_their_definition() {
    for act in [HiddenAct::Relu2, HiddenAct::Silu] {
        // The last shape is more than one task of the fused op.
        for shape in [[1, 1, 1], [2, 3, 5], [1, 7, 2500]] {
            check(&Case {
                name: format!("gated {act:?} {shape:?}"),
                inputs: inputs(60, &[&shape, &shape]),
                compute: &|ops, x| ops.gated(&x[0], &x[1], act),
                definition: &|x| definitions::gated(&x[0], &x[1], act),
            });
        }
    }
}

#[test]
fn cross_entropy_has_the_gradient_of_its_definition() {
    // Around the fused op's chunk of 256 tokens.
    for (batch, seq) in [(1, 1), (3, 85), (2, 128), (1, 257), (2, 300)] {
        let (vocab, hidden) = (37, 11);
        let mut rng = generator(70, Stream::Bench);
        let targets: Vec<u32> = (0..batch * seq).map(|_| rng.random_range(0..vocab as u32)).collect();
        check(&Case {
            name: format!("cross_entropy of {batch} x {seq} tokens"),
            inputs: inputs(70, &[&[batch, seq, hidden], &[vocab, hidden]]),
            compute: &|ops, x| ops.cross_entropy(&x[0], &x[1], &targets),
            definition: &|x| definitions::cross_entropy(&x[0], &x[1], &targets),
        });
    }
}

#[test]
fn an_unquantized_bit_linear_has_the_gradient_of_a_product() {
    for (shape, n) in [([1, 1, 1], 1), ([2, 3, 5], 7), ([1, 33, 129], 65), ([3, 40, 64], 31)] {
        check(&Case {
            name: format!("bit_linear none/none {shape:?} to {n}"),
            inputs: inputs(80, &[&shape, &[n, shape[2]]]),
            compute: &|ops, x| ops.bit_linear(&x[0], &x[1], &spec("none", "none", "ste")),
            definition: &|x| definitions::linear(&x[0], &x[1], shape[2]),
        });
    }
}

/// What an op keeps for its backward pass must serve a second one too, or refuse it; a wrong gradient without a word is
/// neither.
#[test]
fn a_second_backward_pass_is_right_or_refused() {
    let cases: [(&str, Vec<Input>, Compute); 4] = [
        ("attention", inputs(1, &[&[1, 5, 8], &[1, 5, 4], &[1, 5, 4]]), &|ops, x| {
            let rope = Arc::new(RopeTable::new(5, 4, 10_000.0));
            ops.attention(&x[0], &x[1], &x[2], &AttentionSpec { heads: 2, kv_heads: 1, head_dim: 4, rope })
        }),
        ("bit_linear", inputs(1, &[&[1, 4, 6], &[5, 6]]), &|ops, x| {
            ops.bit_linear(&x[0], &x[1], &spec("ternary", "int8", "ste"))
        }),
        ("rms_norm", inputs(1, &[&[1, 4, 6], &[6]]), &|ops, x| ops.rms_norm(&x[0], &x[1], 1e-5)),
        ("cross_entropy", inputs(1, &[&[1, 4, 6], &[9, 6]]), &|ops, x| ops.cross_entropy(&x[0], &x[1], &[1, 2, 3, 8])),
    ];
    for (name, inputs, compute) in cases {
        for ops in every_ops() {
            let vars: Vec<_> = inputs.iter().map(|(values, shape)| variable(values, shape)).collect();
            let tensors: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
            let loss = compute(&*ops, &tensors).and_then(|y| y.sqr()?.sum_all()).expect("computes");
            let gradients = || -> Result<Vec<Vec<f32>>> {
                let store = loss.backward()?;
                Ok(vars.iter().map(|var| flat(store.get(var).expect("a gradient"))).collect())
            };
            let first = gradients().expect("differentiates");
            if let Ok(second) = gradients() {
                assert_eq!(first, second, "{name}, {}", ops.name());
            }
        }
    }
}

/// Ops that cut the graph at one place, as a careless change would.
struct Cutting {
    place: &'static str,
}

impl Ops for Cutting {
    fn name(&self) -> &'static str {
        "cutting"
    }

    fn bit_linear(&self, x: &Tensor, w_nk: &Tensor, spec: &BitLinearSpec) -> Result<Tensor> {
        // The tiny model's only projection with 24 inputs is `down_proj`.
        let cut = self.place == "down_proj" && w_nk.dims()[1] == 24;
        FusedOps::default().bit_linear(x, &if cut { w_nk.detach() } else { w_nk.clone() }, spec)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
        FusedOps::default().rms_norm(x, weight, eps)
    }

    fn attention(&self, q_btq: &Tensor, k_btk: &Tensor, v_btk: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
        match self.place {
            "keys" => FusedOps::default().attention(q_btq, &k_btk.round()?, v_btk, spec),
            _ => FusedOps::default().attention(q_btq, k_btk, v_btk, spec),
        }
    }

    fn gated(&self, gate: &Tensor, up: &Tensor, act: HiddenAct) -> Result<Tensor> {
        match self.place {
            "gate" => FusedOps::default().gated(&gate.sign()?, up, act),
            _ => FusedOps::default().gated(gate, up, act),
        }
    }

    fn cross_entropy(&self, x_bth: &Tensor, head_vh: &Tensor, targets: &[u32]) -> Result<Tensor> {
        match self.place {
            "output" => FusedOps::default().cross_entropy(&x_bth.floor()?, head_vh, targets),
            _ => FusedOps::default().cross_entropy(x_bth, head_vh, targets),
        }
    }
}

#[test]
fn a_parameter_without_gradient_is_an_error_that_names_it() {
    let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 9, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "relu2",
        "tie_word_embeddings": false, "quantization_config": {"quant_method": "bitnet", "quantization_mode": "online"}}"#;
    let config = ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid");
    let parameters = Parameters::initialize(&config, 1, 0.2).expect("parameters");
    let ste = estimator::by_name("ste").expect("known");
    for (place, expected) in [
        ("nowhere", None),
        ("down_proj", Some("model.layers.0.mlp.down_proj.weight")),
        ("keys", Some("model.layers.0.self_attn.k_proj.weight")),
        ("gate", Some("model.layers.0.mlp.gate_proj.weight")),
        // Everything before the head; the first in name order is reported.
        ("output", Some("model.embed_tokens.weight")),
    ] {
        let model = Transformer::new(&config, &parameters, 8, ste, Arc::new(Cutting { place })).expect("a network");
        let batch = Sequences { inputs: &[1, 2, 3, 4], targets: &[2, 3, 4, 5], count: 1, index: 0 };
        let found = model.differentiate(&parameters, batch, &mut Gradients::of_parameters(&parameters));
        let found = found.map(|_| ()).map_err(|e| e.to_string());
        let expected = match expected {
            Some(name) => {
                Err(format!("parameter `{name}` has no gradient: an operation on its way to the loss cuts the graph"))
            }
            None => Ok(()),
        };
        assert_eq!(found, expected, "cut: {place}");
    }
}

/// Central differences in f64: the truncation error is of the order of `STEP^2`, the rounding error of `1e-16 / STEP`.
const STEP: f64 = 1e-5;

/// Of the largest number: a few dozen roundings of f32 (6e-8 each), since sums have up to thousands of terms.
const TOLERANCE: f64 = 4e-6;

/// Single numbers of each input, drawn at random, whose slope is taken.
const SINGLE_SLOPES: usize = 40;

const SEED_OF_R: u64 = 99;
