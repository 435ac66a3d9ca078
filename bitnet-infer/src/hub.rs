//! Repositories of the Hugging Face Hub, through its cache folder.
//!
//! `HF_HUB_CACHE` says where the cache is, else `HF_HOME` (its subfolder `hub`); `HF_TOKEN` (or the token file of that folder) gives access to private
//! repositories, `HF_ENDPOINT` names another server, and `HF_HUB_OFFLINE=1` uses the cache alone.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use bitnet_model::files::hugging_face::{
    CHAT_TEMPLATE_FILE, CONFIG_FILE, GENERATION_FILE, INDEX_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE, WEIGHTS_FILE, shard_names,
};
use bitnet_model::files::{names_in, read_bounded};

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
    /// Reads `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`.
    pub fn from_env() -> HubSettings {
        let set = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
        HubSettings {
            cache: set("HF_HUB_CACHE").map_or_else(|| Cache::from_env().path().clone(), PathBuf::from),
            token: set("HF_TOKEN"),
            endpoint: set("HF_ENDPOINT"),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|value| matches!(value.to_lowercase().as_str(), "1" | "true" | "yes" | "on")),
        }
    }
}

/// Something in a repository, and of which version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// `OWNER/NAME`.
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// One file of it, where it is not the repository's model as a whole.
    pub file: Option<String>,
}

impl Location {
    /// Parses `hub:OWNER/NAME[@REVISION][:FILE]`; `None` if `text` does not begin like that.
    pub fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("hub:")?;
        let (name, file) = match rest.split_once(':') {
            Some((name, file)) => (name, Some(file.to_owned())),
            None => (rest, None),
        };
        let (repo, revision) = name.split_once('@').unwrap_or((name, "main"));
        Some(Self { repo: repo.to_owned(), revision: revision.to_owned(), file })
    }
}

/// The local path of a model: a path as it is, `hub:OWNER/NAME[@REVISION][:FILE]` as the folder or file that it is downloaded
/// to. `offline` uses the cache alone, whatever the environment says.
///
/// # Errors
/// As [`model`].
pub fn local(source: &str, offline: bool) -> Result<PathBuf> {
    let Some(location) = Location::parse(source) else { return Ok(PathBuf::from(source)) };
    let settings = HubSettings::from_env();
    model(&HubSettings { offline: offline || settings.offline, ..settings }, &location)
}

/// The folder of a model repository with the files that a model needs, or its one file; what is not cached is downloaded.
///
/// # Errors
/// No connection, no such repository, none of the files of a model; offline, a miss in the cache.
pub fn model(settings: &HubSettings, location: &Location) -> Result<PathBuf> {
    let Location { repo, revision, file } = location;
    ensure!(well_formed(repo) && repo.contains('/'), "hub: the repository must be OWNER/NAME, found `{repo}`");
    ensure!(well_formed(revision), "hub: the revision must be a branch, tag or commit, found `{revision}`");
    ensure!(file.as_deref().is_none_or(well_formed), "hub: the file must be a path within {repo}");
    let asked = Repository { kind: RepoType::Model, name: repo, revision };
    let cached = || {
        let snapshot = settings.snapshot(asked)?;
        let Some(file) = file else { return Ok(snapshot) };
        let path = snapshot.join(file);
        ensure!(path.is_file(), "hub: {file} of {repo} is not in the cache, and no download is allowed");
        Ok(path)
    };
    if settings.offline {
        return cached();
    }
    let found = match settings.look_up(asked) {
        Ok(found) => found,
        // As huggingface_hub does: without a connection, what was downloaded before is used.
        Err(error) if !is_answer(&error) => {
            let Ok(path) = cached() else { return Err(error) };
            // With stderr gone there is nobody left to tell.
            let _ = writeln!(
                std::io::stderr(),
                "warning: the Hub cannot be reached; the {asked} is taken from the cache, where it may be an older one"
            );
            return Ok(path);
        }
        Err(error) => return Err(error),
    };
    let names: Vec<String> = found.info.siblings.iter().map(|file| file.rfilename.clone()).collect();
    let get =
        |name: &str| found.pinned.get(name).with_context(|| format!("cannot download {name} of the model {repo}"));
    match file {
        Some(file) => {
            ensure!(names.contains(file), "hub: {repo} has no file {file}; it has: {}", listed(&names));
            get(file)?;
        }
        None => {
            let wanted = wanted(&names, repo)?;
            for name in &wanted {
                get(name)?;
            }
            if wanted.contains(&INDEX_FILE) {
                let index = read_bounded(&get(INDEX_FILE)?, 64 << 20)?;
                for name in shard_names(&index, INDEX_FILE)? {
                    get(&name)?;
                }
            }
        }
    }
    let snapshot = settings.remember(asked, &found.info)?;
    Ok(file.as_ref().map_or(snapshot.clone(), |file| snapshot.join(file)))
}

