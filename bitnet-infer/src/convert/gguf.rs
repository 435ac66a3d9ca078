//! GGUF files: keys, the tokenizer's lists, and tensors by llama.cpp's names.

use std::io::BufWriter;
use std::path::Path;

use bitnet_model::config::{HiddenAct, RopeScaling, rope_frequency};
use bitnet_model::files::AtomicFile;
use bitnet_model::files::gguf::{
    CHAT_TEMPLATE, EOS_TOKENS, HUGGING_FACE_JSON, HeaderWriter, I2sLayout, NORMS, PROJECTIONS, PlannedTensor,
    TensorType, TokenLists, config_keys, encode_codes, encode_row, half_scale, pack_i2s,
};
use bitnet_model::files::source::{ROTATED, row_of_halves, rows_from};
use bitnet_model::packed::PackedMatrix;
use bitnet_model::weights::LinearWeights;

use super::part::{
    Produced, Sink, codes_of, floats_of, io_error, relative_error, tensor_error, warnings_of, write_projections,
    write_table,
};
use super::{Conversion, HeadType, Job};
use crate::engine::{Error, Result};

/// Writes the file, all or nothing.
pub(super) fn write(
    job: &Job,
    path: &Path,
    done: &mut Conversion,
    progress: &mut dyn FnMut(usize, usize),
    check: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    let kind = job.options.target.gguf_type().expect("a GGUF target");
    if job.options.head == Some(HeadType::Int8) {
        let reason = "--head int8 is of this project's folder (`bitnet`): GGUF has q8_0, with a scale for each 32";
        return Err(Error::Input(reason.into()));
    }
    let mut keys = config_keys(job.config, file_type(kind));
    tokenizer_keys(job, &mut keys, &mut done.notes)?;
    done.notes.extend(notes(job, kind));
    let plan = plan(job, kind);
    let header = keys.finish(&plan).map_err(|(name, reason)| {
        let hint = "`gguf-q2` needs multiples of 64, `gguf-f16` any number";
        tensor_error(job, &name, format!("{reason}: choose another target ({hint}), or another --head"))
    })?;
    let sizes = plan.iter().map(|tensor| tensor.byte_count().expect("checked by the header"));
    let total = header.len() + sizes.map(|bytes| bytes + PlannedTensor::padding(bytes)).sum::<usize>();
    let mut out = BufWriter::new(AtomicFile::create(path)?);
    let mut sink = Sink { out: &mut out, path, written: 0, total, progress };
    sink.put(&header)?;
    let padded = |bytes: &[u8], sink: &mut Sink| {
        sink.put(bytes)?;
        sink.put(&[0; 32][..PlannedTensor::padding(bytes.len())])
    };
    let floats = |values: &[f32], sink: &mut Sink| {
        let mut bytes = Vec::new();
        encode_row(TensorType::F32, values, &mut bytes);
        padded(&bytes, sink)
    };
    let [embedding, head] = table_types(job);
    table(job, EMBEDDING, embedding, &mut sink)?;
    floats(&job.weights.final_norm()?, &mut sink)?;
    if !job.config.tie_word_embeddings {
        table(job, HEAD, head, &mut sink)?;
    }
    if let Some(divisors) = divisors(job) {
        floats(&divisors, &mut sink)?;
    }
    let norms = |layer: usize, sink: &mut Sink| {
        (0..job.config.norms().len()).try_for_each(|index| floats(&job.weights.norm(layer, index)?, sink))
    };
    let produce = |layer, index| produce(job, kind, layer, index);
    write_projections(job, &mut sink, done, norms, produce, padded)?;
    done.bytes_written = sink.written;
    assert_eq!(done.bytes_written, total, "as many bytes as the header says");
    let file = out.into_inner().map_err(|failed| io_error(path, "write", failed.into_error()))?;
    check(file.temporary())?;
    Ok(file.keep()?)
}

fn table(job: &Job, name: &str, kind: TensorType, sink: &mut Sink) -> Result<()> {
    let view = match (name, job.weights.head_table()?) {
        (HEAD, Some(view)) => view,
        _ => job.weights.embedding_table()?,
    };
    let before = sink.written;
    write_table(job, view, kind, sink)?;
    sink.put(&[0; 32][..PlannedTensor::padding(sink.written - before)])
}

