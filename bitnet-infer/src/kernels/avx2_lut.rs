//! AVX2, ternary weights, many tokens: sums of four columns looked up for a whole tile of tokens instead of multiplied.
//!
//! Four ternary codes take 81 values. For each four columns a *table* holds the 81 sums `c0 a0 + c1 a1 + c2 a2 + c3 a3` of a
//! tile of 32 tokens, so that one vector addition from memory does 4 x 16 products without multiplying
//! (Vec-LUT, <https://arxiv.org/abs/2512.06443>):
//!
//! ```text
//! for each span of SPAN blocks (16 columns each):
//!     index[block][row] = 27 u0 + 9 u1 + 3 u2 + u3 of each four columns, from the packed codes  (once for all tiles)
//!     for each tile of tokens; for each PASS blocks of the span:
//!         table[slot][27 c0 + 9 c1 + 3 c2 + c3 + 40] = c0 a0 + c1 a1 + c2 a2 + c3 a3            (once for all rows)
//!         for each row: narrow[row] += sum over the slots of table[slot][index[row][slot]]      (in registers)
//!     wide[tile][row] += widen(narrow[row])
//! out[token][row] = wide[tile][row][token] + sum(a[token])
//! ```
//!
//! The tables use the codes -1, 0, +1, which keeps them small; as `raw = sum(u * a) = sum(code * a) + sum(a)`, the sum of a
//! token's activations is added at the end.
//!
//! Overflow: with activation codes -128..=127 an entry is at most 4 * 128 = 512 in magnitude, so i16 holds 63 of them;
//! a span adds 4 * [`SPAN`] = 56, at most 28672. i32 sums are bounded in [`super::layout`].
//!
//! Memory: 64 bytes an entry, so the tables of a pass take 41 KB (a first-level cache and a little of the second); the
//! indices, narrow and wide sums of a panel of [`PANEL_ROWS`] rows and [`PANEL_TOKENS`] tokens stay in a second-level cache.

use std::arch::x86_64::*;

use super::Panel;
use super::layout::Job;

/// The panel for products with `tokens` tokens, if looking sums up is worth while for any of them.
pub(super) fn panel(tokens: usize) -> Option<Panel> {
    (tokens >= FEWEST_TOKENS).then_some(Panel { rows: PANEL_ROWS, tokens: PANEL_TOKENS, rows_a_thread: ROWS_A_THREAD })
}

/// How many of `tokens` tokens, from the first on, [`sums`] serves faster than products would be.
pub(super) fn tokens_served(rows: usize, tokens: usize) -> usize {
    let rest = tokens % TILE;
    match rows {
        0..FEWEST_ROWS => 0,
        _ if rest < FEWEST_TOKENS => tokens - rest,
        _ => tokens,
    }
}

/// `raw` of every token and row of a ternary job, `[tokens, rows]`; the last tile of tokens may be short.
#[target_feature(enable = "avx2")]
pub(super) fn sums(job: &Job<'_, i8>, out: &mut [i32]) {
    let (groups, tile_values) = (job.rows / ROWS, TILE * job.stride);
    let zero = _mm256_setzero_si256();
    let mut tables = vec![[zero; 2]; PASS * SLOTS * ENTRIES + BEYOND];
    let mut indices = vec![[0u16; ROWS * SLOTS]; SPAN.min(job.blocks) * groups];
    let mut narrow = vec![[zero; 2]; job.rows];
    let mut wide = vec![[[zero; 2]; 2]; job.x.len().div_ceil(tile_values) * job.rows];
    for start in (0..job.blocks).step_by(SPAN) {
        let blocks = SPAN.min(job.blocks - start);
        for (group, bytes) in job.bytes.chunks_exact(job.blocks * LANES).enumerate() {
            let bytes = &bytes.as_chunks().0[start..][..blocks];
            for (block, bytes) in bytes.iter().enumerate() {
                indices[block * groups + group] = indices_of(bytes);
            }
        }
        for (x, wide) in job.x.chunks(tile_values).zip(wide.chunks_exact_mut(job.rows)) {
            for pass in (0..blocks).step_by(PASS) {
                for block in pass..blocks.min(pass + PASS) {
                    let tables = &mut tables.as_chunks_mut().0[(block - pass) * SLOTS..][..SLOTS];
                    build(x, job.stride, (start + block) * COLS, tables);
                }
                let indices = &indices[pass * groups..];
                if pass == 0 {
                    narrow.fill([zero; 2]);
                }
                if pass + PASS <= blocks {
                    look_up::<PASS>(&tables, indices, &mut narrow);
                } else {
                    look_up::<1>(&tables, indices, &mut narrow);
                }
            }
            widen(&narrow, wide);
        }
    }
    let outs = out.chunks_mut(TILE * job.rows);
    for ((x, wide), out) in job.x.chunks(tile_values).zip(wide.chunks_exact(job.rows)).zip(outs) {
        finish(x, job, wide, out);
    }
}

