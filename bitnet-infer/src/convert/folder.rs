//! Hugging Face folders, and our own: `config.json`, one safetensors file, and what belongs to the tokenizer.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use bitnet_model::config::Storage;
use bitnet_model::files::gguf::encode_row;
use bitnet_model::files::hugging_face::{
    self, CHAT_TEMPLATE_FILE, CONFIG_FILE, GENERATION_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE,
    WEIGHTS_FILE, check_replaceable, generation_config, tensor_type,
};
use bitnet_model::files::source::{TableBytes, TableView};
use bitnet_model::files::stream::{PlannedTensor, safetensors_header};
use bitnet_model::files::tensors::Dtype;
use bitnet_model::files::{read_ordinary, text, write_folder_atomic, write_synced};
use bitnet_model::oddities;
use bitnet_model::weights::{FloatMatrix, FloatType, LinearWeights};

use super::part::{
    Produced, Sink, as_kind, check_values, codes_of, floats_of, io_error, masters_of, relative_error, tensor_error,
    warnings_of, write_coded_table, write_projections, write_table,
};
use super::{Conversion, HeadType, Job, Target};
use crate::engine::{Error, Result};

/// Writes the folder, all or nothing.
pub(super) fn write(
    job: &Job,
    path: &Path,
    done: &mut Conversion,
    progress: &mut dyn FnMut(usize, usize),
    check: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<()> {
    let types = Types::of(job)?;
    check_scaling(job)?;
    check_replaceable(path)?;
    done.notes.extend(notes(job));
    write_folder_atomic(path, |folder| {
        done.bytes_written = write_weights(job, &folder.join(WEIGHTS_FILE), &types, done, progress)?;
        write_synced(&folder.join(CONFIG_FILE), config_json(job, &types)?.as_bytes())?;
        write_text_files(job, folder)?;
        check(folder)
    })
}

/// The types of the floats of a folder.
struct Types {
    embedding: FloatType,
    head: FloatType,
    norms: FloatType,
    projections: FloatType,
    /// Whether the head (and the embedding, where they are one) is 8-bit codes.
    coded_head: bool,
}

impl Types {
    /// As the source has them, norms in f32; but folders for other programs have one type for all, since transformers keeps
    /// the types of a quantized model's file and then cannot multiply one with another: that of the source if it holds the
    /// norms exactly, else f32.
    fn of(job: &Job) -> Result<Self> {
        let tied = job.config.tie_word_embeddings;
        let mut embedding = job.weights.embedding_table()?.float_type();
        let mut head = job.weights.head_table()?.map_or(embedding, |view| view.float_type());
        match job.options.head {
            None => {}
            Some(HeadType::Int8) if job.options.target == Target::Bitnet => {}
            Some(HeadType::F16) => (embedding, head) = (if tied { FloatType::F16 } else { embedding }, FloatType::F16),
            Some(other) => {
                let (name, target) = (other.name(), job.options.target);
                let known = if target == Target::Bitnet { "f16 or int8" } else { "f16" };
                return Err(Error::Input(format!("--head {name}: `{target}` holds a head in {known}")));
            }
        }
        let projections = common_type(job)?;
        let has_floats = job.config.storage == Storage::Float;
        let one = match job.options.target {
            Target::Universal => FloatType::Bf16,
            Target::Bitnet => {
                let is_coded = |view: TableView| matches!(view.data, TableBytes::Codes { .. });
                let was_coded =
                    job.weights.head_table()?.map_or_else(|| job.weights.embedding_table(), Ok).map(is_coded)?;
                let coded_head = job.options.head == Some(HeadType::Int8) || (job.options.head.is_none() && was_coded);
                return Ok(Self { embedding, head, norms: FloatType::F32, projections, coded_head });
            }
            _ if head == embedding && (!has_floats || projections == embedding) && norms_are(job, embedding)? => {
                embedding
            }
            _ => FloatType::F32,
        };
        Ok(Self { embedding: one, head: one, norms: one, projections: one, coded_head: false })
    }
}

/// Whether all norms are numbers of a type.
fn norms_are(job: &Job, float_type: FloatType) -> Result<bool> {
    let exact = |values: &[f32]| FloatMatrix::new(1, values.len(), values, float_type).to_f32() == values;
    let mut all = exact(&job.weights.final_norm()?);
    for layer in 0..job.config.num_hidden_layers {
        for index in 0..job.config.norms().len() {
            all &= exact(&job.weights.norm(layer, index)?);
        }
    }
    Ok(all)
}

/// The type of float projections: that of the source's floats or masters if all have one, else f32. Masters that are made of
/// codes are f32, whose mean gives the scale back.
fn common_type(job: &Job) -> Result<FloatType> {
    if job.config.quantization.weight.is_some() && job.weights.latent(0, 0)?.is_none() {
        return Ok(FloatType::F32);
    }
    let records = job.weights.tensors();
    let tables = [job.weights.embedding_table()?.rows, job.config.vocab_size];
    let mut kinds = records.iter().filter(|r| r.shape.len() >= 2 && !tables.contains(&r.shape[0])).map(|r| &*r.kind);
    let Some(first) = kinds.next() else { return Ok(FloatType::F32) };
    Ok(match first {
        _ if !kinds.all(|kind| kind == first) => FloatType::F32,
        "F16" => FloatType::F16,
        "BF16" => FloatType::Bf16,
        _ => FloatType::F32,
    })
}

fn write_weights(
    job: &Job,
    path: &Path,
    types: &Types,
    done: &mut Conversion,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<usize> {
    let plan = plan(job, types);
    let header = safetensors_header(&plan).map_err(|name| tensor_error(job, &name, "would be written twice"))?;
    let total = header.len() + plan.iter().map(PlannedTensor::byte_count).sum::<usize>();
    let file = File::create(path).map_err(|cause| io_error(path, "create", cause))?;
    let mut out = BufWriter::new(file);
    let mut sink = Sink { out: &mut out, path, written: 0, total, progress };
    sink.put(&header)?;
    let tied = job.config.tie_word_embeddings;
    let table = |view: TableView, float_type, coded: bool, sink: &mut Sink| match coded {
        true => write_coded_table(job, view, sink),
        false => write_table(job, view, as_kind(float_type), sink),
    };
    table(job.weights.embedding_table()?, types.embedding, types.coded_head && tied, &mut sink)?;
    let norm = |name: &str, values: &[f32]| norm(job, name, values, types.norms);
    sink.put(&norm("model.norm.weight", &job.weights.final_norm()?)?)?;
    if let Some(head) = job.weights.head_table()? {
        table(head, types.head, types.coded_head, &mut sink)?;
    }
    let norms = |layer: usize, sink: &mut Sink| {
        job.config.norms().iter().enumerate().try_for_each(|(index, (name, _))| {
            sink.put(&norm(&oddities::full_name(layer, name), &job.weights.norm(layer, index)?)?)
        })
    };
    let produce = |layer, index| produce(job, types, layer, index);
    write_projections(job, &mut sink, done, norms, produce, |bytes, sink| sink.put(bytes))?;
    let written = sink.written;
    assert_eq!(written, total, "as many bytes as the header says");
    let file = out.into_inner().map_err(|failed| io_error(path, "write", failed.into_error()))?;
    file.sync_all().map_err(|cause| io_error(path, "sync", cause))?;
    Ok(written)
}

/// Every tensor in the order in which it is written.
fn plan(job: &Job, types: &Types) -> Vec<PlannedTensor> {
    let config = job.config;
    let tensor = |name: String, dtype, shape: &[usize]| PlannedTensor { name, dtype, shape: shape.to_vec() };
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let table = |name: &str, float_type, coded: bool| match coded {
        false => vec![tensor(name.into(), dtype(float_type), &[vocab, hidden])],
        true => vec![
            tensor(name.into(), Dtype::I8, &[vocab, hidden]),
            tensor(format!("{name}_scale"), Dtype::F32, &[vocab]),
        ],
    };
    let mut plan = table(EMBEDDING, types.embedding, types.coded_head && config.tie_word_embeddings);
    plan.push(tensor("model.norm.weight".into(), dtype(types.norms), &[hidden]));
    if !config.tie_word_embeddings {
        plan.extend(table(HEAD, types.head, types.coded_head));
    }
    for layer in 0..config.num_hidden_layers {
        for (name, len) in config.norms() {
            plan.push(tensor(format!("model.layers.{layer}.{name}.weight"), dtype(types.norms), &[len]));
        }
        for (name, rows, cols) in config.projections() {
            let name = format!("model.layers.{layer}.{name}.weight");
            match config.quantization.weight.filter(|_| config.storage != Storage::Float) {
                None => plan.push(tensor(name, dtype(types.projections), &[rows, cols])),
                Some(scheme) => {
                    let layout = config.storage.layout(scheme);
                    let scales = scheme.granularity().scale_count(rows, cols);
                    plan.push(tensor(name.clone(), tensor_type(layout), &layout.byte_shape(rows, cols)));
                    plan.push(tensor(format!("{name}_scale"), Dtype::F32, &[scales]));
                }
            }
        }
    }
    plan
}

fn produce(job: &Job, types: &Types, layer: usize, index: usize) -> Result<Produced> {
    let (name, rows, cols) = job.config.projections()[index];
    let name = format!("model.layers.{layer}.{name}.weight");
    let kind = as_kind(types.projections);
    let Some(scheme) = job.config.quantization.weight else {
        let weights = job.weights.projection(layer, index)?;
        let rounded = match &weights {
            LinearWeights::Packed(matrix) => {
                let error = |scale: &f32| relative_error(half::bf16::from_f32(*scale).to_f32(), *scale);
                Some(matrix.scales().iter().map(error).fold(0.0, f64::max))
            }
            LinearWeights::Float(_) => None,
        };
        let bytes = vec![floats_of(job, &name, &weights, kind)?];
        return Ok(Produced { bytes, scale_error: rounded, warnings: warnings_of(job, layer, index, &weights) });
    };
    if job.config.storage == Storage::Float {
        let weights = job.weights.projection(layer, index)?;
        let warnings = warnings_of(job, layer, index, &weights);
        if let Some(latent) = job.weights.latent(layer, index)? {
            let bytes = floats_of(job, &name, &LinearWeights::Float(latent), kind)?;
            return Ok(Produced { bytes: vec![bytes], scale_error: Some(0.0), warnings });
        }
        let (masters, error) = masters_of(job, &name, codes_of(job, &name, &weights)?)?;
        let bytes = floats_of(job, &name, &LinearWeights::Float(masters), kind)?;
        return Ok(Produced { bytes: vec![bytes], scale_error: Some(error), warnings });
    }
    let weights = job.weights.projection(layer, index)?;
    let warnings = warnings_of(job, layer, index, &weights);
    let matrix = codes_of(job, &name, &weights)?;
    let expected = scheme.granularity().scale_count(rows, cols);
    if matrix.scales().len() != expected {
        let reason = format!("has {} scales, and `{}` holds {expected}", matrix.scales().len(), job.options.target);
        return Err(tensor_error(job, &name, reason));
    }
    let layout = job.config.storage.layout(scheme);
    let codes = if layout == matrix.layout() {
        matrix.bytes().to_vec()
    } else {
        matrix.repack(layout).map_err(|reason| tensor_error(job, &name, reason))?.bytes().to_vec()
    };
    Ok(Produced { bytes: vec![codes, floats(matrix.scales())], scale_error: Some(0.0), warnings })
}

/// The tokenizer, its template of chats, and what a folder has besides.
fn write_text_files(job: &Job, folder: &Path) -> Result<()> {
    if let Some(source) = job.files.folder() {
        for name in [TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_FILE, CHAT_TEMPLATE_FILE, GENERATION_FILE] {
            let path = source.join(name);
            if path.exists() {
                let bytes = read_ordinary(&path, LARGEST_TEXT)?;
                write_synced(&folder.join(name), text::content(&bytes, &path.display().to_string())?)?;
            }
        }
    } else if let Some(json) = job.files.tokenizer_json()? {
        write_synced(&folder.join(TOKENIZER_FILE), &json)?;
        let tokenizer = job.files.tokenizer(job.config)?;
        let text = |id: Option<u32>| id.zip(tokenizer.as_ref()).and_then(|(id, tokenizer)| tokenizer.text_of(id));
        let mut config = serde_json::json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
        let added = job.files.added_tokens()?;
        config["bos_token"] = text(added.bos).into();
        for (key, flag) in [("add_bos_token", added.add_bos), ("add_eos_token", added.add_eos)] {
            if let Some(flag) = flag {
                config[key] = flag.into();
            }
        }
        config["eos_token"] = text(job.config.eos_token_ids.first().copied()).into();
        if let Some(template) = job.files.chat_template()? {
            config["chat_template"] = template.into();
        }
        let text = serde_json::to_string_pretty(&config).map_err(|e| Error::Input(e.to_string()))? + "\n";
        write_synced(&folder.join(TOKENIZER_CONFIG_FILE), text.as_bytes())?;
    }
    if !folder.join(GENERATION_FILE).exists() {
        write_synced(&folder.join(GENERATION_FILE), generation_config(job.config).as_bytes())?;
    }
    Ok(())
}

/// A scaling of positions that `config.json` has no name for must not get lost.
fn check_scaling(job: &Job) -> Result<()> {
    match &job.config.rope_scaling {
        Some(scaling) if scaling.recognize(job.config.rope_theta).is_none() => Err(Error::Input(format!(
            "{}: its rotary frequencies are scaled by a table that is no published scaling, and a config.json has no key for it",
            job.files.path().display()
        ))),
        _ => Ok(()),
    }
}

fn notes(job: &Job) -> Vec<String> {
    let mut notes = Vec::new();
    let by_four = |(_, rows, _): &(&str, usize, usize)| rows.is_multiple_of(4);
    if job.options.target == Target::HfPacked && !job.config.projections().iter().all(by_four) {
        notes.push("transformers reads packed rows in multiples of 4 only, and a projection here has others".into());
    }
    if job.options.target == Target::Universal && job.weights.config().quantization.activation.is_some() {
        notes.push("plain weights: other programs will run them with activations that are not quantized".into());
    }
    notes
}

/// The `config.json`, with the type that most floats have.
fn config_json(job: &Job, types: &Types) -> Result<String> {
    let fail = |e: serde_json::Error| Error::Input(e.to_string());
    let text = hugging_face::config_json(job.config, types.norms);
    let mut json: serde_json::Value = serde_json::from_str(&text).map_err(fail)?;
    // The token that begins a text keeps its name where the tokenizer does not add it: `tokenizer_config.json` says which.
    json["bos_token_id"] = job.config.bos_token_id.or(job.files.added_tokens()?.bos).into();
    Ok(serde_json::to_string_pretty(&json).map_err(fail)? + "\n")
}

fn norm(job: &Job, name: &str, values: &[f32], float_type: FloatType) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    check_values(job, name, values, as_kind(float_type), 0)?;
    encode_row(as_kind(float_type), values, &mut bytes);
    Ok(bytes)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn dtype(float_type: FloatType) -> Dtype {
    match float_type {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

const LARGEST_TEXT: u64 = 64 << 20;
