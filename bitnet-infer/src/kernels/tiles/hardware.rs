//! The tiles of the CPU, by inline assembly: the intrinsics are not stable.
//!
//! A tile must keep its value from one `asm!` block to the next, so no block names one as clobbered, which would say that its
//! value is lost. That is sound because nothing else could hold a value there, or change one: the compiler knows tiles only
//! as registers to clobber and no function here is compiled for AMX, no other code of this program names one, blocks that
//! are not `pure` keep their order, and the system saves the tiles of each thread with its vectors.

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::marker::PhantomData;

use super::{Config, Element, ROW_BYTES, ROWS, TILES, Tiles};

/// The tiles of the CPU, in the hands of the thread that made this.
pub struct Hardware {
    config: Config,
    of_this_thread: PhantomData<*const ()>,
}

impl Hardware {
    /// Tiles without shapes. Dropping the value gives them back to the CPU.
    ///
    /// # Safety
    /// [`is_permitted`] is true for the products that will be asked for, and this thread has no other `Hardware`.
    pub unsafe fn new() -> Self {
        Self { config: Config::none(), of_this_thread: PhantomData }
    }
}

impl Drop for Hardware {
    /// Without a shape tiles need not be saved when the system switches threads, and the core may rest its matrix unit.
    fn drop(&mut self) {
        // SAFETY: the CPU has tiles (`new`); nobody else on this thread uses them.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

impl Tiles for Hardware {
    #[inline(always)]
    fn configure(&mut self, config: &Config) {
        self.config = *config;
        // SAFETY: the CPU has tiles (`new`) and reads the 64 bytes of a `Config`, whose invariant is what it demands.
        unsafe {
            asm!("ldtilecfg [{config}]", config = in(reg) &self.config, options(readonly, nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn zero<const TILE: usize>(&mut self) {
        // SAFETY: changes a tile, which is this value's own.
        unsafe { asm!("tilezero tmm{tile}", tile = const TILE, options(nomem, nostack, preserves_flags)) };
    }

    #[inline(always)]
    fn load<const TILE: usize, E: Element>(&mut self, from: &[E], stride: usize) {
        let stride = stride * size_of::<E>();
        self.config.check(TILE, size_of_val(from), stride);
        // SAFETY: reads the rows of the tile, which lie in `from`, into a tile, which is this value's own.
        unsafe {
            asm!(
                "tileloadd tmm{tile}, [{from} + {stride}*1]",
                tile = const TILE,
                from = in(reg) from.as_ptr(),
                stride = in(reg) stride,
                options(readonly, nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn store<const TILE: usize, E: Element>(&self, to: &mut [E], stride: usize) {
        let stride = stride * size_of::<E>();
        self.config.check(TILE, size_of_val(to), stride);
        // SAFETY: writes the rows of the tile, which lie in `to`; any bytes are numbers.
        unsafe {
            asm!(
                "tilestored [{to} + {stride}*1], tmm{tile}",
                tile = const TILE,
                to = in(reg) to.as_mut_ptr(),
                stride = in(reg) stride,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn add_products<const SUMS: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: changes a tile, which is this value's own.
        unsafe {
            asm!(
                "tdpbsud tmm{sums}, tmm{a}, tmm{b}",
                sums = const SUMS,
                a = const A,
                b = const B,
                options(nomem, nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn add_bf16_products<const SUMS: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: changes a tile, which is this value's own; neither reads nor changes the state of float arithmetic.
        unsafe {
            asm!(
                "tdpbf16ps tmm{sums}, tmm{a}, tmm{b}",
                sums = const SUMS,
                a = const A,
                b = const B,
                options(nomem, nostack, preserves_flags),
            );
        }
    }
}

/// Products that a CPU with tiles may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// [`Tiles::add_products`].
    Int8,
    /// [`Tiles::add_bf16_products`].
    Bf16,
}

/// Whether the CPU has tiles of the size that [`Config`] knows with such products, and the system lets this process use
/// them. Linux wants to be asked, once a process; asking again changes nothing.
pub fn is_permitted(products: Products) -> bool {
    has_tiles(products) && permission()
}

fn has_tiles(products: Products) -> bool {
    let bit = |word: u32, bit: u32| word >> bit & 1 == 1;
    if __cpuid_count(0, 0).eax < 0x1e || !bit(__cpuid_count(1, 0).ecx, OSXSAVE) {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    let of_products = match products {
        Products::Int8 => AMX_INT8,
        Products::Bf16 => AMX_BF16,
    };
    if !bit(features, AMX_TILE) || !bit(features, of_products) {
        return false;
    }
    // SAFETY: the system has switched the instruction on (OSXSAVE).
    let saved = unsafe { _xgetbv(0) };
    if saved & TILE_STATE != TILE_STATE {
        return false;
    }
    // Palette 1 (bytes of a tile; bytes of a row, tiles; rows), and the most that the products take.
    let (palette, products) = (__cpuid_count(0x1d, 1), __cpuid_count(0x1e, 0).ebx);
    palette.eax >> 16 == (ROWS * ROW_BYTES) as u32
        && palette.ebx == (TILES << 16 | ROW_BYTES) as u32
        && palette.ecx & 0xffff == ROWS as u32
        && products & 0xff >= ROWS as u32
        && products >> 8 & 0xffff >= ROW_BYTES as u32
}

/// Asks Linux for the tiles' state, 8 KiB a thread, which it saves only for processes that have asked.
#[cfg(target_os = "linux")]
fn permission() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: a system call with two numbers, which touches no memory of this process.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

/// How other systems are asked is not known here.
#[cfg(not(target_os = "linux"))]
fn permission() -> bool {
    false
}

/// Of leaf 1, ecx: the system saves registers with `xsave`.
const OSXSAVE: u32 = 27;

/// Of leaf 7, edx.
const AMX_BF16: u32 = 22;

/// Of leaf 7, edx.
const AMX_TILE: u32 = 24;

/// Of leaf 7, edx.
const AMX_INT8: u32 = 25;

/// What `xsave` must save: shapes and contents of the tiles.
const TILE_STATE: u64 = 1 << 17 | 1 << 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn configure(tiles: &mut Hardware, config: &Config) {
        tiles.configure(config);
    }

    #[inline(never)]
    fn zero(tiles: &mut Hardware) {
        tiles.zero::<3>();
    }

    #[inline(never)]
    fn load(tiles: &mut Hardware, from: &[i8], stride: usize) {
        tiles.load::<5, _>(from, stride);
    }

    #[inline(never)]
    fn store(tiles: &Hardware, to: &mut [i32], stride: usize) {
        tiles.store::<2, _>(to, stride);
    }

    #[inline(never)]
    fn add_products(tiles: &mut Hardware) {
        tiles.add_products::<1, 4, 6>();
    }

    #[inline(never)]
    fn add_bf16_products(tiles: &mut Hardware) {
        tiles.add_bf16_products::<1, 4, 6>();
    }

    #[inline(never)]
    fn release(tiles: Hardware) {
        drop(tiles);
    }

    /// The first of `expected` in the code of a function, as bytes under masks.
    #[track_caller]
    fn check(function: *const (), expected: &[(u8, u8)]) {
        // SAFETY: code is readable, and longer than this after any of the functions.
        let code = unsafe { std::slice::from_raw_parts(function.cast::<u8>(), 192) };
        let found =
            code.windows(expected.len()).any(|code| code.iter().zip(expected).all(|(c, (e, mask))| c & mask == *e));
        assert!(found, "no {expected:02x?} in {code:02x?}");
    }

    /// The encodings of Intel's manual: VEX.128, map 0F38, W0; the prefix is part of the third byte. Memory is addressed by
    /// any two registers.
    #[test]
    fn instructions_are_those_of_the_manual() {
        const ALL: u8 = 0xff;
        // Any base and index: two bits of the second byte, and the modrm byte may announce an offset of 0.
        let memory =
            |prefix, opcode, tile: u8| [(0xc4, ALL), (0x02, 0x1f), (prefix, ALL), (opcode, ALL), (tile << 3 | 4, 0x3f)];
        let register = |prefix, opcode, modrm| [(0xc4, ALL), (0xe2, ALL), (prefix, ALL), (opcode, ALL), (modrm, ALL)];
        check(configure as *const (), &[(0xc4, ALL), (0x02, 0x1f), (0x78, ALL), (0x49, ALL), (0, 0x38)]);
        check(zero as *const (), &register(0x7b, 0x49, 0xc0 | 3 << 3));
        check(load as *const (), &memory(0x7b, 0x4b, 5));
        check(store as *const (), &memory(0x7a, 0x4b, 2));
        // F3.0F38 5E: signed by unsigned. The sums in reg, a in r/m, b (inverted) in vvvv.
        check(add_products as *const (), &register(!6 << 3 & 0x78 | 2, 0x5e, 0xc0 | 1 << 3 | 4));
        // F3.0F38 5C.
        check(add_bf16_products as *const (), &register(!6 << 3 & 0x78 | 2, 0x5c, 0xc0 | 1 << 3 | 4));
        check(release as *const (), &register(0x78, 0x49, 0xc0));
    }
}
