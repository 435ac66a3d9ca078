//! The products on tiles in plain Rust, as a row of the table that tests walk.

use super::super::layout::Job;
use super::super::tiles::{Emulated, ROW_BYTES};
use super::super::{Kernel, base3, scalar};
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

fn sums<const SLOTS: usize>(
    job: &Job<'_, i8>,
    out: &mut [i32],
    unpack: impl Fn(&[u8; ROW_BYTES], &mut [[u8; ROW_BYTES]; SLOTS]),
) {
    if job.x.len() / job.stride < FEWEST_TOKENS {
        return scalar::sums(job, out);
    }
    product::sums(&mut Emulated::new(), job, out, unpack);
}

/// The codes of a block in base three as bytes.
pub(super) fn unpack_base3(block: &[u8; ROW_BYTES], slots: &mut [[u8; ROW_BYTES]; base3::SLOTS]) {
    for (slot, codes) in slots.iter_mut().enumerate() {
        codes.iter_mut().zip(block).for_each(|(u, &byte)| *u = base3::decode(byte, slot));
    }
}
