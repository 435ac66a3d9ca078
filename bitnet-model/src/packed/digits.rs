//! Ternary codes as digits of a number in base three, five to a byte: with `stride = ceil(rows / 5)`, byte `[r, c]` is
//! `sum(3^i * (code + 1))` over rows `r + i * stride` of column `c`. Digits of rows beyond the last are zero and never read.
//!
//! 3^5 = 243 of the 256 bytes are numbers of five digits; the others are refused. A weight takes 1.6 bits, where the entropy
//! of three equally frequent codes is 1.585.

pub(super) fn pack(rows: usize, cols: usize, codes: &[i8]) -> Result<Vec<u8>, String> {
    let stride = rows.div_ceil(DIGITS);
    let mut bytes = vec![0u8; stride * cols];
    for (row, codes) in codes.chunks(cols.max(1)).enumerate() {
        let (place, byte_row) = (PLACES[row / stride], row % stride);
        for (col, (byte, &code)) in bytes[byte_row * cols..][..cols].iter_mut().zip(codes).enumerate() {
            if !(-1..=1).contains(&code) {
                return Err(format!("has code {code} at row {row}, column {col}, expected -1, 0 or 1"));
            }
            *byte += (code + 1) as u8 * place;
        }
    }
    Ok(bytes)
}

pub(super) fn unpack_row(rows: usize, cols: usize, bytes: &[u8], row: usize, codes: &mut [i8]) {
    let stride = rows.div_ceil(DIGITS);
    let bytes = &bytes[(row % stride) * cols..][..cols];
    // Divisors known to the compiler become multiplications, which vectorize.
    match row / stride {
        0 => unpack::<{ PLACES[0] }>(bytes, codes),
        1 => unpack::<{ PLACES[1] }>(bytes, codes),
        2 => unpack::<{ PLACES[2] }>(bytes, codes),
        3 => unpack::<{ PLACES[3] }>(bytes, codes),
        _ => unpack::<{ PLACES[4] }>(bytes, codes),
    }
}

fn unpack<const PLACE: u8>(bytes: &[u8], codes: &mut [i8]) {
    codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = (byte / PLACE % 3) as i8 - 1);
}

/// Index of the first byte, if any, that is no number of five digits.
pub(super) fn find_invalid(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte >= 243)
}

/// Codes in a byte.
pub(super) const DIGITS: usize = PLACES.len();

const PLACES: [u8; 5] = [1, 3, 9, 27, 81];
