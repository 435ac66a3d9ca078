//! Which commit a folder is a checkout of, read from git's own files: no git program is needed, and no checkout is no error.

use std::fs;
use std::path::{Path, PathBuf};

/// What a checkout is at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The commit in hexadecimal digits, if there is one.
    pub commit: Option<String>,
    /// The files that exist and whose change may mean another commit.
    pub decided_by: Vec<PathBuf>,
}

/// The head of the checkout whose top folder is `root`; folders above it are not looked at.
pub fn head(root: &Path) -> Head {
    let Some(folder) = git_folder(root) else { return Head::default() };
    // A worktree has a head of its own and shares its branches with the main checkout.
    let shared = match read(&folder.join("commondir")) {
        Some(path) => folder.join(path),
        None => folder.clone(),
    };
    let file = folder.join("HEAD");
    let Some(text) = read(&file) else { return Head::default() };
    let Some(branch) = text.strip_prefix("ref: ") else {
        return Head { commit: commit_of(&text), decided_by: vec![file] };
    };
    let loose = shared.join(branch);
    if let Some(text) = read(&loose) {
        return Head { commit: commit_of(&text), decided_by: vec![file, loose] };
    }
    let packed = shared.join("packed-refs");
    let lines = read(&packed).unwrap_or_default();
    let entry = lines.lines().find_map(|line| line.split_once(' ').filter(|(_, name)| *name == branch));
    // The branch gets a file of its own with its next commit, which the log of the head and the folder of the file show.
    let candidates = [file, packed, folder.join("logs/HEAD"), loose.parent().unwrap_or(&shared).to_path_buf()];
    let decided_by = candidates.into_iter().filter(|path| path.exists()).collect();
    Head { commit: entry.and_then(|(commit, _)| commit_of(commit)), decided_by }
}

/// `.git` is a folder, or in a worktree a file that names one.
fn git_folder(root: &Path) -> Option<PathBuf> {
    let path = root.join(".git");
    if path.is_dir() {
        return Some(path);
    }
    Some(root.join(read(&path)?.strip_prefix("gitdir: ")?))
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn commit_of(text: &str) -> Option<String> {
    let is_hash = matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| text.to_owned())
}
