//! The one source of randomness: a seed and a named stream.
//!
//! ChaCha8 is a counter-mode generator, so two streams of one seed never overlap, a position can be stored as one
//! integer, and the numbers are the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What random numbers are used for; each purpose draws from a stream of its own, so that using more numbers for
/// one purpose never changes another. A number that was ever given to a purpose is never given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Stream {
    /// Initial values of trainable parameters.
    Init = 1,
    /// Order and offsets of training data.
    Data = 2,
    /// Sampling of tokens during generation.
    Sampling = 3,
    /// Rounding up or down at random.
    Rounding = 4,
    /// The built-in stories.
    Stories = 5,
    /// Random weights and inputs of benchmarks.
    Bench = 6,
    /// Seeds and names of a server's requests.
    Serving = 7,
}

/// The generator for `stream` under `seed`, at its first position.
pub fn generator(seed: u64, stream: Stream) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::RngCore;

    #[test]
    fn streams_of_one_seed_differ_and_repeat() {
        let first = |seed, stream| generator(seed, stream).next_u64();
        assert_eq!(first(7, Stream::Init), first(7, Stream::Init));
        assert_ne!(first(7, Stream::Init), first(7, Stream::Data));
        assert_ne!(first(7, Stream::Init), first(8, Stream::Init));
    }
}
