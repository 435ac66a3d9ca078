//! Batches of token windows, as a pure function of the seed and the step.

use anyhow::{Result, ensure};
use bitnet_model::rng::{Stream, generator};
use rand::RngCore;

use super::shards::Shard;

/// Inputs and the tokens that follow them, `[batch, seq]` row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Rows.
    pub batch_size: usize,
    /// Tokens of a row.
    pub sequence_length: usize,
    /// The tokens that are read, `[batch, seq]`.
    pub inputs: Vec<u32>,
    /// For each of them the token that comes next, `[batch, seq]`.
    pub targets: Vec<u32>,
}

/// Random windows of a shard.
///
/// The generator of [`Stream::Data`] is set to a place of its own for each `(step, micro)`, so batch
/// `(step, micro)` depends on the seed and these two numbers alone: a resumed run needs no saved
/// state, and it does not matter which thread or rank draws which batch.
#[derive(Debug, Clone)]
pub struct Batches {
    shard: Shard,
    batch_size: usize,
    sequence_length: usize,
    seed: u64,
}

impl Batches {
    /// Batches of `batch_size` rows of `sequence_length` tokens.
    ///
    /// # Errors
    ///
    /// A size of zero, more than 8,192 rows, a sequence that is longer than the shard.
    pub fn new(shard: Shard, batch_size: usize, sequence_length: usize, seed: u64) -> Result<Batches> {
        ensure!(
            (1..=MAX_ROWS).contains(&batch_size),
            "`train.batch_size`: a batch of {batch_size} sequences, expected 1 to {MAX_ROWS}; larger steps take \
             `train.gradient_accumulation`"
        );
        check_length(&shard, sequence_length)?;
        Ok(Batches { shard, batch_size, sequence_length, seed })
    }

    /// Batch number `micro` of step `step`. Ranks of a distributed run take different `micro`.
    ///
    /// # Panics
    ///
    /// If `micro` is not below 65,536 or `step` not below 2^36, where batches would repeat.
    pub fn batch(&self, step: u64, micro: u32) -> Batch {
        assert!(micro < MAX_MICRO && step < MAX_STEP, "step {step}, batch {micro}: beyond the stream of batches");
        let mut rng = generator(self.seed, Stream::Data);
        let place = u128::from(step) * u128::from(MAX_MICRO) + u128::from(micro);
        rng.set_word_pos(place * WORDS_PER_BATCH);
        let (rows, length) = (self.batch_size, self.sequence_length);
        // Offsets 0..=len - length - 1, so that the last target is a token of the shard.
        let offsets = (self.shard.len() - length) as u128;
        let mut inputs = Vec::with_capacity(rows * length);
        let mut targets = Vec::with_capacity(rows * length);
        let mut window = vec![0; length + 1];
        for _ in 0..rows {
            // The multiply-shift draw, stable whatever the `rand` crate does for ranges.
            let offset = (u128::from(rng.next_u64()) * offsets) >> 64;
            self.shard.read(offset as usize, &mut window);
            inputs.extend_from_slice(&window[..length]);
            targets.extend_from_slice(&window[1..]);
        }
        Batch { batch_size: rows, sequence_length: length, inputs, targets }
    }
}

/// The non-overlapping windows of a shard, each a batch of one row: `(len - 1) / sequence_length` of
/// them, window `i` with inputs `i * seq..(i + 1) * seq` and targets one further.
///
/// # Errors
///
/// A length of zero, or one that is longer than the shard.
pub fn windows(shard: &Shard, sequence_length: usize) -> Result<Windows> {
    check_length(shard, sequence_length)?;
    Ok(Windows { shard: shard.clone(), sequence_length, next: 0 })
}

/// The iterator of [`windows`].
#[derive(Debug, Clone)]
pub struct Windows {
    shard: Shard,
    sequence_length: usize,
    next: usize,
}

impl Iterator for Windows {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let length = self.sequence_length;
        if self.size_hint().0 == 0 {
            return None;
        }
        let window = self.shard.tokens(self.next * length, length + 1);
        self.next += 1;
        let (inputs, targets) = (window[..length].to_vec(), window[1..].to_vec());
        Some(Batch { batch_size: 1, sequence_length: length, inputs, targets })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.shard.len() - 1) / self.sequence_length - self.next;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Windows {}

fn check_length(shard: &Shard, sequence_length: usize) -> Result<()> {
    ensure!(sequence_length > 0, "`train.sequence_length`: a sequence must have at least 1 token");
    ensure!(
        sequence_length < shard.len(),
        "`train.sequence_length`: a sequence of {sequence_length} tokens needs {} tokens of data, but there are {}; \
         give more text or a shorter sequence",
        sequence_length.saturating_add(1),
        shard.len()
    );
    Ok(())
}

