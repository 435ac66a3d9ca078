//! The files of a model, whatever their format: found, mapped, and read through one trait.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitnet_model::ModelConfig;
use bitnet_model::files::added_tokens::{AddedTokens, ends_of_generation};
use bitnet_model::files::gguf::{self, GgufFile, GgufModel, GgufOptions};
use bitnet_model::files::hugging_face::{
    self, CONFIG_FILE, GENERATION_FILE, INDEX_FILE, TOKENIZER_FILE, WEIGHTS_FILE, WeightReader,
};
use bitnet_model::files::llama2c::{self, Llama2c};
use bitnet_model::files::source::WeightSource;
use bitnet_model::files::tensors::TensorFile;
use bitnet_model::files::{mistaken, names_in, read_ordinary, text};
use bitnet_model::tokenizer::Tokenizer;

use super::error::{Error, Result};
use super::mmap::MappedFile;

/// A model on disk, its weights mapped.
pub struct ModelFiles {
    path: PathBuf,
    maps: Vec<(Arc<MappedFile>, String)>,
    format: Format,
    options: GgufOptions,
}

/// How a model is kept, found out from what files hold and never from their names.
enum Format {
    /// `config.json` and safetensors, one file or several.
    Folder(Box<ModelConfig>, AddedTokens),
    Gguf,
    Llama2c,
}

impl ModelFiles {
    /// Opens a model folder, or a file in GGUF or of llama2.c.
    ///
    /// # Errors
    /// If there is no such thing, or it is none of these: what was found and what was expected.
    pub fn open(path: &Path, options: GgufOptions) -> Result<Self> {
        let name = path.display();
        if !path.exists() {
            return Err(Error::Input(format!("{name}: no such model folder or file")));
        }
        if path.is_dir() {
            if path.join(CONFIG_FILE).exists() {
                return Self::open_folder(path, options);
            }
            return match &gguf_files(path)?[..] {
                [] => Self::open_folder(path, options),
                [only] => Self::open(&path.join(only), options),
                several => Err(Error::Input(of_several(path, several))),
            };
        }
        let map = MappedFile::open(path)?;
        let bytes = map.bytes();
        let format = if bytes.starts_with(gguf::MAGIC) {
            Format::Gguf
        } else if Llama2c::fits(bytes) {
            Format::Llama2c
        } else if let Some(reason) = mistaken(bytes) {
            return Err(Error::Input(format!("{name}: {reason}")));
        } else {
            return Err(Error::Input(format!(
                "{name}: is a file, expected a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, a GGUF file, or a .bin of llama2.c"
            )));
        };
        Ok(Self { path: path.to_path_buf(), maps: vec![(Arc::new(map), name.to_string())], format, options })
    }

    fn open_folder(path: &Path, options: GgufOptions) -> Result<Self> {
        let missing = |file| Err(Error::Input(format!("{}: is not a model folder: it has no {file}", path.display())));
        if !path.join(CONFIG_FILE).exists() {
            return missing(CONFIG_FILE);
        }
        let index = path.join(INDEX_FILE);
        let names = match (path.join(WEIGHTS_FILE).exists(), index.exists()) {
            (true, _) => vec![WEIGHTS_FILE.to_owned()],
            (false, true) => {
                hugging_face::shard_names(&read_ordinary(&index, 64 << 20)?, &index.display().to_string())?
            }
            (false, false) => return missing(WEIGHTS_FILE),
        };
        let mut config = ModelConfig::read(&path.join(CONFIG_FILE))?;
        let added = AddedTokens::of_folder(path, config.bos_token_id)?;
        // A configuration names a token that its tokenizer may not put in front.
        if let Some(add_bos) = added.add_bos {
            config.bos_token_id = added.bos.filter(|_| add_bos);
        }
        let more = ends_of_generation(path)?.into_iter().filter(|id| !config.eos_token_ids.contains(id));
        config.eos_token_ids = [config.eos_token_ids.clone(), more.collect()].concat();
        config.validate(&path.join(GENERATION_FILE).display().to_string())?;
        let open = |name: String| -> Result<(Arc<MappedFile>, String)> {
            let file = path.join(name);
            Ok((Arc::new(MappedFile::open(&file)?), file.display().to_string()))
        };
        let maps = names.into_iter().map(open).collect::<Result<_>>()?;
        Ok(Self { path: path.to_path_buf(), maps, format: Format::Folder(Box::new(config), added), options })
    }

    /// Parses the headers and gives the weights to `use_weights`.
    ///
    /// # Errors
    /// What is wrong with the files, or the error of `use_weights`.
    pub fn with_weights<R, E: From<Error>>(
        &self,
        use_weights: impl FnOnce(&dyn WeightSource) -> Result<R, E>,
    ) -> Result<R, E> {
        let (map, name) = &self.maps[0];
        match &self.format {
            Format::Folder(config, _) => {
                let shards: Vec<(&[u8], &str)> =
                    self.maps.iter().map(|(map, name)| (map.bytes(), name.as_str())).collect();
                let origin = if shards.len() == 1 { name.clone() } else { self.path.display().to_string() };
                let file = TensorFile::parse_shards(&shards, &origin).map_err(Error::from)?;
                let reader = WeightReader::new(config, &file);
                reader.check_nothing_is_left_out().map_err(Error::from)?;
                use_weights(&reader)
            }
            Format::Gguf => use_weights(&GgufModel::parse(map.bytes(), name, self.options).map_err(Error::from)?),
            Format::Llama2c => use_weights(&Llama2c::parse(map.bytes(), name).map_err(Error::from)?),
        }
    }

