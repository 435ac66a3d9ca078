//! Codes of four and eight bits in two's complement, row-major.

pub(super) fn pack_int8(codes: &[i8]) -> Vec<u8> {
    codes.iter().map(|&c| c as u8).collect()
}

pub(super) fn unpack_row_int8(bytes: &[u8], row: usize, codes: &mut [i8]) {
    let cols = codes.len();
    for (code, &byte) in codes.iter_mut().zip(&bytes[row * cols..][..cols]) {
        *code = byte as i8;
    }
}

pub(super) fn pack_int4(cols: usize, codes: &[i8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(codes.len().div_ceil(2));
    for (row, codes) in codes.chunks(cols.max(1)).enumerate() {
        for (pair, both) in codes.chunks(2).enumerate() {
            let mut byte = 0;
            for (half, &code) in both.iter().enumerate() {
                if !(-8..=7).contains(&code) {
                    return Err(format!("has code {code} at row {row}, column {}, expected -8 to 7", pair * 2 + half));
                }
                byte |= (code as u8 & 0xf) << (4 * half);
            }
            bytes.push(byte);
        }
    }
    Ok(bytes)
}

pub(super) fn unpack_row_int4(bytes: &[u8], row: usize, codes: &mut [i8]) {
    let row_bytes = codes.len().div_ceil(2);
    for (both, &byte) in codes.chunks_mut(2).zip(&bytes[row * row_bytes..][..row_bytes]) {
        for (half, code) in both.iter_mut().enumerate() {
            // Shifting the nibble to the top and back extends its sign.
            *code = ((byte >> (4 * half)) << 4) as i8 >> 4;
        }
    }
}
