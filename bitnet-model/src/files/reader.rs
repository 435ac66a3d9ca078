//! A safetensors file that is read tensor by tensor, in pieces, straight into memory that is there already: for files that are
//! as large as what is made of them, such as an optimizer's moments.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};

use super::check_ordinary;
use super::tensors::Dtype;
use crate::error::{Error, Result};
use crate::finite;

/// An open file whose header was checked: every tensor lies within it.
pub struct TensorReader {
    file: File,
    path: PathBuf,
    origin: String,
    header: Metadata,
    /// Where the tensors begin.
    start: u64,
}

impl TensorReader {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// If it cannot be read, or its header is no safetensors header or tells of another length than the file has.
    pub fn open(path: &Path) -> Result<Self> {
        let origin = path.display().to_string();
        check_ordinary(path)?;
        let mut file = File::open(path).map_err(Error::io(path, "open"))?;
        let len = file.metadata().map_err(Error::io(path, "read"))?.len();
        let bad = |reason: &str| {
            // A reason may quote names from the file; escaped, they can neither break the line nor move the cursor.
            let reason = reason.escape_debug();
            Error::format(&origin, format!("is not a valid safetensors file of {len} bytes: {reason}"))
        };
        let mut size = [0; SIZE_BYTES as usize];
        if len < SIZE_BYTES {
            return Err(bad("too short for a header"));
        }
        file.read_exact(&mut size).map_err(Error::io(path, "read"))?;
        let size = u64::from_le_bytes(size);
        if size > LONGEST_HEADER.min(len - SIZE_BYTES) {
            return Err(bad(&format!("a header of {size} bytes")));
        }
        let mut header = vec![0; size as usize];
        file.read_exact(&mut header).map_err(Error::io(path, "read"))?;
        // This checks that tensors follow one another without gaps, and have the bytes of their shapes.
        let header: Metadata = serde_json::from_slice(&header).map_err(|e| bad(&e.to_string()))?;
        let start = SIZE_BYTES + size;
        if header.data_len() as u64 != len - start {
            return Err(bad(&format!("its tensors have {} bytes, and {} are there", header.data_len(), len - start)));
        }
        Ok(Self { file, path: path.to_path_buf(), origin, header, start })
    }

