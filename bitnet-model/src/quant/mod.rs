//! The quantization arithmetic, once, on plain slices: names to schemes.
//!
//! A *scheme* turns latent weights into small integer codes and positive scales, or one token's activations into
//! int8 codes and a step. Training, export, conversion and inference all call the functions of this module; SIMD
//! forms elsewhere are bound to them by tests, integer for integer.
//!
//! Rounding is half to even everywhere, as PyTorch and the SIMD conversions do.
//!
//! Adding a scheme: one file, one line in [`WEIGHT_SCHEMES`] or [`ACTIVATION_SCHEMES`]; `laws.rs` tests it from then on.

mod activation;
mod binary;
mod integer;
#[cfg(test)]
mod laws;
mod ternary;

pub use activation::AbsMaxInt8;

use crate::finite;
use crate::packed::Layout;

/// How many scales a weight matrix has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// One scale for the whole matrix.
    Tensor,
    /// One scale for each row, i.e. for each output feature.
    Row,
    /// One scale for so many adjacent columns of a row (the last of a row may have fewer).
    Group(usize),
}

impl Granularity {
    /// The number of scales of a `[rows, cols]` matrix, row by row.
    pub fn scale_count(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => 1,
            Self::Row => rows,
            Self::Group(group) => rows * cols.div_ceil(group),
        }
    }

    /// Adjacent columns that share a scale, where rows have several.
    pub fn group_cols(self) -> Option<usize> {
        if let Self::Group(group) = self { Some(group) } else { None }
    }
}

/// The scale of `row` among the scales of a matrix: one, or one per row.
///
/// # Panics
/// If there is neither one scale nor one of that row.
pub fn scale_of(scales: &[f32], row: usize) -> f32 {
    if let [scale] = scales { *scale } else { scales[row] }
}

/// A weight quantizer: latent weights to codes and scales, `weight ~ code * scale`.
pub trait WeightScheme: Sync + Send {
    /// The name used in configs and files.
    fn name(&self) -> &'static str;
    /// Smallest and largest code.
    fn code_range(&self) -> (i8, i8);
    /// Whether `code` belongs to the scheme (binary has no zero).
    fn is_code(&self, code: i8) -> bool {
        let (low, high) = self.code_range();
        (low..=high).contains(&code)
    }
    /// How many scales a matrix has.
    fn granularity(&self) -> Granularity;
    /// How the codes are stored.
    fn layout(&self) -> Layout;
    /// Quantizes a `[rows, cols]` matrix: fills `codes` (same length as `weights`) and returns the scales. A scale is finite if
    /// and only if all weights that it stands for are: [`quantize`] relies on it.
    ///
    /// # Panics
    /// If `codes` and `weights` differ in length or `weights` is not a multiple of `rows`.
    fn quantize(&self, weights: &[f32], rows: usize, codes: &mut [i8]) -> Vec<f32>;
}

/// An activation quantizer: one token's vector to int8 codes and a step, `x ~ code * step`.
pub trait ActivationScheme: Sync + Send {
    /// The name used in configs and files.
    fn name(&self) -> &'static str;
    /// Largest magnitude of a code.
    fn max_code(&self) -> i8;
    /// Quantizes one token (`x` and `codes` of equal length) and returns the step, which is finite if and only if all of `x` is:
    /// what is computed from a token that is lost is lost too, and does not look like a number.
    fn quantize(&self, x: &[f32], codes: &mut [i8]) -> f32;
}

/// Quantizes weights that may hold NaN or infinity, which no code stands for. This costs nothing but a look at the scales.
///
/// # Errors
/// A sentence that names the first such weight.
///
/// # Panics
/// As [`WeightScheme::quantize`].
pub fn quantize(scheme: &dyn WeightScheme, weights: &[f32], rows: usize, codes: &mut [i8]) -> Result<Vec<f32>, String> {
    let scales = scheme.quantize(weights, rows, codes);
    match finite::first_not_finite(&scales) {
        None => Ok(scales),
        Some(_) => {
            Err(finite::first_not_finite(weights).map_or("has a scale beyond f32".to_owned(), finite::complaint))
        }
    }
}

/// Every weight scheme that can be trained, by name; `none` is the absence of one.
pub static WEIGHT_SCHEMES: &[&dyn WeightScheme] =
    &[&ternary::AbsMean, &binary::CentredSign, &integer::INT8, &integer::INT4];

/// Schemes with a scale for each group of columns, by name: what post-training quantizers use. They are for inference; no
/// estimator trains them.
pub static GROUPED_SCHEMES: &[&dyn WeightScheme] = &[
    &integer::INT8_G32,
    &integer::INT8_G64,
    &integer::INT8_G128,
    &integer::INT4_G32,
    &integer::INT4_G64,
    &integer::INT4_G128,
];