/// Whether the Hub has answered, and the answer was no (a status of 400 to 499): there is no such thing, or no access to it.
/// That there are too many requests (429) is no such answer.
fn is_answer(error: &anyhow::Error) -> bool {
    let status = error.chain().find_map(|cause| match cause.downcast_ref::<ApiError>()? {
        // The type of the status belongs to a crate that hf-hub does not pass on; its words are tested below.
        ApiError::RequestError(error) => error.to_string().strip_prefix("http status: ")?.parse::<u16>().ok(),
        _ => None,
    });
    status.is_some_and(|status| (400..500).contains(&status) && status != 429)
}

/// A repository of models or of data, at a revision.
#[derive(Clone, Copy)]
pub struct Repository<'a> {
    /// What it holds.
    pub kind: RepoType,
    /// `OWNER/NAME`.
    pub name: &'a str,
    /// A branch, tag or commit.
    pub revision: &'a str,
}

impl Repository<'_> {
    fn at(self, revision: &str) -> Repo {
        Repo::with_revision(self.name.to_owned(), self.kind, revision.to_owned())
    }
}

impl fmt::Display for Repository<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.kind, RepoType::Dataset) { "dataset" } else { "model" };
        write!(f, "{kind} {} (revision {})", self.name, self.revision)
    }
}

/// A repository that answered.
pub struct Found {
    /// Its files, and the commit that the revision means.
    pub info: RepoInfo,
    /// The repository at that commit rather than at the branch: all files are of one version, whatever is pushed meanwhile.
    pub pinned: ApiRepo,
}

impl HubSettings {
    /// Asks the Hub for a repository.
    ///
    /// # Errors
    /// No connection, or no such repository or revision.
    pub fn look_up(&self, asked: Repository) -> Result<Found> {
        let mut builder = ApiBuilder::from_cache(Cache::new(self.cache.clone())).with_retries(3);
        if let Some(token) = &self.token {
            builder = builder.with_token(Some(token.clone()));
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_string());
        }
        let api = builder.build().context("cannot set up the connection to the Hub")?;
        let info = api.repo(asked.at(asked.revision)).info().with_context(|| {
            format!(
                "cannot reach the {asked} on the Hub. Is the name right, and the connection up? A private one needs HF_TOKEN; one \
                 already downloaded can be used with HF_HUB_OFFLINE=1"
            )
        })?;
        Ok(Found { pinned: api.repo(asked.at(&info.sha)), info })
    }

    /// Notes which commit a revision meant, and gives the folder of its files in the cache.
    ///
    /// # Errors
    /// If the cache cannot be written.
    pub fn remember(&self, asked: Repository, info: &RepoInfo) -> Result<PathBuf> {
        let kept = Cache::new(self.cache.clone()).repo(asked.at(asked.revision));
        kept.create_ref(&info.sha).with_context(|| format!("cannot write to {}", self.cache.display()))?;
        Ok(kept.pointer_path(&info.sha))
    }

    /// The folder of a repository's files in the cache.
    ///
    /// # Errors
    /// If it is not there.
    pub fn snapshot(&self, asked: Repository) -> Result<PathBuf> {
        let repo = asked.at(asked.revision);
        let folder = self.cache.join(repo.folder_name());
        let pointer = folder.join("refs").join(asked.revision);
        let commit = std::fs::read_to_string(&pointer).unwrap_or_else(|_| asked.revision.to_string());
        let snapshot = Cache::new(self.cache.clone()).repo(repo).pointer_path(commit.trim());
        if !snapshot.is_dir() {
            let commits = names_in(&folder.join("snapshots")).unwrap_or_default();
            if !pointer.exists() && !commits.is_empty() {
                bail!(
                    "the cache has {}, but no `refs/{}` in it that says which commit that is: name one of its commits, as in \
                     hub:{}@{}",
                    folder.display(),
                    asked.revision,
                    asked.name,
                    commits[0].escape_debug()
                );
            }
            bail!(
                "the {asked} is not in the cache {}, and no download is allowed (--offline or HF_HUB_OFFLINE). Allow it, or set \
                 HF_HOME or HF_HUB_CACHE to the folder that has it",
                self.cache.display()
            );
        }
        Ok(snapshot)
    }
}

