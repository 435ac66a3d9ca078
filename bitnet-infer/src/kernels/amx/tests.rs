//! The emulated tiles against the definitions, and the product on them against scalar code.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bitnet_model::rng::{Stream, generator};
use proptest::prelude::*;
use rand::Rng;

use super::super::layout::{CodeKind, Job};
use super::super::{base3, scalar};
use super::emulated::{Emulated, unpack_base3};
use super::tiles::{Config, ROWS, Tiles};
use super::{product, unpack};

const B: [usize; 2] = [16, 64];

#[test]
fn tiles_multiply_matrices() {
    let mut rng = generator(1, Stream::Bench);
    for [m, n, k] in [[16, 16, 16], [1, 1, 1], [3, 16, 2], [16, 5, 16], [7, 4, 9]] {
        let mut tiles = Emulated::new();
        tiles.configure(&Config::new([[m, 4 * n], [m, 4 * k], [k, 4 * n], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
        let mut a: Vec<i8> = (0..m * 4 * k).map(|_| rng.random()).collect();
        let mut b: Vec<u8> = (0..k * 4 * n).map(|_| rng.random()).collect();
        (a[0], b[0]) = (-128, 255);
        let start: Vec<i32> = (0..m * n).map(|_| rng.random_range(-1000..1000)).collect();
        let mut sums = start.clone();
        tiles.load::<0, _>(&sums, n);
        tiles.load::<1, _>(&a, 4 * k);
        tiles.load::<2, _>(&b, 4 * n);
        tiles.add_products::<0, 1, 2>();
        tiles.add_products::<0, 1, 2>();
        tiles.store::<0>(&mut sums, n);
        for (i, sum) in sums.into_iter().enumerate() {
            // Column 4k + j of a meets byte j of word n in row k of b.
            let product =
                |c: usize| i32::from(a[i / n * 4 * k + c]) * i32::from(b[c / 4 * 4 * n + 4 * (i % n) + c % 4]);
            assert_eq!(sum, start[i] + 2 * (0..4 * k).map(product).sum::<i32>(), "{m} x {n} x {k}, sum {i}");
        }
    }
}

#[test]
fn rows_lie_a_stride_apart_and_the_rest_of_memory_is_left_alone() {
    let mut tiles = Emulated::new();
    tiles.configure(&Config::new([[3, 8], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
    let numbers: Vec<i32> = (0..12).collect();
    tiles.load::<0, _>(&numbers, 5);
    let mut out = [-1; 10];
    tiles.store::<0>(&mut out, 4);
    assert_eq!(out, [0, 1, -1, -1, 5, 6, -1, -1, 10, 11]);
    tiles.zero::<0>();
    tiles.store::<0>(&mut out, 3);
    assert_eq!(out, [0, 0, -1, 0, 0, 6, 0, 0, 10, 11]);
}

#[test]
fn sums_wrap_as_the_instruction_does() {
    let mut tiles = Emulated::new();
    tiles.configure(&Config::new([[1, 4], [1, 4], [1, 4], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
    let mut sum = [i32::MAX];
    tiles.load::<0, _>(&sum, 1);
    tiles.load::<1, _>(&[1i8, 0, 0, 0], 4);
    tiles.load::<2, _>(&[1u8, 0, 0, 0], 4);
    tiles.add_products::<0, 1, 2>();
    tiles.store::<0>(&mut sum, 1);
    assert_eq!(sum, [i32::MIN]);
}

#[test]
fn what_the_cpu_refuses_is_refused() {
    let fault = |expected: &str, run: &dyn Fn(&mut Emulated)| {
        let mut tiles = Emulated::new();
        let panic = catch_unwind(AssertUnwindSafe(|| run(&mut tiles))).expect_err(expected);
        let text = panic.downcast_ref::<String>().cloned().or(panic.downcast_ref::<&str>().map(ToString::to_string));
        assert!(text.as_ref().is_some_and(|text| text.contains(expected)), "{text:?}, expected: {expected}");
    };
    let shaped = |shapes: [[usize; 2]; 3]| {
        let [sums, a, b] = shapes;
        move |tiles: &mut Emulated| {
            tiles.configure(&Config::new([sums, a, b, [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]]));
            tiles.add_products::<0, 1, 2>();
        }
    };
    shaped([[2, 8], [2, 16], [4, 8]])(&mut Emulated::new());
    fault("#UD: rows of sums and a", &shaped([[3, 8], [2, 16], [4, 8]]));
    fault("#UD: columns of sums and b", &shaped([[2, 12], [2, 16], [4, 8]]));
    fault("#UD: columns of a and rows of b", &shaped([[2, 8], [2, 12], [4, 8]]));
    fault("#UD: tile 2 has no shape", &shaped([[2, 8], [2, 12], [0, 0]]));
    fault("#UD: tiles are not configured", &|tiles| tiles.zero::<0>());
    fault("#UD: a tile is named twice", &|tiles| {
        tiles.configure(&Config::new([B; 8]));
        tiles.add_products::<1, 1, 2>();
    });
    // What memory does not hold is refused before the instruction.
    for (len, stride, fits) in [(15 * 18 + 16, 18, true), (15 * 18 + 15, 18, false), (256, 16, true), (255, 16, false)]
    {
        let run = |access: &dyn Fn(&mut Emulated)| {
            let mut tiles = Emulated::new();
            tiles.configure(&Config::new([B; 8]));
            catch_unwind(AssertUnwindSafe(|| access(&mut tiles))).is_ok()
        };
        assert_eq!(run(&|tiles| tiles.load::<7, _>(&vec![0i32; len], stride)), fits, "{len}, {stride} apart");
        assert_eq!(run(&|tiles| tiles.load::<7, _>(&vec![0i8; 4 * len], 4 * stride)), fits, "{len}, {stride} apart");
        assert_eq!(run(&|tiles| tiles.store::<7>(&mut vec![0; len], stride)), fits, "{len}, {stride} apart");
    }
    // Byte, value.
    for (at, value) in
        [(0, 0), (0, 2), (2, 1), (15, 1), (16, 65), (17, 1), (48, 17), (48, 0), (16, 0), (32, 4), (56, 1)]
    {
        let mut config = [0; 64];
        (config[0], config[16], config[48]) = (1, 64, 16);
        Emulated::new().load_config(&config);
        config[at] = value;
        fault("#GP", &|tiles| tiles.load_config(&config));
    }
}

/// `product::sums` on emulated tiles against scalar code.
fn check(kind: CodeKind, sizes: [usize; 3], bytes: Option<u8>, x: Option<i8>) {
    let tiles = &mut Emulated::new();
    let agrees = agrees_with_scalar(kind, sizes, bytes, x, |job, out| match kind {
        CodeKind::Ternary => product::sums(tiles, job, out, unpack::<2, 4>),
        CodeKind::Base3 => product::sums(tiles, job, out, unpack_base3),
        CodeKind::Binary => product::sums(tiles, job, out, unpack::<1, 8>),
        CodeKind::Int8 => product::sums(tiles, job, out, unpack::<8, 1>),
        CodeKind::Int4 => product::sums(tiles, job, out, unpack::<4, 2>),
    });
    assert!(agrees, "{kind:?}, groups, blocks, tokens: {sizes:?}, {bytes:?}, {x:?}");
}

/// Whether `sums` equals scalar code for so many groups, blocks and tokens; all bytes or activation codes are of one value,
/// or random.
fn agrees_with_scalar(
    kind: CodeKind,
    [groups, blocks, tokens]: [usize; 3],
    bytes: Option<u8>,
    x: Option<i8>,
    sums: impl FnOnce(&Job<'_, i8>, &mut [i32]),
) -> bool {
    let stride = (blocks * kind.block_cols()).next_multiple_of(64);
    let mut rng = generator((groups + blocks + tokens) as u64, Stream::Bench);
    let bytes: Vec<u8> = (0..groups * blocks * 64).map(|_| bytes.unwrap_or_else(|| rng.random())).collect();
    let x: Vec<i8> = (0..tokens * stride).map(|_| x.unwrap_or_else(|| rng.random())).collect();
    let job = Job { kind, lanes: 64, blocks, rows: groups * ROWS, bytes: &bytes, x: &x, stride };
    let [mut out, mut expected] = [vec![-1; tokens * job.rows], vec![-2; tokens * job.rows]];
    sums(&job, &mut out);
    scalar::sums(&job, &mut expected);
    out == expected
}

const KINDS: [CodeKind; 5] = [CodeKind::Ternary, CodeKind::Base3, CodeKind::Binary, CodeKind::Int8, CodeKind::Int4];

#[test]
fn products_equal_scalar_code_at_all_edges_of_tiles() {
    for kind in KINDS {
        for tokens in [1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 65] {
            check(kind, [5, 3, tokens], None, None);
        }
        // Of 64 rows together, of tiles, of spans.
        for groups in 1..10 {
            check(kind, [groups, 9, 19], None, None);
        }
        let span = 128 / kind.slots();
        for blocks in [0, 1, 15, 16, 17, span - 1, span, span + 1, 2 * span, 3 * span + 1] {
            check(kind, [3, blocks, 34], None, None);
        }
    }
}

#[test]
fn the_largest_products_equal_scalar_code() {
    for kind in KINDS {
        // Every code the largest: base three has no byte of all ones.
        let highest = if kind == CodeKind::Base3 { base3::encode(&[[2; 4]; 5]) as u8 } else { 0xff };
        for (bytes, x) in [(highest, -128), (highest, 127), (0, -128)] {
            check(kind, [3, 200, 35], Some(bytes), Some(x));
        }
    }
}

#[test]
fn activations_beyond_a_cache_give_the_same() {
    // 50 tokens of 16448 codes are more than 768 KiB.
    check(CodeKind::Int8, [6, 4112, 50], None, None);
    check(CodeKind::Ternary, [1, 1028, 50], None, None);
}

proptest! {
    #[test]
    fn products_equal_scalar_code_on_random_shapes(
        kind in prop::sample::select(&KINDS[..]), groups in 1usize..8, blocks in 1usize..90, tokens in 1usize..70
    ) {
        check(kind, [groups, blocks, tokens], None, None);
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn base_three_is_unpacked_alike() {
    use super::super::avx512vbmi;
    use super::x86::unpack_base3 as unpack_base3_fast;
    if !avx512vbmi::KERNEL.is_supported() {
        return println!("skipped: this CPU lacks AVX-512 VBMI");
    }
    for start in 0..=255u8 {
        let block = std::array::from_fn(|i| start.wrapping_add(i as u8));
        let [mut fast, mut plain] = [[[0; 64]; base3::SLOTS]; 2];
        // SAFETY: the CPU has the instructions.
        unsafe { unpack_base3_fast(&block, &mut fast) };
        unpack_base3(&block, &mut plain);
        // Bytes that no five codes have may give anything.
        for (i, byte) in block.into_iter().enumerate().filter(|(_, byte)| byte & 0x7f < 123) {
            assert_eq!(fast.map(|slot| slot[i]), plain.map(|slot| slot[i]), "byte {byte}");
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_tiles_of_the_cpu_do_as_the_emulated_ones() {
    if !super::KERNEL.is_supported() {
        return println!("skipped: no AMX on this CPU, or none that the system lets programs use");
    }
    // SAFETY: the CPU and the system have just been asked.
    let failed = unsafe { failures_on_this_cpu() };
    assert!(failed.is_empty(), "{failed:?}");
}

/// Kinds, groups, blocks and tokens for which the row `amx` differs from scalar code. Nothing but arithmetic and
/// memory: a CPU emulator can call it without a system around it.
///
/// # Safety
/// The CPU and the system have what the row needs.
#[cfg(target_arch = "x86_64")]
#[inline(never)]
unsafe fn failures_on_this_cpu() -> Vec<(CodeKind, [usize; 3])> {
    let mut failures = Vec::new();
    for kind in KINDS {
        let row = &super::KERNEL;
        let function = match kind {
            CodeKind::Ternary => row.ternary,
            CodeKind::Base3 => row.base3.unwrap_or(row.ternary),
            CodeKind::Binary => row.binary,
            CodeKind::Int8 => row.int8,
            CodeKind::Int4 => row.int4,
        };
        for sizes in [[1, 2, 8], [5, 9, 16], [4, 17, 17], [7, 129, 35], [2, 33, 64], [9, 3, 73]] {
            for (bytes, x) in [(None, None), (Some(0xff), Some(-128))] {
                let bytes = bytes.filter(|_| kind != CodeKind::Base3);
                // SAFETY: the caller's promise.
                if !agrees_with_scalar(kind, sizes, bytes, x, |job, out| unsafe { function(job, out) }) {
                    failures.push((kind, sizes));
                }
            }
        }
    }
    failures
}
