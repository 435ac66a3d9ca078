//! int8 and int4 weights, round to nearest: the conventional baselines.
//!
//! `scale = max(max|row|, 1e-5) / limit`, `code = clamp(round(w / scale), -limit, limit)` with limit 127 or 7: symmetric,
//! one scale for each row (output feature), as post-training quantizers usually do.

use super::{Granularity, SCALE_FLOOR, WeightScheme, abs_max, to_code};
use crate::packed::Layout;

/// `int8`: 255 levels, a scale per row.
pub struct Int8;

/// `int4`: 15 levels, a scale per row.
pub struct Int4;

impl WeightScheme for Int8 {
    fn name(&self) -> &'static str {
        "int8"
    }

    fn code_range(&self) -> (i8, i8) {
        (-127, 127)
    }

    fn granularity(&self) -> Granularity {
        Granularity::Row
    }

    fn layout(&self) -> Layout {
        Layout::Int8
    }

    fn quantize(&self, weights: &[f32], rows: usize, codes: &mut [i8]) -> Vec<f32> {
        quantize_rows(weights, rows, codes, 127.0)
    }
}

impl WeightScheme for Int4 {
    fn name(&self) -> &'static str {
        "int4"
    }

    fn code_range(&self) -> (i8, i8) {
        (-7, 7)
    }

    fn granularity(&self) -> Granularity {
        Granularity::Row
    }

    fn layout(&self) -> Layout {
        Layout::Int4
    }

    fn quantize(&self, weights: &[f32], rows: usize, codes: &mut [i8]) -> Vec<f32> {
        quantize_rows(weights, rows, codes, 7.0)
    }
}

fn quantize_rows(weights: &[f32], rows: usize, codes: &mut [i8], limit: f32) -> Vec<f32> {
    assert_eq!(weights.len(), codes.len(), "one code per weight");
    assert!(rows > 0 && weights.len().is_multiple_of(rows), "a whole number of columns");
    let cols = weights.len() / rows;
    let mut scales = Vec::with_capacity(rows);
    for (row, codes) in weights.chunks(cols).zip(codes.chunks_mut(cols)) {
        let largest = abs_max(row).max(SCALE_FLOOR);
        let multiplier = limit / largest;
        for (code, &w) in codes.iter_mut().zip(row) {
            *code = to_code(w, multiplier, limit);
        }
        scales.push(largest / limit);
    }
    scales
}