/// Whether a name has only plain parts, so that it cannot lead out of a folder.
pub fn well_formed(name: &str) -> bool {
    !name.is_empty() && !name.split('/').any(|part| part == ".." || part.is_empty())
}

/// The files of a model at the top of a repository: safetensors with what belongs to them, or else its one GGUF file. Of several
/// weight files, the index has the list.
fn wanted<'n>(names: &'n [String], repo: &str) -> Result<Vec<&'n str>> {
    let top = || names.iter().map(String::as_str).filter(|name| !name.contains('/'));
    let has = |wanted: &str| top().any(|name| name == wanted);
    let weights = if has(WEIGHTS_FILE) { WEIGHTS_FILE } else { INDEX_FILE };
    if has(weights) {
        let beside = [
            CONFIG_FILE,
            GENERATION_FILE,
            TOKENIZER_FILE,
            TOKENIZER_CONFIG_FILE,
            SPECIAL_TOKENS_FILE,
            CHAT_TEMPLATE_FILE,
            weights,
        ];
        return Ok(top().filter(|name| beside.contains(name)).collect());
    }
    let gguf: Vec<&str> =
        top().filter(|name| Path::new(name).extension().is_some_and(|ending| ending == "gguf")).collect();
    match gguf[..] {
        [] => bail!("hub: {repo} has neither {WEIGHTS_FILE} nor a GGUF file; it has: {}", listed(names)),
        [_] => Ok(gguf),
        [first, ..] => {
            let all = listed(&gguf.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            bail!("hub: {repo} has {} GGUF files: say which, as hub:{repo}:{first}; it has: {all}", gguf.len())
        }
    }
}

/// Some names, for a message.
fn listed(names: &[String]) -> String {
    let some = names.iter().take(LISTED).map(|name| name.escape_debug().to_string()).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED { some + ", ..." } else { some }
}

