//! bf16 tiles of 32 x 32 on the matrix unit of AMX: `tdpbf16ps` makes 16 x 16 sums of 32 products each.
//!
//! ```text
//! sums[2][2] = 0
//! for each step of 16 words:
//!     a[2] = 16 rows x 16 words of the left operand;  b[2] = 16 words x 16 columns of the right one
//!     sums[i][j] += a[i] b[j]
//! the last words, if they are fewer: the same with smaller shapes of a and b
//! out = sums
//! ```
//!
//! What the arithmetic allows (one core of the Sapphire Rapids class, by counting, not by measurement): the four products of a
//! step, 65536 multiplications, take 16 cycles each, **64**, and need 4 KiB. Blocks of 512 words exceed a first-level cache, so
//! that comes from the second, at the 48 bytes a cycle or so that it gives: **85**. So at most three quarters of the
//! instruction's peak; shorter blocks would be loaded faster and spend the time on adding tiles to the output.
//!
//! Written once over [`Tiles`], for those of the CPU and for emulated ones, on which tests run it anywhere.
//!
//! The instruction sums the products of lower halves and those of upper halves apart, from 0, and adds both to the sums at the end (see
//! [`Tiles::add_bf16_products`]). So results differ from those of the other bf16 tiles by rounding.

use bitnet_infer::kernels::tiles::{Config, ROW_BYTES, ROWS, Tiles};

use super::tiles::Left;

#[cfg(test)]
pub(super) use emulated::KERNEL as EMULATED;
#[cfg(target_arch = "x86_64")]
pub(super) use hardware::KERNEL;

/// Rows and columns of the output's tile: two registers each way.
const SIDE: usize = 2 * ROWS;

/// Words of a step: what a row of a register holds.
const STEP: usize = ROW_BYTES / 4;

const A: [usize; 2] = [4, 5];
const B: [usize; 2] = [6, 7];

/// Registers, and the words of the steps that they are shaped for; 0 before the first.
pub(super) struct Unit<T> {
    tiles: T,
    words: usize,
}

impl<T: Tiles> Unit<T> {
    fn new(tiles: T) -> Self {
        Self { tiles, words: 0 }
    }

    /// Shapes zero all registers and take as long as some products, so most tiles keep those of the one before.
    fn shape(&mut self, words: usize) {
        if self.words != words {
            let (sums, a, b) = ([ROWS, ROW_BYTES], [ROWS, 4 * words], [words, ROW_BYTES]);
            self.tiles.configure(&Config::new([sums, sums, sums, sums, a, a, b, b]));
            self.words = words;
        }
    }

    /// Overwrites `out` with the product of the rows of `a`, whose words are next to each other, and `b`.
    pub(super) fn multiply(&mut self, a: Left, b: &[u32], out: &mut [f32]) {
        assert_eq!(a.word_stride, 1, "a left operand in rows");
        let (whole, rest) = b.as_chunks::<{ STEP * SIDE }>();
        if !whole.is_empty() {
            self.shape(STEP);
            self.zero();
            for (step, b) in whole.iter().enumerate() {
                self.step(&a.words[step * STEP..], a.row_stride, b);
            }
            self.store(out);
        }
        if !rest.is_empty() {
            // Words beyond the last may hold anything, and 0 times infinity is no 0: they must not be read.
            self.shape(rest.len() / SIDE);
            if whole.is_empty() {
                self.zero();
            } else {
                self.load(out);
            }
            self.step(&a.words[whole.len() * STEP..], a.row_stride, rest);
            self.store(out);
        }
    }

    #[inline(always)]
    fn zero(&mut self) {
        self.tiles.zero::<0>();
        self.tiles.zero::<1>();
        self.tiles.zero::<2>();
        self.tiles.zero::<3>();
    }

    #[inline(always)]
    fn load(&mut self, sums: &[f32]) {
        let below = &sums[ROWS * SIDE..];
        self.tiles.load::<0, _>(sums, SIDE);
        self.tiles.load::<1, _>(&sums[ROWS..], SIDE);
        self.tiles.load::<2, _>(below, SIDE);
        self.tiles.load::<3, _>(&below[ROWS..], SIDE);
    }

    #[inline(always)]
    fn store(&self, out: &mut [f32]) {
        let (above, below) = out.split_at_mut(ROWS * SIDE);
        self.tiles.store::<0, _>(above, SIDE);
        self.tiles.store::<1, _>(&mut above[ROWS..], SIDE);
        self.tiles.store::<2, _>(below, SIDE);
        self.tiles.store::<3, _>(&mut below[ROWS..], SIDE);
    }

    /// Four products that do not wait for each other.
    #[inline(always)]
    fn step(&mut self, a: &[u32], a_stride: usize, b: &[u32]) {
        let tiles = &mut self.tiles;
        tiles.load::<{ A[0] }, _>(a, a_stride);
        tiles.load::<{ B[0] }, _>(b, SIDE);
        tiles.add_bf16_products::<0, { A[0] }, { B[0] }>();
        tiles.load::<{ A[1] }, _>(&a[ROWS * a_stride..], a_stride);
        tiles.add_bf16_products::<2, { A[1] }, { B[0] }>();
        tiles.load::<{ B[1] }, _>(&b[ROWS..], SIDE);
        tiles.add_bf16_products::<1, { A[0] }, { B[1] }>();
        tiles.add_bf16_products::<3, { A[1] }, { B[1] }>();
    }
}

