//! Files in and out: the only module of this crate that touches a disk.
//!
//! Readers check every size before they allocate. Writers write under a temporary name in the same folder, sync and
//! rename, so that what existed stays whole until what replaces it is complete.

pub mod added_tokens;
pub mod checkpoint;
pub mod gguf;
pub mod hugging_face;
pub mod llama2c;
pub mod source;
pub mod stream;
pub mod tensors;
pub mod text;

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

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

/// What stands in a model's place when a download went wrong, in words; `None` for bytes that may be anything else.
pub fn mistaken(bytes: &[u8]) -> Option<&'static str> {
    let start = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).trim_start().to_ascii_lowercase();
    if start.starts_with("version https://git-lfs.github.com/spec/") {
        return Some("is a Git LFS pointer and not the file it stands for: fetch that with `git lfs pull`");
    }
    let page = ["<!doctype html", "<html", "<?xml"].iter().any(|tag| start.starts_with(tag));
    page.then_some("is a web page, not a file of a model: the download gave an answer for people; download it again")
}

/// As [`read_bounded`], of a file that must be an ordinary one: a pipe would be waited for without end.
///
/// # Errors
/// As [`read_bounded`], or if it is something else.
pub fn read_ordinary(path: &Path, limit_bytes: u64) -> Result<Vec<u8>> {
    check_ordinary(path)?;
    let bytes = read_bounded(path, limit_bytes)?;
    match mistaken(&bytes) {
        Some(reason) => Err(Error::format(&path.display().to_string(), reason)),
        None => Ok(bytes),
    }
}

/// Refuses what is no ordinary file (or a link to one) before it is opened, which for a pipe would wait for a writer.
///
/// # Errors
/// If it is something else, or cannot be looked at.
pub fn check_ordinary(path: &Path) -> Result<()> {
    match fs::metadata(path).map_err(Error::io(path, "open"))?.is_file() {
        true => Ok(()),
        false => Err(Error::format(&path.display().to_string(), "is not an ordinary file")),
    }
}

/// The names of what is in a folder, sorted; those that are no text are left out.
///
/// # Errors
/// If the folder cannot be read.
pub fn names_in(folder: &Path) -> Result<Vec<String>> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let entries = fs::read_dir(folder).map_err(Error::io(folder, "read"))?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.map_err(Error::io(folder, "read"))?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
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
    let mut file = BufWriter::new(AtomicFile::create(path)?);
    fill(&mut file).map_err(Error::io(path, "write"))?;
    let file = file.into_inner().map_err(|failed| Error::io(path, "write")(failed.into_error()))?;
    file.keep()
}

/// A file that is written under a temporary name beside its own, and has its own once it is complete; dropped before that,
/// it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

impl AtomicFile {
    /// Begins a file that will be at `path`.
    ///
    /// # Errors
    /// If the folder cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let temporary = sibling(path);
        let file = File::create(&temporary).map_err(Error::io(&temporary, "create"))?;
        Ok(Self { path: path.to_path_buf(), temporary, file })
    }

    /// Where it is until it is complete.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Syncs the file and gives it its name; an earlier file of that name is replaced.
    ///
    /// # Errors
    /// If the disk is full or the file cannot be renamed.
    pub fn keep(self) -> Result<()> {
        self.file.sync_all().map_err(Error::io(&self.path, "sync"))?;
        fs::rename(&self.temporary, &self.path).map_err(Error::io(&self.path, "rename the temporary file to"))?;
        sync_folder(self.path.parent().unwrap_or(Path::new(".")))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        // A kept file has no temporary name any more.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        self.file.seek(to)
    }
}

/// Makes the folder `path` by filling a temporary one beside it and renaming it, all or nothing. An existing folder at
/// `path` is replaced only after the new one is complete.
///
/// Where the file system can exchange two folders in one operation, there is a whole folder at `path` at every moment, also
/// if the process is killed. Where it cannot, a kill may leave the earlier folder as `.NAME.old`; the next call puts it back.
///
/// # Errors
/// Those of `fill`, or if a folder cannot be created or renamed; an earlier folder at `path` is then untouched.
pub fn write_folder_atomic<E: From<Error>>(path: &Path, fill: impl FnOnce(&Path) -> Result<(), E>) -> Result<(), E> {
    if path.exists() && !path.is_dir() {
        return Err(Error::format(&path.display().to_string(), "is a file, expected a folder or nothing").into());
    }
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    put_back(path)?;
    let temporary = sibling(path);
    // A leftover of a killed process that had the same number.
    let _ = fs::remove_dir_all(&temporary);
    let filled = fs::create_dir(&temporary)
        .map_err(|e| E::from(Error::io(&temporary, "create")(e)))
        .and_then(|()| fill(&temporary))
        .and_then(|()| sync_folder(&temporary).map_err(E::from))
        .and_then(|()| swap_in(&temporary, path).map_err(E::from));
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
    let mut file = File::create(path).map_err(Error::io(path, "create"))?;
    file.write_all(bytes).map_err(Error::io(path, "write"))?;
    file.sync_all().map_err(Error::io(path, "sync"))
}

