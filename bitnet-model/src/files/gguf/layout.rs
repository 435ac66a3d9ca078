//! I2_S, Microsoft's ternary type: one number in files, three arrangements of the codes.
//!
//! All take a quarter of a byte a weight and 32 bytes behind, whose first four are the scale. A byte has four fields, the
//! first in the upper bits, each a code plus one; 3 is no code.

use std::fmt;
use std::str::FromStr;

use super::types::I2S_TAIL;

/// An arrangement of I2_S codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum I2sLayout {
    /// Weight `j` of 128 is field `j / 32` of byte `j % 32` of the 32 (x86, and the published files).
    Group128,
    /// Weight `j` of 64 is field `j / 16` of byte `j % 16` of the 16 (written by bitnet.cpp on ARM since November 2025).
    Group64,
    /// Weight `c` of row `r` is field `r % 4` of byte `r / 4 * cols + c`.
    Rows4,
}

impl I2sLayout {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Group128, Self::Group64, Self::Rows4];

    /// The name used on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Group128 => "128",
            Self::Group64 => "64",
            Self::Rows4 => "rows",
        }
    }

    /// The byte and the field of a weight.
    pub(super) fn place(self, row: usize, col: usize, cols: usize) -> (usize, usize) {
        let at = row * cols + col;
        match self {
            Self::Group128 => (at / 128 * 32 + at % 32, at % 128 / 32),
            Self::Group64 => (at / 64 * 16 + at % 16, at % 64 / 16),
            Self::Rows4 => (row / 4 * cols + col, row % 4),
        }
    }
}

impl fmt::Display for I2sLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for I2sLayout {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|layout| layout.name() == name);
        found.ok_or_else(|| format!("is `{name}`, expected 128, 64 or rows"))
    }
}

/// The codes, row-major, and the scale of an I2_S tensor.
///
/// # Errors
/// A sentence, if there is the impossible code 3, or rows that the layout cannot hold.
///
/// # Panics
/// If `bytes` is not those of `rows * cols` weights.
pub fn unpack_i2s(layout: I2sLayout, rows: usize, cols: usize, bytes: &[u8]) -> Result<(Vec<i8>, f32), String> {
    assert_eq!(bytes.len(), rows * cols / 4 + I2S_TAIL, "a whole tensor");
    check_rows(layout, rows)?;
    let mut codes = vec![0i8; rows * cols];
    for (row, codes) in codes.chunks_exact_mut(cols).enumerate() {
        for (col, code) in codes.iter_mut().enumerate() {
            let (byte, field) = layout.place(row, col, cols);
            *code = (bytes[byte] >> (6 - 2 * field) & 3) as i8 - 1;
        }
        if let Some(col) = codes.iter().position(|&code| code > 1) {
            return Err(format!("has the impossible ternary code 3 at row {row}, column {col}"));
        }
    }
    let scale = rows * cols / 4;
    Ok((codes, f32::from_le_bytes(bytes[scale..scale + 4].try_into().expect("four bytes"))))
}

/// The bytes of an I2_S tensor.
///
/// # Errors
/// A sentence, if the layout cannot hold so many rows or columns.
///
/// # Panics
/// If there are not `rows * cols` codes, or one is not ternary.
pub fn pack_i2s(layout: I2sLayout, rows: usize, cols: usize, codes: &[i8], scale: f32) -> Result<Vec<u8>, String> {
    assert_eq!(codes.len(), rows * cols, "one code per weight");
    check_rows(layout, rows)?;
    if !cols.is_multiple_of(128) {
        return Err(format!("has {cols} columns, and I2_S needs a multiple of 128"));
    }
    let mut bytes = vec![0u8; rows * cols / 4 + I2S_TAIL];
    for (at, &code) in codes.iter().enumerate() {
        assert!((-1..=1).contains(&code), "a ternary code");
        let (byte, field) = layout.place(at / cols, at % cols, cols);
        bytes[byte] |= ((code + 1) as u8) << (6 - 2 * field);
    }
    bytes[rows * cols / 4..][..4].copy_from_slice(&scale.to_le_bytes());
    Ok(bytes)
}

fn check_rows(layout: I2sLayout, rows: usize) -> Result<(), String> {
    if layout == I2sLayout::Rows4 && !rows.is_multiple_of(4) {
        return Err(format!("has {rows} rows, and the layout `rows` needs a multiple of 4"));
    }
    Ok(())
}
