//! Files in and out: the only module of this crate that touches a disk.
//!
//! Readers check every size before they allocate. Writers write under a temporary name in the same folder, sync and
//! rename, so that what existed stays whole until what replaces it is complete.

pub mod checkpoint;
pub mod hugging_face;
pub mod tensors;

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Reads a whole file that must not be longer than `limit_bytes`.
///
/// # Errors
/// If the file cannot be read or is longer.
pub fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(Error::io(path, "read"))?;
    if bytes.len() as u64 > limit_bytes {
        return Err(Error::format(&path.display().to_string(), format!("is longer than {limit_bytes} bytes")));
    }
    Ok(bytes)
}

/// Replaces `path` by `bytes`, all or nothing.
///
/// # Errors
/// If the folder cannot be written or the disk is full; an earlier file at `path` is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(bytes))
}

/// Replaces `path` by what `fill` writes, all or nothing, for contents that need not be in memory as a whole.
///
/// # Errors
/// As [`write_atomic`], or that of `fill`.
pub fn write_atomic_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let temporary = sibling(path, "tmp");
    let written = write_synced_with(&temporary, fill)
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io(path, "rename the temporary file to")));
    if written.is_err() {
        // The first error is the one to report; the leftover may not even exist.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes the folder `path` by filling a temporary one beside it and renaming it, all or nothing. An existing folder at
/// `path` is replaced only after the new one is complete.
///
/// # Errors
/// Those of `fill`, or if a folder cannot be created or renamed; an earlier folder at `path` is then untouched.
pub fn write_folder_atomic<E: From<Error>>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    let (temporary, old) = (sibling(path, "tmp"), sibling(path, "old"));
    if path.exists() && !path.is_dir() {
        return Err(Error::format(&path.display().to_string(), "is a file, expected a folder or nothing").into());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    // A leftover of a process that was killed here before.
    let _ = fs::remove_dir_all(&temporary);
    let filled = fs::create_dir(&temporary)
        .map_err(|e| E::from(Error::io(&temporary, "create")(e)))
        .and_then(|()| fill(&temporary))
        .and_then(|()| sync_folder(&temporary).map_err(E::from))
        .and_then(|()| swap_in(&temporary, path, &old).map_err(E::from));
    if filled.is_err() {
        let _ = fs::remove_dir_all(&temporary);
        return filled;
    }
    Ok(sync_folder(parent)?)
}

/// Writes a new file and syncs it to the disk.
///
/// # Errors
/// If the file cannot be created, written or synced.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    write_synced_with(path, |file| file.write_all(bytes))
}

fn write_synced_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let mut file = BufWriter::new(File::create(path).map_err(Error::io(path, "create"))?);
    fill(&mut file).and_then(|()| file.flush()).map_err(Error::io(path, "write"))?;
    file.get_ref().sync_all().map_err(Error::io(path, "sync"))
}

fn swap_in(temporary: &Path, path: &Path, old: &Path) -> Result<()> {
    if !path.exists() {
        return fs::rename(temporary, path).map_err(Error::io(path, "rename the temporary folder to"));
    }
    let _ = fs::remove_dir_all(old);
    fs::rename(path, old).map_err(Error::io(path, "set aside"))?;
    if let Err(e) = fs::rename(temporary, path) {
        // Put the earlier folder back: whoever reads next must find one of the two.
        let _ = fs::rename(old, path);
        return Err(Error::io(path, "rename the temporary folder to")(e));
    }
    fs::remove_dir_all(old).map_err(Error::io(old, "remove"))
}

/// Renames are durable only after the folder itself is synced.
fn sync_folder(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io(path, "sync"))
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{}.{suffix}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_folder_leaves_the_old_one_and_no_rubbish() {
        let root = tempfile::tempdir().expect("temp dir");
        let target = root.path().join("model");
        let fill = |text: &'static str| move |dir: &Path| write_synced(&dir.join("a"), text.as_bytes());
        write_folder_atomic(&target, fill("one")).expect("first");
        write_folder_atomic(&target, fill("two")).expect("second");
        let failed: Result<()> = write_folder_atomic(&target, |dir| {
            write_synced(&dir.join("a"), b"three")?;
            Err(Error::format("disk", "is full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(target.join("a")).expect("still there"), b"two");
        assert_eq!(fs::read_dir(root.path()).expect("dir").count(), 1, "no leftovers");
    }

    #[test]
    fn a_full_disk_loses_nothing_that_existed() {
        // /dev/full accepts an open and refuses every write, as a full disk does.
        if !Path::new("/dev/full").exists() {
            eprintln!("skipped: no /dev/full here");
            return;
        }
        let message = write_synced(Path::new("/dev/full"), b"x").unwrap_err().to_string();
        assert!(message.starts_with("/dev/full: cannot write: "), "{message}");
    }

    #[test]
    fn oversized_files_are_refused() {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        fs::write(file.path(), [0; 10]).expect("write");
        assert_eq!(read_bounded(file.path(), 10).expect("fits").len(), 10);
        assert!(read_bounded(file.path(), 9).unwrap_err().to_string().contains("longer than 9 bytes"));
    }
}
