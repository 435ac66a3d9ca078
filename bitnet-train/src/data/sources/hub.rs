//! Dataset repositories of the Hugging Face Hub, through its cache folder, with the settings of [`bitnet_infer::hub`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bitnet_infer::hub::{Repository, well_formed};
use hf_hub::RepoType;

pub use bitnet_infer::hub::HubSettings;

use super::files;
use crate::data::progress::Stage;
use crate::data::source::FileKind;

/// The local paths of the repository's files that match the patterns, sorted by name; downloads what is not cached and
/// tells `stage` after each file.
///
/// # Errors
///
/// No connection, no such repository, nothing that matches, a file of unknown kind; offline, a miss in the cache.
pub fn fetch(
    settings: &HubSettings,
    repo: &str,
    revision: &str,
    patterns: &[String],
    stage: &Stage<'_>,
) -> Result<Vec<(PathBuf, FileKind)>> {
    ensure!(
        !patterns.is_empty(),
        "data.source: `files` is empty; name files of {repo}, for example [\"data/*.parquet\"]"
    );
    ensure!(well_formed(repo), "data.source: `repo` must be owner/name, found `{repo}`");
    ensure!(well_formed(revision), "data.source: `revision` must be a branch, tag or commit, found `{revision}`");
    let asked = Repository { kind: RepoType::Dataset, name: repo, revision };
    if settings.offline {
        return from_cache(&settings.snapshot(asked)?, repo, patterns);
    }
    let found = settings.look_up(asked)?;
    let names = found.info.siblings.iter().map(|file| file.rfilename.clone()).filter(|name| well_formed(name));
    let mut out = Vec::new();
    for (name, kind) in choose(names.collect(), repo, patterns)? {
        let path = found.pinned.get(&name).with_context(|| format!("cannot download {name} of the dataset {repo}"))?;
        stage.add(std::fs::metadata(&path).map_or(0, |about| about.len() as usize))?;
        out.push((path, kind));
    }
    settings.remember(asked, &found.info)?;
    Ok(out)
}

fn from_cache(snapshot: &Path, repo: &str, patterns: &[String]) -> Result<Vec<(PathBuf, FileKind)>> {
    let mut names = Vec::new();
    files::walk(snapshot, &mut |file: &Path| {
        if let Ok(name) = file.strip_prefix(snapshot) {
            names.push(name.to_string_lossy().replace('\\', "/"));
        }
    })?;
    let chosen =
        choose(names, repo, patterns).context("HF_HUB_OFFLINE is set, so only the files in the cache are seen")?;
    Ok(chosen.into_iter().map(|(name, kind)| (snapshot.join(name), kind)).collect())
}

fn choose(mut names: Vec<String>, repo: &str, patterns: &[String]) -> Result<Vec<(String, FileKind)>> {
    names.sort();
    for pattern in patterns {
        if !names.iter().any(|name| matches(pattern, name)) {
            let some = names.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
            bail!("data.source: no file of {repo} matches `{pattern}`; it has: {some}");
        }
    }
    names.retain(|name| patterns.iter().any(|pattern| matches(pattern, name)));
    names.into_iter().map(|name| kind_of(&name).map(|kind| (name, kind))).collect()
}

fn kind_of(name: &str) -> Result<FileKind> {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    [FileKind::Text, FileKind::Jsonl, FileKind::Parquet]
        .into_iter()
        .find(|kind| kind.endings().contains(&ending))
        .with_context(|| format!("data.source: {name} is of no kind that can be read (txt, md, jsonl, parquet)"))
}

/// Whether a name matches a pattern: `*` within a folder, `**` across folders, `?` one character.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    // reach[i]: the pattern read so far matches name[..i].
    let mut reach = vec![false; name.len() + 1];
    reach[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        if pattern[at] != b'*' {
            let fits = |letter: u8| if pattern[at] == b'?' { letter != b'/' } else { letter == pattern[at] };
            for end in (0..name.len()).rev() {
                reach[end + 1] = reach[end] && fits(name[end]);
            }
            reach[0] = false;
            at += 1;
            continue;
        }
        let deep = pattern[at..].starts_with(b"**");
        at += 1 + usize::from(deep);
        // `**/` stands for any number of folders, none included.
        let folders = deep && pattern.get(at) == Some(&b'/');
        let entry = folders.then(|| reach.clone());
        for end in 0..name.len() {
            reach[end + 1] |= reach[end] && (deep || name[end] != b'/');
        }
        if let Some(entry) = entry {
            at += 1;
            for end in (0..name.len()).rev() {
                reach[end + 1] = entry[end + 1] || (reach[end] && name[end] == b'/');
            }
            reach[0] = entry[0];
        }
    }
    reach[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_shells_do() {
        for (pattern, name, expected) in [
            ("a.txt", "a.txt", true),
            ("*.txt", "a.txt", true),
            ("*.txt", "data/a.txt", false),
            ("**.txt", "data/a.txt", true),
            ("**/*.txt", "data/b/a.txt", true),
            ("**/*.txt", "a.txt", true),
            ("data/**/a.txt", "data/a.txt", true),
            ("data/**/a.txt", "data/b/c/a.txt", true),
            ("data/**/a.txt", "data/b/ca.txt", false),
            ("data/*/train-*.parquet", "data/en/train-0001.parquet", true),
            ("data/*/train-*.parquet", "data/en/test-0001.parquet", false),
            ("data/?.txt", "data/a.txt", true),
            ("data/?.txt", "data/ab.txt", false),
            ("", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    fn silent() -> Stage<'static> {
        Stage::new("fetching", &|_| Ok(()))
    }

    #[test]
    fn offline_chooses_among_the_files_of_the_cache() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let repo = folder.path().join("datasets--some--data");
        std::fs::create_dir_all(repo.join("refs")).expect("creates");
        std::fs::write(repo.join("refs/main"), "abc123").expect("writes");
        std::fs::create_dir_all(repo.join("snapshots/abc123/data")).expect("creates");
        for name in ["data/b.jsonl", "data/a.txt", "README.md", "data/c.csv"] {
            std::fs::write(repo.join("snapshots/abc123").join(name), "x").expect("writes");
        }
        let settings = HubSettings { cache: folder.path().to_path_buf(), token: None, endpoint: None, offline: true };
        let fetch = |name: &str, revision: &str, pattern: &str| {
            fetch(&settings, name, revision, &[pattern.to_string()], &silent())
        };
        for revision in ["main", "abc123"] {
            let found = fetch("some/data", revision, "data/[ab]*");
            assert!(found.is_err(), "classes of characters are no pattern of ours");
            let found = fetch("some/data", revision, "data/a*").expect("cached");
            assert_eq!(found, vec![(repo.join("snapshots/abc123/data/a.txt"), FileKind::Text)]);
        }
        for (name, revision, pattern, said) in [
            ("other/data", "main", "*", "the dataset other/data (revision main) is not in the cache"),
            ("some/data", "main", "*.parquet", "no file of some/data matches `*.parquet`"),
            ("some/data", "main", "data/*.csv", "of no kind that can be read"),
            ("../data", "main", "*", "must be owner/name"),
        ] {
            let error = format!("{:#}", fetch(name, revision, pattern).expect_err("must be refused"));
            assert!(error.contains(said), "{error}");
        }
    }
}
