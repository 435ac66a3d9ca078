//! Reading forwards through bytes that may end anywhere.

use super::parse::Kind;

/// A place in some bytes. Every read says what it wanted and where, if it is not there.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub fn position(&self) -> usize {
        self.at
    }

    pub fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], String> {
        let (at, rest) = (self.at, self.remaining());
        if count > rest {
            return Err(format!("ends within {what}: {count} bytes at offset {at}, of which {rest} are there"));
        }
        self.at += count;
        Ok(&self.bytes[at..at + count])
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4, what)?.try_into().expect("four bytes")))
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(8, what)?.try_into().expect("eight bytes")))
    }

    /// A count that must not exceed `most`.
    pub fn count(&mut self, most: usize, what: &str) -> Result<usize, String> {
        let (at, count) = (self.at, self.u64(what)?);
        usize::try_from(count)
            .ok()
            .filter(|&count| count <= most)
            .ok_or_else(|| format!("has {what} {count} at offset {at}, expected at most {most}"))
    }

    /// A length and so many bytes.
    pub fn string(&mut self, what: &str) -> Result<&'a [u8], String> {
        let length = self.count(self.remaining().saturating_sub(8), &format!("length of {what}"))?;
        self.take(length, what)
    }

    /// A name: not empty, of at most `most` bytes, of printable UTF-8, so that an error may quote it.
    pub fn name(&mut self, most: usize, what: &str) -> Result<&'a str, String> {
        let at = self.at;
        let bytes = self.string(what)?;
        let name = std::str::from_utf8(bytes).ok().filter(|name| !name.is_empty() && name.len() <= most);
        name.filter(|name| !name.contains(char::is_control)).ok_or_else(|| {
            format!(
                "has {what} at offset {at} that is no name of 1 to {most} bytes of UTF-8 without control characters"
            )
        })
    }

    /// Passes over `count` values of one kind and gives their bytes.
    pub fn values(&mut self, kind: Kind, count: usize, what: &str) -> Result<&'a [u8], String> {
        let start = self.at;
        match kind.byte_count() {
            Some(size) => {
                let bytes = count.checked_mul(size).ok_or_else(|| format!("has {count} values in {what}, too many"))?;
                self.take(bytes, what)
            }
            // The count is bounded by the bytes that are left, and every string takes eight of them at least.
            None => {
                for _ in 0..count {
                    self.string(what)?;
                }
                Ok(&self.bytes[start..self.at])
            }
        }
    }
}
