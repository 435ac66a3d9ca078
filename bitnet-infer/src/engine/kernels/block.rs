//! Attention of some queries to one block of keys, by the running softmax of arXiv:2205.14135: of each query are kept the
//! largest score so far, the sum of exponentials relative to it, and the values weighted by these.

use super::exp::exp;
use super::product::{Product, add_product};
use super::{BLOCK, LANES};

/// Queries of successive tokens, each with the `group` heads that share one key and value head.
pub(in crate::engine) struct RowSpan<'a> {
    /// `[tokens * group, d]`, scaled by `1 / sqrt(d)`.
    pub queries: &'a [f32],
    /// Width of a head.
    pub head_dim: usize,
    /// Queries of one token.
    pub group: usize,
    /// Position of the first token.
    pub start: usize,
}

/// Keys and values of one head at [`BLOCK`] positions.
pub(in crate::engine) struct KeyBlock<'a> {
    /// `[d, BLOCK]`.
    pub keys: &'a [f32],
    /// `[BLOCK, width]`, `width` being `d` rounded up to [`LANES`].
    pub values: &'a [f32],
    /// Position of the first.
    pub start: usize,
}

/// What queries have taken so far from the keys they have seen.
pub(in crate::engine) struct Mix {
    /// Largest score of each query; minus infinity before it has seen a key.
    largest: Vec<f32>,
    /// Sum of `e^(score - largest)` of each query.
    total: Vec<f32>,
    /// Values weighted by `e^(score - largest)`, `[queries, width]`.
    mixed: Vec<f32>,
    width: usize,
}

impl Mix {
    /// Nothing seen yet; `head_dim` is the width of a value.
    pub fn new(queries: usize, head_dim: usize) -> Self {
        let width = head_dim.next_multiple_of(LANES);
        Self {
            largest: vec![f32::NEG_INFINITY; queries],
            total: vec![0.0; queries],
            mixed: vec![0.0; queries * width],
            width,
        }
    }

    /// Back to nothing seen.
    pub fn clear(&mut self) {
        self.largest.fill(f32::NEG_INFINITY);
        self.total.fill(0.0);
        self.mixed.fill(0.0);
    }

    /// The attention's output, `[queries, head_dim]`, into `out`.
    pub fn finish(&self, head_dim: usize, out: &mut [f32]) {
        let rows = out.chunks_exact_mut(head_dim).zip(self.mixed.chunks_exact(self.width)).zip(&self.total);
        for ((out, mixed), total) in rows {
            let inverse = 1.0 / total;
            out.iter_mut().zip(mixed).for_each(|(out, mixed)| *out = mixed * inverse);
        }
    }
}

/// Queries whose scores lie in the first-level cache together.
const ROWS: usize = 24;

/// Lets every query see those keys of the block that are not behind its own position.
#[inline(always)]
pub(super) fn see(rows: &RowSpan, block: &KeyBlock, mix: &mut Mix) {
    let (d, width) = (rows.head_dim, mix.width);
    let count = mix.total.len();
    let visible = |row: usize| (rows.start + row / rows.group + 1).saturating_sub(block.start).min(BLOCK);
    let mut scores = [[0f32; BLOCK]; ROWS];
    let mut first = 0;
    while first < count {
        let last = count.min(first + ROWS);
        // Later queries see more: if the last one sees nothing here, none does.
        let seen = visible(last - 1);
        if seen > 0 {
            let scores = &mut scores[..last - first];
            scores.iter_mut().for_each(|scores| *scores = [0.0; BLOCK]);
            let queries = &rows.queries[first * d..last * d];
            let product = Product { a: queries, a_stride: d, b: block.keys, k: d, n: BLOCK };
            add_product(&product, scores.as_flattened_mut());
            let mixed = &mut mix.mixed[first * width..last * width];
            for (i, (scores, mixed)) in scores.iter_mut().zip(mixed.chunks_exact_mut(width)).enumerate() {
                let (largest, total) = (&mut mix.largest[first + i], &mut mix.total[first + i]);
                weigh(scores, visible(first + i), largest, total, mixed);
            }
            let product = Product { a: scores.as_flattened(), a_stride: BLOCK, b: block.values, k: seen, n: width };
            add_product(&product, mixed);
        }
        first = last;
    }
}

/// Turns one query's scores into weights relative to the largest score so far, and what was mixed before likewise.
#[inline(always)]
fn weigh(scores: &mut [f32; BLOCK], visible: usize, largest: &mut f32, total: &mut f32, mixed: &mut [f32]) {
    if visible == 0 {
        *scores = [0.0; BLOCK];
        return;
    }
    if visible < BLOCK {
        scores[visible..].fill(f32::NEG_INFINITY);
    }
    let mut maxima = [f32::NEG_INFINITY; LANES];
    for chunk in scores.chunks_exact(LANES) {
        for lane in 0..LANES {
            maxima[lane] = larger(chunk[lane], maxima[lane]);
        }
    }
    let new_largest = larger(reduce(maxima, larger), *largest);
    let mut sums = [0f32; LANES];
    for chunk in scores.chunks_exact_mut(LANES) {
        for lane in 0..LANES {
            chunk[lane] = exp(chunk[lane] - new_largest);
            sums[lane] += chunk[lane];
        }
    }
    if new_largest > *largest {
        let fade = exp(*largest - new_largest);
        *total *= fade;
        mixed.iter_mut().for_each(|mixed| *mixed *= fade);
        *largest = new_largest;
    }
    *total += reduce(sums, std::ops::Add::add);
}

/// All lanes into one, half of them at a time.
#[inline(always)]
fn reduce(mut lanes: [f32; LANES], with: fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] = with(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}

/// The larger; `b` if `a` is NaN. ([`f32::max`] asks about both, which takes three instructions.)
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Adds `later` to `mix`, both relative to the larger of their largest scores.
#[inline(always)]
pub(super) fn merge(mix: &mut Mix, later: &Mix) {
    let width = mix.width;
    for (row, mixed) in mix.mixed.chunks_exact_mut(width).enumerate() {
        let (own, other) = (mix.largest[row], later.largest[row]);
        if other == f32::NEG_INFINITY {
            continue;
        }
        let largest = own.max(other);
        let (own_fade, other_fade) = (exp(own - largest), exp(other - largest));
        mix.largest[row] = largest;
        mix.total[row] = mix.total[row] * own_fade + later.total[row] * other_fade;
        for (mixed, later) in mixed.iter_mut().zip(&later.mixed[row * width..]) {
            *mixed = *mixed * own_fade + later * other_fade;
        }
    }
}
