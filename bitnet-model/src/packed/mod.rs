//! Packed matrices: integer codes as bits, with their scales, in one canonical layout per code width.
//!
//! The layouts are those of the files (`docs/formats.md`): independent of the machine that wrote them. A kernel makes its
//! own arrangement at load from [`PackedMatrix::unpack_row`].

mod bits;
mod digits;
mod integer;
#[cfg(test)]
mod laws;

use std::fmt;

use crate::quant::scale_of;

/// How codes are stored. All layouts but `Int8` put several codes in a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Ternary, four codes a byte, Hugging Face's BitNet layout: bits `2i..2i+1` of byte `[r, c]` hold `code + 1` of row
    /// `r + i * ceil(rows / 4)`.
    TwoBit,
    /// Binary, eight codes a byte, the same idea: bit `i` of byte `[r, c]` is 1 for +1, 0 for -1, of row `r + i * ceil(rows / 8)`.
    OneBit,
    /// Ternary, five codes a byte: byte `[r, c]` is `sum(3^i * (code + 1))` over rows `r + i * ceil(rows / 5)`; 243 and above
    /// are refused.
    Base3,
    /// One two's complement byte a code.
    Int8,
    /// Two two's complement nibbles a byte, adjacent columns, the even column in the low nibble.
    Int4,
}

impl Layout {
    /// Shape of the byte matrix that holds a `[rows, cols]` matrix of codes.
    pub fn byte_shape(self, rows: usize, cols: usize) -> [usize; 2] {
        match self {
            Self::TwoBit => [rows.div_ceil(4), cols],
            Self::OneBit => [rows.div_ceil(8), cols],
            Self::Base3 => [rows.div_ceil(digits::DIGITS), cols],
            Self::Int8 => [rows, cols],
            Self::Int4 => [rows, cols.div_ceil(2)],
        }
    }

    /// Codes that share a byte.
    pub fn codes_per_byte(self) -> usize {
        match self {
            Self::OneBit => 8,
            Self::Base3 => digits::DIGITS,
            Self::TwoBit => 4,
            Self::Int4 => 2,
            Self::Int8 => 1,
        }
    }
}

/// A `[rows, cols]` matrix of integer codes with one scale, one per row, or one for each group of adjacent columns of a row.
///
/// Invariant: the bytes are exactly as many as the layout needs, every stored code is valid in its layout, and every
/// scale is positive and finite.
#[derive(Clone, PartialEq)]
pub struct PackedMatrix {
    layout: Layout,
    rows: usize,
    cols: usize,
    /// Columns that share a scale, where rows have several.
    group: Option<usize>,
    bytes: Vec<u8>,
    scales: Vec<f32>,
}

impl PackedMatrix {
    /// Packs row-major `codes`.
    ///
    /// # Errors
    /// A sentence, if the sizes do not fit, a code does not fit the layout or a scale is not positive and finite.
    pub fn pack(layout: Layout, rows: usize, cols: usize, codes: &[i8], scales: Vec<f32>) -> Result<Self, String> {
        Self::pack_grouped(layout, [rows, cols], None, codes, scales)
    }

    /// As [`Self::pack`]; with a `group`, every so many adjacent columns of a row have a scale of their own.
    ///
    /// # Errors
    /// As [`Self::pack`].
    pub fn pack_grouped(
        layout: Layout,
        [rows, cols]: [usize; 2],
        group: Option<usize>,
        codes: &[i8],
        scales: Vec<f32>,
    ) -> Result<Self, String> {
        if Some(codes.len()) != rows.checked_mul(cols) {
            return Err(format!("has {} codes, expected {rows} x {cols}", codes.len()));
        }
        let bytes = match layout {
            Layout::TwoBit => {
                bits::pack::<2>(rows, cols, codes, "-1, 0 or 1", |c| (-1..=1).contains(&c).then(|| (c + 1) as u8))
            }
            Layout::OneBit => {
                bits::pack::<1>(rows, cols, codes, "-1 or 1", |c| (c == 1 || c == -1).then_some(u8::from(c == 1)))
            }
            Layout::Base3 => digits::pack(rows, cols, codes),
            Layout::Int8 => Ok(integer::pack_int8(codes)),
            Layout::Int4 => integer::pack_int4(cols, codes),
        }?;
        Self::from_grouped_bytes(layout, [rows, cols], group, bytes, scales)
    }

    /// Takes bytes that are packed already, and checks them.
    ///
    /// # Errors
    /// A sentence, if the number of bytes or scales is not what the layout needs, a byte holds an impossible code (ternary
    /// code 3, or a number of more than five digits) or a scale is not positive and finite.
    pub fn from_bytes(
        layout: Layout,
        rows: usize,
        cols: usize,
        bytes: Vec<u8>,
        scales: Vec<f32>,
    ) -> Result<Self, String> {
        Self::from_grouped_bytes(layout, [rows, cols], None, bytes, scales)
    }

