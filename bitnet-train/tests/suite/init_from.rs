//! Runs that start from a model in full precision: what they compute before the first step, and what is refused.

use std::fs;
use std::path::Path;

use bitnet_infer::convert::{ConvertOptions, convert};
use bitnet_infer::engine::ModelFiles;
use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, Quantization, Storage};
use bitnet_model::files::gguf::GgufOptions;
use bitnet_model::files::hugging_face::{self, ModelParts};
use bitnet_model::files::reader::TensorReader;
use bitnet_model::files::tensors::{Dtype, TensorFile};
use bitnet_model::reference::Reference;
use bitnet_model::tokenizer::Tokenizer;
use bitnet_model::weights::{FloatMatrix, FloatType, LayerWeights, LinearWeights};
use bitnet_train::nn::estimator;
use bitnet_train::nn::parameters::{Parameters, shapes};
use bitnet_train::nn::transformer::Transformer;
use bitnet_train::run::parameters_of;

use crate::data_folder::shared;
use crate::support::{every_ops, flat, random};
use crate::tiny;

/// Float sums of two programs in another order.
const ROUNDING: f32 = 1e-4;

fn llama(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        vocab_size,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        hidden_act: HiddenAct::Silu,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-6,
        rope_theta: 20_000.0,
        rope_scaling: None,
        tie_word_embeddings: true,
        sub_norms: false,
        quantization: Quantization::NONE,
        storage: Storage::Float,
        bos_token_id: None,
        eos_token_ids: vec![],
    }
}

/// Writes a model of random floats, with norms about 1; the tokenizer is given.
fn write(folder: &Path, config: &ModelConfig, tokenizer_json: Option<Vec<u8>>) {
    let mut seed = 0;
    let mut numbers = |rows: usize, cols: usize, spread: f32, middle: f32| {
        seed += 1;
        let values: Vec<f32> = random(seed, rows * cols).into_iter().map(|x| x * spread + middle).collect();
        FloatMatrix::new(rows, cols, &values, FloatType::F32)
    };
    let (vocab, h) = (config.vocab_size, config.hidden_size);
    let embedding = numbers(vocab, h, 1.0, 0.0);
    let head = (!config.tie_word_embeddings).then(|| numbers(vocab, h, 1.0, 0.0));
    let final_norm = numbers(1, h, 0.1, 1.0).to_f32();
    let layers = (0..config.num_hidden_layers).map(|_| {
        let [input_layernorm, post_attention_layernorm] = [(); 2].map(|()| numbers(1, h, 0.1, 1.0).to_f32());
        let linears = config.projections().map(|(_, rows, cols)| {
            let matrix = numbers(rows, cols, 1.0 / (cols as f32).sqrt(), 0.0);
            match config.quantization.weight {
                Some(scheme) if config.storage != Storage::Float => {
                    LinearWeights::Packed(hugging_face::quantize(scheme, &matrix.to_f32(), rows, cols).expect("finite"))
                }
                _ => LinearWeights::Float(matrix),
            }
        });
        let [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj] = linears;
        let (attn_sub_norm, ffn_sub_norm) = (None, None);
        LayerWeights {
            input_layernorm,
            q_proj,
            k_proj,
            v_proj,
            attn_sub_norm,
            o_proj,
            post_attention_layernorm,
            gate_proj,
            up_proj,
            ffn_sub_norm,
            down_proj,
        }
    });
    let layers = layers.collect();
    hugging_face::write(folder, &ModelParts { config, embedding, head, final_norm, layers, tokenizer_json })
        .expect("written");
}

/// A tokenizer of `tokens`, each a word.
fn tokenizer_json(tokens: &[&str]) -> Vec<u8> {
    let vocab: serde_json::Map<_, _> = tokens.iter().enumerate().map(|(id, t)| ((*t).to_owned(), id.into())).collect();
    let model = serde_json::json!({ "type": "WordLevel", "vocab": vocab, "unk_token": tokens[0] });
    serde_json::json!({ "version": "1.0", "model": model }).to_string().into_bytes()
}

fn tokenizer(tokens: &[&str]) -> Tokenizer {
    Tokenizer::from_bytes(&tokenizer_json(tokens), "x").expect("a tokenizer")
}

