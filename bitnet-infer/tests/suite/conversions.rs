//! Conversions: every reader against every writer, what must be refused, and what a failure leaves behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bitnet_infer::convert::{Conversion, ConvertOptions, HeadType, check_positions, convert, verify};
use bitnet_infer::engine::{ModelFiles, argmax};
use bitnet_infer::kernels;
use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, RopeScaling};
use bitnet_model::files::gguf::GgufOptions;
use bitnet_model::weights::LinearWeights;

use crate::common::{largest_of, tiny_config, write_model};
use crate::data_folder::shared;

/// Widths that every type has whole blocks of; queries and keys of several heads.
pub fn config(weight: &str, sub_norms: bool) -> ModelConfig {
    ModelConfig {
        hidden_size: 256,
        intermediate_size: 512,
        head_dim: 64,
        sub_norms,
        hidden_act: if sub_norms { HiddenAct::Relu2 } else { HiddenAct::Silu },
        ..tiny_config(weight, if weight == "none" { "none" } else { "int8" })
    }
}

pub fn open(path: &Path) -> ModelFiles {
    ModelFiles::open(path, GgufOptions::default()).expect("opens")
}

pub fn options(target: &str) -> ConvertOptions {
    ConvertOptions { target: target.parse().expect("known"), head: None, quantize: None, force: false }
}

pub fn converted(source: &Path, destination: &Path, options: &ConvertOptions) -> Conversion {
    convert(&open(source), destination, options, &mut |_, _| {})
        .unwrap_or_else(|e| panic!("{} to {}: {e}", source.display(), options.target))
}

/// Codes and scales of all projections.
fn codes(path: &Path) -> (Vec<Vec<i8>>, Vec<Vec<f32>>) {
    let read = |weights: &dyn bitnet_model::files::source::WeightSource| {
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for layer in 0..weights.config().num_hidden_layers {
            for index in 0..7 {
                let LinearWeights::Packed(matrix) = weights.projection(layer, index)? else {
                    panic!("{}: floats", path.display())
                };
                codes.push(matrix.unpack());
                scales.push((0..matrix.rows()).map(|row| matrix.scale_of(row)).collect());
            }
        }
        Ok::<_, bitnet_infer::engine::Error>((codes, scales))
    };
    open(path).with_weights(read).expect("reads")
}

/// The largest relative difference of two lists of scales.
fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    assert_eq!(a.iter().map(Vec::len).collect::<Vec<_>>(), b.iter().map(Vec::len).collect::<Vec<_>>());
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    largest_of(pairs.map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs() / f64::from(b)))
}

fn is_file(target: &str) -> bool {
    target.starts_with("gguf")
}

fn place(root: &Path, name: &str, target: &str) -> PathBuf {
    root.join(if is_file(target) { format!("{name}.gguf") } else { name.to_owned() })
}

/// Targets that hold codes of a scheme.
fn targets(weight: &str) -> &'static [&'static str] {
    match weight {
        "ternary" => &["hf", "hf-packed", "bitnet", "gguf-tq1", "gguf-tq2", "gguf-q2", "gguf-i2s", "gguf-f16"],
        "binary" => &["hf", "bitnet", "gguf-q1", "gguf-f16"],
        _ => &["hf", "bitnet"],
    }
}

#[test]
fn codes_survive_every_way_from_every_format_to_every_other() {
    for (weight, sub_norms) in
        [("ternary", true), ("ternary", false), ("binary", true), ("int8", false), ("int4", true)]
    {
        let root = tempfile::tempdir().expect("temp dir");
        let original = root.path().join("original");
        write_model(&original, &config(weight, sub_norms), 1);
        let (expected, scales) = codes(&original);
        println!("{weight}, sub-norms {sub_norms}: largest relative difference of a scale, from rows to columns");
        println!("{:>10} {}", "", targets(weight).iter().map(|t| format!("{t:>10}")).collect::<String>());
        for from in targets(weight) {
            let source = place(root.path(), &format!("a-{from}"), from);
            converted(&original, &source, &options(from));
            let mut line = format!("{from:>10} ");
            for to in targets(weight) {
                let destination = place(root.path(), &format!("{from}-to-{to}"), to);
                let said = converted(&source, &destination, &options(to));
                let (found, found_scales) = codes(&destination);
                assert!(found == expected, "{weight}: {from} to {to}: codes");
                let error = difference(&found_scales, &scales);
                // f16 has 11 bits; masters in f32 give their mean back to some last bits.
                let half = |t: &str| t.starts_with("gguf") && t != "gguf-i2s";
                let limit = if half(from) || half(to) {
                    5e-4
                } else if [*from, *to].contains(&"hf") {
                    1e-6
                } else {
                    0.0
                };
                assert!(error <= limit, "{weight}: {from} to {to}: scales differ by {error:e}");
                assert!(said.coded_projections == 14 && said.largest_scale_error <= limit, "{said:?}");
                line += &format!("{error:>10.1e}");
            }
            println!("{line}");
        }
    }
}

