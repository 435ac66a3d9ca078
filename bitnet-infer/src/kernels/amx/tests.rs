//! The product on emulated tiles against scalar code.

use bitnet_model::rng::{Stream, generator};
use proptest::prelude::*;
use rand::Rng;

use super::super::layout::{CodeKind, Job};
use super::super::tiles::{Emulated, ROWS};
use super::super::{base3, scalar};
use super::emulated::unpack_base3;
use super::{product, unpack};

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