const TOKENS: [&str; 40] = [
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w",
    "x", "y", "z", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "A", "B", "C", "D",
];

fn sample() -> Vec<u32> {
    (0..48).map(|i| (i * 17 + i / 7) % 40).collect()
}

fn started(source: &Path, config: &ModelConfig) -> anyhow::Result<Parameters> {
    parameters_of(&source.display().to_string(), config, &tokenizer(&TOKENS), (&sample(), 2))
}

/// Logits of the network that training would begin with, without quantization.
fn logits(config: &ModelConfig, parameters: &Parameters, tokens: &[u32], sequences: usize) -> [Vec<f32>; 2] {
    let ste = estimator::by_name("ste").expect("known");
    every_ops().map(|ops| {
        let network = Transformer::new(config, parameters, tokens.len() / sequences, ste, ops).expect("a network");
        flat(&network.logits(tokens, sequences).expect("runs"))
    })
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // `f32::max` would drop a NaN.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).expect("numbers")
}

/// Root mean square of the differences over that of `b`.
fn relative(a: &[f32], b: &[f32]) -> f32 {
    let sum = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>();
    (sum(&mut a.iter().zip(b).map(|(a, b)| a - b)) / sum(&mut b.iter().copied())).sqrt()
}

fn reference_logits(folder: &Path, tokens: &[u32], sequences: usize) -> Vec<f32> {
    let config = ModelConfig::read(&folder.join("config.json")).expect("config");
    let bytes = fs::read(folder.join("model.safetensors")).expect("weights");
    let reference = Reference::load(config, &TensorFile::parse(&bytes, "x").expect("header")).expect("weights");
    tokens.chunks(tokens.len() / sequences).flat_map(|tokens| reference.logits(tokens)).collect()
}

#[test]
fn a_run_starts_with_the_logits_of_the_model() {
    let root = tempfile::tempdir().expect("temp dir");
    for tied in [true, false] {
        let config = ModelConfig { tie_word_embeddings: tied, ..llama(40) };
        let folder = root.path().join(format!("tied-{tied}"));
        write(&folder, &config, Some(tokenizer_json(&TOKENS)));
        let expected = reference_logits(&folder, &sample(), 2);
        // A head of its own may start as the embedding.
        for untied in [config.clone(), ModelConfig { tie_word_embeddings: false, ..config.clone() }] {
            let parameters = started(&folder, &untied).expect("fits");
            for found in logits(&untied, &parameters, &sample(), 2) {
                let difference = largest_difference(&found, &expected);
                assert!(difference < ROUNDING, "tied {tied}: {difference:e}");
            }
        }
        // The same model in GGUF, whose queries and keys lie in another order, in half precision.
        let gguf = root.path().join(format!("tied-{tied}.gguf"));
        let target = "gguf-f16".parse().expect("known");
        let options = ConvertOptions { target, head: None, quantize: None, force: false };
        let files = ModelFiles::open(&folder, GgufOptions::default()).expect("opens");
        convert(&files, &gguf, &options, &mut |_, _| {}).expect("converts");
        let parameters = started(&gguf, &config).expect("fits");
        let distance = relative(&logits(&config, &parameters, &sample(), 2)[1], &expected);
        assert!(distance > 0.0 && distance < 3e-3, "GGUF, tied {tied}: {distance:e}");
    }
}

#[test]
fn masters_are_latent_weights_again() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = root.path().join("masters");
    let quantization = Quantization::by_name("ternary", "int8").expect("known");
    write(&folder, &ModelConfig { quantization, ..llama(40) }, None);
    let mut file = TensorReader::open(&folder.join("model.safetensors")).expect("header");
    let parameters = started(&folder, &llama(40)).expect("fits");
    for (name, shape) in shapes(&llama(40)) {
        let mut expected = vec![0.0; shape.iter().product()];
        file.read_f32(&name, &shape, &mut expected).expect("there");
        assert_eq!(parameters.values(&name).expect("there"), expected, "{name}");
    }
}

