//! What was read in full before, so that it is not read again while its files have the size and the time that they had then.
//!
//! A receipt is a small JSON file in the cache: a digest of paths, sizes and times of change, and what was found. Without it,
//! or with one of other files, everything is read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bitnet_model::files::{read_bounded, write_atomic};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How far files that were read before are trusted to be the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// As long as their sizes and times of change are the same.
    #[default]
    SizeAndTime,
    /// Not at all: they are read again.
    Nothing,
}

/// Files as they were at a moment: a digest of their paths, sizes and times of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    digest: String,
    /// The latest of their changes.
    changed: SystemTime,
    taken: SystemTime,
}

impl Stamp {
    /// That of `paths`, in this order.
    ///
    /// # Errors
    /// A file that cannot be looked at.
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let (mut hash, mut changed, taken) = (Sha256::new(), UNIX_EPOCH, SystemTime::now());
        for path in paths {
            let about = fs::metadata(path).with_context(|| format!("cannot open {}", path.display()))?;
            let time = about.modified().with_context(|| format!("{}: has no time of change", path.display()))?;
            hash.update(path.canonicalize().unwrap_or_else(|_| path.to_path_buf()).as_os_str().as_encoded_bytes());
            hash.update(format!("\n{} {:?}\n", about.len(), nanoseconds(time)));
            changed = changed.max(time);
        }
        Ok(Self { digest: hex(&hash.finalize()), changed, taken })
    }

    /// Whether a later change will show: one that comes within the clock's tick of an earlier one leaves the same time.
    fn is_settled(&self) -> bool {
        self.taken.duration_since(self.changed).is_ok_and(|age| age >= TICK)
    }
}

/// Nanoseconds from the epoch, before or after it.
fn nanoseconds(time: SystemTime) -> (bool, u128) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (true, after.as_nanos()),
        Err(before) => (false, before.duration().as_nanos()),
    }
}

/// The receipts of a cache folder.
#[derive(Clone, Copy, Debug)]
pub struct Receipts<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// Whether they count.
    pub trust: Trust,
}

#[derive(Serialize, Deserialize)]
struct Receipt<T> {
    version: u32,
    stamp: String,
    found: T,
}

impl Receipts<'_> {
    /// What was found when the files of `stamp` were read for the purpose `name`, trusted or not; none if they are not known.
    pub fn earlier<T: DeserializeOwned>(&self, name: &str, stamp: &Stamp) -> Option<T> {
        // A receipt that does not read is none: it costs a reading, nothing else.
        let receipt: Receipt<T> = serde_json::from_slice(&read_bounded(&self.path(name), 1 << 20).ok()?).ok()?;
        (receipt.version == VERSION && receipt.stamp == stamp.digest).then_some(receipt.found)
    }

    /// The same, if it is trusted.
    pub fn find<T: DeserializeOwned>(&self, name: &str, stamp: &Stamp) -> Option<T> {
        if self.trust == Trust::Nothing { None } else { self.earlier(name, stamp) }
    }

    /// Keeps what was found in other people's files, whose stamp was taken before they were read: unless they changed meanwhile, or
    /// so shortly before that a further change would not show.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub fn keep<'a, T: Serialize>(
        &self,
        name: &str,
        stamp: &Stamp,
        paths: impl IntoIterator<Item = &'a Path>,
        found: T,
    ) -> Result<()> {
        let same = Stamp::of(paths).is_ok_and(|now| now.digest == stamp.digest);
        if same && stamp.is_settled() { self.write(name, stamp, found) } else { Ok(()) }
    }

    /// Keeps what was found in files that this program alone writes, and replaces whole.
    ///
    /// # Errors
    /// A cache that cannot be written.
    pub fn write<T: Serialize>(&self, name: &str, stamp: &Stamp, found: T) -> Result<()> {
        let receipt = Receipt { version: VERSION, stamp: stamp.digest.clone(), found };
        Ok(write_atomic(&self.path(name), &serde_json::to_vec_pretty(&receipt)?)?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("seen-{name}.json"))
    }
}

/// All bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// To be raised when the same files begin to mean other documents or another division of them.
const VERSION: u32 = 1;

/// The coarsest clock of a file system in use (FAT's).
const TICK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receipt_counts_while_size_and_time_are_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a");
        let write = |text: &str, age: u64| {
            fs::write(&path, text).expect("writes");
            let time = SystemTime::now() - Duration::from_secs(age);
            let file = fs::File::options().write(true).open(&path).expect("opens");
            file.set_modified(time).expect("has a time");
            time
        };
        let paths = [path.as_path()];
        let receipts = Receipts { folder: folder.path(), trust: Trust::SizeAndTime };
        let stamp = || Stamp::of(paths).expect("is there");
        // Just changed: a second change might leave the same time.
        write("one", 0);
        receipts.keep("x", &stamp(), paths, 1).expect("writes");
        assert_eq!(receipts.find::<u32>("x", &stamp()), None);
        let time = write("one", 60);
        let old = stamp();
        receipts.keep("x", &old, paths, 1).expect("writes");
        assert_eq!(receipts.find("x", &stamp()), Some(1));
        assert_eq!(receipts.find::<u32>("y", &stamp()), None, "another purpose");
        let untrusting = Receipts { trust: Trust::Nothing, ..receipts };
        assert_eq!((untrusting.find::<u32>("x", &stamp()), untrusting.earlier("x", &stamp())), (None, Some(1)));
        // Another size, another time, then both as before.
        write("three", 60);
        assert_eq!(receipts.find::<u32>("x", &stamp()), None);
        receipts.keep("x", &old, paths, 2).expect("changed while it was read");
        write("two", 50);
        assert_eq!(receipts.find::<u32>("x", &stamp()), None);
        fs::File::options().write(true).open(&path).expect("opens").set_modified(time).expect("has a time");
        assert_eq!(receipts.find("x", &stamp()), Some(1));
        // Damage is no receipt.
        fs::write(folder.path().join("seen-x.json"), "{").expect("writes");
        assert_eq!(receipts.find::<u32>("x", &stamp()), None);
    }
}
