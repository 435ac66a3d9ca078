//! Models of the Hugging Face Hub, through its cache folder.
//!
//! `HF_HOME` says where the cache is (its subfolder `hub`), `HF_TOKEN` (or the token file of that folder) gives access to private
//! repositories, `HF_ENDPOINT` names another server, and `HF_HUB_OFFLINE=1` uses the cache alone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};

/// What the environment says about the Hub.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The cache folder, shared with the Python tools.
    pub cache: PathBuf,
    /// The access token, where it is not in the cache folder.
    pub token: Option<String>,
    /// Another server than the public one.
    pub endpoint: Option<String>,
    /// Whether only the cache may be used.
    pub offline: bool,
}

impl HubSettings {
    /// Reads `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`.
    pub fn from_env() -> HubSettings {
        let set = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
        HubSettings {
            cache: Cache::from_env().path().clone(),
            token: set("HF_TOKEN"),
            endpoint: set("HF_ENDPOINT"),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on")),
        }
    }
}

/// The local path of a model: a path as it is, `hub:OWNER/NAME[@REVISION]` as the folder (or the one GGUF file) that it is
/// downloaded to.
///
/// # Errors
/// As [`model`].
pub fn local(source: &str) -> Result<PathBuf> {
    let Some(name) = source.strip_prefix("hub:") else { return Ok(PathBuf::from(source)) };
    let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
    model(&HubSettings::from_env(), repo, revision)
}

/// The folder of a model repository, with the files that a model needs; what is not cached is downloaded.
///
/// # Errors
/// No connection, no such repository, none of the files of a model; offline, a miss in the cache.
pub fn model(settings: &HubSettings, repo: &str, revision: &str) -> Result<PathBuf> {
    let well_formed = |name: &str| {
        !name.is_empty() && !name.starts_with('/') && !name.split('/').any(|part| part == ".." || part.is_empty())
    };
    ensure!(well_formed(repo) && repo.contains('/'), "hub: the repository must be OWNER/NAME, found `{repo}`");
    ensure!(well_formed(revision), "hub: the revision must be a branch, tag or commit, found `{revision}`");
    let cache = Cache::new(settings.cache.clone());
    let asked = Repo::with_revision(repo.to_string(), RepoType::Model, revision.to_string());
    if settings.offline {
        return from_cache(settings, &cache, asked, repo, revision);
    }
    let mut builder = ApiBuilder::from_cache(cache.clone()).with_retries(3);
    if let Some(token) = &settings.token {
        builder = builder.with_token(Some(token.clone()));
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_string());
    }
    let api = builder.build().context("cannot set up the connection to the Hub")?;
    let info = api.repo(asked.clone()).info().with_context(|| {
        format!(
            "cannot reach the model {repo} (revision {revision}) on the Hub. Is the name right, and the connection up? A private \
             one needs HF_TOKEN; one already downloaded can be used with HF_HUB_OFFLINE=1"
        )
    })?;
    let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let wanted = wanted(&names);
    ensure!(!wanted.is_empty(), "hub: {repo} has neither safetensors nor a GGUF file");
    // The commit rather than the branch: all files are of one version, whatever is pushed meanwhile.
    let pinned = api.repo(Repo::with_revision(repo.to_string(), RepoType::Model, info.sha.clone()));
    for name in wanted {
        pinned.get(name).with_context(|| format!("cannot download {name} of the model {repo}"))?;
    }
    cache
        .repo(asked.clone())
        .create_ref(&info.sha)
        .with_context(|| format!("cannot write to {}", settings.cache.display()))?;
    Ok(cache.repo(asked).pointer_path(&info.sha))
}

fn from_cache(settings: &HubSettings, cache: &Cache, asked: Repo, repo: &str, revision: &str) -> Result<PathBuf> {
    let pointer = settings.cache.join(asked.folder_name()).join("refs").join(revision);
    let commit = std::fs::read_to_string(&pointer).unwrap_or_else(|_| revision.to_string());
    let snapshot = cache.repo(asked).pointer_path(commit.trim());
    if !snapshot.is_dir() {
        bail!(
            "the model {repo} (revision {revision}) is not in the cache {}, and HF_HUB_OFFLINE forbids a download. Unset \
             HF_HUB_OFFLINE, or set HF_HOME to the folder that has it",
            settings.cache.display()
        );
    }
    Ok(snapshot)
}

/// The files of a model at the top of a repository: safetensors with what belongs to them, or else its GGUF file.
fn wanted(names: &[String]) -> Vec<&str> {
    let top = || names.iter().map(String::as_str).filter(|name| !name.contains('/'));
    let ends = |ending: &'static str| move |name: &&str| Path::new(name).extension().is_some_and(|e| e == ending);
    if top().any(|name| ends("safetensors")(&name)) {
        return top().filter(|name| ["safetensors", "json", "jinja"].iter().any(|ending| ends(ending)(name))).collect();
    }
    top().filter(ends("gguf")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offline(cache: &Path) -> HubSettings {
        HubSettings { cache: cache.to_path_buf(), token: None, endpoint: None, offline: true }
    }

    #[test]
    fn offline_uses_the_cache_and_says_what_it_misses() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let repo = folder.path().join("models--some--model");
        std::fs::create_dir_all(repo.join("refs")).expect("creates");
        std::fs::write(repo.join("refs/main"), "abc123").expect("writes");
        std::fs::create_dir_all(repo.join("snapshots/abc123")).expect("creates");
        for revision in ["main", "abc123"] {
            let found = model(&offline(folder.path()), "some/model", revision).expect("cached");
            assert_eq!(found, repo.join("snapshots/abc123"));
        }
        for (name, revision, said) in [
            ("other/model", "main", "HF_HUB_OFFLINE forbids a download"),
            ("some/model", "v2", "revision v2"),
            ("../model", "main", "must be OWNER/NAME"),
            ("model", "main", "must be OWNER/NAME"),
        ] {
            let error = format!("{:#}", model(&offline(folder.path()), name, revision).expect_err("must be refused"));
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn no_connection_is_said_plainly() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Nothing listens on the discard port of the machine itself.
        let settings =
            HubSettings { endpoint: Some("http://127.0.0.1:9".into()), offline: false, ..offline(folder.path()) };
        let error = model(&settings, "some/model", "main").expect_err("nobody listens");
        assert!(format!("{error:#}").contains("cannot reach the model some/model"), "{error:#}");
    }

    #[test]
    fn a_model_is_its_safetensors_or_its_gguf() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let both = names(&["README.md", "config.json", "model.safetensors", "a.gguf", "onnx/model.safetensors"]);
        assert_eq!(wanted(&both), ["config.json", "model.safetensors"]);
        assert_eq!(wanted(&names(&["README.md", "config.json", "a.gguf"])), ["a.gguf"]);
        assert!(wanted(&names(&["README.md"])).is_empty());
    }
}
