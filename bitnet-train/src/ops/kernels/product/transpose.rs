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
            let width = SIDE.min(rows - i);
            let numbers = |k: usize| -> [f32; SIDE] {
                if k >= ks {
                    return [0.0; SIDE];
                }
                let from = &data[k * stride + i..][..width];
                let by = factor(factors, k);
                match from.try_into() {
                    Ok(all) => <[f32; SIDE]>::map(all, |x| x * by),
                    Err(_) => std::array::from_fn(|i| from.get(i).map_or(0.0, |x| x * by)),
                }
            };
            let mut square = [[0; SIDE]; SIDE];
            for (w, words) in square.iter_mut().enumerate() {
                let (low, high) = (numbers(first + 2 * w), numbers(first + 2 * w + 1));
                *words = std::array::from_fn(|i| pair(low[i], high[i]));
            }
            for (out, words) in out[i * out_stride..].chunks_mut(out_stride).zip(transposed(square)) {
                out[first / 2..][..SIDE].copy_from_slice(&words);
            }
        }
    }
}
}

/// Each round takes element `r c` (four bits each) to where the eight bits, turned by one, say; so four exchange `r` and `c`.
/// A round is shuffles of two vectors.
#[inline(always)]
fn transposed(mut square: [[u32; SIDE]; SIDE]) -> [[u32; SIDE]; SIDE] {
    const HALF: usize = SIDE / 2;
    for _ in 0..SIDE.ilog2() {
        let before = square;
        for row in 0..HALF {
            let (a, b) = (before[row], before[row + HALF]);
            square[2 * row] = std::array::from_fn(|i| if i % 2 == 0 { a[i / 2] } else { b[i / 2] });
            square[2 * row + 1] = std::array::from_fn(|i| if i % 2 == 0 { a[HALF + i / 2] } else { b[HALF + i / 2] });
        }
    }
    square
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_transposed() {
        let square = std::array::from_fn(|r| std::array::from_fn(|c| (r * SIDE + c) as u32));
        let expected: [[u32; SIDE]; SIDE] = std::array::from_fn(|r| std::array::from_fn(|c| (c * SIDE + r) as u32));
        assert_eq!(transposed(square), expected);
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
