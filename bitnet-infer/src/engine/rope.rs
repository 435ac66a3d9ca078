//! Rotary positions from a table that is filled as positions are reached.

use std::sync::OnceLock;

use bitnet_model::ModelConfig;
use bitnet_model::reference::rope_angle;

/// Positions that are computed at once.
const BLOCK: usize = 64;

/// Cosines and sines of the pairs at [`BLOCK`] positions.
type Angles = Box<[(f32, f32)]>;

/// Cosines and sines of every pair at every position, each computed once, at its first use.
pub(super) struct RopeTable {
    blocks: Vec<OnceLock<Angles>>,
    head_dim: usize,
    theta: f32,
}

impl RopeTable {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let blocks = config.max_position_embeddings.div_ceil(BLOCK);
        Self {
            blocks: (0..blocks).map(|_| OnceLock::new()).collect(),
            head_dim: config.head_dim,
            theta: config.rope_theta,
        }
    }

    /// Rotates all heads of one token's vector in place (the same arithmetic as [`bitnet_model::reference::rope`]).
    ///
    /// # Panics
    /// If `position` is beyond the model's longest, which no cache allows.
    pub(super) fn rotate(&self, x: &mut [f32], position: usize) {
        let half = self.head_dim / 2;
        let block = self.blocks[position / BLOCK].get_or_init(|| self.block(position / BLOCK * BLOCK));
        let angles = &block[position % BLOCK * half..][..half];
        for head in x.chunks_exact_mut(self.head_dim) {
            let (first, second) = head.split_at_mut(half);
            for ((a, b), &(cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }

    fn block(&self, start: usize) -> Angles {
        let pairs =
            (start..start + BLOCK).flat_map(|position| (0..self.head_dim / 2).map(move |pair| (position, pair)));
        pairs
            .map(|(position, pair)| rope_angle(position, pair, self.head_dim, self.theta))
            .map(|angle| (angle.cos() as f32, angle.sin() as f32))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::random::RandomModel;

    #[test]
    fn the_table_rotates_as_the_reference_does_to_the_bit() {
        let config = RandomModel::named("tiny").expect("known").config;
        let table = RopeTable::new(&config);
        for position in [0, 1, 63, 64, 200] {
            let mut x: Vec<f32> = (0..config.query_size()).map(|i| (i as f32).sin()).collect();
            let mut expected = x.clone();
            table.rotate(&mut x, position);
            let (heads, d) = (config.num_attention_heads, config.head_dim);
            bitnet_model::reference::rope(&mut expected, heads, d, config.rope_theta, position);
            assert_eq!(x, expected, "position {position}");
        }
    }
}