/// Gives the folder `temporary` the name `path` and removes what was there.
fn swap_in(temporary: &Path, path: &Path) -> Result<()> {
    if !path.exists() {
        return fs::rename(temporary, path).map_err(Error::io(path, "rename the temporary folder to"));
    }
    if exchange(temporary, path).is_err() {
        return replace_in_two_steps(temporary, path);
    }
    fs::remove_dir_all(temporary).map_err(Error::io(temporary, "remove"))
}

/// Exchanges two folders in one operation of the file system.
#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

/// For file systems that cannot exchange (network ones): between the two renames there is nothing at `path`, and
/// [`put_back`] finds the earlier folder.
fn replace_in_two_steps(temporary: &Path, path: &Path) -> Result<()> {
    let old = set_aside_name(path);
    let _ = fs::remove_dir_all(&old);
    fs::rename(path, &old).map_err(Error::io(path, "set aside"))?;
    if let Err(e) = fs::rename(temporary, path) {
        put_back(path)?;
        return Err(Error::io(path, "rename the temporary folder to")(e));
    }
    fs::remove_dir_all(&old).map_err(Error::io(&old, "remove"))
}

/// Undoes a replacement that was cut off after its first step.
fn put_back(path: &Path) -> Result<()> {
    let old = set_aside_name(path);
    if path.exists() || !old.exists() {
        return Ok(());
    }
    fs::rename(&old, path).map_err(Error::io(path, "put back"))
}

/// Renames are durable only after the folder itself is synced.
fn sync_folder(path: &Path) -> Result<()> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io(path, "sync"))
}

/// A name in the same folder that nothing else uses: neither another process nor another thread of this one.
fn sibling(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    hidden(path, &format!("{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// The name of a folder that is being replaced: the same in every process, so that the next one finds it.
fn set_aside_name(path: &Path) -> PathBuf {
    hidden(path, "old")
}

fn hidden(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.{suffix}"))
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
    fn folders_are_replaced_with_and_without_an_exchange() {
        for swap in [swap_in, replace_in_two_steps] {
            let root = tempfile::tempdir().expect("temp dir");
            let [new, path] = ["new", "model"].map(|name| root.path().join(name));
            for (folder, text) in [(&path, "one"), (&new, "two")] {
                fs::create_dir(folder).expect("made");
                fs::write(folder.join("a"), text).expect("written");
            }
            swap(&new, &path).expect("replaced");
            assert_eq!(fs::read(path.join("a")).expect("there"), b"two");
            assert_eq!(fs::read_dir(root.path()).expect("dir").count(), 1, "no leftovers");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_exchange_leaves_both_folders_whole() {
        let root = tempfile::tempdir().expect("temp dir");
        let [a, b] = ["a", "b"].map(|name| root.path().join(name));
        for folder in [&a, &b] {
            fs::create_dir(folder).expect("made");
            fs::write(folder.join(folder.file_name().expect("a name")), "").expect("written");
        }
        if let Err(e) = exchange(&a, &b) {
            eprintln!("skipped: this file system cannot exchange folders: {e}");
            return;
        }
        assert!(a.join("b").exists() && b.join("a").exists());
    }

    #[test]
    fn what_a_kill_left_set_aside_is_put_back() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("model");
        write_folder_atomic(&path, |dir| write_synced(&dir.join("a"), b"one")).expect("first");
        // As a kill between the two renames of another process leaves it.
        fs::rename(&path, root.path().join(".model.old")).expect("set aside");
        let failed: Result<()> = write_folder_atomic(&path, |_| Err(Error::format("disk", "is full")));
        assert!(failed.is_err());
        assert_eq!(fs::read(path.join("a")).expect("put back"), b"one");
        // As a kill after the second rename leaves it: what is set aside is the older one.
        fs::create_dir(root.path().join(".model.old")).expect("made");
        write_folder_atomic(&path, |dir| write_synced(&dir.join("a"), b"two")).expect("replaced");
        assert_eq!(fs::read(path.join("a")).expect("there"), b"two");
    }

    #[test]
    fn a_dropped_file_leaves_what_was_there() {
        let root = tempfile::tempdir().expect("temp dir");
        let path = root.path().join("a");
        write_atomic(&path, b"one").expect("written");
        let mut half = AtomicFile::create(&path).expect("begun");
        let mut other = AtomicFile::create(&path).expect("begun a second time at once");
        half.write_all(b"tw").expect("written");
        drop(half);
        assert_eq!(fs::read(&path).expect("there"), b"one");
        other.write_all(b"three").expect("written");
        other.keep().expect("kept");
        assert_eq!(fs::read(&path).expect("there"), b"three");
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