    /// The name of the format.
    pub fn format(&self) -> &'static str {
        match &self.format {
            Format::Folder(..) => "Hugging Face folder",
            Format::Gguf => "GGUF",
            Format::Llama2c => "llama2.c",
        }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the files of weights.
    pub fn byte_count(&self) -> usize {
        self.maps.iter().map(|(map, _)| map.bytes().len()).sum()
    }

    /// The bytes of a `tokenizer.json`: that of the folder, or made of what else the format has.
    ///
    /// # Errors
    /// If there is a tokenizer and it is damaged.
    pub fn tokenizer_json(&self) -> Result<Option<Vec<u8>>> {
        let (map, name) = &self.maps[0];
        match &self.format {
            Format::Folder(..) => {
                let path = self.path.join(TOKENIZER_FILE);
                Ok(if path.exists() { Some(text::read(&path, LARGEST_TOKENIZER)?.into_bytes()) } else { None })
            }
            Format::Gguf => {
                let file = GgufFile::parse(map.bytes(), name)?;
                Ok(gguf::tokenizer_json(&file)?)
            }
            Format::Llama2c => {
                let vocab = Llama2c::parse(map.bytes(), name)?.config().vocab_size;
                for file in names_in(self.path.parent().unwrap_or(Path::new(".")))? {
                    let path = self.path.with_file_name(&file);
                    if !(file.starts_with("tok") && file.ends_with(".bin")) {
                        continue;
                    }
                    let bytes = read_ordinary(&path, LARGEST_TOKENIZER)?;
                    if let Some(lists) = llama2c::token_lists(&bytes, vocab) {
                        return Ok(Some(lists.to_json(&path.display().to_string())?));
                    }
                }
                Ok(None)
            }
        }
    }

    /// The tokenizer, checked against the model; `None` if there is none.
    ///
    /// # Errors
    /// If it does not load or has more tokens than the model.
    pub fn tokenizer(&self, config: &ModelConfig) -> Result<Option<Tokenizer>> {
        let tokenizer = self.any_tokenizer()?;
        tokenizer.iter().try_for_each(|tokenizer| tokenizer.check_fits(config))?;
        Ok(tokenizer)
    }

    /// The tokenizer, whether it fits the model or not.
    ///
    /// # Errors
    /// If it does not load.
    pub fn any_tokenizer(&self) -> Result<Option<Tokenizer>> {
        let Some(json) = self.tokenizer_json()? else { return Ok(None) };
        let origin = match &self.format {
            Format::Folder(..) => self.path.join(TOKENIZER_FILE),
            Format::Gguf | Format::Llama2c => self.path.clone(),
        };
        Ok(Some(Tokenizer::from_bytes(&json, &origin.display().to_string())?))
    }

    /// What the tokenizer puts around a text by itself.
    ///
    /// # Errors
    /// If a key that says so is not what it should be.
    pub fn added_tokens(&self) -> Result<AddedTokens> {
        let (map, name) = &self.maps[0];
        match &self.format {
            Format::Folder(_, added) => Ok(*added),
            Format::Gguf => Ok(gguf::added_tokens(&GgufFile::parse(map.bytes(), name)?)?),
            Format::Llama2c => {
                let bos = Llama2c::parse(map.bytes(), name)?.config().bos_token_id;
                Ok(AddedTokens { bos, add_bos: Some(bos.is_some()), add_eos: None })
            }
        }
    }

    /// The template of chats, if the model has one.
    ///
    /// # Errors
    /// If the file that should hold it cannot be read.
    pub fn chat_template(&self) -> Result<Option<String>> {
        let (map, name) = &self.maps[0];
        match &self.format {
            Format::Folder(..) => Ok(hugging_face::chat_template(&self.path)?),
            Format::Gguf => Ok(gguf::chat_template(&GgufFile::parse(map.bytes(), name)?)?),
            Format::Llama2c => Ok(None),
        }
    }

    /// The folder, if the model is one.
    pub fn folder(&self) -> Option<&Path> {
        matches!(self.format, Format::Folder(..)).then_some(&*self.path)
    }

    /// The map that `bytes` are a part of.
    ///
    /// # Panics
    /// If they are none of this model's.
    pub(super) fn map_of(&self, bytes: &[u8]) -> &Arc<MappedFile> {
        let holds = |map: &MappedFile| map.bytes().as_ptr_range().contains(&bytes.as_ptr());
        &self.maps.iter().find(|(map, _)| holds(map)).expect("bytes of this model").0
    }

    /// Lets the system take back the memory of what was read.
    pub fn release(&self) {
        for (map, _) in &self.maps {
            map.release(0..map.bytes().len());
        }
    }
}

/// The names of the files in GGUF of a folder.
fn gguf_files(folder: &Path) -> Result<Vec<String>> {
    Ok(names_in(folder)?.into_iter().filter(|name| name.ends_with(".gguf")).collect())
}

/// Why a folder with several files in GGUF, and no other model, is none that can be opened.
fn of_several(folder: &Path, names: &[String]) -> String {
    let part_of = |name: &String| {
        let map = MappedFile::open(&folder.join(name)).ok()?;
        GgufFile::parse(map.bytes(), name).ok()?.part()
    };
    let folder_name = folder.display();
    match part_of(&names[0]) {
        Some((_, parts)) => format!(
            "{folder_name}: holds parts of a split model ({} of {parts} files in GGUF): join them with \
             `llama-gguf-split --merge` of llama.cpp first",
            names.len()
        ),
        None => {
            let shown: Vec<_> = names.iter().take(4).map(String::as_str).collect();
            let more = if names.len() > 4 { ", ..." } else { "" };
            format!("{folder_name}: holds {} files in GGUF, name one of them: {}{more}", names.len(), shown.join(", "))
        }
    }
}

/// More than any tokenizer takes.
const LARGEST_TOKENIZER: u64 = 64 << 20;
