//! The float loops of the engine, compiled once for each width of vectors.
//!
//! There is one source, in safe Rust, and the order of every sum is fixed by it; wider vectors change how many sums run
//! at a time, not what is added to what. Where a product is added, it is added by [`f32::mul_add`], which rounds once
//! everywhere. So every width gives the same bits, and which one runs is a question of speed alone. Without the
//! instruction (the scalar kernel, or x86-64 before 2013) `mul_add` is a library call and slow: what runs there is for
//! comparison.

mod block;
mod exp;
mod product;
mod rows;

pub(super) use block::{KeyBlock, Mix, RowSpan};

use half::f16;

use crate::kernels::Kernel;

/// Positions that attention looks at together, from a multiple of itself on.
pub(super) const BLOCK: usize = 64;

/// Widths of rows in attention are multiples of this many floats: one vector of the widest kind.
pub(super) const LANES: usize = 16;

/// The width of vectors that this CPU runs.
///
/// Invariant: a value other than `Portable` exists only on a CPU that has the instructions: [`Vectors::of`] has looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vectors(Width);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    /// Whatever every CPU of the architecture has.
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Vectors {
    /// What goes with a kernel: the widest vectors, but plain code with the scalar kernel.
    pub(super) fn of(kernel: &Kernel) -> Self {
        let widest = Self::supported().pop().unwrap_or(Self(Width::Portable));
        if kernel.name == "scalar" { Self(Width::Portable) } else { widest }
    }

    /// Every width that runs here, narrowest first.
    pub(super) fn supported() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
        let mut found = vec![Self(Width::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Self(Width::Avx2));
                if is_x86_feature_detected!("avx512f") {
                    found.push(Self(Width::Avx512));
                }
            }
        }
        found
    }
}

/// Defines a method of [`Vectors`] for each line, which calls the function of the line as compiled for that width.
macro_rules! each_width {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) = $source:path;)*) => {
        impl Vectors {
            $(
                $(#[$doc])*
                pub(super) fn $name(self, $($argument: $type),*) {
                    #[cfg(target_arch = "x86_64")]
                    #[target_feature(enable = "avx2,fma")]
                    fn avx2($($argument: $type),*) {
                        $source($($argument),*)
                    }
                    #[cfg(target_arch = "x86_64")]
                    #[target_feature(enable = "avx512f,avx2,fma")]
                    fn avx512($($argument: $type),*) {
                        $source($($argument),*)
                    }
                    match self.0 {
                        Width::Portable => $source($($argument),*),
                        #[cfg(target_arch = "x86_64")]
                        // SAFETY: a value of this width exists only where `supported` found the instructions.
                        Width::Avx2 => unsafe { avx2($($argument),*) },
                        #[cfg(target_arch = "x86_64")]
                        // SAFETY: as above.
                        Width::Avx512 => unsafe { avx512($($argument),*) },
                    }
                }
            )*
        }
    };
}

each_width! {
    /// Lets the queries of `rows` see one block of keys and values, and adds what they take from it to `mix`.
    see_block(rows: &RowSpan, block: &KeyBlock, mix: &mut Mix) = block::see;
    /// Adds what the same queries took from later keys.
    merge(mix: &mut Mix, later: &Mix) = block::merge;
    /// f16 numbers, none of them infinite or NaN, as f32.
    widen_f16(narrow: &[f16], wide: &mut [f32]) = rows::widen_f16;
    /// Codes `[element, position]` times the step of each position, as f32.
    widen_int8_columns(codes: &[i8], steps: &[f32], wide: &mut [f32]) = rows::widen_int8_columns;
    /// Codes `[position, element]` times the step of each position, as f32.
    widen_int8_rows(codes: &[i8], steps: &[f32], wide: &mut [f32]) = rows::widen_int8_rows;
    /// One row of [`super::math::rms_norm`].
    rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rows::rms_norm;
    /// The same where it stands.
    rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) = rows::rms_norm_in_place;
    /// `gate = max(gate, 0)^2 * up`.
    gated_relu2(gate: &mut [f32], up: &[f32]) = rows::gated_relu2;
    /// `x += y`.
    add(x: &mut [f32], y: &[f32]) = rows::add;
    /// Rotates the pairs of one head, `x[i]` with `x[i + half]`, by angles of these cosines and sines.
    rotate_head(x: &mut [f32], cos: &[f32], sin: &[f32]) = rows::rotate_head;
}

#[cfg(test)]
each_width! {
    /// The exponential of every number.
    exp(x: &mut [f32]) = exp::exp_all;
    /// `c += a b`.
    add_product(product: &product::Product, c: &mut [f32]) = product::add_product;
}

#[cfg(test)]
mod tests;