#[test]
fn converted_models_compute_what_their_sources_do() {
    let kernel = kernels::best().expect("a kernel");
    for (weight, sub_norms) in
        [("ternary", true), ("ternary", false), ("binary", false), ("none", false), ("int8", true)]
    {
        let root = tempfile::tempdir().expect("temp dir");
        let original = root.path().join("original");
        write_model(&original, &config(weight, sub_norms), 2);
        let more = if weight == "none" { &["hf", "bitnet", "gguf-f16"][..] } else { targets(weight) };
        for to in more.iter().chain(&["universal"]) {
            let destination = place(root.path(), &format!("to-{to}"), to);
            let options = options(to);
            converted(&original, &destination, &options);
            let found = verify(&open(&original), &open(&destination), &options, 40, kernel.into());
            let found = found.unwrap_or_else(|e| panic!("{weight} to {to}: {e}"));
            println!("{weight} to {to}: {:?}", found.agreement);
            assert_eq!(found.agreement.positions, 40);
            if ["hf-packed", "bitnet"].contains(to) {
                assert_eq!(found.agreement.largest_difference, 0.0, "{weight} to {to}");
            }
            // A lone file runs: its tokenizer came along.
            let tokenizer = open(&destination).tokenizer(&config(weight, sub_norms)).expect("reads").expect("there");
            assert_eq!(tokenizer.encode("one two").expect("encodes"), b"one two".map(u32::from));
        }
    }
}

#[test]
fn a_lie_in_the_result_is_noticed() {
    let kernel = kernels::best().expect("a kernel");
    let root = tempfile::tempdir().expect("temp dir");
    let (a, b) = (root.path().join("a"), root.path().join("b"));
    write_model(&a, &config("ternary", true), 3);
    let options = options("hf-packed");
    converted(&a, &b, &options);
    let text = fs::read_to_string(b.join("config.json")).expect("config");
    fs::write(b.join("config.json"), text.replace("relu2", "silu")).expect("written");
    let message = verify(&open(&a), &open(&b), &options, 20, kernel.into()).expect_err("another model").to_string();
    assert!(
        message.contains("its logits differ from the source's by") && message.contains("do not use it"),
        "{message}"
    );
}

/// A quantized result is compared with what quantizing gives, not with the source as it is, which differs anyway.
#[test]
fn a_lie_in_a_quantized_result_is_noticed() {
    let kernel = kernels::best().expect("a kernel");
    let root = tempfile::tempdir().expect("temp dir");
    let original = root.path().join("original");
    write_model(&original, &config("none", false), 14);
    for (target, scheme) in [("bitnet", "int4-g64"), ("bitnet", "int8"), ("gguf-tq2", "ternary"), ("hf", "int8")] {
        let written = place(root.path(), &format!("{target}-{scheme}"), target);
        let options = ConvertOptions { quantize: Some((scheme.into(), "none".into())), ..options(target) };
        converted(&original, &written, &options);
        let check = |written: &Path| verify(&open(&original), &open(written), &options, 8, kernel.into());
        let found = check(&written).unwrap_or_else(|e| panic!("{target} {scheme}: {e}"));
        assert!(found.codes.projections == 14 && found.price.is_some(), "{target} {scheme}: {found:?}");
        // The last tensor of a file is a projection, or its scale.
        let file = if is_file(target) { written.clone() } else { written.join("model.safetensors") };
        let mut bytes = fs::read(&file).expect("readable");
        let at = bytes.len() - bytes.len() / 40;
        bytes[at..][..64].reverse();
        fs::write(&file, bytes).expect("written");
        let message = check(&written).expect_err("changed").to_string();
        // In TQ2_0 scales stand among the codes: blocks that differ in theirs are floats.
        let found = [" has the code ", " and floats on the other"].iter().any(|reason| message.contains(reason));
        assert!(found && message.contains("do not use it"), "{target} {scheme}: {message}");
    }
}