#[test]
fn the_reference_model_starts_with_its_logits() {
    let Some(root) = shared("reference-model") else { return };
    let bytes = fs::read(root.join("expected.safetensors")).expect("readable");
    let file = TensorFile::parse(&bytes, "expected").expect("valid");
    let expected = file.bytes("float-llama.logits", Dtype::F32, &[2, 33, 512]).expect("logits");
    let expected: Vec<f32> = expected.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let tokens = file.bytes("tokens", Dtype::I32, &[2, 33]).expect("tokens");
    let tokens: Vec<u32> = tokens.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    let config = ModelConfig::read(&root.join("float-llama/config.json")).expect("valid");
    let parameters = started(&root.join("float-llama"), &config).expect("fits");
    for found in logits(&config, &parameters, &tokens, 2) {
        let difference = largest_difference(&found, &expected);
        println!("float-llama: largest difference of a logit {difference:.1e}");
        assert!(difference < ROUNDING, "{difference:e}");
    }
}

/// A sub-norm with weights of 1 would make every input that is not of magnitude 1 another one.
#[test]
fn inserted_sub_norms_change_little() {
    let root = tempfile::tempdir().expect("temp dir");
    let folder = root.path().join("model");
    write(&folder, &llama(40), None);
    let expected = reference_logits(&folder, &sample(), 2);
    let config = ModelConfig { sub_norms: true, ..llama(40) };
    let parameters = started(&folder, &config).expect("fits");
    let fitted = relative(&logits(&config, &parameters, &sample(), 2)[1], &expected);
    let ones = Parameters::from_values(&config, |name, _| {
        let values = parameters.values(name)?;
        Ok(if name.contains("sub_norm") { vec![1.0; values.len()] } else { values })
    });
    let ones = relative(&logits(&config, &ones.expect("all"), &sample(), 2)[1], &expected);
    println!("relative difference of logits: fitted sub-norms {fitted:.3}, sub-norms of ones {ones:.3}");
    assert!(fitted < 0.3 && fitted < ones / 2.0, "fitted {fitted}, ones {ones}");
    let weights = parameters.values("model.layers.1.mlp.ffn_sub_norm.weight").expect("there");
    assert!(weights.iter().all(|w| *w == weights[0]), "one number for a norm, so that no column stands out");
}

#[test]
fn what_does_not_fit_is_refused_with_what_to_change() {
    let root = tempfile::tempdir().expect("temp dir");
    let plain = root.path().join("plain");
    write(&plain, &llama(40), Some(tokenizer_json(&TOKENS)));
    let untied = root.path().join("untied");
    write(&untied, &ModelConfig { tie_word_embeddings: false, ..llama(40) }, None);
    let packed = root.path().join("packed");
    let quantization = Quantization::by_name("ternary", "int8").expect("known");
    write(&packed, &ModelConfig { quantization, storage: Storage::Packed, ..llama(40) }, None);
    let mut other_tokens = TOKENS;
    other_tokens.swap(3, 4);
    let other = root.path().join("other");
    write(&other, &llama(40), Some(tokenizer_json(&other_tokens)));
    let small = root.path().join("small");
    write(&small, &llama(39), None);
    for (source, config, expected) in [
        (
            &plain,
            ModelConfig { hidden_size: 64, ..llama(40) },
            "has hidden_size 32, and the config 64: set model.hidden_size = 32",
        ),
        (&plain, ModelConfig { num_hidden_layers: 3, ..llama(40) }, "has num_hidden_layers 2, and the config 3"),
        (&plain, ModelConfig { rope_theta: 1e4, ..llama(40) }, "has rope_theta 20000, and the config 10000"),
        (&plain, ModelConfig { hidden_act: HiddenAct::Relu2, ..llama(40) }, "set model.hidden_act = \"silu\""),
        (&untied, llama(40), "has a head of its own: set model.tie_word_embeddings = false"),
        (&packed, llama(40), "holds packed codes (`ternary`), expected floats"),
        (&other, llama(40), "token 3 is `e` in its tokenizer and `d` in the run's: set tokenizer.type = \"file\""),
        (&small, llama(40), "has an embedding of 39 tokens, fewer than the tokenizer's 40"),
        (&root.path().join("none"), llama(40), "none: no such model folder or file"),
    ] {
        let message = format!("{:#}", started(source, &config).err().expect(expected));
        assert!(message.contains(expected) && message.lines().count() == 1, "{message}");
    }
}

