//! Codes of one or two bits, packed along rows as Hugging Face's `pack_weights` does: with `n` codes a byte and
//! `stride = ceil(rows / n)`, byte `[r, c]` holds rows `r, r + stride, r + 2 * stride, ...` of column `c`, lowest bits first.
//! Bits of rows beyond the last are zero and never read.

pub(super) fn pack<const BITS: usize>(
    rows: usize,
    cols: usize,
    codes: &[i8],
    expected: &str,
    encode: impl Fn(i8) -> Option<u8>,
) -> Result<Vec<u8>, String> {
    let stride = rows.div_ceil(8 / BITS);
    let mut bytes = vec![0u8; stride * cols];
    for (row, codes) in codes.chunks(cols.max(1)).enumerate() {
        let (slot, byte_row) = (row / stride, row % stride);
        for (col, (byte, &code)) in bytes[byte_row * cols..][..cols].iter_mut().zip(codes).enumerate() {
            let value = encode(code)
                .ok_or_else(|| format!("has code {code} at row {row}, column {col}, expected {expected}"))?;
            *byte |= value << (BITS * slot);
        }
    }
    Ok(bytes)
}

pub(super) fn unpack_row<const BITS: usize>(
    rows: usize,
    cols: usize,
    bytes: &[u8],
    row: usize,
    codes: &mut [i8],
    decode: impl Fn(u8) -> i8,
) {
    let stride = rows.div_ceil(8 / BITS);
    let shift = BITS * (row / stride);
    let mask = (1u8 << BITS) - 1;
    for (code, byte) in codes.iter_mut().zip(&bytes[(row % stride) * cols..][..cols]) {
        *code = decode((byte >> shift) & mask);
    }
}

/// The first place, if any, where a row that exists holds the code 3.
pub(super) fn find_ternary_code_3(rows: usize, cols: usize, bytes: &[u8]) -> Option<(usize, usize)> {
    // Nearly always there is none, rows that do not exist included, and a loop without an exit says so many bytes at a time.
    if bytes.iter().fold(0, |found, byte| found | (byte & (byte >> 1))) & 0b0101_0101 == 0 {
        return None;
    }
    let stride = rows.div_ceil(4);
    let position = bytes.iter().enumerate().find_map(|(i, &byte)| {
        let both = byte & (byte >> 1) & 0b0101_0101;
        (0..4).find(|slot| both >> (2 * slot) & 1 == 1 && i / cols + slot * stride < rows).map(|slot| (i, slot))
    });
    position.map(|(i, slot)| (i / cols + slot * stride, i % cols))
}