/// Every activation scheme, by name; `none` is the absence of one.
pub static ACTIVATION_SCHEMES: &[&dyn ActivationScheme] = &[&activation::AbsMaxInt8];

/// The name that stands for "not quantized" in configs and files.
pub const NONE: &str = "none";

/// Looks a weight scheme up; `Ok(None)` for `"none"`.
///
/// # Errors
/// The list of known names, if `name` is none of them.
pub fn weight_scheme(name: &str) -> Result<Option<&'static dyn WeightScheme>, String> {
    lookup(name, &[WEIGHT_SCHEMES, GROUPED_SCHEMES], |scheme| scheme.name())
}

/// Looks an activation scheme up; `Ok(None)` for `"none"`.
///
/// # Errors
/// The list of known names, if `name` is none of them.
pub fn activation_scheme(name: &str) -> Result<Option<&'static dyn ActivationScheme>, String> {
    lookup(name, &[ACTIVATION_SCHEMES], |scheme| scheme.name())
}

/// The one floating-point expression behind an integer BitLinear sum: `sum * step * scale`.
///
/// `sum` is the exact integer product of weight codes and activation codes, `step` the token's activation step and
/// `scale` the weight scale of the matrix or row. Training, reference and kernels all end in this function, so they
/// differ in no bit. `sum` is exact in f32 below 2^24.
#[inline(always)]
pub fn rescale(sum: i32, step: f32, scale: f32) -> f32 {
    (sum as f32 * step) * scale
}

/// [`rescale`] where rows have several scales: `(sum_0 * scale_0 + sum_1 * scale_1 + ...) * step`, from the first group to
/// the last, each addition rounded. `total` begins at 0 and takes the groups one by one; at the end it is multiplied by the
/// step. So kernels that add whole rows of groups, and those that add one, differ in no bit.
#[inline(always)]
pub fn add_group(total: f32, sum: i32, scale: f32) -> f32 {
    total + sum as f32 * scale
}

/// Rounds half to even; exact for `|x| <= 2^22`, and free of library calls so that loops vectorize.
#[inline(always)]
pub fn round_half_even(x: f32) -> f32 {
    (x + MAGIC) - MAGIC
}

/// Adding 1.5 * 2^23 pushes the fraction out of the mantissa under the default rounding mode (nearest, ties to even), and
/// leaves the integer in its low bits, in two's complement.
const MAGIC: f32 = 12_582_912.0;

/// `round(clamp(x * multiplier))` as a code. Clamping first keeps the rounding in its exact range and changes no
/// result, because the limits are integers. A NaN becomes 0.
#[inline(always)]
fn to_code(x: f32, multiplier: f32, limit: f32) -> i8 {
    let clamped = (x * multiplier).clamp(-limit, limit);
    // The low byte is the code: loops over this vectorize, which a saturating conversion keeps them from.
    if clamped.is_nan() { 0 } else { (clamped + MAGIC).to_bits() as i8 }
}

/// At least the smallest mean or maximum that a scale is made of (the clamp of the official code), so that an all-zero matrix
/// or token has a positive scale. A NaN stays one, which `f32::max` would turn into a healthy scale.
#[inline(always)]
fn floored(size: f32) -> f32 {
    if size < SCALE_FLOOR { SCALE_FLOOR } else { size }
}

const SCALE_FLOOR: f32 = 1e-5;

/// Mean of `f(w)` in f64 over eight interleaved sums: one fixed order, whatever the machine.
fn mean_of(weights: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = weights.chunks_exact(8);
    for (lane, &w) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f64::from(f(w));
    }
    for chunk in chunks {
        for (lane, &w) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(f(w));
        }
    }
    lanes.iter().sum::<f64>() / weights.len().max(1) as f64
}

/// The largest magnitude; NaN if one of `x` is.
#[inline(always)]
fn abs_max(x: &[f32]) -> f32 {
    // Without the sign, floats are in the order of their bits, and every NaN is above infinity: a maximum of integers, of which
    // eight lanes let it vectorize, loses none.
    let mut lanes = [0i32; 8];
    let magnitude = |v: f32| (v.to_bits() & 0x7fff_ffff) as i32;
    let chunks = x.chunks_exact(8);
    for (lane, &v) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = (*lane).max(magnitude(v));
    }
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(magnitude(v));
        }
    }
    f32::from_bits(lanes.into_iter().fold(0, i32::max) as u32)
}

fn lookup<T: ?Sized>(
    name: &str,
    tables: &[&'static [&'static T]],
    name_of: fn(&T) -> &'static str,
) -> Result<Option<&'static T>, String> {
    if name == NONE {
        return Ok(None);
    }
    let all = || tables.iter().copied().flatten().copied();
    all().find(|scheme| name_of(scheme) == name).map(Some).ok_or_else(|| {
        let known: Vec<_> = all().map(name_of).collect();
        format!("is `{name}`, expected one of: {NONE}, {}", known.join(", "))
    })
}
