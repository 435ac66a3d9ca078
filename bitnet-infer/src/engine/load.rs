//! A model on disk to a model in memory.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use bitnet_model::files::gguf::GgufOptions;
use bitnet_model::files::hugging_face::TOKENIZER_FILE;
use bitnet_model::files::source::{TableBytes, TableView, WARNING, WeightSource};
use bitnet_model::files::tensors::FloatBytes;
use bitnet_model::tokenizer::Tokenizer;
use bitnet_model::weights::{FloatData, FloatMatrix};

use super::error::{Error, Result};
use super::files::ModelFiles;
use super::head::HeadFormat;
use super::model::{Model, Tables};
use super::table::Table;
use super::ternary::Arrangement;

/// What a model on disk holds.
pub struct LoadedModel {
    /// The model.
    pub model: Model,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<Tokenizer>,
    /// What looks wrong in the files and keeps nothing from running, a sentence each: what `inspect` warns of.
    pub warnings: Vec<String>,
    path: PathBuf,
}

/// Loads a model: a folder with `config.json` and safetensors, a GGUF file, or one of llama2.c. Weights may be packed codes,
/// floats, or latent weights that are quantized now; each block is dropped as soon as it is arranged.
///
/// # Errors
/// The file, the key or tensor, and what was expected of it; or an arrangement that the kernel does not have.
pub fn open(path: &Path, arrangement: impl Into<Arrangement>) -> Result<LoadedModel> {
    open_files(&ModelFiles::open(path, GgufOptions::default())?, arrangement)
}

/// Loads a model whose files are open already.
///
/// # Errors
/// As [`open`].
pub fn open_files(files: &ModelFiles, arrangement: impl Into<Arrangement>) -> Result<LoadedModel> {
    files.with_weights(|weights| {
        let tokenizer = files.tokenizer(weights.config())?;
        let model = model_of(files, weights, arrangement.into())?;
        let noted = weights.notes().into_iter().filter_map(|note| note.strip_prefix(WARNING).map(str::to_owned));
        let warnings = noted.chain(model.warnings().iter().cloned()).collect();
        Ok(LoadedModel { model, tokenizer, warnings, path: files.path().to_path_buf() })
    })
}

/// The model that `weights`, which stand in `files`, are.
///
/// # Errors
/// As [`open`].
pub(crate) fn model_of(files: &ModelFiles, weights: &dyn WeightSource, arrangement: Arrangement) -> Result<Model> {
    let table = |view| table(files, view);
    let tables = Tables {
        embedding: table(weights.embedding_table()?)?,
        head: weights.head_table()?.map(table).transpose()?,
        final_norm: weights.final_norm()?,
    };
    let next = |index| {
        let block = weights.block(index)?;
        // The block has been copied: its pages would only add to the memory that loading takes.
        files.release();
        Ok(block)
    };
    Model::from_layers(weights.config().clone(), tables, next, arrangement)
}

/// A float matrix where it stands in the file, or a copy of one in blocks; all of it checked.
fn table(files: &ModelFiles, view: TableView) -> Result<Table> {
    if let TableBytes::Codes { codes, scales } = view.data {
        if let Some(at) = codes.par_iter().position_first(|&code| code == 0x80) {
            let (row, col) = (at / view.cols, at % view.cols);
            let (origin, name) = (view.origin.to_owned(), view.name.to_owned());
            let reason = format!("has the impossible code -128 at row {row}, column {col}");
            return Err(bitnet_model::Error::Codes { origin, name, reason }.into());
        }
        let scales = scales.as_chunks::<4>().0.iter().map(|&scale| f32::from_le_bytes(scale)).collect();
        let table = Table::coded(files.map_of(codes), codes, scales, view.cols);
        table.release();
        return Ok(table);
    }
    let TableBytes::Floats(floats) = view.data else {
        let mut values = vec![0f32; view.rows * view.cols];
        values.par_chunks_mut(view.cols).enumerate().for_each(|(row, values)| view.row_to_f32(row, values));
        files.release();
        return match values.par_iter().position_first(|value| !value.is_finite()) {
            Some(index) => Err(view.not_finite(index).into()),
            None => Ok(Table::new(FloatMatrix { rows: view.rows, cols: view.cols, data: FloatData::F32(values) })),
        };
    };
    let table = Table::mapped(files.map_of(floats.bytes), floats, view.rows, view.cols);
    let chunk_bytes = CHECKED_NUMBERS * table.number_bytes();
    let bad = floats.bytes.par_chunks(chunk_bytes).enumerate().find_map_first(|(chunk, bytes)| {
        let found = FloatBytes { bytes, ..floats }.first_not_finite();
        table.release();
        found.map(|index| chunk * CHECKED_NUMBERS + index)
    });
    match bad {
        Some(index) => Err(view.not_finite(index).into()),
        None => Ok(table),
    }
}

/// Numbers checked by one thread at a time.
const CHECKED_NUMBERS: usize = 1 << 22;

impl LoadedModel {
    /// Changes how the head is computed, see [`Model::with_head`].
    pub fn with_head(self, format: HeadFormat) -> Self {
        Self { model: self.model.with_head(format), ..self }
    }

    /// The tokenizer, for what cannot be done without.
    ///
    /// # Errors
    /// If there is none.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::Input(format!("{}: has no {TOKENIZER_FILE}, which is needed for text", self.path.display()))
        })
    }
}