/// Where the sums of the four slots of a block's 8 rows stand in their tables, in bytes: `16 (s / 2) + 8 (r / 4) + 4 (s % 2) + r % 4`
/// is for slot `s` of row `r`.
#[inline]
#[target_feature(enable = "avx2")]
fn indices_of(block: &[u8; LANES]) -> [u16; ROWS * SLOTS] {
    let digits = _mm256_set1_epi32(i32::from_le_bytes([27, 9, 3, 1]));
    // SAFETY: 32 bytes are readable; the load needs no alignment.
    let v = unsafe { _mm256_loadu_si256(block.as_ptr().cast()) };
    // A slot is masked in place, so its codes are 1, 4, 16, 64 times too large: at most 192 * (27 + 9) in i16. The second
    // factor makes all of them multiples of an entry of 64 bytes.
    let mut slots = [v; SLOTS];
    for (slot, index) in slots.iter_mut().enumerate() {
        let codes = _mm256_and_si256(v, _mm256_set1_epi8((3u8 << (2 * slot)) as i8));
        *index = _mm256_madd_epi16(_mm256_maddubs_epi16(codes, digits), _mm256_set1_epi16(64 >> (2 * slot)));
    }
    let mut out = [0; ROWS * SLOTS];
    for (out, [a, b]) in out.as_chunks_mut::<16>().0.iter_mut().zip([[slots[0], slots[1]], [slots[2], slots[3]]]) {
        let indices = _mm256_packus_epi32(a, b);
        // SAFETY: 32 bytes are writable; the store needs no alignment.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), indices) };
    }
    out
}

/// The tables of a block's four slots for the tokens `x`, from column `first` on; tokens that do not exist count as 0.
#[inline]
#[target_feature(enable = "avx2")]
fn build(x: &[i8], stride: usize, first: usize, tables: &mut [[Tile; ENTRIES]]) {
    for half in 0..2 {
        let columns = columns(x.get(half * HALF * stride..).unwrap_or_default(), stride, first);
        for (table, [a, b, c, d]) in tables.iter_mut().zip(columns) {
            let (high, low) = (pair_sums(a, b), pair_sums(c, d));
            for (entries, high) in table.as_chunks_mut::<9>().0.iter_mut().zip(high) {
                for (entry, low) in entries.iter_mut().zip(low) {
                    entry[half] = _mm256_add_epi16(high, low);
                }
            }
        }
    }
}

/// `c0 a + c1 b` for the codes -1, 0, +1, `c1` changing fastest.
#[inline]
#[target_feature(enable = "avx2")]
fn pair_sums(a: __m256i, b: __m256i) -> [__m256i; 9] {
    let (zero, sum, difference) = (_mm256_setzero_si256(), _mm256_add_epi16(a, b), _mm256_sub_epi16(a, b));
    let mut sums = [zero, zero, zero, zero, zero, b, difference, a, sum];
    for i in 0..4 {
        sums[i] = _mm256_sub_epi16(zero, sums[8 - i]);
    }
    sums
}