    /// As [`Self::from_bytes`]; with a `group`, every so many adjacent columns of a row have a scale of their own.
    ///
    /// # Errors
    /// As [`Self::from_bytes`].
    pub fn from_grouped_bytes(
        layout: Layout,
        [rows, cols]: [usize; 2],
        group: Option<usize>,
        bytes: Vec<u8>,
        scales: Vec<f32>,
    ) -> Result<Self, String> {
        let [byte_rows, byte_cols] = layout.byte_shape(rows, cols);
        if Some(bytes.len()) != byte_rows.checked_mul(byte_cols) {
            return Err(format!(
                "has {} bytes, expected {byte_rows} x {byte_cols} for {rows} x {cols} {layout:?}",
                bytes.len()
            ));
        }
        if let Some(group) = group {
            let count = (group > 0).then(|| rows.checked_mul(cols.div_ceil(group))).flatten();
            if Some(scales.len()) != count {
                let found = scales.len();
                return Err(format!("has {found} scales, expected one for each {group} columns of {rows} x {cols}"));
            }
        } else if scales.len() != 1 && scales.len() != rows {
            return Err(format!("has {} scales, expected 1 or {rows} (one per row)", scales.len()));
        }
        if let Some((i, scale)) = scales.iter().enumerate().find(|(_, s)| !(s.is_finite() && **s > 0.0)) {
            return Err(format!("has scale {scale} at index {i}, expected a positive finite number"));
        }
        if layout == Layout::TwoBit
            && let Some((row, col)) = bits::find_ternary_code_3(rows, cols, &bytes)
        {
            return Err(format!("has the impossible ternary code 3 at row {row}, column {col}"));
        }
        if layout == Layout::Base3
            && let Some(i) = digits::find_invalid(&bytes)
        {
            let (byte, row, col) = (bytes[i], i / cols, i % cols);
            return Err(format!(
                "has the byte {byte} at byte row {row}, column {col}, expected at most 242 (five ternary digits)"
            ));
        }
        Ok(Self { layout, rows, cols, group, bytes, scales })
    }

    /// The same codes and scales in another layout.
    ///
    /// # Errors
    /// A sentence, if a code does not fit that layout.
    pub fn repack(&self, layout: Layout) -> Result<Self, String> {
        Self::pack_grouped(layout, [self.rows, self.cols], self.group, &self.unpack(), self.scales.clone())
    }

    /// How the codes are stored.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The packed bytes, `layout.byte_shape(rows, cols)` in row-major order.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// One scale, one per row, or, with a [`Self::group`], those of each row's groups, row after row.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Adjacent columns of a row that share a scale, where rows have several.
    pub fn group(&self) -> Option<usize> {
        self.group
    }

    /// The scale of `row`.
    ///
    /// # Panics
    /// If rows have several ([`Self::group`]).
    pub fn scale_of(&self, row: usize) -> f32 {
        assert!(self.group.is_none(), "one scale for the matrix or the row");
        scale_of(&self.scales, row)
    }

    /// The scales of the groups of `row`; the only one, of all columns, if there are no groups.
    pub fn scales_of(&self, row: usize) -> &[f32] {
        match self.group {
            Some(group) => {
                let groups = self.cols.div_ceil(group);
                &self.scales[row * groups..][..groups]
            }
            None => std::slice::from_ref(if self.scales.len() == 1 { &self.scales[0] } else { &self.scales[row] }),
        }
    }

    /// Writes the codes of `row` into `codes` (of length `cols`).
    ///
    /// # Panics
    /// If `row` is not below `rows` or `codes` is not `cols` long.
    pub fn unpack_row(&self, row: usize, codes: &mut [i8]) {
        assert!(row < self.rows && codes.len() == self.cols, "row {row} of {} x {}", self.rows, self.cols);
        match self.layout {
            Layout::TwoBit => bits::unpack_row::<2>(self.rows, self.cols, &self.bytes, row, codes, |v| v as i8 - 1),
            Layout::OneBit => bits::unpack_row::<1>(self.rows, self.cols, &self.bytes, row, codes, |v| v as i8 * 2 - 1),
            Layout::Base3 => digits::unpack_row(self.rows, self.cols, &self.bytes, row, codes),
            Layout::Int8 => integer::unpack_row_int8(&self.bytes, row, codes),
            Layout::Int4 => integer::unpack_row_int4(&self.bytes, row, codes),
        }
    }

