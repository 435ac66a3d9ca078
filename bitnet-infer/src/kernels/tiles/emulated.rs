//! Tiles in plain Rust, step for step as Intel's manual defines the instructions, their faults included: so the code around
//! the instructions is tested on any machine.

use super::super::aligned::{bytes_of, bytes_of_mut};
use super::{Config, Element, ROW_BYTES, ROWS, TILES, Tiles};

/// Eight tiles. A fault of an instruction is a panic that names it.
pub struct Emulated {
    /// What accesses to memory are checked against.
    config: Config,
    /// Rows, and bytes of a row, of each tile; `None` before the first `ldtilecfg`.
    shapes: Option<[[usize; 2]; TILES]>,
    tiles: [[[u8; ROW_BYTES]; ROWS]; TILES],
}

impl Default for Emulated {
    fn default() -> Self {
        Self::new()
    }
}

impl Emulated {
    /// Tiles without shapes.
    pub fn new() -> Self {
        Self { config: Config::none(), shapes: None, tiles: [[[0; ROW_BYTES]; ROWS]; TILES] }
    }

    /// `ldtilecfg`.
    pub(super) fn load_config(&mut self, bytes: &[u8; 64]) {
        assert_eq!(bytes[0], 1, "#GP: palette");
        assert_eq!(bytes[1], 0, "tiles that begin in the middle of a load are not emulated");
        assert_eq!(bytes[2..16], [0; 14], "#GP: reserved bytes");
        assert_eq!(bytes[32..48], [0; 16], "#GP: bytes of a row of tiles that do not exist");
        assert_eq!(bytes[56..64], [0; 8], "#GP: rows of tiles that do not exist");
        let shape = |tile: usize| {
            let row_bytes = usize::from(u16::from_le_bytes([bytes[16 + 2 * tile], bytes[17 + 2 * tile]]));
            let rows = usize::from(bytes[48 + tile]);
            assert!(row_bytes <= ROW_BYTES && rows <= ROWS, "#GP: tile {tile} of {rows} rows of {row_bytes} bytes");
            assert_eq!(rows == 0, row_bytes == 0, "#GP: tile {tile} of {rows} rows of {row_bytes} bytes");
            [rows, row_bytes]
        };
        self.shapes = Some(std::array::from_fn(shape));
        self.tiles = [[[0; ROW_BYTES]; ROWS]; TILES];
    }

    /// Rows and bytes of a row.
    fn shape(&self, tile: usize) -> [usize; 2] {
        let [rows, row_bytes] = self.shapes.expect("#UD: tiles are not configured")[tile];
        assert!(rows > 0, "#UD: tile {tile} has no shape");
        [rows, row_bytes]
    }

    /// Replaces a tile by rows of `row_bytes` bytes; whatever lies beyond its shape is zero.
    fn write<'a>(&mut self, tile: usize, row: impl Fn(usize, usize) -> &'a [u8]) {
        let [rows, row_bytes] = self.shape(tile);
        self.tiles[tile] = [[0; ROW_BYTES]; ROWS];
        for (r, bytes) in self.tiles[tile][..rows].iter_mut().enumerate() {
            bytes[..row_bytes].copy_from_slice(row(r, row_bytes));
        }
    }

    /// The words of each row.
    fn words(&self, tile: usize) -> [Words; ROWS] {
        self.tiles[tile].map(|row| std::array::from_fn(|word| row.as_chunks().0[word]))
    }

    /// What all products share: `row` makes a row of sums from what it was, the words of that row of `a`, and the rows of `b`.
    fn multiply(&mut self, [sums, a, b]: [usize; 3], row: impl Fn(Words, &[[u8; 4]], &[Words]) -> Words) {
        assert!(sums != a && sums != b && a != b, "#UD: a tile is named twice");
        let ([sum_rows, sum_bytes], [a_rows, a_bytes], [b_rows, b_bytes]) =
            (self.shape(sums), self.shape(a), self.shape(b));
        assert_eq!(sum_rows, a_rows, "#UD: rows of sums and a");
        assert_eq!(sum_bytes, b_bytes, "#UD: columns of sums and b");
        assert_eq!(a_bytes / 4, b_rows, "#UD: columns of a and rows of b");
        assert!([sum_bytes, a_bytes, b_bytes].iter().all(|bytes| bytes % 4 == 0), "#UD: rows of whole fours");
        let (a, b) = (self.words(a), self.words(b));
        for (m, words) in self.words(sums)[..sum_rows].iter().enumerate() {
            let new = row(*words, &a[m][..b_rows], &b[..b_rows]);
            self.tiles[sums][m][..sum_bytes].copy_from_slice(&new.as_flattened()[..sum_bytes]);
        }
    }
}

