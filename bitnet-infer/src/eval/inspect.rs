//! What a model on disk holds: shapes, sizes, shares of codes, and an estimate of arithmetic energy.

use std::path::Path;

use serde::Serialize;

use bitnet_model::ModelConfig;
use bitnet_model::config::Storage;
use bitnet_model::files::gguf::GgufOptions;
use bitnet_model::files::source::{TableView, TensorRecord, WARNING, WeightSource};
use bitnet_model::oddities;
use bitnet_model::packed::Layout;
use bitnet_model::weights::LinearWeights;

use crate::engine::{ModelFiles, Result};

/// A model at a glance. Sizes are those of this project's packed form, even where the file holds latent weights.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The format of the files.
    pub format: &'static str,
    /// `BitNetForCausalLM`, or `LlamaForCausalLM` for a model without sub-norms.
    pub architecture: &'static str,
    /// The `config.json` as this project understands it.
    pub config: serde_json::Value,
    /// Weight scheme, by name.
    pub weight_scheme: &'static str,
    /// Activation scheme, by name.
    pub activation_scheme: &'static str,
    /// How the file holds the projections.
    pub storage: &'static str,
    /// All parameters; a tied head counts once.
    pub parameters: u64,
    /// Parameters of the projections.
    pub projection_parameters: u64,
    /// Parameters of the embedding, and of the head where it is a matrix of its own.
    pub embedding_parameters: u64,
    /// Bytes of the files of weights.
    pub file_bytes: usize,
    /// Bytes of the projections when packed, scales included.
    pub projection_bytes: usize,
    /// Bytes of the whole model with packed projections.
    pub model_bytes: usize,
    /// Bits of a projection weight when packed, scales included.
    pub projection_bits_per_weight: f64,
    /// Bits per parameter of the whole model.
    pub model_bits_per_weight: f64,
    /// How many times smaller than f16 the projections are.
    pub projection_compression: f64,
    /// How many times smaller than f16 the whole model is.
    pub model_compression: f64,
    /// Share of negative, zero and positive codes over all projections.
    pub code_shares: Option<[f64; 3]>,
    /// Estimated arithmetic energy of a token.
    pub energy: Energy,
    /// Tokens of the tokenizer, if there is one.
    pub tokenizer_tokens: Option<usize>,
    /// Every projection but those of impossible codes, which are in the warnings.
    pub tensors: Vec<TensorReport>,
    /// Every tensor as the files have it.
    pub file_tensors: Vec<TensorRecord>,
    /// What was decided where the file leaves room, and why.
    pub notes: Vec<String>,
    /// What looks wrong, and what keeps the model from running.
    pub warnings: Vec<String>,
}

/// One projection.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name in the file.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Bytes when packed.
    pub bytes: usize,
    /// Share of negative, zero and positive codes; `None` for float weights.
    pub code_shares: Option<[f64; 3]>,
    /// Mean of its scales; `None` for float weights.
    pub mean_scale: Option<f64>,
}

/// Estimated energy of the arithmetic of one token, in microjoules, after the table of arXiv:2310.11453 at 7 nm: FP16 add
/// 0.16 and multiply 0.34 pJ, INT8 add 0.007 and multiply 0.07 pJ. One- and two-bit weights need additions only, and two
/// FP16 multiplications an output for the scales. Moving the weights, attention over the context, and everything else a
/// computer does are not in it, so it is no measurement and real energy is many times higher.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Energy {
    /// Projections as they are.
    pub projections_uj: f64,
    /// Projections in FP16.
    pub projections_f16_uj: f64,
    /// The head, in FP16 either way.
    pub head_f16_uj: f64,
}

/// Reads a model and every tensor in it.
///
/// # Errors
/// Whatever keeps the model from loading: the file, the key or tensor, and what was expected; but impossible codes and a
/// tokenizer that does not fit are warnings.
pub fn inspect(path: &Path) -> Result<Inspection> {
    inspect_files(&ModelFiles::open(path, GgufOptions::default())?)
}

/// The same for files that are open already.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_files(files: &ModelFiles) -> Result<Inspection> {
    files.with_weights(|weights| of_weights(files, weights))
}