/// Words of the stream set aside for a batch; a row takes two.
const WORDS_PER_BATCH: u128 = 2 * MAX_ROWS as u128;
const MAX_ROWS: usize = 8192;
const MAX_MICRO: u32 = 1 << 16;
const MAX_STEP: u64 = 1 << 36;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::Encoder;
    use crate::data::progress::Stage;
    use crate::data::shards::ShardWriter;
    use crate::data::tokenizer::{TokenizerConfig, build};
    use proptest::prelude::*;

    /// A shard of `len` tokens, all different.
    fn counting(len: usize) -> Shard {
        let text: String = (0..len as u32).filter_map(|index| char::from_u32(0x4e00 + index)).collect();
        let built = build(&TokenizerConfig::Char {}, &|on| on(&text)).expect("builds");
        let encoder = Encoder::new(&built.json).expect("loads");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("shard");
        let stage = Stage::new("tokenizing", &|_| Ok(()));
        let mut writer = ShardWriter::create(&path, &encoder, built.vocab_size, None, &stage).expect("starts");
        writer.add(&text).expect("encodes");
        writer.finish(&[0; 32]).expect("finishes");
        Shard::open(&path, &[0; 32]).expect("opens")
    }

    #[test]
    fn targets_are_the_next_tokens_and_every_offset_occurs() {
        let batches = Batches::new(counting(20), 64, 8, 5).expect("fits");
        let mut starts = std::collections::BTreeSet::new();
        for step in 0..20 {
            let batch = batches.batch(step, 0);
            assert_eq!((batch.inputs.len(), batch.targets.len()), (64 * 8, 64 * 8));
            for row in batch.inputs.chunks(8) {
                starts.insert(row[0]);
                assert!(row.windows(2).all(|pair| pair[1] == pair[0] + 1));
            }
            assert!(batch.inputs.iter().zip(&batch.targets).all(|(input, target)| *target == input + 1));
        }
        assert_eq!(starts, (1..=12).collect(), "offsets 0 to 11 of 20 tokens, ids from 1 on");
    }

    #[test]
    fn a_batch_depends_on_seed_step_and_micro_alone() {
        let shard = counting(1000);
        let batches = |seed| Batches::new(shard.clone(), 4, 16, seed).expect("fits");
        let first = batches(1).batch(100, 2);
        let used = batches(1);
        for step in 0..5 {
            used.batch(step, 0);
        }
        assert_eq!(used.batch(100, 2), first);
        let elsewhere = std::thread::spawn(move || used.batch(100, 2)).join().expect("does not panic");
        assert_eq!(elsewhere, first);
        for other in [batches(2).batch(100, 2), batches(1).batch(101, 2), batches(1).batch(100, 3)] {
            assert_ne!(other, first);
        }
        // The largest places are places of their own.
        let last = batches(1);
        assert_ne!(last.batch(MAX_STEP - 1, MAX_MICRO - 1), last.batch(0, 0));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused_with_both_numbers() {
        let shard = counting(16);
        let error = Batches::new(shard.clone(), 1, 16, 0).expect_err("needs 17").to_string();
        assert!(error.contains("a sequence of 16 tokens needs 17") && error.contains("there are 16"), "{error}");
        assert!(windows(&shard, 16).is_err());
        for (batch_size, sequence_length, key) in [
            (1, 16, "train.sequence_length"),
            (1, 0, "train.sequence_length"),
            (0, 4, "train.batch_size"),
            (8193, 4, "train.batch_size"),
        ] {
            let error = Batches::new(shard.clone(), batch_size, sequence_length, 0).expect_err(key).to_string();
            assert!(error.starts_with(&format!("`{key}`: ")), "{error}");
        }
        assert_eq!(Batches::new(shard, 2, 15, 0).expect("fits exactly").batch(0, 0).inputs[..2], [1, 2]);
    }

    proptest! {
        #[test]
        fn windows_tile_the_shard(len in 2_usize..100, seq in 1_usize..40) {
            prop_assume!(seq < len);
            let shard = counting(len);
            let all: Vec<Batch> = windows(&shard, seq).expect("fits").collect();
            prop_assert_eq!(all.len(), (len - 1) / seq);
            prop_assert_eq!(windows(&shard, seq).expect("fits").len(), all.len());
            let inputs: Vec<u32> = all.iter().flat_map(|window| window.inputs.clone()).collect();
            let targets: Vec<u32> = all.iter().flat_map(|window| window.targets.clone()).collect();
            prop_assert_eq!(inputs, shard.tokens(0, all.len() * seq));
            prop_assert_eq!(targets, shard.tokens(1, all.len() * seq));
        }
    }
}
