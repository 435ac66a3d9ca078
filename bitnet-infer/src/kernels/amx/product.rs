//! A product of packed codes with many tokens, tile by tile.
//!
//! ```text
//! for each BAND of 64 rows (or, if the activations exceed a cache: of all rows, inside of the next loop)
//!     for each span of up to 512 columns:
//!         b = the codes of the span, a byte each                                (once for all tokens; 32 KiB)
//!         for each two groups of 16 rows; for each 32 tokens:
//!             sums[2][2] = out, or 0 in the first span
//!             for each 64 columns:
//!                 a[2] = activation codes, 16 tokens x 64 columns;  b[2] = weight codes, 16 rows x 64 columns
//!                 sums[i][j] += a[i] b[j]                                       (16384 products an instruction)
//!             out = sums
//!         the last 1 to 16 tokens, if the rest of a division by 32 leaves so few: for each four groups, sums[1][4]
//! ```
//!
//! An unpacked slot of a block (see [`super::super::layout`]) is a row of `b`: four columns of 16 rows. 16 slots make a tile,
//! and what the last tile of a row lacks is zeros. The rows of `a` lie in the activations as they are, `stride` apart. Tokens
//! that do not exist are left out by tiles of fewer rows.

use super::super::layout::Job;
use super::super::tiles::{Config, ROW_BYTES, ROWS, Tiles};

/// `raw` of every token and row of a job, `[tokens, rows]`; `unpack` writes the codes of a block, slot by slot, as bytes.
///
/// # Panics
/// If the job's groups have other than 16 rows, or the activations are not padded to whole tiles.
#[inline(always)]
pub(super) fn sums<T: Tiles, const SLOTS: usize>(
    tiles: &mut T,
    job: &Job<'_, i8>,
    out: &mut [i32],
    unpack: impl Fn(&[u8; ROW_BYTES], &mut [[u8; ROW_BYTES]; SLOTS]),
) {
    assert!(job.lanes == ROW_BYTES && job.kind.slots() == SLOTS, "{:?} in lanes of {} bytes", job.kind, job.lanes);
    assert!(job.stride.is_multiple_of(ROW_BYTES), "tokens of whole tiles");
    if job.blocks == 0 {
        return out.fill(0);
    }
    let (groups, group_bytes) = (job.rows / ROWS, job.blocks * ROW_BYTES);
    let span_blocks = span_blocks::<SLOTS>(job.blocks);
    let band = if job.x.len() <= CACHED_CODES { BAND_GROUPS } else { groups };
    let mut codes = Codes([[[0; ROW_BYTES]; SPAN_SLOTS]; BAND_GROUPS]);
    let mut shapes = None;
    for band in (0..groups).step_by(band).map(|first| first..groups.min(first + band)) {
        for start in (0..job.blocks).step_by(span_blocks) {
            let blocks = span_blocks.min(job.blocks - start);
            for first in band.clone().step_by(BAND_GROUPS) {
                let part = BAND_GROUPS.min(band.end - first);
                for (group, codes) in codes.0[..part].iter_mut().enumerate() {
                    let bytes =
                        &job.bytes[(first + group) * group_bytes..][..group_bytes].as_chunks().0[start..][..blocks];
                    for (bytes, codes) in bytes.iter().zip(codes.as_chunks_mut().0) {
                        unpack(bytes, codes);
                    }
                    let end = (blocks * SLOTS).next_multiple_of(ROWS);
                    codes[blocks * SLOTS..end].fill([0; ROW_BYTES]);
                }
                let span = Span {
                    x: &job.x[start * SLOTS * 4..],
                    stride: job.stride,
                    steps: (blocks * SLOTS).div_ceil(ROWS),
                    is_first: start == 0,
                    width: job.rows,
                };
                let tokens = job.x.len() / job.stride;
                multiply(tiles, &mut shapes, &span, tokens, &codes.0[..part], &mut out[first * ROWS..]);
            }
        }
    }
}

/// Some columns of all tokens, and where their sums stand.
struct Span<'a> {
    /// From the first column of the span in the first token on.
    x: &'a [i8],
    stride: usize,
    /// Tiles to a row.
    steps: usize,
    /// The sums begin with this span.
    is_first: bool,
    /// From one token's sums to the next.
    width: usize,
}