    /// All tensor names, in the order in which they lie.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Fills `out` with an f32 tensor of exactly `shape`.
    ///
    /// # Errors
    /// If it is missing, of another type or shape, or cannot be read.
    ///
    /// # Panics
    /// If `out` does not have the size of `shape`.
    pub fn read_f32(&mut self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<()> {
        assert_eq!(shape.iter().product::<usize>(), out.len(), "one number per element");
        let info = self.info(name, Dtype::F32)?;
        if info.shape != shape {
            let reason = format!("has shape {:?}, expected {shape:?}", info.shape);
            return Err(Error::tensor(&self.origin, name, reason));
        }
        let begin = info.data_offsets.0;
        self.seek(begin)?;
        let mut buffer = vec![0; PIECE.min(size_of_val(out))];
        for out in out.chunks_mut(PIECE / 4) {
            let bytes = &mut buffer[..size_of_val(out)];
            self.file.read_exact(bytes).map_err(Error::io(&self.path, "read"))?;
            out.iter_mut().zip(bytes.as_chunks().0).for_each(|(out, &bytes)| *out = f32::from_le_bytes(bytes));
        }
        Ok(())
    }

    /// As [`Self::read_f32`], of numbers that must be finite.
    ///
    /// # Errors
    /// As [`Self::read_f32`], or if a number is NaN or infinite.
    ///
    /// # Panics
    /// As [`Self::read_f32`].
    pub fn read_finite(&mut self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<()> {
        self.read_f32(name, shape, out)?;
        finite::check(out).map_err(|reason| Error::tensor(&self.origin, name, reason))
    }

    /// A vector of i8.
    ///
    /// # Errors
    /// If it is missing, of another type, no vector, or cannot be read.
    pub fn read_i8(&mut self, name: &str) -> Result<Vec<i8>> {
        let info = self.info(name, Dtype::I8)?;
        let &[len] = info.shape.as_slice() else {
            return Err(Error::tensor(&self.origin, name, format!("has shape {:?}, expected a vector", info.shape)));
        };
        let begin = info.data_offsets.0;
        self.seek(begin)?;
        let mut out = Vec::with_capacity(len);
        let mut buffer = vec![0; PIECE.min(len)];
        while out.len() < len {
            let bytes = &mut buffer[..PIECE.min(len - out.len())];
            self.file.read_exact(bytes).map_err(Error::io(&self.path, "read"))?;
            out.extend(bytes.iter().map(|&byte| byte as i8));
        }
        Ok(out)
    }

    fn info(&self, name: &str, dtype: Dtype) -> Result<&TensorInfo> {
        let info = self.header.info(name).ok_or_else(|| Error::tensor(&self.origin, name, "is missing"))?;
        if info.dtype != dtype {
            return Err(Error::tensor(&self.origin, name, format!("is {:?}, expected {dtype:?}", info.dtype)));
        }
        Ok(info)
    }

    fn seek(&mut self, begin: usize) -> Result<()> {
        let at = SeekFrom::Start(self.start + begin as u64);
        self.file.seek(at).map(drop).map_err(Error::io(&self.path, "read"))
    }
}

/// The length of the header is written in so many bytes.
const SIZE_BYTES: u64 = 8;

/// The format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// Bytes of a file that are in memory beside the numbers that they become.
const PIECE: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tensors::{OwnedTensor, TensorFile, write};
    use proptest::prelude::*;

    fn file(tensors: &[(String, OwnedTensor)]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("temp file");
        write(file.path(), tensors, ("format", "pt".into())).expect("written");
        file
    }

    fn floats(shape: &[usize], seed: u32) -> OwnedTensor {
        let count: usize = shape.iter().product();
        let bits = (0..count as u32).map(|i| f32::from_bits((i + seed).wrapping_mul(2_654_435_761)));
        OwnedTensor::f32(shape, &bits.collect::<Vec<_>>())
    }

    /// A number more than a piece holds, so that the last piece is short; NaN and infinity among them.
    #[test]
    fn numbers_come_back_to_the_bit_from_many_pieces() {
        let long = PIECE / 4 + 1;
        let codes: Vec<u8> = (0..PIECE + 3).map(|i| i as u8).collect();
        let codes = OwnedTensor { dtype: Dtype::I8, shape: vec![codes.len()], bytes: codes };
        let tensors = [
            ("b".to_owned(), floats(&[long], 1)),
            ("a".to_owned(), floats(&[3, 5], 2)),
            ("c".to_owned(), codes),
            ("d".to_owned(), floats(&[0], 0)),
        ];
        let file = file(&tensors);
        let mut reader = TensorReader::open(file.path()).expect("valid");
        for (name, tensor) in &tensors {
            if tensor.dtype == Dtype::I8 {
                let found: Vec<u8> = reader.read_i8(name).expect("there").iter().map(|&code| code as u8).collect();
                assert!(found == tensor.bytes, "{name}");
                continue;
            }
            let mut found = vec![0.0; tensor.bytes.len() / 4];
            reader.read_f32(name, &tensor.shape, &mut found).expect("there");
            assert!(found.iter().flat_map(|x| x.to_le_bytes()).eq(tensor.bytes.iter().copied()), "{name}");
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let file = file(&[("a".to_owned(), floats(&[2, 2], 0))]);
        let mut reader = TensorReader::open(file.path()).expect("valid");
        assert_eq!(reader.names(), ["a"]);
        let mut four = [0.0; 4];
        for (outcome, expected) in [
            (reader.read_f32("b", &[4], &mut four), "tensor `b` is missing"),
            (reader.read_f32("a", &[4], &mut four), "tensor `a` has shape [2, 2], expected [4]"),
            (reader.read_i8("a").map(drop), "tensor `a` is F32, expected I8"),
        ] {
            let message = outcome.expect_err(expected).to_string();
            assert!(
                message.ends_with(expected) && message.starts_with(&file.path().display().to_string()),
                "{message}"
            );
        }
    }

    proptest! {
        /// What the library that maps whole files refuses is refused here too, and nothing else.
        #[test]
        fn damaged_files_are_refused_as_the_library_refuses_them(
            cut in 0usize..200, at in 0usize..200, byte in any::<u8>(), cuts in any::<bool>()
        ) {
            let file = file(&[("a".to_owned(), floats(&[2, 2], 0)), ("b".to_owned(), floats(&[3], 0))]);
            let mut bytes = std::fs::read(file.path()).expect("bytes");
            if cuts {
                bytes.truncate(cut.min(bytes.len()));
            } else {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            std::fs::write(file.path(), &bytes).expect("written");
            let (found, expected) = (TensorReader::open(file.path()), TensorFile::parse(&bytes, "x"));
            prop_assert_eq!(found.is_ok(), expected.is_ok());
            if let Err(error) = found {
                let message = error.to_string();
                prop_assert!(message.contains("is not a valid safetensors file of"), "{}", message);
                prop_assert!(!message.contains(char::is_control), "{}", message);
            }
        }
    }
}
