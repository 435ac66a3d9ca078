//! The rows of an embedding that a batch reads, and the gradient of the embedding.

use rayon::prelude::*;

use super::rows::ROWS;
use crate::ops::kernels::product::Output;

/// The row of each of `tokens` in `embedding`, `[vocabulary, h]`, one after the other.
pub(super) fn gather(embedding: &[f32], h: usize, tokens: &[u32], out: &mut [f32]) {
    let row = |&token: &u32| &embedding[token as usize * h..][..h];
    let tasks = out.par_chunks_mut(h).zip(tokens).with_min_len(ROWS);
    tasks.for_each(|(out, token)| out.copy_from_slice(row(token)));
}

/// The positions of a batch by token; the memory is used again from step to step.
#[derive(Default)]
pub(super) struct Scatter {
    /// Where the positions of each token begin, and the end of the last ones.
    starts: Vec<usize>,
    /// Positions, ascending for each token.
    positions: Vec<usize>,
}

impl Scatter {
    /// Writes or adds `d`, a row of `h` numbers for each of `tokens`, to the rows of those tokens in `out`.
    ///
    /// A token's rows are added in the order of its positions, by one thread, so sums are those of a plain loop.
    pub(super) fn add(&mut self, d: &[f32], h: usize, tokens: &[u32], out: &mut [f32], output: Output) {
        self.sort(tokens, out.len() / h);
        let Self { starts, positions } = &*self;
        out.par_chunks_mut(h).enumerate().with_min_len(ROWS).for_each(|(token, out)| {
            if output == Output::Replace {
                out.fill(0.0);
            }
            for &position in &positions[starts[token]..starts[token + 1]] {
                out.iter_mut().zip(&d[position * h..][..h]).for_each(|(sum, d)| *sum += d);
            }
        });
    }

    /// A counting sort.
    fn sort(&mut self, tokens: &[u32], vocabulary: usize) {
        let Self { starts, positions } = self;
        // One place further on, so that filling in moves each start to where it belongs.
        starts.clear();
        starts.resize(vocabulary + 2, 0);
        tokens.iter().for_each(|&token| starts[token as usize + 2] += 1);
        for token in 2..starts.len() {
            starts[token] += starts[token - 1];
        }
        positions.clear();
        positions.resize(tokens.len(), 0);
        for (position, &token) in tokens.iter().enumerate() {
            let next = &mut starts[token as usize + 1];
            positions[*next] = position;
            *next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens that repeat, are missing, and lie at both ends of the vocabulary.
    #[test]
    fn rows_are_read_and_summed_as_by_a_plain_loop_on_any_number_of_threads() {
        const H: usize = 5;
        let mut scatter = Scatter::default();
        for (vocabulary, count) in [(1u32, 1usize), (3, 40), (700, 300), (700, 5000)] {
            let mut tokens: Vec<u32> =
                (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 9) % vocabulary / 2 * 2).collect();
            tokens[count - 1] = vocabulary - 1;
            let numbers = |len: usize, seed: usize| -> Vec<f32> {
                (0..len).map(|i| ((i * i + seed) as f32 * 0.37).sin() * 10f32.powi((i % 7) as i32 - 3)).collect()
            };
            let d = numbers(count * H, 1);
            let before = numbers(vocabulary as usize * H, 2);
            for output in [Output::Replace, Output::Add] {
                let mut expected = if output == Output::Add { before.clone() } else { vec![0.0; before.len()] };
                let mut read = Vec::new();
                for (position, &token) in tokens.iter().enumerate() {
                    let at = token as usize * H;
                    read.extend_from_slice(&before[at..at + H]);
                    (0..H).for_each(|i| expected[at + i] += d[position * H + i]);
                }
                for threads in [1, 5] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
                    let (mut sums, mut rows) = (before.clone(), vec![0.0; count * H]);
                    pool.install(|| {
                        scatter.add(&d, H, &tokens, &mut sums, output);
                        gather(&before, H, &tokens, &mut rows);
                    });
                    assert!(sums == expected && rows == read, "{vocabulary}, {count}, {threads} threads");
                }
            }
        }
    }
}
