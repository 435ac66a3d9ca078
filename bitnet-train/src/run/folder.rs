//! The folder of a run and the names in it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bitnet_infer::tell;
use bitnet_model::files::write_atomic;

/// `config.toml`, `environment.json`, `sessions.jsonl`, `tokenizer.json`, `metrics.jsonl`, `events/`, `checkpoints/`, `model/`,
/// `result.json`, and `lock`, which the process that writes the others holds a lock on.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    /// Held for its life alone: the system gives the lock back when the file is closed, also after a kill.
    _lock: Option<File>,
}

impl RunFolder {
    /// Makes the folder of a new run, and keeps other processes from writing there until it is dropped.
    ///
    /// # Errors
    /// If there already is one with a run in it (unless `overwrite`), another process writes it, or it cannot be made.
    pub fn create(root: &Path, overwrite: bool) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("{}: cannot create", root.display()))?;
        let folder = Self { root: root.to_path_buf(), _lock: None }.locked()?;
        Self::check_free(root, overwrite)?;
        if folder.config().exists() {
            // Only what a run writes: a folder given by mistake keeps everything else.
            for name in ["checkpoints", "events", "model"] {
                remove(&root.join(name), |p| fs::remove_dir_all(p))?;
            }
            let own = ["metrics.jsonl", "result.json", "environment.json", "sessions.jsonl", CONFIG, "tokenizer.json"];
            for name in own {
                remove(&root.join(name), |p| fs::remove_file(p))?;
            }
        }
        fs::create_dir_all(folder.checkpoints()).with_context(|| format!("{}: cannot create", root.display()))?;
        Ok(folder)
    }

    /// Refuses a folder that holds a run, unless it may be replaced.
    ///
    /// # Errors
    /// What a person can do instead.
    pub fn check_free(root: &Path, overwrite: bool) -> Result<()> {
        if !overwrite && root.join(CONFIG).exists() {
            bail!(
                "{}: already holds a run; `bitnet-train resume {0}` continues it, `--overwrite` replaces it, \
                 `--set run.name=NAME` begins another",
                root.display()
            );
        }
        Ok(())
    }

    /// Opens the folder of an earlier run for reading.
    ///
    /// # Errors
    /// If it holds none.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = Self { root: root.to_path_buf(), _lock: None };
        if !folder.config().exists() {
            bail!("{}: is no run folder (it has no config.toml)", root.display());
        }
        Ok(folder)
    }

    /// The same folder, in which no other process may write until it is dropped.
    ///
    /// # Errors
    /// If another process writes there already, or the lock file cannot be made.
    pub fn locked(self) -> Result<Self> {
        let (path, root) = (self.root.join("lock"), self.root.display());
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.with_context(|| format!("{}: cannot open", path.display()))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                bail!("{root}: another bitnet-train is writing this run; stop it first, or begin another run")
            }
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
                tell!("warning: {root}: this file system has no locks; see that no other process writes there");
            }
            Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("{}: cannot lock", path.display())),
            Ok(()) => {}
        }
        Ok(Self { _lock: Some(file), ..self })
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved config.
    pub fn config(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.root.join("tokenizer.json")
    }

    /// One JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// One JSON object for the start and each resume.
    pub fn sessions(&self) -> PathBuf {
        self.root.join("sessions.jsonl")
    }

    /// What is written last; its presence means that the run is complete.
    pub fn result(&self) -> PathBuf {
        self.root.join("result.json")
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

/// Its presence makes a folder a run folder.
const CONFIG: &str = "config.toml";

fn remove(path: &Path, f: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<()> {
    match f(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("{}: cannot remove", path.display()))
        }
        _ => Ok(()),
    }
}
