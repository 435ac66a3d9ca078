//! What a CPU's multiply-adds give when nothing has to be loaded or stored.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::TileKernel;

/// Operations a second that all threads of the current pool reach together with the instruction of `kernel` on registers:
/// the peak that products are measured against.
///
/// # Panics
/// If this CPU does not run `kernel`.
pub fn peak(kernel: &'static TileKernel) -> f64 {
    assert!((kernel.supported)(), "kernel `{}` on a CPU without its instructions", kernel.name);
    let threads = rayon::current_num_threads();
    let time = || {
        let start = Instant::now();
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            // SAFETY: the CPU has just been found to have the instructions, and a product under way calls nothing that waits
            // for other work, so this thread is within none.
            black_box(unsafe { (kernel.registers)(black_box(ROUNDS)) });
        });
        start.elapsed().as_secs_f64()
    };
    let operations = 2 * threads * ROUNDS * kernel.products_per_round;
    operations as f64 / (0..TRIES).map(|_| time()).fold(f64::MAX, f64::min)
}

/// Some milliseconds: waking threads counts for nothing.
const ROUNDS: usize = 4_000_000;

/// The fastest counts: others were interrupted.
const TRIES: usize = 5;
