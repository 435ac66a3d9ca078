//! Tiles in plain Rust, step for step as Intel's manual defines the instructions, their faults included: so the code around
//! the instructions is tested on any machine.

use super::super::aligned::{Element, bytes_of};
use super::super::layout::Job;
use super::super::{Kernel, base3, scalar};
use super::tiles::{Config, ROW_BYTES, ROWS, TILES, Tiles};
use super::{FEWEST_TOKENS, panel, product, unpack};

/// The row `amx` with emulated tiles and scalar code for what needs none, on any CPU.
pub static KERNEL: Kernel = Kernel {
    name: "amx-emulated",
    lanes: 64,
    panel: |kind, cols, tokens| panel(tokens).unwrap_or_else(|| (scalar::ROW.panel)(kind, cols, tokens)),
    ternary: |job, out| sums(job, out, unpack::<2, 4>),
    base3: Some(|job, out| sums(job, out, unpack_base3)),
    binary: |job, out| sums(job, out, unpack::<1, 8>),
    int8: |job, out| sums(job, out, unpack::<8, 1>),
    int4: |job, out| sums(job, out, unpack::<4, 2>),
    code_floats: scalar::code_floats::<16>,
    ..scalar::ROW
};

fn sums<const SLOTS: usize>(job: &Job<'_, i8>, out: &mut [i32], unpack: impl Fn(&[u8; 64], &mut [[u8; 64]; SLOTS])) {
    if job.x.len() / job.stride < FEWEST_TOKENS {
        return scalar::sums(job, out);
    }
    product::sums(&mut Emulated::new(), job, out, unpack);
}

/// The codes of a block in base three as bytes.
pub(super) fn unpack_base3(block: &[u8; 64], slots: &mut [[u8; 64]; base3::SLOTS]) {
    for (slot, codes) in slots.iter_mut().enumerate() {
        codes.iter_mut().zip(block).for_each(|(u, &byte)| *u = base3::decode(byte, slot));
    }
}

/// Eight tiles. A fault of an instruction is a panic that names it.
pub(super) struct Emulated {
    /// What accesses to memory are checked against.
    config: Config,
    /// Rows, and bytes of a row, of each tile; `None` before the first `ldtilecfg`.
    shapes: Option<[[usize; 2]; TILES]>,
    tiles: [[[u8; ROW_BYTES]; ROWS]; TILES],
}

impl Emulated {
    pub(super) fn new() -> Self {
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
    fn words(&self, tile: usize) -> [[[u8; 4]; ROW_BYTES / 4]; ROWS] {
        self.tiles[tile].map(|row| std::array::from_fn(|word| row.as_chunks().0[word]))
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

    fn store<const TILE: usize>(&self, to: &mut [i32], stride: usize) {
        self.config.check(TILE, size_of_val(to), stride * size_of::<i32>());
        let [rows, row_bytes] = self.shape(TILE);
        for (row, words) in self.words(TILE)[..rows].iter().enumerate() {
            let to = to[row * stride..][..row_bytes / 4].iter_mut();
            to.zip(words).for_each(|(to, word)| *to = i32::from_le_bytes(*word));
        }
    }

    fn add_products<const SUMS: usize, const A: usize, const B: usize>(&mut self) {
        assert!(SUMS != A && SUMS != B && A != B, "#UD: a tile is named twice");
        let ([sum_rows, sum_bytes], [a_rows, a_bytes], [b_rows, b_bytes]) =
            (self.shape(SUMS), self.shape(A), self.shape(B));
        assert_eq!(sum_rows, a_rows, "#UD: rows of sums and a");
        assert_eq!(sum_bytes, b_bytes, "#UD: columns of sums and b");
        assert_eq!(a_bytes / 4, b_rows, "#UD: columns of a and rows of b");
        assert!([sum_bytes, a_bytes, b_bytes].iter().all(|bytes| bytes % 4 == 0), "#UD: rows of whole fours");
        let (a, b) = (self.words(A), self.words(B));
        for (m, words) in self.words(SUMS)[..sum_rows].iter().enumerate() {
            let mut sums = words.map(i32::from_le_bytes);
            for (a, b) in a[m].iter().zip(&b[..b_rows]) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    let products: [i32; 4] = std::array::from_fn(|j| i32::from(a[j] as i8) * i32::from(b[j]));
                    *sum = sum.wrapping_add(products.iter().sum());
                }
            }
            let bytes = self.tiles[SUMS][m].as_chunks_mut().0;
            bytes[..sum_bytes / 4].iter_mut().zip(sums).for_each(|(bytes, sum)| *bytes = sum.to_le_bytes());
        }
    }
}
