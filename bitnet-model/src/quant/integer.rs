//! int8 and int4 weights, round to nearest: the conventional baselines.
//!
//! `scale = max(max|group|, 1e-5) / limit`, `code = clamp(round(w / scale), -limit, limit)` with limit 127 or 7: symmetric,
//! one scale for each row (output feature) or for each group of adjacent columns, as post-training quantizers usually do.

use super::{Granularity, WeightScheme, abs_max, floored, to_code};
use crate::packed::Layout;

/// Codes of so many bits, with a scale for each row or group.
pub struct Integer {
    name: &'static str,
    limit: i8,
    granularity: Granularity,
    layout: Layout,
}

/// `int8`: 255 levels, a scale per row.
pub static INT8: Integer = int8("int8", Granularity::Row);
/// `int8-g32`: a scale for 32 columns; likewise the others.
pub static INT8_G32: Integer = int8("int8-g32", Granularity::Group(32));
/// See [`INT8_G32`].
pub static INT8_G64: Integer = int8("int8-g64", Granularity::Group(64));
/// See [`INT8_G32`].
pub static INT8_G128: Integer = int8("int8-g128", Granularity::Group(128));
/// `int4`: 15 levels, a scale per row.
pub static INT4: Integer = int4("int4", Granularity::Row);
/// `int4-g32`: a scale for 32 columns; likewise the others.
pub static INT4_G32: Integer = int4("int4-g32", Granularity::Group(32));
/// See [`INT4_G32`].
pub static INT4_G64: Integer = int4("int4-g64", Granularity::Group(64));
/// See [`INT4_G32`].
pub static INT4_G128: Integer = int4("int4-g128", Granularity::Group(128));

const fn int8(name: &'static str, granularity: Granularity) -> Integer {
    Integer { name, limit: 127, granularity, layout: Layout::Int8 }
}

const fn int4(name: &'static str, granularity: Granularity) -> Integer {
    Integer { name, limit: 7, granularity, layout: Layout::Int4 }
}

impl WeightScheme for Integer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn code_range(&self) -> (i8, i8) {
        (-self.limit, self.limit)
    }

    fn granularity(&self) -> Granularity {
        self.granularity
    }

    fn layout(&self) -> Layout {
        self.layout
    }

    fn quantize(&self, weights: &[f32], rows: usize, codes: &mut [i8]) -> Vec<f32> {
        assert_eq!(weights.len(), codes.len(), "one code per weight");
        assert!(rows > 0 && weights.len().is_multiple_of(rows), "a whole number of columns");
        let cols = weights.len() / rows;
        let group = self.granularity.group_cols().unwrap_or(cols);
        let limit = f32::from(self.limit);
        let mut scales = Vec::with_capacity(self.granularity.scale_count(rows, cols));
        for (row, codes) in weights.chunks(cols).zip(codes.chunks_mut(cols)) {
            for (group, codes) in row.chunks(group).zip(codes.chunks_mut(group)) {
                let largest = floored(abs_max(group));
                let multiplier = limit / largest;
                for (code, &w) in codes.iter_mut().zip(group) {
                    *code = to_code(w, multiplier, limit);
                }
                scales.push(largest / limit);
            }
        }
        scales
    }
}
