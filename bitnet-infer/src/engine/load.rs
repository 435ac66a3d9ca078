//! A model folder on disk to a model in memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use bitnet_model::ModelConfig;
use bitnet_model::files::hugging_face::{CONFIG_FILE, TOKENIZER_FILE, WEIGHTS_FILE, WeightReader};
use bitnet_model::files::tensors::{FloatBytes, TensorFile};
use bitnet_model::tokenizer::Tokenizer;

use super::error::{Error, Result};
use super::head::HeadFormat;
use super::mmap::MappedFile;
use super::model::{Model, Tables};
use super::table::Table;
use super::ternary::Arrangement;

/// What a model folder holds.
pub struct LoadedModel {
    /// The model.
    pub model: Model,
    /// The tokenizer, if the folder has one.
    pub tokenizer: Option<Tokenizer>,
    folder: PathBuf,
}

/// Loads the model in `folder`: `config.json`, `model.safetensors` and, if it is there, `tokenizer.json`. Weights may be
/// packed codes, floats, or latent weights that are quantized now; each block is dropped as soon as it is arranged.
///
/// # Errors
/// The file, the key or tensor, and what was expected of it; or an arrangement that the kernel does not have.
pub fn open(folder: &Path, arrangement: impl Into<Arrangement>) -> Result<LoadedModel> {
    check_folder(folder)?;
    let config = ModelConfig::read(&folder.join(CONFIG_FILE))?;
    let tokenizer = read_tokenizer(folder, &config)?;
    let path = folder.join(WEIGHTS_FILE);
    let mapped = Arc::new(MappedFile::open(&path)?);
    let file = TensorFile::parse(mapped.bytes(), &path.display().to_string())?;
    let reader = WeightReader::new(&config, &file);
    let (embedding, head) = reader.table_names();
    let table = |name| table(&mapped, &file, name, [config.vocab_size, config.hidden_size]);
    let tables =
        Tables { embedding: table(embedding)?, head: head.map(table).transpose()?, final_norm: reader.final_norm()? };
    let next = |index| {
        let layer = reader.layer(index)?;
        // The block has been copied: its pages would only add to the memory that loading takes.
        mapped.release(0..mapped.bytes().len());
        Ok(layer)
    };
    let model = Model::from_layers(config.clone(), tables, next, arrangement.into())?;
    Ok(LoadedModel { model, tokenizer, folder: folder.to_path_buf() })
}

/// A float matrix where it stands in the file, all of it checked.
fn table(mapped: &Arc<MappedFile>, file: &TensorFile, name: &str, [rows, cols]: [usize; 2]) -> Result<Table> {
    let floats = file.float_bytes(name, rows, cols)?;
    let table = Table::mapped(mapped, floats, rows, cols);
    let chunk_bytes = CHECKED_NUMBERS * table.number_bytes();
    let bad = floats.bytes.par_chunks(chunk_bytes).enumerate().find_map_first(|(chunk, bytes)| {
        let found = FloatBytes { bytes, ..floats }.first_not_finite();
        table.release();
        found.map(|index| chunk * CHECKED_NUMBERS + index)
    });
    match bad {
        Some(index) => Err(file.not_finite(name, index).into()),
        None => Ok(table),
    }
}

/// Numbers checked by one thread at a time.
const CHECKED_NUMBERS: usize = 1 << 22;

/// Refuses what is not a model folder, with a hint.
///
/// # Errors
/// If `folder` does not exist, is a file, or has no `config.json`.
pub fn check_folder(folder: &Path) -> Result<()> {
    let name = folder.display();
    if !folder.exists() {
        return Err(Error::Input(format!("{name}: no such model folder")));
    }
    if !folder.is_dir() {
        return Err(Error::Input(format!(
            "{name}: is a file, expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )));
    }
    match [CONFIG_FILE, WEIGHTS_FILE].into_iter().find(|file| !folder.join(file).exists()) {
        Some(missing) => Err(Error::Input(format!("{name}: is not a model folder: it has no {missing}"))),
        None => Ok(()),
    }
}

/// The tokenizer of a model folder, checked against the model; `None` if there is no `tokenizer.json`.
///
/// # Errors
/// If it does not load or has more tokens than the model.
pub fn read_tokenizer(folder: &Path, config: &ModelConfig) -> Result<Option<Tokenizer>> {
    let path = folder.join(TOKENIZER_FILE);
    if !path.exists() {
        return Ok(None);
    }
    let tokenizer = Tokenizer::read(&path)?;
    tokenizer.check_fits(config)?;
    Ok(Some(tokenizer))
}

impl LoadedModel {
    /// Changes how the head is computed, see [`Model::with_head`].
    pub fn with_head(self, format: HeadFormat) -> Self {
        Self { model: self.model.with_head(format), ..self }
    }

    /// The tokenizer, for what cannot be done without.
    ///
    /// # Errors
    /// If the folder has none.
    pub fn require_tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::Input(format!("{}: has no {TOKENIZER_FILE}, which is needed for text", self.folder.display()))
        })
    }
}
