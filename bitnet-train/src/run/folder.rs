//! The folder of a run and the names in it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bitnet_model::files::write_atomic;

/// `config.toml`, `environment.json`, `tokenizer.json`, `metrics.jsonl`, `events/`, `checkpoints/`, `model/`, `result.json`.
#[derive(Clone, Debug)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// Makes the folder of a new run.
    ///
    /// # Errors
    /// If there already is one with a run in it (unless `overwrite`), or it cannot be made.
    pub fn create(root: &Path, overwrite: bool) -> Result<Self> {
        let folder = Self { root: root.to_path_buf() };
        if folder.config().exists() {
            if !overwrite {
                bail!(
                    "{}: already holds a run; `bitnet-train resume {0}` continues it, `--overwrite` replaces it, \
                     `--set run.name=NAME` begins another",
                    root.display()
                );
            }
            // Only what a run writes: a folder given by mistake keeps everything else.
            for name in ["checkpoints", "events", "model"] {
                remove(&root.join(name), |p| fs::remove_dir_all(p))?;
            }
            for name in ["metrics.jsonl", "result.json", "environment.json", "config.toml", "tokenizer.json"] {
                remove(&root.join(name), |p| fs::remove_file(p))?;
            }
        }
        fs::create_dir_all(folder.checkpoints()).with_context(|| format!("{}: cannot create", root.display()))?;
        Ok(folder)
    }

    /// Opens the folder of an earlier run.
    ///
    /// # Errors
    /// If it holds none.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = Self { root: root.to_path_buf() };
        if !folder.config().exists() {
            bail!("{}: is no run folder (it has no config.toml)", root.display());
        }
        Ok(folder)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved config.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.root.join("tokenizer.json")
    }

    /// One JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// TensorBoard's event files.
    pub fn events(&self) -> PathBuf {
        self.root.join("events")
    }

    /// All checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The exported model.
    pub fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    /// Writes a small file of the run, all or nothing.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(write_atomic(&self.root.join(name), text.as_bytes())?)
    }
}

fn remove(path: &Path, f: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    match f(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("{}: cannot remove", path.display()))
        }
        _ => Ok(()),
    }
}
