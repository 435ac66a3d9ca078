//! Random choices of the story generator.
//!
//! Drawn straight from the words of the ChaCha stream, so that a story does not change when the
//! `rand` crate changes how it draws ranges.

use bitnet_model::rng::{Stream, generator};
use rand::RngCore;
use rand_chacha::ChaCha8Rng;

/// The choices of one story.
#[derive(Debug)]
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    /// The dice of story `index` of half `half` (0 or 1) under `seed`.
    ///
    /// Each story owns [`WORDS_PER_STORY`] words of the one stream, so it depends on nothing drawn for another.
    pub(super) fn new(seed: u64, half: u64, index: u64) -> Dice {
        let mut rng = generator(seed, Stream::Stories);
        let position = (u128::from(half) << 63) + u128::from(index % MAX_STORIES) * WORDS_PER_STORY;
        rng.set_word_pos(position);
        Dice(rng)
    }

    /// A uniform number in `0..n`; `n` must not be 0.
    pub(super) fn below(&mut self, n: usize) -> usize {
        // The multiply-shift draw: its bias is n / 2^32, far below what a story shows.
        ((u64::from(self.0.next_u32()) * n as u64) >> 32) as usize
    }

    /// One of `items`, which must not be empty.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// True in `percent` of 100 cases.
    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Words of the stream set aside for a story; one uses a few hundred.
const WORDS_PER_STORY: u128 = 1 << 15;

/// So many stories have a place of their own in one half of the stream.
const MAX_STORIES: u64 = 1 << 48;