/// Adds the products of a span for some groups of rows to `out`, or begins the sums there. The same code for all kinds.
#[inline(never)]
fn multiply<T: Tiles>(
    tiles: &mut T,
    shapes: &mut Option<usize>,
    span: &Span<'_>,
    tokens: usize,
    codes: &[[[u8; ROW_BYTES]; SPAN_SLOTS]],
    out: &mut [i32],
) {
    let mut shape = |tiles: &mut T, tokens: usize| {
        // Also zeroes the tiles, and takes as long as some products.
        if *shapes != Some(tokens) {
            tiles.configure(&config(tokens));
            *shapes = Some(tokens);
        }
    };
    let rest = tokens % (2 * ROWS);
    // More than one tile of tokens can use two of them.
    let few = if rest <= ROWS { rest } else { 0 };
    for (pair, codes) in codes.chunks(2).enumerate() {
        for first in (0..tokens - few).step_by(2 * ROWS) {
            shape(tiles, (tokens - first).min(2 * ROWS));
            let (x, out) = (&span.x[first * span.stride..], &mut out[first * span.width + pair * 2 * ROWS..]);
            match codes {
                [b_0, b_1] => four_tiles::<T, 2>(tiles, span, x, [b_0, b_1], out),
                [b_0, ..] => four_tiles::<T, 1>(tiles, span, x, [b_0, b_0], out),
                [] => {}
            }
        }
    }
    if few > 0 {
        let first = tokens - few;
        shape(tiles, few);
        let (x, out) = (&span.x[first * span.stride..], &mut out[first * span.width..]);
        match codes {
            [b_0, b_1, b_2, b_3, ..] => row_of_tiles::<T, 4>(tiles, span, x, [b_0, b_1, b_2, b_3], out),
            [b_0, b_1, b_2] => row_of_tiles::<T, 3>(tiles, span, x, [b_0, b_1, b_2, b_2], out),
            [b_0, b_1] => row_of_tiles::<T, 2>(tiles, span, x, [b_0, b_1, b_1, b_1], out),
            [b_0] => row_of_tiles::<T, 1>(tiles, span, x, [b_0; 4], out),
            [] => {}
        }
    }
}

/// Shapes for 1 to 32 tokens: [`row_of_tiles`] for up to 16, [`four_tiles`] for more.
fn config(tokens: usize) -> Config {
    let (some, b) = (|tokens| [tokens, if tokens > 0 { ROW_BYTES } else { 0 }], [ROWS, ROW_BYTES]);
    match tokens {
        0..=ROWS => Config::new([some(tokens), some(tokens), some(tokens), some(tokens), some(tokens), b, b, b]),
        _ => {
            let (all, rest) = (some(ROWS), some(tokens - ROWS));
            Config::new([all, all, rest, rest, all, rest, b, b])
        }
    }
}

/// 17 to 32 tokens with `N` (1 or 2) groups.
#[inline(always)]
fn four_tiles<T: Tiles, const N: usize>(
    tiles: &mut T,
    span: &Span<'_>,
    x: &[i8],
    b: [&[[u8; ROW_BYTES]]; 2],
    out: &mut [i32],
) {
    const A_0: usize = 4;
    const A_1: usize = 5;
    const B_0: usize = 6;
    const B_1: usize = 7;
    let below = ROWS * span.width;
    begin::<T, 0>(tiles, span, out);
    begin::<T, 2>(tiles, span, &out[below..]);
    if N == 2 {
        begin::<T, 1>(tiles, span, &out[ROWS..]);
        begin::<T, 3>(tiles, span, &out[below + ROWS..]);
    }
    for step in 0..span.steps {
        let x = &x[step * ROW_BYTES..];
        tiles.load::<A_0, _>(x, span.stride);
        tiles.load::<B_0, _>(tile(b[0], step), ROW_BYTES);
        tiles.add_products::<0, A_0, B_0>();
        tiles.load::<A_1, _>(&x[ROWS * span.stride..], span.stride);
        tiles.add_products::<2, A_1, B_0>();
        if N == 2 {
            tiles.load::<B_1, _>(tile(b[1], step), ROW_BYTES);
            tiles.add_products::<1, A_0, B_1>();
            tiles.add_products::<3, A_1, B_1>();
        }
    }
    tiles.store::<0, _>(out, span.width);
    tiles.store::<2, _>(&mut out[below..], span.width);
    if N == 2 {
        tiles.store::<1, _>(&mut out[ROWS..], span.width);
        tiles.store::<3, _>(&mut out[below + ROWS..], span.width);
    }
}