#[cfg(target_arch = "x86_64")]
mod hardware {
    use std::hint::black_box;
    use std::sync::LazyLock;

    use bitnet_infer::kernels::tiles::{Hardware, Products, ROWS, Tiles, is_permitted};

    use super::super::tiles::{Layout, Left, TileKernel, Unit};
    use super::{A, B, SIDE, STEP};

    /// Sapphire Rapids and later, on a system that lets programs use tiles.
    pub(in super::super) static KERNEL: TileKernel = TileKernel {
        name: "amx-bf16",
        supported,
        depth: 2,
        rows: SIDE,
        cols: SIDE,
        left: Layout::Rows,
        unit,
        registers,
        // A round is one instruction.
        products_per_round: ROWS * ROWS * 2 * STEP,
    };

    /// # Safety
    /// The CPU and the system permit tiles with products of bf16, and this thread has no other unit.
    unsafe fn unit() -> Unit {
        // SAFETY: the caller's promise.
        Unit::Amx(super::Unit::new(unsafe { Hardware::new() }))
    }

    fn supported() -> bool {
        static SUPPORTED: LazyLock<bool> =
            LazyLock::new(|| is_permitted(Products::Bf16) && agrees_with_plain_arithmetic());
        *SUPPORTED
    }

    /// Whether tiles multiply as plain arithmetic does: two steps and a short one, small integers, which are exact. An emulator
    /// or a hypervisor that got something wrong is found here and not in a model.
    fn agrees_with_plain_arithmetic() -> bool {
        const WORDS: usize = 2 * STEP + 5;
        let mut state = 1u32;
        let mut random = || {
            // Numerical Recipes' linear congruential generator; its upper bits are the good ones.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 28) as f32 - 8.0
        };
        let [a, b]: [Vec<[f32; 2]>; 2] =
            std::array::from_fn(|_| (0..SIDE * WORDS).map(|_| [random(), random()]).collect());
        let words = |numbers: &[[f32; 2]]| -> Vec<u32> {
            numbers.iter().map(|[low, high]| low.to_bits() >> 16 | high.to_bits() & 0xffff_0000).collect()
        };
        let (a_words, mut sums) = (words(&a), [0f32; SIDE * SIDE]);
        let left = Left { words: &a_words, row_stride: WORDS, word_stride: 1 };
        // SAFETY: tiles have just been permitted; what asks whether they are supported has no unit.
        super::Unit::new(unsafe { Hardware::new() }).multiply(left, &words(&b), &mut sums);
        sums.iter().enumerate().all(|(at, sum)| {
            let (row, column) = (&a[at / SIDE * WORDS..][..WORDS], b[at % SIDE..].iter().step_by(SIDE));
            *sum == row.iter().zip(column).map(|(a, b)| a[0] * b[0] + a[1] * b[1]).sum::<f32>()
        })
    }

    /// # Safety
    /// As [`unit`].
    unsafe fn registers(rounds: usize) -> f32 {
        // 1.0, twice.
        let ones = [black_box(0x3f80_3f80_u32); ROWS * STEP];
        // SAFETY: the caller's promise.
        let mut unit = super::Unit::new(unsafe { Hardware::new() });
        unit.shape(STEP);
        unit.zero();
        unit.tiles.load::<{ A[0] }, _>(&ones, STEP);
        unit.tiles.load::<{ B[0] }, _>(&ones, STEP);
        for _ in 0..rounds / 4 {
            unit.tiles.add_bf16_products::<0, { A[0] }, { B[0] }>();
            unit.tiles.add_bf16_products::<1, { A[0] }, { B[0] }>();
            unit.tiles.add_bf16_products::<2, { A[0] }, { B[0] }>();
            unit.tiles.add_bf16_products::<3, { A[0] }, { B[0] }>();
        }
        let mut sums = [0f32; SIDE * SIDE];
        unit.store(&mut sums);
        sums.iter().sum()
    }
}

#[cfg(test)]
mod emulated {
    use bitnet_infer::kernels::tiles::Emulated;

    use super::super::tiles::{Layout, PORTABLE, TileKernel, Unit};
    use super::SIDE;

    /// The same on tiles in plain Rust, on any CPU.
    pub(in super::super) static KERNEL: TileKernel = TileKernel {
        name: "amx-bf16-emulated",
        supported: || true,
        depth: 2,
        rows: SIDE,
        cols: SIDE,
        left: Layout::Rows,
        unit: || Unit::Emulated(Box::new(super::Unit::new(Emulated::new()))),
        registers: PORTABLE.registers,
        products_per_round: PORTABLE.products_per_round,
    };
}