fn tokenizer_keys(job: &Job, keys: &mut HeaderWriter, notes: &mut Vec<String>) -> Result<()> {
    let config = job.config;
    let Some(json) = job.files.tokenizer_json()? else {
        keys.text("tokenizer.ggml.model", "none");
        notes.push("the source has no tokenizer: neither will the file".into());
        return Ok(());
    };
    match TokenLists::from_json(&json, config.vocab_size, &job.files.path().display().to_string()) {
        Ok(lists) => {
            if lists.model == "gpt2" && lists.pre.is_none() {
                notes.push(
                    "warning: the way this tokenizer cuts a text into words has no name in GGUF: llama.cpp will cut it in another"
                        .into(),
                );
            }
            keys.tokenizer(&lists);
        }
        Err(reason) => {
            keys.text("tokenizer.ggml.model", "none");
            notes.push(format!("{reason}: the file carries it whole, for this program"));
        }
    }
    keys.text(HUGGING_FACE_JSON, &String::from_utf8_lossy(&json));
    let added = job.files.added_tokens()?;
    if let Some(bos) = added.bos.or(config.bos_token_id) {
        keys.u32("tokenizer.ggml.bos_token_id", bos);
    }
    keys.flag("tokenizer.ggml.add_bos_token", config.bos_token_id.is_some());
    if let Some(add_eos) = added.add_eos {
        keys.flag("tokenizer.ggml.add_eos_token", add_eos);
    }
    let ends: Vec<i32> = config.eos_token_ids.iter().filter_map(|&id| i32::try_from(id).ok()).collect();
    keys.integers(EOS_TOKENS, &ends);
    if ends.len() > 3 {
        notes.push(format!(
            "llama.cpp has keys for three end tokens: it will not stop at the last {} of this model's",
            ends.len() - 3
        ));
    }
    for (key, id) in ["eos_token_id", "eot_token_id", "eom_token_id"].iter().zip(&config.eos_token_ids) {
        keys.u32(&format!("tokenizer.ggml.{key}"), *id);
    }
    if let Some(template) = job.files.chat_template()? {
        keys.text(CHAT_TEMPLATE, &template);
    }
    Ok(())
}

/// Every tensor in the order in which it is written.
fn plan(job: &Job, kind: TensorType) -> Vec<PlannedTensor> {
    let config = job.config;
    let tensor = |name: String, kind, shape: &[usize]| PlannedTensor { name, kind, shape: shape.to_vec() };
    let table = [config.vocab_size, config.hidden_size];
    let [embedding, head] = table_types(job);
    let mut plan = vec![
        tensor(EMBEDDING.into(), embedding, &table),
        tensor("output_norm.weight".into(), TensorType::F32, &[config.hidden_size]),
    ];
    if !config.tie_word_embeddings {
        plan.push(tensor(HEAD.into(), head, &table));
    }
    if let Some(divisors) = divisors(job) {
        plan.push(tensor("rope_freqs.weight".into(), TensorType::F32, &[divisors.len()]));
    }
    for layer in 0..config.num_hidden_layers {
        for ((_, len), name) in config.norms().into_iter().zip(NORMS) {
            plan.push(tensor(format!("blk.{layer}.{name}.weight"), TensorType::F32, &[len]));
        }
        for ((_, rows, cols), name) in config.projections().into_iter().zip(PROJECTIONS) {
            plan.push(tensor(format!("blk.{layer}.{name}.weight"), kind, &[rows, cols]));
        }
    }
    plan
}

/// The types of embedding and head: what was asked for is that of the head, and of the embedding where they are one.
fn table_types(job: &Job) -> [TensorType; 2] {
    let head = job.options.head.and_then(HeadType::gguf).unwrap_or(TensorType::F16);
    [if job.config.tie_word_embeddings { head } else { TensorType::F16 }, head]
}