impl Tiles for Emulated {
    fn configure(&mut self, config: &Config) {
        self.config = *config;
        // SAFETY: a `Config` is 64 bytes of numbers without gaps.
        self.load_config(&unsafe { std::mem::transmute::<Config, [u8; 64]>(*config) });
    }

    fn zero<const TILE: usize>(&mut self) {
        self.write(TILE, |_, row_bytes| &[0; ROW_BYTES][..row_bytes]);
    }

    fn load<const TILE: usize, E: Element>(&mut self, from: &[E], stride: usize) {
        let (from, stride) = (bytes_of(from), stride * size_of::<E>());
        self.config.check(TILE, from.len(), stride);
        self.write(TILE, |row, row_bytes| &from[row * stride..][..row_bytes]);
    }

    fn store<const TILE: usize, E: Element>(&self, to: &mut [E], stride: usize) {
        let (to, stride) = (bytes_of_mut(to), stride * size_of::<E>());
        self.config.check(TILE, to.len(), stride);
        let [rows, row_bytes] = self.shape(TILE);
        for (row, bytes) in self.tiles[TILE][..rows].iter().enumerate() {
            to[row * stride..][..row_bytes].copy_from_slice(&bytes[..row_bytes]);
        }
    }

    fn add_products<const SUMS: usize, const A: usize, const B: usize>(&mut self) {
        self.multiply([SUMS, A, B], |sums, a, b| {
            let mut sums = sums.map(i32::from_le_bytes);
            for (a, b) in a.iter().zip(b) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    let products: [i32; 4] = std::array::from_fn(|j| i32::from(a[j] as i8) * i32::from(b[j]));
                    *sum = sum.wrapping_add(products.iter().sum());
                }
            }
            sums.map(i32::to_le_bytes)
        });
    }

    fn add_bf16_products<const SUMS: usize, const A: usize, const B: usize>(&mut self) {
        self.multiply([SUMS, A, B], |sums, a, b| {
            let mut chains = [[0f32; 2]; ROW_BYTES / 4];
            for (a, b) in a.iter().zip(b) {
                for (chains, b) in chains.iter_mut().zip(b) {
                    let (a, b) = (bf16_pair(*a), bf16_pair(*b));
                    *chains = std::array::from_fn(|j| flushed(a[j].mul_add(b[j], chains[j])));
                }
            }
            std::array::from_fn(|n| {
                let [even, odd] = chains[n];
                flushed(flushed(f32::from_le_bytes(sums[n])) + flushed(even + odd)).to_le_bytes()
            })
        });
    }
}

/// The bf16 numbers of a word, subnormal ones as 0.
fn bf16_pair([a, b, c, d]: [u8; 4]) -> [f32; 2] {
    [f32::from_le_bytes([0, 0, a, b]), f32::from_le_bytes([0, 0, c, d])].map(flushed)
}

/// 0 of the same sign for a subnormal number. (What only rounding lifts to the smallest normal number counts as normal;
/// a CPU may give 0 for it.)
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0f32.copysign(x) } else { x }
}

type Words = [[u8; 4]; ROW_BYTES / 4];
