//! Numbers that no weight should be. NaN and infinity: whatever number of a run is lost, the run stops there, and says which
//! it was. Zeros: an export warns of them.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, Quantization};
use bitnet_model::weights::FloatType;
use bitnet_train::export::pack;
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::Parameters;
use bitnet_train::nn::transformer::{Sequences, Transformer};
use bitnet_train::optim::{AdamW, Gradients};
use bitnet_train::run;
use candle_core::{Device, Tensor};

use crate::support::{every_ops, weight_schemes};
use crate::tiny;

const SEQ: usize = 6;

/// One block; with `llama` without sub-norms and with a head of its own.
fn config(weight: &str, activation: &str, llama: bool) -> ModelConfig {
    let json = r#"{"architectures": ["BitNetForCausalLM"], "vocab_size": 23, "hidden_size": 12, "intermediate_size": 20,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_act": "relu2",
        "tie_word_embeddings": true}"#;
    let mut config = ModelConfig::from_json(json.as_bytes(), "config.json").expect("valid");
    config.quantization = Quantization::by_name(weight, activation).expect("known");
    if llama {
        (config.sub_norms, config.tie_word_embeddings, config.hidden_act) = (false, false, HiddenAct::Silu);
    }
    config
}

/// Sets number `at` of a parameter (counted from its end, if negative) and returns its index.
fn set(parameters: &Parameters, name: &str, at: isize, value: f32) -> usize {
    let mut values = parameters.values(name).expect("its own name");
    let index = at.rem_euclid(values.len() as isize) as usize;
    values[index] = value;
    let (_, var) = parameters.iter().find(|(of, _)| *of == name).expect("its own name");
    var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).expect("as many")).expect("the same shape");
    index
}

fn names(parameters: &Parameters) -> Vec<String> {
    parameters.iter().map(|(name, _)| name.to_owned()).collect()
}

fn optimizer(parameters: &Parameters, settings: &str) -> AdamW {
    AdamW::new(toml::from_str(settings).expect("the rest has defaults"), parameters)
}

#[test]
fn a_step_on_a_parameter_that_is_not_finite_is_an_error_that_names_it() {
    // The last token of the vocabulary comes nowhere, so no product reads its row of an embedding that is not the head.
    let tokens: Vec<u32> = (0..2 * SEQ as u32 + 1).collect();
    let batch = Sequences { inputs: &tokens[..2 * SEQ], targets: &tokens[1..], count: 2, index: 0 };
    for ops in every_ops() {
        for (number, weight) in weight_schemes().into_iter().enumerate() {
            for (activation, llama) in [("int8", false), ("int8", true), ("none", true)] {
                let config = config(weight, activation, llama);
                for name in names(&Parameters::initialize(&config, 1, 0.1).expect("fits")) {
                    let value = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][number % 3];
                    let parameters = Parameters::initialize(&config, 1, 0.1).expect("fits");
                    let index = set(&parameters, &name, -2, value);
                    let ste = estimator::by_name("ste").expect("known");
                    let model = Transformer::new(&config, &parameters, SEQ, ste, ops.clone()).expect("fits");
                    let mut gradients = Gradients::of_parameters(&parameters);
                    let step = model.differentiate(&parameters, batch, &mut gradients).and_then(|loss| {
                        let mut optimizer = optimizer(&parameters, "learning_rate = 1e-3");
                        optimizer.step(&parameters, &gradients, 1, 1e-3, 0.1).map(|norm| (loss, norm))
                    });
                    let at = format!("{}, {weight}, {activation}, {llama}", ops.name());
                    let message = format!("{:#}", step.expect_err(&format!("{name} is lost ({at})")));
                    let expected = format!("parameter `{name}` holds NaN or infinity at element {index}");
                    assert!(message.contains(&expected), "{at}: {message}");
                }
            }
        }
    }
}

#[test]
fn what_overflows_in_a_step_is_named_by_that_step() {
    let config = config("ternary", "int8", false);
    let step = |settings: &str, rate: f64, gradient: f32| {
        let parameters = Parameters::initialize(&config, 1, 0.1).expect("fits");
        let mut optimizer = optimizer(&parameters, settings);
        let mut gradients = Gradients::of_parameters(&parameters);
        for (name, _) in parameters.iter() {
            let large = name.ends_with("k_proj.weight");
            gradients.slot(name).0.fill(if large { gradient } else { 1e-3 });
        }
        gradients.finish();
        let mut taken = 0;
        let failed = (0..2).find_map(|_| match optimizer.step(&parameters, &gradients, 1, rate, 0.0) {
            Ok(_) => {
                taken += 1;
                None
            }
            Err(error) => Some(format!("{error:#}")),
        });
        (taken, failed)
    };
    assert_eq!(step("learning_rate = 1\nclip_norm = 0", 1e-3, 1.0), (2, None));
    // A second moment of infinity keeps its weight where it is for ever.
    let (taken, failed) = step("learning_rate = 1\nclip_norm = 0", 1e-3, 1e25);
    let message = failed.expect("1e50 is no f32");
    assert_eq!(taken, 0);
    assert!(message.contains("the second moment of `model.layers.0.self_attn.k_proj.weight` holds NaN"), "{message}");
    let (taken, failed) = step("learning_rate = 1\nclip_norm = 0", 1e38, 1.0);
    let message = failed.expect("1e38 over 1 - 0.9 is no f32");
    assert_eq!(taken, 0);
    assert!(message.contains("parameter `model.embed_tokens.weight` holds NaN or infinity at element 0"), "{message}");
}