/// Columns `first..first + 16` of the first 16 tokens of `x`, as i16: `[slot][column of the slot]`, a token in each lane.
#[inline]
#[target_feature(enable = "avx2")]
fn columns(x: &[i8], stride: usize, first: usize) -> [[__m256i; 4]; SLOTS] {
    let mut rows = [_mm_setzero_si128(); HALF];
    for (row, x) in rows.iter_mut().zip(x.chunks_exact(stride)) {
        let codes: &[i8; COLS] = &x[first..].as_chunks().0[0];
        // SAFETY: 16 bytes are readable; the load needs no alignment.
        *row = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
    }
    // Of each slot, the four codes of tokens 0..4 | 8..12, and those of 4..8 | 12..16.
    let mut fours = [[_mm256_setzero_si256(); SLOTS]; 2];
    for (i, fours) in fours.iter_mut().enumerate() {
        let mut v = [_mm256_setzero_si256(); 4];
        for (t, v) in v.iter_mut().enumerate() {
            *v = _mm256_set_m128i(rows[4 * i + t + 8], rows[4 * i + t]);
        }
        let (a, b) = (_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpacklo_epi32(v[2], v[3]));
        let (c, d) = (_mm256_unpackhi_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[2], v[3]));
        *fours = [
            _mm256_unpacklo_epi64(a, b),
            _mm256_unpackhi_epi64(a, b),
            _mm256_unpacklo_epi64(c, d),
            _mm256_unpackhi_epi64(c, d),
        ];
    }
    let mut columns = [[_mm256_setzero_si256(); 4]; SLOTS];
    for (slot, columns) in columns.iter_mut().enumerate() {
        let (low, high) = (fours[0][slot], fours[1][slot]);
        *columns = [
            _mm256_packs_epi32(code::<24>(low), code::<24>(high)),
            _mm256_packs_epi32(code::<16>(low), code::<16>(high)),
            _mm256_packs_epi32(code::<8>(low), code::<8>(high)),
            _mm256_packs_epi32(code::<0>(low), code::<0>(high)),
        ];
    }
    columns
}

/// One byte of each 32-bit lane with its sign, the one that `LEFT` bits bring to the top.
#[inline]
#[target_feature(enable = "avx2")]
fn code<const LEFT: i32>(fours: __m256i) -> __m256i {
    _mm256_srai_epi32::<24>(_mm256_slli_epi32::<LEFT>(fours))
}

/// Adds the entries of `B` blocks to each row's sums; `indices` has the groups of each block.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up<const B: usize>(tables: &[Tile], indices: &[[u16; ROWS * SLOTS]], sums: &mut [Tile]) {
    assert!(tables.len() >= B * SLOTS * ENTRIES + BEYOND, "room for any index");
    let groups = sums.len() / ROWS;
    let mut streams: [&[[u16; ROWS * SLOTS]]; B] = [&[]; B];
    for (block, stream) in streams.iter_mut().enumerate() {
        *stream = &indices[block * groups..][..groups];
    }
    for (group, sums) in sums.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        for (r, sum) in sums.iter_mut().enumerate() {
            let mut total = *sum;
            for (block, stream) in streams.iter().enumerate() {
                for slot in 0..SLOTS {
                    let index = stream[group][slot / 2 * 16 + r / 4 * 8 + slot % 2 * 4 + r % 4];
                    // SAFETY: four codes of two bits give at most entry 3 * (27 + 9 + 3 + 1) = 120 of a table of 81, in
                    // bytes, so that at least `BEYOND` entries more than the last table has make every index readable.
                    let entry = unsafe { &*tables[(block * SLOTS + slot) * ENTRIES..].as_ptr().byte_add(index.into()) };
                    for (total, entry) in total.iter_mut().zip(entry) {
                        *total = _mm256_add_epi16(*total, *entry);
                    }
                }
            }
            *sum = total;
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen(narrow: &[Tile], wide: &mut [[Tile; 2]]) {
    for (narrow, wide) in narrow.iter().zip(wide) {
        for (&narrow, [low, high]) in narrow.iter().zip(wide) {
            *low = _mm256_add_epi32(*low, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(narrow)));
            *high = _mm256_add_epi32(*high, _mm256_cvtepi16_epi32(_mm256_extracti128_si256::<1>(narrow)));
        }
    }
}