fn produce(job: &Job, kind: TensorType, layer: usize, index: usize) -> Result<Produced> {
    let name = format!("blk.{layer}.{}.weight", PROJECTIONS[index]);
    let mut weights = job.weights.projection(layer, index)?;
    let warnings = warnings_of(job, layer, index, &weights);
    if !job.config.sub_norms && ROTATED.contains(&index) {
        // llama.cpp's LLaMA has the pairs of a head as neighbours.
        weights = rows_from(weights, |row| row_of_halves(row, job.config.head_dim));
    }
    if kind == TensorType::F16 {
        let error = match &weights {
            LinearWeights::Packed(matrix) => {
                let held = matrix.scales().iter().try_for_each(|&scale| half_scale(scale).map(drop));
                held.map_err(|reason| tensor_error(job, &name, reason))?;
                Some(half_error(matrix))
            }
            LinearWeights::Float(_) => None,
        };
        return Ok(Produced { bytes: vec![floats_of(job, &name, &weights, kind)?], scale_error: error, warnings });
    }
    let matrix = codes_of(job, &name, &weights)?;
    if let Some(group) = matrix.group() {
        let reason = format!("has a scale for each {group} columns of a row, and `{}` holds one", job.options.target);
        return Err(tensor_error(job, &name, reason));
    }
    if kind == TensorType::I2S {
        let [scale] = matrix.scales() else {
            let reason = format!("has {} scales, and I2_S holds one", matrix.scales().len());
            return Err(tensor_error(job, &name, reason));
        };
        let bytes = pack_i2s(I2sLayout::Group128, matrix.rows(), matrix.cols(), &matrix.unpack(), *scale);
        let bytes = bytes.map_err(|reason| tensor_error(job, &name, reason))?;
        return Ok(Produced { bytes: vec![bytes], scale_error: Some(0.0), warnings });
    }
    let (mut bytes, mut codes) = (Vec::new(), vec![0i8; matrix.cols()]);
    for row in 0..matrix.rows() {
        matrix.unpack_row(row, &mut codes);
        encode_codes(kind, &codes, matrix.scale_of(row), &mut bytes)
            .map_err(|reason| tensor_error(job, &name, format!("{reason} (row {row})")))?;
    }
    Ok(Produced { bytes: vec![bytes], scale_error: Some(half_error(matrix)), warnings })
}

/// How far the scales of a matrix are from half precision.
fn half_error(matrix: &PackedMatrix) -> f64 {
    let error = |scale: &f32| relative_error(half::f16::from_f32(*scale).to_f32(), *scale);
    matrix.scales().iter().map(error).fold(0.0, f64::max)
}

/// What the rotary frequencies are divided by, where they are scaled by more than one factor.
fn divisors(job: &Job) -> Option<Vec<f32>> {
    let config = job.config;
    match config.rope_scaling.as_ref()? {
        RopeScaling::Linear { .. } => None,
        RopeScaling::Divisors(divisors) => Some(divisors.clone()),
        scaling @ RopeScaling::Llama3 { .. } => {
            let divisor = |pair| {
                let frequency = rope_frequency(pair, config.head_dim, config.rope_theta);
                frequency / scaling.scale(pair, frequency)
            };
            Some((0..config.head_dim / 2).map(divisor).collect())
        }
    }
}

/// What llama.cpp will make of the file.
fn notes(job: &Job, kind: TensorType) -> Vec<String> {
    let config = job.config;
    let mut notes = Vec::new();
    if kind == TensorType::I2S {
        notes.push("I2_S is Microsoft's type: bitnet.cpp reads it, llama.cpp does not".into());
    }
    if config.sub_norms {
        // src/models/bitnet.cpp of llama.cpp, version of October 2026.
        if config.hidden_act == HiddenAct::Relu2 {
            notes.push(
                "warning: llama.cpp computes silu for architecture `bitnet`, whatever `bitnet.hidden_activation` says: it would run this \
                 model wrongly (this program reads the key)"
                    .into(),
            );
        }
        if !config.tie_word_embeddings {
            notes.push(
                "warning: llama.cpp ties the head of architecture `bitnet` to the embedding: it cannot load this model"
                    .into(),
            );
        }
        if config.query_size() != config.hidden_size {
            notes.push("warning: llama.cpp expects heads as wide as the hidden size of architecture `bitnet`: it cannot load this model".into());
        }
        if divisors(job).is_some() {
            notes.push("warning: llama.cpp ignores `rope_freqs.weight` of architecture `bitnet`".into());
        }
    } else if config.hidden_act == HiddenAct::Relu2 {
        notes.push("warning: llama.cpp computes silu for architecture `llama`: it would run this model wrongly".into());
    }
    if kind != TensorType::F16 && kind != TensorType::I2S && config.quantization.activation.is_some() {
        notes.push("llama.cpp quantizes the inputs of a product in blocks, not by token as the model was trained: its results differ".into());
    }
    notes
}

/// llama.cpp's number for files of mostly one type.
fn file_type(kind: TensorType) -> u32 {
    match kind {
        TensorType::Tq1_0 => 36,
        TensorType::Tq2_0 => 37,
        TensorType::Q1_0 | TensorType::I2S => 40,
        TensorType::Q2_0 => 41,
        _ => 1,
    }
}

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";
