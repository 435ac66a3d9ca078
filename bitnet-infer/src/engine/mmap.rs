//! A file mapped into memory: the one place outside the kernels that needs `unsafe`, for models and training data alike.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;

use bitnet_model::files::check_ordinary;

use super::error::Result;

/// The bytes of a file, read by the system as they are touched.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
}

impl MappedFile {
    /// Maps `path` for reading.
    ///
    /// # Errors
    /// If it cannot be opened, is no ordinary file, or cannot be mapped.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |action| {
            let path = path.to_path_buf();
            move |cause| bitnet_model::Error::Io { path, action, cause }
        };
        check_ordinary(path)?;
        let file = File::open(path).map_err(io("open"))?;
        // SAFETY: the map is read-only and private to this process, and lives as long as the bytes are borrowed. What
        // remains is that another process may change or truncate the file meanwhile; model files and token shards are written
        // under a temporary name and renamed, never changed in place, so the inode behind the map stays as it was opened, and
        // a corpus is an input that must not change while it is read (docs/data.md).
        let map = unsafe { Mmap::map(&file) }.map_err(io("map"))?;
        Ok(Self { map })
    }

    /// Lets the system take back the memory of a range of bytes, which are read again from the file when they are touched.
    ///
    /// # Panics
    /// If the file has no such range.
    pub fn release(&self, range: Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.map.len(), "{range:?} of {} bytes", self.map.len());
        // SAFETY: the pages are a read-only map of a file: nothing is lost with them, and who reads them meanwhile or later
        // finds the same bytes.
        #[cfg(unix)]
        let done = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        // A wish: a system that does not grant it only keeps the memory.
        #[cfg(unix)]
        drop(done);
    }

    /// All bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }
}
