//! Files on disk: finding them and hashing them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::data::source::FileKind;

/// The files that `paths` name: a file as it is, a folder as the files of that kind in it and below, sorted.
///
/// # Errors
///
/// A path that does not exist, a folder without such files, an empty list.
pub fn expand(paths: &[PathBuf], kind: FileKind) -> Result<Vec<(PathBuf, FileKind)>> {
    ensure!(!paths.is_empty(), "data.source: `path` is an empty list; name at least one file or folder");
    let mut found = Vec::new();
    for path in paths {
        let about = fs::metadata(path).with_context(|| {
            format!("data.source: cannot open {} (relative paths start at the current folder)", path.display())
        })?;
        if !about.is_dir() {
            found.push((path.clone(), kind));
            continue;
        }
        let before = found.len();
        walk(path, &mut |file| {
            let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or("");
            if kind.endings().contains(&ending) {
                found.push((file.to_path_buf(), kind));
            }
        })?;
        ensure!(
            found.len() > before,
            "data.source: the folder {} holds no *.{} file",
            path.display(),
            kind.endings().join(" or *.")
        );
    }
    Ok(found)
}

/// Calls `on_file` with each file below `folder`, sorted by path; links to folders are not followed.
///
/// # Errors
///
/// A folder that cannot be listed.
pub fn walk(folder: &Path, on_file: &mut dyn FnMut(&Path)) -> Result<()> {
    let listing = fs::read_dir(folder).with_context(|| format!("cannot list the folder {}", folder.display()))?;
    let mut entries = listing
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(|| format!("cannot list the folder {}", folder.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, on_file)?;
        } else {
            on_file(&path);
        }
    }
    Ok(())
}

/// The SHA-256 of a file's bytes; `on_read` hears of each piece that was read.
///
/// # Errors
///
/// A file that cannot be read, or what `on_read` returns.
pub fn sha256(path: &Path, on_read: &dyn Fn(usize) -> Result<()>) -> Result<[u8; 32]> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..read]);
        on_read(read)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_read_in_sorted_order_and_below() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["b.txt", "a.txt", "c.jsonl", "sub/z.md", "aa/y.txt"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("creates");
            fs::write(&path, name).expect("writes");
        }
        let found = expand(&[folder.path().to_path_buf()], FileKind::Text).expect("has text");
        let names: Vec<_> = found
            .iter()
            .map(|(path, _)| path.strip_prefix(folder.path()).expect("below").display().to_string())
            .collect();
        assert_eq!(names, ["a.txt", "aa/y.txt", "b.txt", "sub/z.md"]);
    }

    #[test]
    fn missing_paths_and_empty_folders_are_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let missing = folder.path().join("nowhere");
        for (paths, said) in [
            (vec![missing], "nowhere"),
            (vec![folder.path().to_path_buf()], "holds no *.txt or *.md file"),
            (vec![], "empty list"),
        ] {
            let error = expand(&paths, FileKind::Text).expect_err("must be refused");
            assert!(format!("{error:#}").contains(said), "{error:#}");
        }
    }
}
