//! Blocks of quantized types to numbers. Layouts are those of ggml, written down in `docs/formats.md`.

use half::{bf16, f16};

use super::types::TensorType;

/// Writes the numbers that a row of blocks stands for into `out`. The order of roundings is ggml's: scale times code in f32.
///
/// # Panics
/// If `bytes` is not `out.len()` weights of `kind`, or `kind` is I2_S, which has no rows of its own.
pub fn decode_row(kind: TensorType, bytes: &[u8], out: &mut [f32]) {
    let (block, block_bytes) = (kind.block(), kind.block_bytes());
    assert_eq!(bytes.len() * block, out.len() * block_bytes, "whole blocks of {}", kind.name());
    let blocks = bytes.chunks_exact(block_bytes).zip(out.chunks_exact_mut(block));
    match kind {
        TensorType::F32 => blocks.for_each(|(b, out)| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        TensorType::F16 => blocks.for_each(|(b, out)| out[0] = half_at(b, 0)),
        TensorType::Bf16 => blocks.for_each(|(b, out)| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        TensorType::Q4_0 => blocks.for_each(|(b, out)| {
            let scale = half_at(b, 0);
            nibbles(&b[2..], out, |code| (f32::from(code) - 8.0) * scale);
        }),
        TensorType::Q4_1 => blocks.for_each(|(b, out)| {
            let (scale, minimum) = (half_at(b, 0), half_at(b, 2));
            nibbles(&b[4..], out, |code| f32::from(code) * scale + minimum);
        }),
        TensorType::Q8_0 => blocks.for_each(|(b, out)| {
            let scale = half_at(b, 0);
            out.iter_mut().zip(&b[2..]).for_each(|(out, &code)| *out = f32::from(code as i8) * scale);
        }),
        TensorType::Q4K => blocks.for_each(|(b, out)| q4_k(b, out)),
        TensorType::Q6K => blocks.for_each(|(b, out)| q6_k(b, out)),
        TensorType::Tq1_0 | TensorType::Tq2_0 | TensorType::Q1_0 | TensorType::Q2_0 => {
            let mut codes = [0i8; 256];
            for (b, out) in blocks {
                let codes = &mut codes[..block];
                let scale = code_block(kind, b, codes);
                out.iter_mut().zip(codes.iter()).for_each(|(out, &code)| *out = f32::from(code) * scale);
            }
        }
        TensorType::I2S => panic!("an I2_S tensor is decoded as a whole"),
    }
}

/// Writes the codes of a row of blocks into `codes` and the scale of each block behind `scales`.
///
/// # Panics
/// As [`decode_row`], and if `kind` is not TQ1_0, TQ2_0, Q1_0, Q2_0, Q4_0 or Q8_0.
pub fn decode_codes(kind: TensorType, bytes: &[u8], codes: &mut [i8], scales: &mut Vec<f32>) {
    let (block, block_bytes) = (kind.block(), kind.block_bytes());
    assert_eq!(bytes.len() * block, codes.len() * block_bytes, "whole blocks of {}", kind.name());
    for (b, codes) in bytes.chunks_exact(block_bytes).zip(codes.chunks_exact_mut(block)) {
        scales.push(code_block(kind, b, codes));
    }
}

fn code_block(kind: TensorType, b: &[u8], codes: &mut [i8]) -> f32 {
    match kind {
        TensorType::Tq1_0 => {
            let (five, four) = b[..52].split_at(48);
            // 32 bytes with five digits each, 32 apart; then 16 bytes, 16 apart; then 4 bytes with four digits, 4 apart.
            for (bytes, range) in [(&five[..32], 0..160), (&five[32..], 160..240), (four, 240..256)] {
                let mut place = 1u8;
                for codes in codes[range].chunks_exact_mut(bytes.len()) {
                    for (code, &byte) in codes.iter_mut().zip(bytes) {
                        let digits = u16::from(byte.wrapping_mul(place));
                        *code = ((digits * 3) >> 8) as i8 - 1;
                    }
                    place = place.wrapping_mul(3);
                }
            }
            half_at(b, 52)
        }
        TensorType::Tq2_0 => {
            for (bytes, codes) in b[..64].chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
                for (n, codes) in codes.chunks_exact_mut(32).enumerate() {
                    codes.iter_mut().zip(bytes).for_each(|(code, &byte)| *code = two_bits(byte, n));
                }
            }
            half_at(b, 64)
        }
        TensorType::Q1_0 => {
            for (codes, &byte) in codes.chunks_exact_mut(8).zip(&b[2..]) {
                codes.iter_mut().enumerate().for_each(|(n, code)| *code = (byte >> n & 1) as i8 * 2 - 1);
            }
            half_at(b, 0)
        }
        TensorType::Q2_0 => {
            for (codes, &byte) in codes.chunks_exact_mut(4).zip(&b[2..]) {
                codes.iter_mut().enumerate().for_each(|(n, code)| *code = two_bits(byte, n));
            }
            half_at(b, 0)
        }
        TensorType::Q4_0 => {
            let (low, high) = codes.split_at_mut(16);
            for ((low, high), &byte) in low.iter_mut().zip(high).zip(&b[2..]) {
                (*low, *high) = ((byte & 15) as i8 - 8, (byte >> 4) as i8 - 8);
            }
            half_at(b, 0)
        }
        TensorType::Q8_0 => {
            codes.iter_mut().zip(&b[2..]).for_each(|(code, &byte)| *code = byte as i8);
            half_at(b, 0)
        }
        _ => panic!("{} has no codes with one scale", kind.name()),
    }
}

/// Field `n` of four, lowest bits first, less one.
fn two_bits(byte: u8, n: usize) -> i8 {
    (byte >> (2 * n) & 3) as i8 - 1
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// 16 bytes of two codes each: the low halves are the first 16 numbers.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(16);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (value(byte & 15), value(byte >> 4));
    }
}

/// Eight groups of 32: y = (d * scale) * code - dmin * minimum. Scales and minima have six bits each in twelve bytes: four of
/// each whole in the first eight bytes, whose upper bits complete the other four of each.
fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, d_min, packed, codes) = (half_at(b, 0), half_at(b, 2), &b[4..16], &b[16..144]);
    let scale_and_minimum = |group: usize| {
        if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            let (low, scale_high, minimum_high) = (packed[group + 4], packed[group - 4] >> 6, packed[group] >> 6);
            (low & 15 | scale_high << 4, low >> 4 | minimum_high << 4)
        }
    };
    for (pair, (bytes, out)) in codes.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        for (half, out) in out.chunks_exact_mut(32).enumerate() {
            let (scale, minimum) = scale_and_minimum(2 * pair + half);
            let (scale, minimum) = (d * f32::from(scale), d_min * f32::from(minimum));
            for (out, &byte) in out.iter_mut().zip(bytes) {
                *out = scale * f32::from(byte >> (4 * half) & 15) - minimum;
            }
        }
    }
}

/// Two halves of 128; in each, four groups of 32 share 64 bytes of low nibbles and 32 bytes of upper bit pairs.
fn q6_k(b: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&b[..128], &b[128..192], &b[192..208], half_at(b, 208));
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high, scales) = (&low[64 * half..][..64], &high[32 * half..][..32], &scales[8 * half..][..8]);
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            for (i, out) in out.iter_mut().enumerate() {
                let nibble = low[32 * (group % 2) + i] >> (4 * (group / 2)) & 15;
                let code = (nibble | (high[i] >> (2 * group) & 3) << 4) as i8 - 32;
                *out = d * f32::from(scales[2 * group + i / 16] as i8) * f32::from(code);
            }
        }
    }
}
