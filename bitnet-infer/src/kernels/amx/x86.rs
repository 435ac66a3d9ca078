//! The row of the table that runs on the CPU's own tiles, and whether it may.

use std::arch::x86_64::*;
use std::sync::LazyLock;

use super::super::avx512vnni::load;
use super::super::base3::{FIFTHS, FOURS, SLOTS};
use super::super::layout::{CodeKind, Job};
use super::super::tiles::{Hardware, Products, is_permitted};
use super::super::{CodeFn, Kernel, avx512vbmi, scalar};
use super::{FEWEST_TOKENS, panel, product, unpack};

/// Sapphire Rapids and later, on a system that lets programs use tiles.
pub static KERNEL: Kernel = Kernel {
    name: "amx",
    supported,
    panel: |kind, cols, tokens| panel(tokens).unwrap_or_else(|| (FEW.panel)(kind, cols, tokens)),
    ternary,
    base3: Some(base3),
    binary,
    int8,
    int4,
    ..FEW
};

/// The kernel of few tokens.
const FEW: Kernel = avx512vbmi::ROW;

fn supported() -> bool {
    static SUPPORTED: LazyLock<bool> =
        LazyLock::new(|| (FEW.supported)() && is_permitted(Products::Int8) && agrees_with_scalar());
    *SUPPORTED
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn ternary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums(job, out, FEW.ternary, unpack::<2, 4>);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn base3(job: &Job<'_, i8>, out: &mut [i32]) {
    const FEW_BASE3: CodeFn = FEW.base3.expect("it has base three");
    sums(job, out, FEW_BASE3, |block, slots| unpack_base3(block, slots));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn binary(job: &Job<'_, i8>, out: &mut [i32]) {
    sums(job, out, FEW.binary, unpack::<1, 8>);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn int8(job: &Job<'_, i8>, out: &mut [i32]) {
    sums(job, out, FEW.int8, unpack::<8, 1>);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn int4(job: &Job<'_, i8>, out: &mut [i32]) {
    sums(job, out, FEW.int4, unpack::<4, 2>);
}

/// Few tokens as `few` does them, more on tiles.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
fn sums<const SLOTS: usize>(
    job: &Job<'_, i8>,
    out: &mut [i32],
    few: CodeFn,
    unpack: impl Fn(&[u8; 64], &mut [[u8; 64]; SLOTS]),
) {
    if job.x.len() / job.stride < FEWEST_TOKENS {
        // SAFETY: `few` is of a kernel that needs no other instructions than this function.
        return unsafe { few(job, out) };
    }
    // SAFETY: reached only through matrices of this kernel, which `supported` admits, and [`agrees_with_scalar`]; the tiles
    // are given back before anything else on this thread runs.
    let mut tiles = unsafe { Hardware::new() };
    product::sums(&mut tiles, job, out, unpack);
}

/// The codes of a block in base three as bytes (see [`avx512vbmi`]).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni,avx512vbmi")]
pub(super) fn unpack_base3(block: &[u8; 64], slots: &mut [[u8; 64]; SLOTS]) {
    let look_up = |table: &[u8; 128], bytes| {
        let halves = table.as_chunks().0;
        _mm512_permutex2var_epi8(load(&halves[0]), bytes, load(&halves[1]))
    };
    let bytes = load(block);
    let (fours, twos) = (look_up(&FOURS, bytes), _mm512_set1_epi8(0b1010_1010_u8 as i8));
    let mut v = _mm512_mask_sub_epi8(fours, _mm512_movepi8_mask(bytes), twos, fours);
    for slot in &mut slots[..SLOTS - 1] {
        store(slot, _mm512_and_si512(v, _mm512_set1_epi8(3)));
        v = _mm512_srli_epi16::<2>(v);
    }
    store(&mut slots[SLOTS - 1], look_up(&FIFTHS, bytes));
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(to: &mut [u8; 64], bytes: __m512i) {
    // SAFETY: 64 bytes are writable; the store needs no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), bytes) };
}

/// Whether tiles multiply as plain arithmetic does: two spans, odd groups and a short tile of tokens, all values of a byte.
/// An emulator or a hypervisor that got something wrong is found here and not in a model's answers.
fn agrees_with_scalar() -> bool {
    let [groups, blocks, tokens, stride] = [3, 144, 35, 576];
    let (mut state, mut bytes, mut x) = (1u32, vec![0u8; groups * blocks * 64], vec![0i8; tokens * stride]);
    let mut random = || {
        // Numerical Recipes' linear congruential generator; its upper bits are the good ones.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    bytes.iter_mut().for_each(|byte| *byte = random());
    x.iter_mut().for_each(|code| *code = random() as i8);
    let job = Job { kind: CodeKind::Int8, lanes: 64, blocks, rows: groups * 16, bytes: &bytes, x: &x, stride };
    let [mut fast, mut plain] = [vec![0; tokens * job.rows], vec![1; tokens * job.rows]];
    // SAFETY: called once AVX-512 and tiles are known to be there.
    unsafe { int8(&job, &mut fast) };
    scalar::sums(&job, &mut plain);
    fast == plain
}
