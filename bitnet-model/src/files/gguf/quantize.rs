//! Numbers and codes to blocks: the other way of `blocks.rs`.

use half::{bf16, f16};

use super::types::TensorType;
use crate::quant::round_half_even;

/// Appends a row of floats as blocks of `kind`.
///
/// # Panics
/// If the row is no whole number of blocks, or `kind` is none of F32, F16, BF16, Q8_0 and Q6_K.
pub fn encode_row(kind: TensorType, values: &[f32], out: &mut Vec<u8>) {
    assert!(values.len().is_multiple_of(kind.block()), "whole blocks of {}", kind.name());
    match kind {
        TensorType::F32 => values.iter().for_each(|v| out.extend(v.to_le_bytes())),
        TensorType::F16 => values.iter().for_each(|&v| out.extend(f16::from_f32(v).to_le_bytes())),
        TensorType::Bf16 => values.iter().for_each(|&v| out.extend(bf16::from_f32(v).to_le_bytes())),
        TensorType::Q8_0 => values.chunks_exact(32).for_each(|block| q8_0(block, out)),
        TensorType::Q6K => values.chunks_exact(256).for_each(|block| q6_k(block, out)),
        _ => panic!("floats are not written as {}", kind.name()),
    }
}

/// Appends a row of codes with one scale as blocks of `kind`; the scale is rounded to f16.
///
/// # Errors
/// A sentence, if a code does not exist in `kind`, or the scale is too large or too small for f16.
///
/// # Panics
/// If the row is no whole number of blocks, or `kind` is none of TQ1_0, TQ2_0, Q1_0, Q2_0.
pub fn encode_codes(kind: TensorType, codes: &[i8], scale: f32, out: &mut Vec<u8>) -> Result<(), String> {
    assert!(codes.len().is_multiple_of(kind.block()), "whole blocks of {}", kind.name());
    let d = half_scale(scale)?;
    let (low, what) = if kind == TensorType::Q1_0 { (-1, "binary") } else { (-1, "ternary") };
    let is_code = |code: i8| (low..=1).contains(&code) && (kind != TensorType::Q1_0 || code != 0);
    if let Some(col) = codes.iter().position(|&code| !is_code(code)) {
        return Err(format!("has code {} at column {col}, not a {what} one", codes[col]));
    }
    let d = d.to_le_bytes();
    for codes in codes.chunks_exact(kind.block()) {
        match kind {
            TensorType::Tq1_0 => {
                let digit = |at: usize| (codes[at] + 1) as u16;
                // Where the digits of a byte begin, how far apart they lie, and how many there are.
                let places = (0..32).map(|m| (m, 32, 5)).chain((0..16).map(|m| (160 + m, 16, 5)));
                for (first, apart, count) in places.chain((0..4).map(|m| (240 + m, 4, 4))) {
                    let number = (0..5).fold(0, |n, i| 3 * n + if i < count { digit(first + i * apart) } else { 0 });
                    // The number of five digits as a fraction of 256, rounded up, so that products bring out digit by digit.
                    out.push((number * 256).div_ceil(243) as u8);
                }
                out.extend(d);
            }
            TensorType::Tq2_0 => {
                for codes in codes.chunks_exact(128) {
                    let field = |m: usize, n: usize| ((codes[m + 32 * n] + 1) as u8) << (2 * n);
                    out.extend((0..32).map(|m| (0..4).fold(0, |byte, n| byte | field(m, n))));
                }
                out.extend(d);
            }
            TensorType::Q1_0 => {
                out.extend(d);
                let bits = |codes: &[i8]| codes.iter().enumerate().fold(0, |b, (n, &c)| b | u8::from(c > 0) << n);
                out.extend(codes.chunks_exact(8).map(bits));
            }
            TensorType::Q2_0 => {
                out.extend(d);
                let bits = |codes: &[i8]| codes.iter().enumerate().fold(0, |b, (n, &c)| b | ((c + 1) as u8) << (2 * n));
                out.extend(codes.chunks_exact(4).map(bits));
            }
            _ => panic!("codes are not written as {}", kind.name()),
        }
    }
    Ok(())
}

