//! The float loop behind attention, compiled once for each width of vectors.
//!
//! There is one source, in safe Rust, and its sums have one order; wider vectors change how many columns are added at a
//! time, not what is added to what. So every width gives the same bits, and which one runs is a question of speed alone.

use crate::kernels::Kernel;

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

/// Columns of `out` that are summed together: they fit the vector registers of every width.
pub(super) const TILE: usize = 32;

impl Vectors {
    /// What goes with a kernel: the widest vectors, but plain code with the scalar kernel.
    pub(super) fn of(kernel: &Kernel) -> Self {
        let widest = Self::supported().pop().unwrap_or(Self(Width::Portable));
        if kernel.name == "scalar" { Self(Width::Portable) } else { widest }
    }

    /// Every width that runs here, narrowest first.
    fn supported() -> Vec<Self> {
        let mut found = vec![Self(Width::Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                found.push(Self(Width::Avx2));
            }
            if is_x86_feature_detected!("avx512f") {
                found.push(Self(Width::Avx512));
            }
        }
        found
    }

    /// `out += w[0] * x[0] + w[1] * x[1] + ..`, where row `i` of `x` is `out.len()` values from `i * stride` on.
    ///
    /// # Panics
    /// If `x` does not hold as many rows as `w` has weights.
    pub(super) fn add_weighted(self, out: &mut [f32], w: &[f32], x: &[f32], stride: usize) {
        match self.0 {
            Width::Portable => add_weighted(out, w, x, stride),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a value of this width exists only where `supported` found the instructions.
            Width::Avx2 => unsafe { add_weighted_avx2(out, w, x, stride) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Width::Avx512 => unsafe { add_weighted_avx512(out, w, x, stride) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_weighted_avx2(out: &mut [f32], w: &[f32], x: &[f32], stride: usize) {
    add_weighted(out, w, x, stride);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn add_weighted_avx512(out: &mut [f32], w: &[f32], x: &[f32], stride: usize) {
    add_weighted(out, w, x, stride);
}

#[inline(always)]
fn add_weighted(out: &mut [f32], w: &[f32], x: &[f32], stride: usize) {
    let mut tiles = out.chunks_exact_mut(TILE);
    let mut first_column = 0;
    for out in tiles.by_ref() {
        let out: &mut [f32; TILE] = out.try_into().expect("a chunk of TILE");
        add_tile(out, w, |row| x[row * stride + first_column..].first_chunk().expect("a whole row"));
        first_column += TILE;
    }
    let rest = tiles.into_remainder();
    if !rest.is_empty() {
        let mut tile = [0f32; TILE];
        tile[..rest.len()].copy_from_slice(rest);
        let mut rows = [[0f32; TILE]; 4];
        add_rest(&mut tile, w, &mut rows, |row| &x[row * stride + first_column..][..rest.len()]);
        rest.copy_from_slice(&tile[..rest.len()]);
    }
}

/// One tile of columns, four rows at a time: the sums stay in registers from the first row to the last.
#[inline(always)]
fn add_tile<'a>(out: &mut [f32; TILE], w: &[f32], row: impl Fn(usize) -> &'a [f32; TILE]) {
    let mut sums = *out;
    let quads = w.chunks_exact(4);
    let (done, rest) = (w.len() / 4 * 4, quads.remainder());
    for (quad, w) in quads.enumerate() {
        let (a, b, c, d) = (row(quad * 4), row(quad * 4 + 1), row(quad * 4 + 2), row(quad * 4 + 3));
        for i in 0..TILE {
            sums[i] += (w[0] * a[i] + w[1] * b[i]) + (w[2] * c[i] + w[3] * d[i]);
        }
    }
    for (i, w) in rest.iter().enumerate() {
        let a = row(done + i);
        for i in 0..TILE {
            sums[i] += w * a[i];
        }
    }
    *out = sums;
}

/// A last tile that is not whole: its rows are copied into whole ones.
#[inline(always)]
fn add_rest<'a>(out: &mut [f32; TILE], w: &[f32], rows: &mut [[f32; TILE]; 4], row: impl Fn(usize) -> &'a [f32]) {
    for (quad, w) in w.chunks(4).enumerate() {
        for (i, copy) in rows.iter_mut().take(w.len()).enumerate() {
            let row = row(quad * 4 + i);
            copy[..row.len()].copy_from_slice(row);
        }
        add_tile(out, w, |i| &rows[i]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_width_gives_the_same_bits(columns in 1usize..140, rows in 1usize..20, more in 0usize..9, seed in any::<u32>()) {
            let stride = columns + more;
            let value = |i: usize| ((i as f32 + seed as f32 * 1e-6) * 12.9898).sin();
            let x: Vec<f32> = (0..rows * stride).map(value).collect();
            let w: Vec<f32> = (0..rows).map(|i| value(i + 7)).collect();
            let start: Vec<f32> = (0..columns).map(|i| value(i + 3)).collect();
            let exact: Vec<f64> = (0..columns)
                .map(|c| f64::from(start[c]) + (0..rows).map(|r| f64::from(w[r]) * f64::from(x[r * stride + c])).sum::<f64>())
                .collect();
            let mut expected: Option<Vec<f32>> = None;
            for vectors in Vectors::supported() {
                let mut out = start.clone();
                vectors.add_weighted(&mut out, &w, &x, stride);
                prop_assert!(out.iter().zip(&exact).all(|(&a, &b)| (f64::from(a) - b).abs() < 1e-5));
                prop_assert!(expected.get_or_insert_with(|| out.clone()) == &out, "{:?}", vectors);
            }
        }
    }
}
