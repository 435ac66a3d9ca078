//! AMX int8: a tile instruction multiplies 16 tokens by 16 rows in 64 columns. Few tokens run as in `avx512vbmi`.
//!
//! [`product`] has the pseudo-code. It is written once over [`super::tiles::Tiles`], for the tiles of the CPU and for emulated
//! ones: all but the instructions themselves is tested on any machine, as the row `amx-emulated` of the table.
//!
//! `tdpbsud` multiplies signed bytes of its first operand by unsigned ones of its second: activations by codes as they are
//! stored (`u`, up to 255 in int8).
//!
//! What the arithmetic allows (one core of the Sapphire Rapids class; cycles for 32 rows, 32 tokens and 64 columns, which is
//! 65536 products): 4 products take 16 each, **64**. Their operands are 2 KiB of weight codes from the first-level cache and
//! 2 KiB of activation codes from the second: 32 bytes a cycle of the 48 or so that it gives. Sums are stored, a row a cycle,
//! and loaded once in 8 such steps: up to **12**. Unpacking stores 32 vectors, one a cycle, for all tokens of a panel: **32**
//! for 32 tokens, **4** for 256. So at most 64 / 80 of the instruction's peak (3,150 G products a second) with 256
//! tokens and 64 / 108 with 32: 2,500 and 1,850. These are bounds by counting, not measurements.
//!
//! Overflow: `tdpbsud` adds four products of at most 128 * 255 to i32 sums, without saturation, and nothing narrower is ever
//! kept. The whole sum is bounded in [`super::layout`].

#[cfg(test)]
mod emulated;
mod product;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::Panel;

#[cfg(test)]
pub(super) use emulated::KERNEL as EMULATED;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::KERNEL;

/// The panel for `tokens` tokens, if tiles are worth while for them.
fn panel(tokens: usize) -> Option<Panel> {
    (tokens >= FEWEST_TOKENS).then_some(Panel { rows: PANEL_ROWS, tokens: PANEL_TOKENS, rows_a_thread: ROWS_A_THREAD })
}

/// The codes of a block, `BITS` bits each, as bytes; the compiler makes shifts and masks of whole vectors of it.
#[inline(always)]
fn unpack<const BITS: usize, const SLOTS: usize>(block: &[u8; 64], slots: &mut [[u8; 64]; SLOTS]) {
    let mask = ((1u16 << BITS) - 1) as u8;
    // By value: memory that might overlap would be read byte for byte.
    let block = *block;
    for (slot, codes) in slots.iter_mut().enumerate() {
        let mut u = block;
        u.iter_mut().for_each(|byte| *byte = *byte >> (slot * BITS) & mask);
        *codes = u;
    }
}

/// Tokens from which on tiles are faster than `dpbusd`. For 16 rows and 64 columns, 1024 weights, that multiplies for 8 to 16
/// cycles a token (one or two an instruction cycle); tiles unpack for 16, load 1 KiB for 8 and multiply for 1 a token, at least
/// 16 because a sum is ready for its next product after 52 cycles and four take turns. So they break even at 3 to 5 tokens, by
/// counting; 8 leaves room for what a call costs.
const FEWEST_TOKENS: usize = 8;

/// Rows of a panel: 5 times the 64 that are unpacked together. Activations that exceed a second-level cache are read again
/// for each panel, from the cache behind it: a byte for 320 products.
const PANEL_ROWS: usize = 320;

/// Tokens of a panel. Its sums (320 KiB) and a span of its activation codes (128 KiB) stay in a second-level cache of 1 MiB.
const PANEL_TOKENS: usize = 256;

/// Where a thread has fewer rows, threads share rows and split tokens instead: unpacking for 256 tokens is cheap.
const ROWS_A_THREAD: usize = 128;