/// A scale as f16 holds it.
///
/// # Errors
/// A sentence, if it is too large for f16, or so small that rounding takes half of it or more, and all codes with it.
pub fn half_scale(scale: f32) -> Result<f16, String> {
    let held = f16::from_f32(scale);
    if !held.is_finite() {
        return Err(format!("has a scale of {scale:e}, which is too large for f16 (at most {})", f16::MAX));
    }
    if (held.to_f32() - scale).abs() >= 0.5 * scale {
        let smallest = f16::MIN_POSITIVE_SUBNORMAL.to_f32();
        return Err(format!("has a scale of {scale:e}, which is too small for f16 (in steps of {smallest:.1e})"));
    }
    Ok(held)
}

/// scale = largest / 127, in f16; code = round(value / scale).
/// The very bytes that llama.cpp makes: codes by the scale before it is rounded to f16, halves away from zero. Where f16 holds the
/// scale in few bits (subnormal, weights below 0.008), that would lose more than eight bits do: there, codes by the rounded one.
fn q8_0(values: &[f32], out: &mut Vec<u8>) {
    let scale = values.iter().fold(0f32, |largest, v| largest.max(v.abs())) / 127.0;
    let held = f16::from_f32(scale);
    let divisor = if held.is_normal() { scale } else { held.to_f32() };
    let inverse = if divisor > 0.0 { 1.0 / divisor } else { 0.0 };
    out.extend(held.to_le_bytes());
    out.extend(values.iter().map(|v| (v * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
}

/// Sixteen groups of 16 with a signed scale each. A group's scale is the best of a few by squared error weighted by the squares
/// of the values, codes go from -32 to 31; then the scales are codes of one f16 scale themselves, and the codes are
/// rounded again with what these stand for.
fn q6_k(values: &[f32], out: &mut Vec<u8>) {
    let mut wanted = [0f32; 16];
    for (wanted, group) in wanted.iter_mut().zip(values.chunks_exact(16)) {
        *wanted = group_scale(group);
    }
    let largest = wanted.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    // The largest scale has the code -128: its sign goes to d.
    let d = f16::from_f32(largest / -128.0);
    let inverse = if d == f16::ZERO { 0.0 } else { 1.0 / d.to_f32() };
    let scales = wanted.map(|wanted| round_half_even((wanted * inverse).clamp(-128.0, 127.0)) as i8);
    let mut codes = [0u8; 256];
    for (group, (codes, values)) in codes.chunks_exact_mut(16).zip(values.chunks_exact(16)).enumerate() {
        let scale = d.to_f32() * f32::from(scales[group]);
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        for (code, value) in codes.iter_mut().zip(values) {
            *code = (round_half_even((value * inverse).clamp(-32.0, 31.0)) as i8 + 32) as u8;
        }
    }
    for codes in codes.chunks_exact(128) {
        out.extend((0..64).map(|i| codes[i] & 15 | (codes[i + 64] & 15) << 4));
    }
    for codes in codes.chunks_exact(128) {
        out.extend((0..32).map(|i| (0..4).fold(0, |byte, group| byte | codes[i + 32 * group] >> 4 << (2 * group))));
    }
    out.extend(scales.map(|scale| scale as u8));
    out.extend(d.to_le_bytes());
}

/// The scale of 16 values, whose largest is about 32 codes.
fn group_scale(values: &[f32]) -> f32 {
    let extreme = values.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    if extreme == 0.0 {
        return 0.0;
    }
    let mut best = (f32::NEG_INFINITY, 0f32);
    for step in -9i8..=9 {
        // -32 has the most room, so the extreme value gets a code near it.
        let inverse = -(32.0 + 0.1 * f32::from(step)) / extreme;
        let (mut product, mut square) = (0f32, 0f32);
        for &value in values {
            let code = round_half_even((value * inverse).clamp(-32.0, 31.0));
            let weight = value * value;
            product += weight * value * code;
            square += weight * code * code;
        }
        // The scale product / square is the best one for these codes, and product^2 / square what it explains.
        if square > 0.0 && product * product > best.0 * square {
            best = (product * product / square, product / square);
        }
    }
    best.1
}