#[test]
fn more_positions_than_memory_holds_are_refused() {
    let root = tempfile::tempdir().expect("temp dir");
    let original = root.path().join("original");
    write_model(&original, &config("ternary", true), 15);
    check_positions(&open(&original), 500_000).expect("fits");
    let message = check_positions(&open(&original), 600_000).expect_err("does not").to_string();
    assert!(
        message.contains("600000 positions of 258 tokens would fill the memory: expected at most 520"),
        "{message}"
    );
}

#[test]
fn heads_take_the_types_that_were_asked_for() {
    let kernel = kernels::best().expect("a kernel");
    let root = tempfile::tempdir().expect("temp dir");
    let original = root.path().join("original");
    write_model(&original, &config("ternary", false), 4);
    for (head, kind) in [(HeadType::F16, "F16"), (HeadType::Q8_0, "Q8_0"), (HeadType::Q6K, "Q6_K")] {
        let destination = root.path().join(format!("{}.gguf", head.name()));
        let options = ConvertOptions { head: Some(head), ..options("gguf-tq2") };
        converted(&original, &destination, &options);
        let found = verify(&open(&original), &open(&destination), &options, 40, kernel.into()).expect("close");
        println!("head {kind}: {:?}", found.agreement);
        let types = open(&destination).with_weights(|weights| {
            let records = weights.tensors();
            let of = |name: &str| records.iter().find(|record| record.name == name).map(|record| record.kind.clone());
            Ok::<_, bitnet_infer::engine::Error>((of("token_embd.weight"), of("blk.0.ffn_up.weight")))
        });
        assert_eq!(types.expect("reads"), (Some(kind.to_owned()), Some("TQ2_0".to_owned())));
    }
}

#[test]
fn float_models_become_baselines() {
    let kernel = kernels::best().expect("a kernel");
    let root = tempfile::tempdir().expect("temp dir");
    let original = root.path().join("original");
    write_model(&original, &config("none", false), 5);
    let mut last = 0.0;
    for (scheme, warned) in [("int8", false), ("int4", false), ("ternary", true)] {
        let destination = root.path().join(scheme);
        let options = ConvertOptions { quantize: Some((scheme.into(), "none".into())), ..options("bitnet") };
        let said = converted(&original, &destination, &options);
        assert_eq!(said.notes.iter().any(|note| note.contains("destroys a model")), warned, "{:?}", said.notes);
        let found =
            verify(&open(&original), &open(&destination), &options, 40, kernel.into()).expect("as it should be");
        let price = found.price.expect("quantized");
        println!("{scheme}: {price:?}");
        assert_eq!(found.codes.projections, 14);
        assert_eq!(found.agreement.largest_difference, 0.0, "the very codes, scales and floats");
        assert!(price.relative_rms > last, "fewer bits, more difference");
        last = price.relative_rms;
    }
    let quantized = open(&root.path().join("int8"));
    let again = ConvertOptions { quantize: Some(("int4".into(), "none".into())), ..options("hf") };
    let message = convert(&quantized, &root.path().join("x"), &again, &mut |_, _| {}).expect_err("twice").to_string();
    assert!(message.contains("a model of float weights (this one's are `int8`)"), "{message}");
}

#[test]
fn scaled_positions_travel() {
    let root = tempfile::tempdir().expect("temp dir");
    let original = root.path().join("original");
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let config = ModelConfig { rope_scaling: Some(scaling.clone()), rope_theta: 500_000.0, ..config("none", false) };
    write_model(&original, &config, 6);
    let (gguf, back) = (root.path().join("m.gguf"), root.path().join("back"));
    converted(&original, &gguf, &options("gguf-f16"));
    converted(&gguf, &back, &options("hf"));
    let read = ModelConfig::read(&back.join("config.json")).expect("reads");
    assert_eq!(read.rope_scaling, Some(scaling));
    let plain = ModelConfig { rope_scaling: None, ..read.clone() };
    assert_eq!(read.rope_frequency(0), plain.rope_frequency(0), "high frequencies are kept");
    assert_eq!(read.rope_frequency(31), plain.rope_frequency(31) / 8.0, "low ones are divided");
}

