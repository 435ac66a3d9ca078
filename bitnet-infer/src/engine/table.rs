//! A float matrix that is only read, in its stored type: the embedding and the head.

use std::ops::Range;
use std::sync::Arc;

use bitnet_model::files::tensors::FloatBytes;
use bitnet_model::weights::{FloatData, FloatMatrix, FloatType};
use rayon::prelude::*;

use super::mmap::MappedFile;
use crate::kernels::{AlignedVec, Floats};

/// A `[rows, cols]` float matrix, in memory or where it stands in a mapped file. A mapped one costs no copy, and pages that
/// are not read take no memory.
pub(super) struct Table {
    rows: usize,
    cols: usize,
    float_type: FloatType,
    source: Source,
}

/// Invariant: the bytes are whole numbers of this machine, where they may stand, `rows * cols` of them.
enum Source {
    Memory(FloatData),
    /// A copy of what a file holds.
    Copied(AlignedVec<u8>),
    Mapped {
        file: Arc<MappedFile>,
        range: Range<usize>,
    },
    /// 8-bit codes that stand in a file, and the scale of each row.
    Coded {
        file: Arc<MappedFile>,
        range: Range<usize>,
        scales: Vec<f32>,
    },
}

impl Table {
    /// Takes a matrix in memory.
    pub fn new(matrix: FloatMatrix) -> Self {
        let (rows, cols, float_type) = (matrix.rows, matrix.cols, matrix.float_type());
        Self { rows, cols, float_type, source: Source::Memory(matrix.data) }
    }

    /// The matrix that `floats`, a part of `file`, holds. It is copied only if this machine cannot read it in place
    /// (another byte order, or an odd address).
    ///
    /// # Panics
    /// If `floats` is not `rows * cols` numbers within `file`.
    pub fn mapped(file: &Arc<MappedFile>, floats: FloatBytes, rows: usize, cols: usize) -> Self {
        let FloatBytes { float_type, bytes } = floats;
        if cfg!(target_endian = "big") || Floats::of_bytes(float_type, bytes).is_none() {
            return Self::new(FloatMatrix { rows, cols, data: floats.to_data() });
        }
        let start = bytes.as_ptr().addr() - file.bytes().as_ptr().addr();
        let range = start..start + bytes.len();
        assert!(
            range.end <= file.bytes().len() && bytes.len() == rows * cols * size_of_one(float_type),
            "the file's own"
        );
        Self { rows, cols, float_type, source: Source::Mapped { file: Arc::clone(file), range } }
    }

    /// The matrix of `codes`, a part of `file`, row after row, each with its scale.
    ///
    /// # Panics
    /// If they are not those of a matrix within `file`.
    pub fn coded(file: &Arc<MappedFile>, codes: &[u8], scales: Vec<f32>, cols: usize) -> Self {
        let rows = scales.len();
        let start = codes.as_ptr().addr() - file.bytes().as_ptr().addr();
        let range = start..start + codes.len();
        assert!(range.end <= file.bytes().len() && codes.len() == rows * cols, "the file's own");
        let source = Source::Coded { file: Arc::clone(file), range, scales };
        Self { rows, cols, float_type: FloatType::F32, source }
    }

    /// The codes of a row and its scale, where the table is one of codes.
    pub fn codes_of(&self, row: usize) -> Option<(&[u8], f32)> {
        let Source::Coded { scales, .. } = &self.source else { return None };
        Some((&self.bytes()[row * self.cols..(row + 1) * self.cols], scales[row]))
    }

    /// Whether it is a table of codes, which has no rows of floats.
    pub fn is_coded(&self) -> bool {
        matches!(self.source, Source::Coded { .. })
    }

    /// A mapped table as a copy in memory, for one that is read from end to end for every token: the pages of a file are
    /// small, and slower to read (see [`AlignedVec::in_huge_pages`]).
    pub fn copied(&self) -> Option<Self> {
        let Source::Mapped { .. } = &self.source else { return None };
        let mut copy = AlignedVec::in_huge_pages(self.byte_count());
        copy.par_chunks_mut(COPIED_BYTES).zip(self.bytes().par_chunks(COPIED_BYTES)).for_each(|(to, from)| {
            to.copy_from_slice(from);
            // As it is copied, or both would be in memory together.
            self.release();
        });
        Some(Self { source: Source::Copied(copy), ..*self })
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn byte_count(&self) -> usize {
        let scales = if self.is_coded() { self.rows * size_of::<f32>() } else { 0 };
        self.bytes().len() + scales
    }

    /// Bytes of a number.
    pub fn number_bytes(&self) -> usize {
        if self.is_coded() { 1 } else { size_of_one(self.float_type) }
    }

    pub fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// The bytes of a row, in this machine's order: numbers, or codes.
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        self.part(row * self.cols..(row + 1) * self.cols)
    }

    /// The numbers of some rows.
    ///
    /// # Panics
    /// If the table is one of codes.
    pub fn floats(&self, rows: Range<usize>) -> Floats<'_> {
        let part = self.part(rows.start * self.cols..rows.end * self.cols);
        Floats::of_bytes(self.float_type, part).expect("a table of floats")
    }

    /// Writes columns `cols` of `row` into `out` as f32.
    ///
    /// # Panics
    /// If there is no such row or column, or `out` has another length.
    pub fn row_to_f32(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        assert!(cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        if let Some((codes, scale)) = self.codes_of(row) {
            return out.iter_mut().zip(&codes[cols]).for_each(|(out, &code)| *out = f32::from(code as i8) * scale);
        }
        let part = self.part(row * self.cols + cols.start..row * self.cols + cols.end);
        Floats::of_bytes(self.float_type, part).expect("the invariant").to_f32(out);
    }

    fn part(&self, numbers: Range<usize>) -> &[u8] {
        &self.bytes()[numbers.start * self.number_bytes()..numbers.end * self.number_bytes()]
    }

    /// Lets the system take back the memory of a mapped table; it is read again when it is touched.
    pub fn release(&self) {
        if let Source::Mapped { file, range } | Source::Coded { file, range, .. } = &self.source {
            file.release(range.clone());
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::Memory(data) => Floats::bytes_of(data),
            Source::Copied(bytes) => bytes,
            Source::Mapped { file, range } | Source::Coded { file, range, .. } => &file.bytes()[range.clone()],
        }
    }
}

/// Bytes that one thread copies at a time.
const COPIED_BYTES: usize = 4 << 20;

fn size_of_one(float_type: FloatType) -> usize {
    if float_type == FloatType::F32 { 4 } else { 2 }
}