/// Writes a tile, `[row][token]`, to `[token][row]`, and adds the sum of each token's activations.
#[target_feature(enable = "avx2")]
fn finish(x: &[i8], job: &Job<'_, i8>, wide: &[[Tile; 2]], out: &mut [i32]) {
    let eights = x.chunks(ROWS * job.stride).zip(out.chunks_mut(ROWS * job.rows));
    for (eight, (x, out)) in eights.enumerate() {
        let mut totals = [0; ROWS];
        for (total, x) in totals.iter_mut().zip(x.chunks_exact(job.stride)) {
            for &code in &x[..job.blocks * COLS] {
                *total += i32::from(code);
            }
        }
        for (group, rows) in wide.as_chunks::<ROWS>().0.iter().enumerate() {
            let mut v = [_mm256_setzero_si256(); ROWS];
            for (v, row) in v.iter_mut().zip(rows) {
                *v = row[eight / 2][eight % 2];
            }
            let tokens = transpose(v).into_iter().zip(totals);
            for (out, (sums, total)) in out.chunks_exact_mut(job.rows).zip(tokens) {
                let out: &mut [i32; ROWS] = &mut out.as_chunks_mut().0[group];
                let sums = _mm256_add_epi32(sums, _mm256_set1_epi32(total));
                // SAFETY: 32 bytes are writable; the store needs no alignment.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sums) };
            }
        }
    }
}

/// Eight rows of eight numbers to eight columns.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(v: [__m256i; 8]) -> [__m256i; 8] {
    let mut quads = [_mm256_setzero_si256(); 8];
    for i in 0..2 {
        let [a, b, c, d] = [v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]];
        let (low_ab, high_ab) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
        let (low_cd, high_cd) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
        quads[4 * i] = _mm256_unpacklo_epi64(low_ab, low_cd);
        quads[4 * i + 1] = _mm256_unpackhi_epi64(low_ab, low_cd);
        quads[4 * i + 2] = _mm256_unpacklo_epi64(high_ab, high_cd);
        quads[4 * i + 3] = _mm256_unpackhi_epi64(high_ab, high_cd);
    }
    let mut out = quads;
    for i in 0..4 {
        out[i] = _mm256_permute2x128_si256::<0x20>(quads[i], quads[i + 4]);
        out[i + 4] = _mm256_permute2x128_si256::<0x31>(quads[i], quads[i + 4]);
    }
    out
}

/// Tokens of a tile.
const TILE: usize = 32;
/// Tokens of a vector of i16.
const HALF: usize = 16;
/// Bytes of a block, its rows, its columns and its slots of four columns.
const LANES: usize = 32;
const ROWS: usize = 8;
const COLS: usize = 16;
const SLOTS: usize = 4;
/// Values of four ternary codes.
const ENTRIES: usize = 81;
/// A sum of each token of a tile in i16: a line of a cache.
type Tile = [__m256i; TILE / HALF];
/// Entries beyond a table that an index of four codes `u = 3` would reach.
const BEYOND: usize = 40;
/// Blocks whose tables stand side by side: the best of 1 to 4, fewer narrow sums loaded and stored against larger tables.
const PASS: usize = 2;
/// Blocks that are added in i16.
const SPAN: usize = 14;

/// Tokens from which a tile beats products. On Zen 4, with 1000 rows or more, a tile runs at 180 to 200 G products a second
/// a core however many of its tokens exist, products at 155. (Tables for 16 tokens run no faster than products.)
const FEWEST_TOKENS: usize = 28;
/// Rows from which a tile beats products: on Zen 4, 256 rows run at 140, 384 at 165 G products a second.
const FEWEST_ROWS: usize = 384;
/// Rows that share tables and whose sums stay in a second-level cache.
const PANEL_ROWS: usize = 1280;
/// Tokens that share indices.
const PANEL_TOKENS: usize = 64;
/// Rows below which threads split tokens rather than rows, as the tables would take too much of their time.
const ROWS_A_THREAD: usize = 512;