/// The whole way: a run whose steps change nothing ends with the weights that it began with.
#[test]
fn a_run_begins_with_the_weights_of_its_model() {
    let root = tempfile::tempdir().expect("temp dir");
    let data = tiny::data(&tiny::run(root.path(), 10, &[]));
    // An embedding may have more rows than there are tokens.
    let config = ModelConfig { rms_norm_eps: 1e-5, rope_theta: 1e4, ..llama(data.vocab_size + 4) };
    let model = root.path().join("llama");
    write(&model, &config, Some(data.tokenizer_json.clone()));
    let from = format!("model.init_from={}", model.display());
    let more = [&from, "model.hidden_act=silu", "optimizer.learning_rate=0.0"];
    let wrong = tiny::run(root.path(), 10, &[&from]);
    let message = format!(
        "{:#}",
        bitnet_train::run::start(&wrong, bitnet_train::run::Choices::default(), &false.into()).expect_err("relu2")
    );
    assert!(
        message.contains("tiny.toml: `model.init_from`: ") && message.contains("set model.hidden_act"),
        "{message}"
    );
    assert!(!wrong.folder().exists(), "nothing is begun");

    let checkpoint = tiny::first_step(&tiny::run(root.path(), 10, &more));
    let read = |path: &Path| fs::read(path.join("model.safetensors")).expect("readable");
    let (kept, source) = (read(&checkpoint), read(&model));
    let kept = TensorFile::parse(&kept, "checkpoint").expect("valid");
    let source = TensorFile::parse(&source, "model").expect("valid");
    for name in kept.names() {
        let view = kept.view(name).expect("listed");
        if name.contains("sub_norm") {
            continue;
        }
        let found = view.data();
        assert!(found == &source.view(name).expect("there").data()[..found.len()], "{name}");
    }
}

/// A configuration that ties the head, beside a head with other numbers: the run starts with the file's head, and says so.
#[test]
fn a_head_that_is_said_to_be_tied_and_is_not_is_taken_with_a_warning() {
    let root = tempfile::tempdir().expect("temp dir");
    let data = tiny::data(&tiny::run(root.path(), 10, &[]));
    let config =
        ModelConfig { rms_norm_eps: 1e-5, rope_theta: 1e4, tie_word_embeddings: false, ..llama(data.vocab_size) };
    let model = root.path().join("llama");
    write(&model, &config, Some(data.tokenizer_json.clone()));
    let path = model.join("config.json");
    let text = fs::read_to_string(&path).expect("config");
    let tied = text.replace(r#""tie_word_embeddings": false"#, r#""tie_word_embeddings": true"#);
    assert_ne!(tied, text);
    fs::write(&path, tied).expect("written");
    let run = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bitnet-train"));
        command.arg("run").arg(root.path().join("tiny.toml"));
        let from = format!("model.init_from={}", model.display());
        for assignment in [&from, "model.hidden_act=silu"].iter().chain(more) {
            command.args(["--set", assignment]);
        }
        let output = command.output().expect("the program runs");
        (output.status.success(), String::from_utf8(output.stderr).expect("UTF-8"))
    };
    let warning =
        "warning: the configuration ties the head to the embedding, but the file has another `lm_head.weight`";
    let (succeeds, stderr) = run(&["model.tie_word_embeddings=true"]);
    assert!(!succeeds && stderr.contains("set model.tie_word_embeddings = false"), "{stderr}");
    assert!(stderr.contains(warning), "{stderr}");
    let (succeeds, stderr) = run(&["model.tie_word_embeddings=false", "optimizer.learning_rate=0.0", "train.steps=3"]);
    assert!(succeeds && stderr.matches(warning).count() == 1, "{stderr}");
    let read = |path: &Path| fs::read(path.join("model.safetensors")).expect("readable");
    let checkpoint = root.path().join("tiny/checkpoints/step-00000003");
    let (kept, source) = (read(&checkpoint), read(&model));
    let kept = TensorFile::parse(&kept, "checkpoint").expect("valid");
    let source = TensorFile::parse(&source, "model").expect("valid");
    let of = |file: &TensorFile, name: &str| file.view(name).expect("there").data().to_vec();
    assert_eq!(of(&kept, "lm_head.weight"), of(&source, "lm_head.weight"));
    assert_ne!(of(&kept, "lm_head.weight"), of(&kept, "model.embed_tokens.weight"));
}
