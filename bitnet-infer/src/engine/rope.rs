//! Rotary positions from a table that is filled as positions are reached.

use std::sync::OnceLock;

use bitnet_model::ModelConfig;

use super::kernels::Vectors;

/// Positions that are computed at once.
const BLOCK: usize = 64;

/// Of the pairs at each of [`BLOCK`] positions the cosines, then the sines.
type Angles = Box<[f32]>;

/// Cosines and sines of every pair at every position, each computed once, at its first use.
pub(super) struct RopeTable {
    blocks: Vec<OnceLock<Angles>>,
    head_dim: usize,
    frequencies: Vec<f32>,
}

impl RopeTable {
    pub(super) fn new(config: &ModelConfig) -> Self {
        let blocks = config.max_position_embeddings.div_ceil(BLOCK);
        Self {
            blocks: (0..blocks).map(|_| OnceLock::new()).collect(),
            head_dim: config.head_dim,
            frequencies: (0..config.head_dim / 2).map(|pair| config.rope_frequency(pair)).collect(),
        }
    }

    /// By how much a pair turns from one position to the next, in radians.
    pub(super) fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Rotates all heads of one token's vector in place (the same arithmetic as [`bitnet_model::reference::rope`]).
    ///
    /// # Panics
    /// If `position` is beyond the model's longest, which no cache allows.
    pub(super) fn rotate(&self, vectors: Vectors, x: &mut [f32], position: usize) {
        let block = self.blocks[position / BLOCK].get_or_init(|| self.block(position / BLOCK * BLOCK));
        let (cos, sin) = block[position % BLOCK * self.head_dim..][..self.head_dim].split_at(self.head_dim / 2);
        for head in x.chunks_exact_mut(self.head_dim) {
            vectors.rotate_head(head, cos, sin);
        }
    }

    fn block(&self, start: usize) -> Angles {
        let mut angles = Vec::with_capacity(BLOCK * self.head_dim);
        for position in start..start + BLOCK {
            let angle = |frequency: &f32| f64::from(position as f32 * frequency);
            angles.extend(self.frequencies.iter().map(|frequency| angle(frequency).cos() as f32));
            angles.extend(self.frequencies.iter().map(|frequency| angle(frequency).sin() as f32));
        }
        angles.into()
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
            let start: Vec<f32> = (0..config.query_size()).map(|i| (i as f32).sin()).collect();
            let mut expected = start.clone();
            bitnet_model::reference::rope(&mut expected, config.num_attention_heads, &config, position);
            for vectors in Vectors::supported() {
                let mut x = start.clone();
                table.rotate(vectors, &mut x, position);
                assert_eq!(x, expected, "position {position}, {vectors:?}");
            }
        }
    }
}