#[test]
fn an_export_names_the_parameter_that_its_file_cannot_hold() {
    for (number, weight) in weight_schemes().into_iter().enumerate() {
        let config = config(weight, "int8", number % 2 == 0);
        for name in names(&Parameters::initialize(&config, 1, 0.1).expect("fits")) {
            for (value, float_type) in [
                (f32::NAN, FloatType::F32),
                (f32::NEG_INFINITY, FloatType::Bf16),
                (-65_520.0, FloatType::F16),
                (3.4e38, FloatType::Bf16),
            ] {
                let parameters = Parameters::initialize(&config, 1, 0.1).expect("fits");
                let index = set(&parameters, &name, 5, value);
                let packed = pack(&config, &parameters, float_type);
                // Codes are no floats: what they are made of may be as large as it likes.
                let is_coded = name.ends_with("_proj.weight") && weight != "none";
                if is_coded && value.is_finite() {
                    assert!(packed.is_ok(), "{weight}, {name}");
                    continue;
                }
                let message = packed.err().expect("refused").to_string();
                let reason = match value.is_finite() {
                    true => {
                        format!("holds {value:e} at element {index}, which is too large for {}", float_type.name())
                    }
                    false => format!("holds NaN or infinity at element {index}"),
                };
                assert_eq!(message, format!("parameter `{name}` {reason}"));
            }
        }
    }
}

/// Changes the numbers of tensor `name` of a safetensors file, each of four bytes, and returns what `change` does.
fn changed<R>(path: &Path, name: &str, change: impl FnOnce(&mut [[u8; 4]]) -> R) -> R {
    let mut bytes = fs::read(path).expect("a file");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).expect("a header");
    let [start, end] = [0, 1].map(|i| json[name]["data_offsets"][i].as_u64().expect("an offset") as usize);
    let result = change(bytes[8 + header..][start..end].as_chunks_mut().0);
    fs::write(path, bytes).expect("written");
    result
}

/// Puts `value` in the place of the last number of a tensor, and returns the number's index.
fn damage(path: &Path, name: &str, value: f32) -> usize {
    changed(path, name, |numbers| {
        *numbers.last_mut().expect("a number") = value.to_le_bytes();
        numbers.len() - 1
    })
}

fn fill(path: &Path, name: &str, value: f32) {
    changed(path, name, |numbers| numbers.fill(value.to_le_bytes()));
}

#[test]
fn a_checkpoint_that_holds_such_a_number_is_refused_by_tensor() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = tiny::run(root.path(), 8, &[]);
    let checkpoint = tiny::first_step(&run);
    let out = root.path().join("model");
    let prefixes = ["model.embed_tokens", "model.norm", "model.layers.1.mlp.up_proj", "model.layers.0.input_layernorm"];
    for prefix in prefixes {
        for (file, kind) in [("model", ""), ("optimizer", "first."), ("optimizer", "second.")] {
            let path = checkpoint.join(format!("{file}.safetensors"));
            let whole = fs::read(&path).expect("written");
            let name = format!("{kind}{prefix}.weight");
            let index = damage(&path, &name, f32::INFINITY);
            let expected = format!("`{name}` holds NaN or infinity at element {index}");
            let message = format!("{:#}", run::resume(&run.folder(), &AtomicBool::new(false)).expect_err("refused"));
            assert!(message.contains(&expected), "{message}");
            if kind.is_empty() {
                let message = format!("{:#}", run::export_run(&run.folder(), None, &out).expect_err("refused"));
                assert!(message.contains(&expected) && !out.exists(), "{message}");
            }
            fs::write(&path, whole).expect("written");
        }
    }
    run::export_run(&run.folder(), None, &out).expect("whole again");
}

#[test]
fn an_export_warns_of_what_inspect_warns_of() {
    let root = tempfile::tempdir().expect("temp dir");
    let run = tiny::run(root.path(), 8, &[]);
    let checkpoint = tiny::first_step(&run);
    let out = root.path().join("model");
    assert_eq!(run::export_run(&run.folder(), None, &out).expect("exports"), Vec::<String>::new());
    let zeros = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"];
    let path = checkpoint.join("model.safetensors");
    for name in zeros {
        fill(&path, name, 0.0);
    }
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet-train"))
        .args(["export".as_ref(), run.folder().as_os_str(), "--out".as_ref(), out.as_os_str()])
        .output()
        .expect("the program runs");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{stderr}");
    let said: Vec<&str> = stderr.lines().filter_map(|line| line.strip_prefix("warning: ")).collect();
    assert_eq!(said, zeros.map(|name| format!("tensor `{name}` is all zeros: its layer adds nothing")));
    assert_eq!(bitnet_infer::eval::inspect::inspect(&out).expect("reads").warnings, said);
}