/// Names in a message.
const LISTED: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    fn offline(cache: &Path) -> HubSettings {
        HubSettings { cache: cache.to_path_buf(), token: None, endpoint: None, offline: true }
    }

    fn at(text: &str) -> Location {
        Location::parse(&format!("hub:{text}")).expect("a location")
    }

    #[test]
    fn locations_have_a_revision_and_a_file() {
        let location = |repo: &str, revision: &str, file: Option<&str>| Location {
            repo: repo.into(),
            revision: revision.into(),
            file: file.map(str::to_owned),
        };
        for (text, expected) in [
            ("hub:a/b", Some(location("a/b", "main", None))),
            ("hub:a/b@v2", Some(location("a/b", "v2", None))),
            ("hub:a/b@refs/pr/1:x/y.gguf", Some(location("a/b", "refs/pr/1", Some("x/y.gguf")))),
            ("hub:a/b:y.gguf", Some(location("a/b", "main", Some("y.gguf")))),
            ("a/b", None),
        ] {
            assert_eq!(Location::parse(text), expected, "{text}");
        }
        assert_eq!(local("some/folder", true).expect("a path as it is"), PathBuf::from("some/folder"));
    }

    #[test]
    fn offline_uses_the_cache_and_says_what_it_misses() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let repo = folder.path().join("models--some--model");
        std::fs::create_dir_all(repo.join("refs")).expect("creates");
        std::fs::write(repo.join("refs/main"), "abc123").expect("writes");
        std::fs::create_dir_all(repo.join("snapshots/abc123")).expect("creates");
        std::fs::write(repo.join("snapshots/abc123/a.gguf"), "").expect("writes");
        for (asked, expected) in [
            ("some/model", "snapshots/abc123"),
            ("some/model@abc123", "snapshots/abc123"),
            ("some/model:a.gguf", "snapshots/abc123/a.gguf"),
        ] {
            let found = model(&offline(folder.path()), &at(asked)).expect("cached");
            assert_eq!(found, repo.join(expected));
        }
        for (asked, said) in [
            ("other/model", "the model other/model (revision main) is not in the cache"),
            (
                "some/model@v2",
                "no `refs/v2` in it that says which commit that is: name one of its commits, as in hub:some/model@abc123",
            ),
            ("other/model@v2", "(revision v2)"),
            ("some/model:b.gguf", "b.gguf of some/model is not in the cache"),
            ("some/model:../b.gguf", "the file must be a path within some/model"),
            ("../model", "must be OWNER/NAME"),
            ("model", "must be OWNER/NAME"),
        ] {
            let error = format!("{:#}", model(&offline(folder.path()), &at(asked)).expect_err("must be refused"));
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn no_connection_is_said_plainly() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Nothing listens on the discard port of the machine itself.
        let settings =
            HubSettings { endpoint: Some("http://127.0.0.1:9".into()), offline: false, ..offline(folder.path()) };
        let error = model(&settings, &at("some/model")).expect_err("nobody listens");
        // What is in the cache is used all the same.
        let snapshot = folder.path().join("models--cached--model/snapshots/abc123");
        std::fs::create_dir_all(&snapshot).expect("creates");
        std::fs::create_dir_all(snapshot.join("../../refs")).expect("creates");
        std::fs::write(snapshot.join("../../refs/main"), "abc123").expect("writes");
        assert_eq!(model(&settings, &at("cached/model")).expect("cached"), snapshot);
        assert!(model(&settings, &at("cached/model:a.gguf")).is_err());
        assert!(format!("{error:#}").contains("cannot reach the model some/model (revision main)"), "{error:#}");
    }

    /// A server that answers every request with a status, and its address.
    fn answering(status: &'static str) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut head = std::io::BufReader::new(&stream);
                let mut line = String::new();
                while std::io::BufRead::read_line(&mut head, &mut line).is_ok_and(|n| n > 2) {
                    line.clear();
                }
                let _ = write!(&stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        });
        format!("http://{address}")
    }

    #[test]
    fn a_hub_that_says_no_is_not_overruled_by_the_cache() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let repo = folder.path().join("models--some--model");
        std::fs::create_dir_all(repo.join("refs")).expect("creates");
        std::fs::write(repo.join("refs/main"), "abc123").expect("writes");
        std::fs::create_dir_all(repo.join("snapshots/abc123")).expect("creates");
        for (status, is_no) in [
            ("401 Unauthorized", true),
            ("403 Forbidden", true),
            ("404 Not Found", true),
            ("429 Too Many Requests", false),
            ("500 Internal Server Error", false),
            ("504 Gateway Timeout", false),
        ] {
            let settings = HubSettings { endpoint: Some(answering(status)), offline: false, ..offline(folder.path()) };
            assert_eq!(model(&settings, &at("some/model")).is_err(), is_no, "{status}");
        }
    }

    #[test]
    fn only_what_a_model_needs_is_fetched() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let both = names(&[
            "README.md",
            "config.json",
            "model.safetensors",
            "consolidated.safetensors",
            "eval.json",
            "a.gguf",
            "onnx/model.safetensors",
        ]);
        assert_eq!(wanted(&both, "a/b").expect("a model"), ["config.json", "model.safetensors"]);
        let shards = names(&["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]);
        assert_eq!(wanted(&shards, "a/b").expect("a model"), ["config.json", "model.safetensors.index.json"]);
        assert_eq!(wanted(&names(&["README.md", "config.json", "a.gguf"]), "a/b").expect("a model"), ["a.gguf"]);
        for (list, said) in [
            (names(&["README.md"]), "has neither model.safetensors nor a GGUF file; it has: README.md"),
            (names(&["a-q4.gguf", "a-q8.gguf"]), "has 2 GGUF files: say which, as hub:a/b:a-q4.gguf"),
        ] {
            let error = wanted(&list, "a/b").expect_err("refused").to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