#[test]
fn shards_read_as_one_file_does() {
    let root = tempfile::tempdir().expect("temp dir");
    let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
    write_model(&whole, &config("ternary", true), 7);
    fs::create_dir(&parts).expect("made");
    fs::copy(whole.join("config.json"), parts.join("config.json")).expect("copied");
    let bytes = fs::read(whole.join("model.safetensors")).expect("readable");
    let file = bitnet_model::files::tensors::TensorFile::parse(&bytes, "whole").expect("valid");
    let mut map = serde_json::Map::new();
    let mut groups: [Vec<(String, bitnet_model::files::tensors::OwnedTensor)>; 2] = Default::default();
    for (i, name) in file.names().into_iter().enumerate() {
        let view = file.view(name).expect("listed");
        let (dtype, shape, bytes) = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        groups[i % 2].push((name.to_owned(), bitnet_model::files::tensors::OwnedTensor { dtype, shape, bytes }));
        map.insert(name.to_owned(), format!("part-{}.safetensors", i % 2).into());
    }
    for (i, group) in groups.iter().enumerate() {
        let path = parts.join(format!("part-{i}.safetensors"));
        bitnet_model::files::tensors::write(&path, group, ("format", "pt".into())).expect("written");
    }
    let index = |map: serde_json::Map<String, serde_json::Value>| {
        fs::write(parts.join("model.safetensors.index.json"), serde_json::json!({ "weight_map": map }).to_string())
            .expect("written");
    };
    index(map.clone());
    assert!(codes(&parts) == codes(&whole));
    map.insert("evil".into(), "../whole/model.safetensors".into());
    index(map);
    let message = ModelFiles::open(&parts, GgufOptions::default()).err().expect("refused").to_string();
    assert!(
        message.contains("tensor `evil` is in \"../whole/model.safetensors\", expected the name of a file"),
        "{message}"
    );
}

#[test]
fn nothing_is_overwritten_unasked_and_a_failure_leaves_what_was_there() {
    let root = tempfile::tempdir().expect("temp dir");
    let original = root.path().join("original");
    write_model(&original, &config("ternary", true), 8);
    for target in ["hf-packed", "gguf-tq2"] {
        let destination = place(root.path(), &format!("out-{target}"), target);
        let mut options = options(target);
        converted(&original, &destination, &options);
        let file = if is_file(target) { destination.clone() } else { destination.join("model.safetensors") };
        let before = fs::read(&file).expect("written");
        let refuse = |options: &ConvertOptions, source: &Path| {
            let failed = convert(&open(source), &destination, options, &mut |_, _| {});
            failed.map(|_| ()).expect_err("refused").to_string()
        };
        assert!(
            refuse(&options, &original).contains("exists already: choose another name, or replace it with --force")
        );
        options.force = true;
        converted(&original, &destination, &options);
        assert!(fs::read(&file).expect("there") == before, "the same bytes");

        // A source that turns out damaged at its last tensor.
        let broken = root.path().join("broken");
        let _ = fs::remove_dir_all(&broken);
        write_model(&broken, &config("ternary", true), 9);
        let path = broken.join("model.safetensors");
        let mut bytes = fs::read(&path).expect("readable");
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        fs::write(&path, bytes).expect("written");
        let message = refuse(&options, &broken);
        assert!(message.contains("tensor `model.layers.1.self_attn.v_proj.weight`"), "{message}");
        assert!(fs::read(&file).expect("there") == before, "{target}: untouched");
        fs::remove_dir_all(&broken).expect("removed");
    }
    let names: Vec<_> =
        fs::read_dir(root.path()).expect("dir").map(|entry| entry.expect("entry").file_name()).collect();
    assert_eq!(names.len(), 3, "no leftovers: {names:?}");
    let message = convert(&open(&original), &original, &options("hf"), &mut |_, _| {}).expect_err("itself").to_string();
    assert!(message.contains("is the source itself"), "{message}");
}

