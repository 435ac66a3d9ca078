//! A left operand whose rows are contiguous in memory (a transpose), as rows of words.

use super::pack::{factor, pair};
use crate::ops::kernels::{multiversion, prefetch};

/// Rows and words that are turned together: a cache line of each.
pub(super) const SIDE: usize = 16;

multiversion! {
/// Number `k` of row `i` at `data[k * stride + i]`, times `factors[k]` if there are any: word `w` of row `i`, of numbers `2 w` and
/// `2 w + 1`, to `out[i * out_stride + w]`. Rows and words that whole squares of [`SIDE`] have beyond the last are 0.
pub fn rows_of_pairs(
    data: &[f32], stride: usize, rows: usize, ks: usize, factors: &[f32], out: &mut [u32], out_stride: usize,
) {
    for first in (0..ks).step_by(2 * SIDE) {
        // Rows in memory are far apart, which hardware does not foresee.
        for k in first + 2 * SIDE..ks.min(first + 4 * SIDE) {
            (0..rows).step_by(SIDE).for_each(|i| prefetch(data, k * stride + i));
        }
        for i in (0..rows).step_by(SIDE) {
            let out = &mut out[i * out_stride..];
            if ks - first >= 2 * SIDE && rows - i >= SIDE {
                let numbers = |k: usize| -> [f32; SIDE] {
                    let by = factor(factors, k);
                    data[k * stride + i..].first_chunk::<SIDE>().expect("whole rows").map(|x| x * by)
                };
                square(numbers, first, out, out_stride);
            } else {
                let numbers = |k: usize| -> [f32; SIDE] {
                    let number = |i| if k < ks && i < rows { data[k * stride + i] * factor(factors, k) } else { 0.0 };
                    std::array::from_fn(|j| number(i + j))
                };
                square(numbers, first, out, out_stride);
            }
        }
    }
}
}

/// Words `first / 2..` of some rows, from number `k` of each.
#[inline(always)]
fn square(numbers: impl Fn(usize) -> [f32; SIDE], first: usize, out: &mut [u32], out_stride: usize) {
    let mut words = [[0; SIDE]; SIDE];
    for (w, words) in words.iter_mut().enumerate() {
        let (low, high) = (numbers(first + 2 * w), numbers(first + 2 * w + 1));
        words.iter_mut().zip(low).zip(high).for_each(|((word, low), high)| *word = pair(low, high));
    }
    transpose(&mut words);
    for (i, words) in words.iter().enumerate() {
        out[i * out_stride + first / 2..][..SIDE].copy_from_slice(words);
    }
}

/// Four turns exchange `r` and `c` of an element's place, `r c`, four bits each.
#[inline(always)]
fn transpose(square: &mut [[u32; SIDE]; SIDE]) {
    let mut other = [[0; SIDE]; SIDE];
    turn(square, &mut other);
    turn(&other, square);
    turn(square, &mut other);
    turn(&other, square);
}

/// Turns the eight bits of each element's place by one, which takes shuffles of two vectors.
#[inline(always)]
fn turn(from: &[[u32; SIDE]; SIDE], to: &mut [[u32; SIDE]; SIDE]) {
    const HALF: usize = SIDE / 2;
    for row in 0..HALF {
        let (a, b) = (&from[row], &from[row + HALF]);
        for i in 0..HALF {
            (to[2 * row][2 * i], to[2 * row][2 * i + 1]) = (a[i], b[i]);
            (to[2 * row + 1][2 * i], to[2 * row + 1][2 * i + 1]) = (a[HALF + i], b[HALF + i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_transposed() {
        let mut square = std::array::from_fn(|r| std::array::from_fn(|c| (r * SIDE + c) as u32));
        let expected: [[u32; SIDE]; SIDE] = std::array::from_fn(|r| std::array::from_fn(|c| (c * SIDE + r) as u32));
        transpose(&mut square);
        assert_eq!(square, expected);
    }

    #[test]
    fn rows_and_words_beyond_the_last_are_zero() {
        for [rows, ks, factors] in [[16usize, 32usize, 0], [17, 33, 1], [5, 70, 70], [40, 3, 3]] {
            let (stride, words) = (rows + 3, ks.div_ceil(2));
            let out_stride = words.next_multiple_of(SIDE) + SIDE;
            // Exact in bf16, as are their halves.
            let data: Vec<f32> = (0..ks * stride).map(|i| (i % 253) as f32).collect();
            let factors = &vec![0.5; factors][..];
            let by = if factors.is_empty() { 1.0 } else { 0.5 };
            let mut out = vec![7; rows.next_multiple_of(SIDE) * out_stride];
            rows_of_pairs(&data, stride, rows, ks, factors, &mut out, out_stride);
            for (i, row) in out.chunks(out_stride).enumerate() {
                let number = |k: usize| if i < rows && k < ks { data[k * stride + i] * by } else { 0.0 };
                for (w, &word) in row[..words.next_multiple_of(SIDE)].iter().enumerate() {
                    assert_eq!(word, pair(number(2 * w), number(2 * w + 1)), "{rows} x {ks}, row {i}, word {w}");
                }
                assert_eq!(row[words.next_multiple_of(SIDE)..], [7; SIDE], "beyond the squares");
            }
        }
    }
}