    /// All codes, row-major.
    pub fn unpack(&self) -> Vec<i8> {
        let mut codes = vec![0; self.rows * self.cols];
        for (row, codes) in codes.chunks_mut(self.cols.max(1)).enumerate() {
            self.unpack_row(row, codes);
        }
        codes
    }
}

impl fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PackedMatrix({:?}, {} x {}, {} scales)", self.layout, self.rows, self.cols, self.scales.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_bit_bytes_follow_hugging_face() {
        // Rows r, r + 2, r + 4, r + 6 of an 8 x 1 matrix share byte r: 1 + 0 * 4 + 2 * 16 + 1 * 64.
        let codes = [0, 1, -1, 0, 1, -1, 0, 1];
        let packed = PackedMatrix::pack(Layout::TwoBit, 8, 1, &codes, vec![1.0]).expect("valid");
        let byte =
            |a: i8, b: i8, c: i8, d: i8| [a, b, c, d].iter().rev().fold(0u8, |byte, code| byte * 4 + (code + 1) as u8);
        assert_eq!(packed.bytes(), [byte(0, -1, 1, 0), byte(1, 0, -1, 1)]);
    }

    #[test]
    fn base_3_bytes_are_numbers_of_five_digits() {
        // Rows r, r + 2, ..., r + 8 of a 9 x 1 matrix share byte r; row 9 does not exist.
        let codes = [0, 1, -1, 0, 1, -1, 0, 1, 1];
        let packed = PackedMatrix::pack(Layout::Base3, 9, 1, &codes, vec![1.0]).expect("valid");
        let [first, second] = [[1, 0, 2, 1, 2], [2, 1, 0, 2, 0]]
            .map(|digits: [u8; 5]| digits.iter().rev().fold(0, |byte, digit| 3 * byte + digit));
        assert_eq!(packed.bytes(), [first, second]);
        assert_eq!(packed.repack(Layout::TwoBit).expect("ternary").unpack(), codes);
        assert!(packed.repack(Layout::OneBit).unwrap_err().contains("code 0 at row 0"));
    }

    #[test]
    fn lies_are_refused() {
        let bad = |bytes: Vec<u8>, scales: Vec<f32>| {
            PackedMatrix::from_bytes(Layout::TwoBit, 4, 2, bytes, scales).unwrap_err()
        };
        assert!(bad(vec![0; 3], vec![1.0]).contains("has 3 bytes, expected 1 x 2"));
        assert!(bad(vec![0; 2], vec![1.0, 2.0]).contains("has 2 scales"));
        for (group, count) in [(0, 1), (1, 4), (2, 8), (3, 3)] {
            let scales = vec![1.0; count];
            let reason = PackedMatrix::from_grouped_bytes(Layout::TwoBit, [4, 2], Some(group), vec![0; 2], scales);
            assert!(
                reason.unwrap_err().contains(&format!("has {count} scales, expected one for each {group} columns"))
            );
        }
        assert!(bad(vec![0; 2], vec![f32::NAN]).contains("has scale NaN"));
        assert!(bad(vec![0, 0b0011_0000], vec![1.0]).contains("code 3 at row 2, column 1"));
        for byte in 0..=255 {
            let read = PackedMatrix::from_bytes(Layout::Base3, 6, 2, vec![0, 0, 0, byte], vec![1.0]);
            match read {
                Ok(_) => assert!(byte < 243),
                Err(reason) => assert!(byte >= 243 && reason.contains(&format!("byte {byte} at byte row 1, column 1"))),
            }
        }
        assert!(PackedMatrix::pack(Layout::Base3, 1, 1, &[2], vec![1.0]).unwrap_err().contains("code 2"));
        assert!(PackedMatrix::pack(Layout::OneBit, 1, 1, &[0], vec![1.0]).unwrap_err().contains("code 0"));
        assert!(PackedMatrix::pack(Layout::Int4, 1, 1, &[9], vec![1.0]).unwrap_err().contains("code 9"));
    }

    proptest! {
        #[test]
        fn every_layout_round_trips(rows in 1usize..20, cols in 1usize..20, seed in any::<u64>()) {
            use rand::Rng;
            let mut rng = crate::rng::generator(seed, crate::rng::Stream::Bench);
            for (layout, range) in [(Layout::TwoBit, 1), (Layout::Base3, 1), (Layout::OneBit, 1), (Layout::Int4, 7), (Layout::Int8, 127i8)] {
                let codes: Vec<i8> = (0..rows * cols)
                    .map(|_| if layout == Layout::OneBit { if rng.random() { 1 } else { -1 } } else { rng.random_range(-range..=range) })
                    .collect();
                let packed = PackedMatrix::pack(layout, rows, cols, &codes, vec![0.5; rows]).expect("valid");
                prop_assert_eq!(packed.unpack(), codes);
            }
        }
    }
}