/// A disk that is full: the system refuses to let a file grow beyond a limit.
#[cfg(unix)]
#[test]
fn a_full_disk_is_one_line_and_loses_nothing() {
    let root = tempfile::tempdir().expect("temp dir");
    let original = root.path().join("original");
    write_model(&original, &config("ternary", true), 10);
    for target in ["bitnet", "gguf-f16"] {
        let destination = place(root.path(), &format!("out-{target}"), target);
        converted(&original, &destination, &options(target));
        let file = if is_file(target) { destination.clone() } else { destination.join("model.safetensors") };
        let before = fs::read(&file).expect("written");
        // 32 blocks of 512 bytes; the signal that comes with the limit would end the program without a word.
        let script = "trap '' XFSZ; ulimit -f 32; exec \"$@\"";
        let output = Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_bitnet-infer"), "convert"])
            .args([&original, &destination])
            .args(["--to", target, "--force"])
            .output()
            .expect("a shell");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.lines().count() == 1 && stderr.contains("cannot write"), "{stderr}");
        assert!(fs::read(&file).expect("there") == before, "{target}: untouched");
    }
    assert_eq!(fs::read_dir(root.path()).expect("dir").count(), 3, "no leftovers");
}

#[test]
fn what_a_target_cannot_hold_is_named() {
    let root = tempfile::tempdir().expect("temp dir");
    let odd = root.path().join("odd");
    write_model(&odd, &tiny_config("ternary", "int8"), 11);
    let relu = root.path().join("binary");
    write_model(&relu, &config("binary", true), 12);
    for (source, target, expected) in [
        (
            &odd,
            "gguf-tq2",
            "tensor `blk.0.attn_q.weight` has 60 columns, and TQ2_0 needs a multiple of 256: choose another",
        ),
        (&odd, "gguf-i2s", "tensor `blk.0.attn_q.weight` has 60 columns, and I2_S needs a multiple of 128"),
        (&odd, "gguf-q1", "`gguf-q1` holds binary weights, and the model's are `ternary`"),
        (&relu, "hf-packed", "`hf-packed` holds ternary weights, and the model's are `binary`"),
    ] {
        let out = root.path().join("out");
        let message = convert(&open(source), &out, &options(target), &mut |_, _| {}).expect_err(expected).to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!out.exists());
    }
    let said = converted(&relu, &root.path().join("b.gguf"), &options("gguf-q1"));
    assert!(
        said.notes.iter().any(|note| note.contains("llama.cpp computes silu for architecture `bitnet`")),
        "{said:?}"
    );
}

/// Greedy tokens of llama.cpp on a model of 260 thousand parameters, in four formats.
#[test]
fn stories_are_those_of_llama_cpp() {
    let Some(folder) = shared("stories260k") else { return };
    for (file, reference) in [
        ("stories260K.F32.gguf", "F32"),
        ("stories260K.F16.gguf", "F16"),
        ("stories260K.bin", "F32"),
        ("stories260K.Q8_0.gguf", "Q8_0"),
    ] {
        let json = fs::read(folder.join(format!("ref.{reference}.json"))).expect("readable");
        let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        let loaded = bitnet_infer::engine::open(&folder.join(file), kernels::best().expect("a kernel")).expect("loads");
        let tokenizer = loaded.require_tokenizer().expect("there");
        let (mut differences, mut same, mut all) = (Vec::new(), 0, 0);
        for case in json["cases"].as_array().expect("cases") {
            let prompt = case["prompt"].as_str().expect("text");
            let mut tokens =
                bitnet_infer::generate::Generator::new(&loaded.model, tokenizer).encode(prompt).expect("encodes");
            assert_eq!(Some(tokens.len() as u64), case["prompt_tokens_n"].as_u64(), "{prompt}");
            let start = tokens.len() - 1;
            let ids = case["ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32);
            let ids: Vec<u32> = ids.collect();
            tokens.extend(&ids);
            let mut cache = bitnet_infer::engine::KvCache::new(loaded.model.config(), tokens.len()).expect("fits");
            let logits = loaded.model.forward(&tokens, &mut cache, bitnet_infer::engine::LogitsFor::All).expect("runs");
            let vocab = loaded.model.config().vocab_size;
            for (i, &id) in ids.iter().enumerate() {
                let row = &logits[(start + i) * vocab..][..vocab];
                let nats = bitnet_infer::eval::perplexity::negative_log_likelihood(row, id);
                differences.push((nats + case["logprob"][i].as_f64().expect("a number")).abs());
                same += usize::from(argmax(row) == id);
                all += 1;
            }
        }
        let worst = largest_of(differences);
        println!("{file}: {same} of {all} greedy tokens, log-probabilities to {worst:.1e}");
        // llama.cpp rounds keys and values to f16, and for Q8_0 also the inputs of its products to 8 bits.
        let (least, limit) = if reference == "Q8_0" { (all - 3, 0.2) } else { (all, 6e-3) };
        assert!(same >= least && worst < limit, "{file}");
    }
}