fn of_weights(files: &ModelFiles, weights: &dyn WeightSource) -> Result<Inspection> {
    let config = weights.config();
    let tables: Vec<TableView> =
        [Some(weights.embedding_table()?), weights.head_table()?].into_iter().flatten().collect();
    if let Some((view, index)) = tables.iter().find_map(|view| view.first_not_finite().map(|index| (view, index))) {
        return Err(view.not_finite(index).into());
    }
    let final_norm = weights.final_norm()?;

    let (mut tensors, mut norm_values, mut counts) = (Vec::new(), final_norm.len(), [0u64; 3]);
    let (mut broken, mut odd) = (Vec::new(), Vec::new());
    for layer in 0..config.num_hidden_layers {
        for (index, (name, len)) in config.norms().into_iter().enumerate() {
            odd.extend(oddities::of_norm(&oddities::full_name(layer, name), &weights.norm(layer, index)?));
            norm_values += len;
        }
        for (index, (name, ..)) in config.projections().into_iter().enumerate() {
            let projection = match weights.projection(layer, index) {
                Err(error @ bitnet_model::Error::Codes { .. }) => {
                    broken.push(format!("{error}: the model does not run"));
                    continue;
                }
                projection => projection?,
            };
            let name = oddities::full_name(layer, name);
            odd.extend(oddities::of_projection(config, &name, &projection));
            let found = code_counts(&projection);
            counts.iter_mut().zip(found.unwrap_or_default()).for_each(|(all, n)| *all += n);
            tensors.push(TensorReport {
                name,
                rows: projection.rows(),
                cols: projection.cols(),
                bytes: projection.byte_count(),
                code_shares: found.map(shares),
                mean_scale: match &projection {
                    LinearWeights::Packed(matrix) => Some(oddities::mean_scale(matrix)),
                    LinearWeights::Float(_) => None,
                },
            });
        }
        files.release();
    }

    let tokenizer = files.any_tokenizer()?;
    if let Some(Err(error)) = tokenizer.as_ref().map(|tokenizer| tokenizer.check_fits(config)) {
        broken.push(format!("{error}: the model does not run"));
    }
    let (warned, notes): (Vec<_>, Vec<_>) = weights.notes().into_iter().partition(|note| note.starts_with(WARNING));
    let warned = warned.iter().map(|note| note.trim_start_matches(WARNING).to_owned()).collect();
    let projection_bytes = tensors.iter().map(|tensor| tensor.bytes).sum::<usize>();
    let table_bytes = tables.iter().map(TableView::byte_count).sum::<usize>();
    let model_bytes = projection_bytes + table_bytes + norm_values * 4;
    let (parameters, projection_parameters) = (config.parameters(), config.projection_parameters());
    let bits = |bytes: usize, weights: u64| bytes as f64 * 8.0 / weights as f64;
    let quantized = config.quantization.weight.is_some();
    Ok(Inspection {
        architecture: if config.sub_norms { "BitNetForCausalLM" } else { "LlamaForCausalLM" },
        config: serde_json::from_str(&config.to_json()).unwrap_or_default(),
        weight_scheme: config.quantization.weight_name(),
        activation_scheme: config.quantization.activation_name(),
        storage: match config.storage {
            Storage::Float if quantized => "latent float weights, quantized at load",
            Storage::Float => "float",
            Storage::Packed => "packed codes, weight = code * scale",
            Storage::PackedBase3 => "packed codes, five ternary digits a byte, weight = code * scale",
            Storage::PackedInverseScale => "packed codes, weight = code / scale",
        },
        parameters,
        projection_parameters,
        embedding_parameters: tables.iter().map(|table| table.rows as u64 * table.cols as u64).sum(),
        file_bytes: files.byte_count(),
        projection_bytes,
        model_bytes,
        projection_bits_per_weight: bits(projection_bytes, projection_parameters),
        model_bits_per_weight: bits(model_bytes, parameters),
        projection_compression: 16.0 / bits(projection_bytes, projection_parameters),
        model_compression: 16.0 / bits(model_bytes, parameters),
        code_shares: quantized.then(|| shares(counts)),
        energy: energy(config),
        tokenizer_tokens: tokenizer.map(|tokenizer| tokenizer.vocab_size()),
        warnings: [broken, warned, odd].concat(),
        tensors,
        file_tensors: weights.tensors(),
        notes,
        format: files.format(),
    })
}

fn code_counts(weights: &LinearWeights) -> Option<[u64; 3]> {
    let LinearWeights::Packed(matrix) = weights else { return None };
    let mut counts = [0u64; 3];
    let mut codes = vec![0i8; matrix.cols()];
    for row in 0..matrix.rows() {
        matrix.unpack_row(row, &mut codes);
        let negative = codes.iter().filter(|code| **code < 0).count();
        let positive = codes.iter().filter(|code| **code > 0).count();
        let found = [negative, codes.len() - negative - positive, positive];
        counts.iter_mut().zip(found).for_each(|(all, n)| *all += n as u64);
    }
    Some(counts)
}

fn shares(counts: [u64; 3]) -> [f64; 3] {
    let total = counts.iter().sum::<u64>().max(1) as f64;
    counts.map(|n| n as f64 / total)
}

fn energy(config: &ModelConfig) -> Energy {
    let macs = config.projection_parameters() as f64;
    let block_rows: usize = config.projections().iter().map(|(_, rows, _)| rows).sum();
    let outputs = (block_rows * config.num_hidden_layers) as f64;
    let (f16_add, f16_mul, int8_add, int8_mul) = (0.16, 0.34, 0.007, 0.07);
    let layout = config.quantization.weight.map(|scheme| scheme.layout());
    let f16 = f16_add + f16_mul;
    let projections_pj = match (layout, config.quantization.activation) {
        (Some(Layout::OneBit | Layout::TwoBit | Layout::Base3), Some(_)) => macs * int8_add + outputs * 2.0 * f16_mul,
        (Some(Layout::Int4 | Layout::Int8), Some(_)) => macs * (int8_add + int8_mul) + outputs * 2.0 * f16_mul,
        (Some(Layout::OneBit | Layout::TwoBit | Layout::Base3), None) => macs * f16_add + outputs * f16_mul,
        _ => macs * f16,
    };
    let head = config.vocab_size as f64 * config.hidden_size as f64;
    Energy { projections_uj: projections_pj / 1e6, projections_f16_uj: macs * f16 / 1e6, head_f16_uj: head * f16 / 1e6 }
}
