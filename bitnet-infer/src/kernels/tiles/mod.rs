//! The matrix unit of AMX: eight tile registers of up to 16 rows of 64 bytes, and the six things that kernels do with them.
//!
//! Products are written once over [`Tiles`]: [`Hardware`] does it by the instructions, [`Emulated`] in plain Rust, which
//! tests all but the instructions themselves on any machine. The products of models (`kernels/amx/`) and those of training, in
//! bf16, are written so.
//!
//! Written from the definitions in Intel's Software Developer's Manual, volume 2: `LDTILECFG`, `TILEZERO`, `TILELOADD`,
//! `TILESTORED`, `TDPBSUD`, `TDPBF16PS`, `TILERELEASE`.

mod emulated;
#[cfg(target_arch = "x86_64")]
mod hardware;
#[cfg(test)]
mod tests;

use super::Element;

pub use emulated::Emulated;
#[cfg(target_arch = "x86_64")]
pub use hardware::{Hardware, Products, is_permitted};

/// The tiles of a thread. Every access to memory is checked against the shape of its tile; what else an instruction refuses
/// (a tile without a shape, shapes that do not fit) ends the program.
pub trait Tiles {
    /// Gives all tiles the shapes of `config` and zeroes them.
    fn configure(&mut self, config: &Config);

    /// Zeroes a tile.
    fn zero<const TILE: usize>(&mut self);

    /// Reads the rows of a tile; they begin `stride` elements apart.
    ///
    /// # Panics
    /// If `from` ends before the last row.
    fn load<const TILE: usize, E: Element>(&mut self, from: &[E], stride: usize);

    /// Writes the rows of a tile; they begin `stride` elements apart.
    ///
    /// # Panics
    /// If `to` ends before the last row.
    fn store<const TILE: usize, E: Element>(&self, to: &mut [E], stride: usize);

    /// `sums[m][n] += sum of a[m][4k + j] * b[k][4n + j]` over all `k` and `j` in 0..4, for signed bytes `a`, unsigned bytes `b`
    /// and i32 sums.
    fn add_products<const SUMS: usize, const A: usize, const B: usize>(&mut self);

    /// `sums[m][n] += even + odd` in f32, where `even` is the sum of `a[m][2k] * b[k][2n]` over all `k`, and `odd` that of
    /// `a[m][2k + 1] * b[k][2n + 1]`, for bf16 numbers `a` and `b`.
    ///
    /// `even` and `odd` start at 0 and grow by fused multiply-adds in the order of `k`; then they are added to each other, and the
    /// result to `sums`. Each step rounds to nearest, ties to even, and takes and gives subnormal numbers as 0.
    fn add_bf16_products<const SUMS: usize, const A: usize, const B: usize>(&mut self);
}

/// Rows, and bytes of a row, of each tile: in memory as `ldtilecfg` reads it (palette 1).
///
/// Invariant: at most [`ROWS`] rows of at most [`ROW_BYTES`] bytes, in whole fours; a tile without rows has rows of no bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    /// The shapes `[rows, bytes of a row]` of all tiles.
    ///
    /// # Panics
    /// If they break the invariant.
    pub const fn new(shapes: [[usize; 2]; TILES]) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        let mut tile = 0;
        while tile < TILES {
            let [rows, bytes] = shapes[tile];
            assert!(rows <= ROWS && bytes <= ROW_BYTES && bytes % 4 == 0, "a tile is at most 16 x 64 bytes");
            assert!((rows == 0) == (bytes == 0), "a tile without rows has no bytes");
            config.rows[tile] = rows as u8;
            config.row_bytes[tile] = bytes as u16;
            tile += 1;
        }
        config
    }

    /// No tile has a shape.
    pub const fn none() -> Self {
        Self::new([[0; 2]; TILES])
    }

    #[inline(always)]
    fn rows(&self, tile: usize) -> usize {
        usize::from(self.rows[tile])
    }

    #[inline(always)]
    fn row_bytes(&self, tile: usize) -> usize {
        usize::from(self.row_bytes[tile])
    }

    /// Checks that `bytes` bytes hold all rows of a tile that begin `stride` bytes apart.
    #[inline(always)]
    fn check(&self, tile: usize, bytes: usize, stride: usize) {
        let rows = self.rows(tile);
        let end = rows.saturating_sub(1) * stride + self.row_bytes(tile);
        assert!(end <= bytes, "{rows} rows of a tile, {stride} bytes apart, in {bytes} bytes");
    }
}

/// Tile registers.
pub const TILES: usize = 8;

/// Most rows of a tile.
pub const ROWS: usize = 16;

/// Most bytes of a tile's row.
pub const ROW_BYTES: usize = 64;

const _: () = assert!(size_of::<Config>() == 64);