/// 1 to 16 tokens with `N` (1 to 4) groups: four sums take turns, which hides the time that a product takes to arrive.
#[inline(always)]
fn row_of_tiles<T: Tiles, const N: usize>(
    tiles: &mut T,
    span: &Span<'_>,
    x: &[i8],
    b: [&[[u8; ROW_BYTES]]; 4],
    out: &mut [i32],
) {
    const A: usize = 4;
    begin::<T, 0>(tiles, span, out);
    if N > 1 {
        begin::<T, 1>(tiles, span, &out[ROWS..]);
    }
    if N > 2 {
        begin::<T, 2>(tiles, span, &out[2 * ROWS..]);
    }
    if N > 3 {
        begin::<T, 3>(tiles, span, &out[3 * ROWS..]);
    }
    for step in 0..span.steps {
        tiles.load::<A, _>(&x[step * ROW_BYTES..], span.stride);
        tiles.load::<5, _>(tile(b[0], step), ROW_BYTES);
        tiles.add_products::<0, A, 5>();
        if N > 1 {
            tiles.load::<6, _>(tile(b[1], step), ROW_BYTES);
            tiles.add_products::<1, A, 6>();
        }
        if N > 2 {
            tiles.load::<7, _>(tile(b[2], step), ROW_BYTES);
            tiles.add_products::<2, A, 7>();
        }
        if N > 3 {
            tiles.load::<5, _>(tile(b[3], step), ROW_BYTES);
            tiles.add_products::<3, A, 5>();
        }
    }
    tiles.store::<0, _>(out, span.width);
    if N > 1 {
        tiles.store::<1, _>(&mut out[ROWS..], span.width);
    }
    if N > 2 {
        tiles.store::<2, _>(&mut out[2 * ROWS..], span.width);
    }
    if N > 3 {
        tiles.store::<3, _>(&mut out[3 * ROWS..], span.width);
    }
}

/// The sums of a tile as the spans before this one left them.
#[inline(always)]
fn begin<T: Tiles, const TILE: usize>(tiles: &mut T, span: &Span<'_>, out: &[i32]) {
    if span.is_first {
        tiles.zero::<TILE>();
    } else {
        tiles.load::<TILE, _>(out, span.width);
    }
}

/// The bytes of a group's codes in 64 columns.
#[inline(always)]
fn tile(codes: &[[u8; ROW_BYTES]], step: usize) -> &[u8] {
    codes[step * ROWS..][..ROWS].as_flattened()
}

/// Blocks of a span: equal spans of whole tiles (the last may be short).
fn span_blocks<const SLOTS: usize>(blocks: usize) -> usize {
    // The fewest blocks that are whole tiles: a power of two of slots, or the five of base three, which 16 tiles share.
    let whole = if ROWS.is_multiple_of(SLOTS) { ROWS / SLOTS } else { ROWS };
    let (units, most) = (blocks.div_ceil(whole), SPAN_SLOTS / (whole * SLOTS));
    units.div_ceil(units.div_ceil(most)) * whole
}

/// The codes of a span, 32 KiB: those of two groups, and the activation codes of 32 tokens beside them, stay in a first-level
/// cache of 48 KiB.
#[repr(align(64))]
struct Codes([[[u8; ROW_BYTES]; SPAN_SLOTS]; BAND_GROUPS]);

/// Slots of a span: 512 columns. Sums are read and written once a span, which takes about as long as one step of the eight.
const SPAN_SLOTS: usize = 8 * ROWS;

/// Groups that are unpacked together.
const BAND_GROUPS: usize = 4;

/// Activation codes that a second-level cache keeps while all weights pass by.
const CACHED_CODES: usize = 768 << 10;
