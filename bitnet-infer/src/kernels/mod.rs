//! Integer kernels: one table of instruction sets, chosen at run time.
//!
//! A [`Kernel`] is a row of function pointers. Its functions are reached only through a packed matrix
//! (`layout::CodeMatrix`, `float::FloatStore`), whose constructors refuse a kernel that the CPU cannot run and whose methods
//! check every size; so everything outside this folder is safe code. Sums of integer codes are exact in every kernel:
//! `conformance` demands equality with the reference for every row of the table.
//!
//! Adding one: a file with a `KERNEL`, one line in [`KERNELS`]. Tests, benches and the command line walk the table.

mod aligned;
#[cfg(any(target_arch = "x86_64", test))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_float;
#[cfg(target_arch = "x86_64")]
mod avx2_lut;
#[cfg(target_arch = "x86_64")]
mod avx512_float;
#[cfg(target_arch = "x86_64")]
mod avx512vbmi;
#[cfg(target_arch = "x86_64")]
mod avx512vnni;
mod base3;
#[cfg(test)]
mod conformance;
mod float;
mod grouped;
mod layout;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dot;
#[cfg(target_arch = "aarch64")]
mod neon_float;
#[cfg(target_arch = "aarch64")]
mod neon_i8mm;
mod scalar;
pub(crate) mod team;
pub mod tiles;

use std::sync::OnceLock;

use half::{bf16, f16};

pub(crate) use aligned::AlignedVec;
pub use aligned::Element;
use float::FloatFn;
pub(crate) use float::{FLOAT_PADDING, FLOAT_ROWS, FloatStore, Floats, float_sums};
pub(crate) use grouped::{GroupedMatrix, GroupedRows};
use layout::Job;
pub use layout::{CodeKind, MAX_COLS, Ternary};
pub(crate) use layout::{CodeMatrix, CodeRows, FloatRows, padded_cols};

/// Products of some groups of rows with some tokens.
type CodeFn = unsafe fn(&Job<'_, i8>, &mut [i32]);

/// One implementation of every product a model needs.
///
/// The code functions take some groups of rows and any number of tokens and write `raw = sum(u * a)`, `[tokens, rows]`
/// (see `layout`); calling one on a CPU without its instructions is undefined, so only the matrix types call them.
pub struct Kernel {
    /// The name used by `BITNET_KERNEL` and in reports.
    pub name: &'static str,
    supported: fn() -> bool,
    /// Bytes of a block, the width of this kernel's vectors.
    lanes: usize,
    /// The panel for codes of a kind, columns and tokens of a batch.
    panel: fn(CodeKind, usize, usize) -> Panel,
    ternary: CodeFn,
    /// Ternary codes at five to a byte; `None` where that could not pay, and then they are always held in two bits.
    base3: Option<CodeFn>,
    binary: CodeFn,
    int8: CodeFn,
    int4: CodeFn,
    /// Codes of any kind times unquantized inputs; writes `sum(code * x)`.
    code_floats: unsafe fn(&Job<'_, f32>, &mut [f32]),
    f32: FloatFn<f32>,
    f16: FloatFn<f16>,
    bf16: FloatFn<bf16>,
}

impl Kernel {
    /// Whether this CPU has the instructions.
    pub fn is_supported(&self) -> bool {
        (self.supported)()
    }

    /// Whether ternary codes can be held at five to a byte.
    pub fn has_base3(&self) -> bool {
        self.base3.is_some()
    }

    /// What computes sums of codes of a kind; undefined on a CPU without its instructions.
    fn code_function(&self, kind: CodeKind) -> CodeFn {
        match kind {
            CodeKind::Ternary => self.ternary,
            CodeKind::Base3 => self.base3.expect("`CodeKind::of` asks whether there is one"),
            CodeKind::Binary => self.binary,
            CodeKind::Int8 => self.int8,
            CodeKind::Int4 => self.int4,
        }
    }

    /// Rows of a group: the 32-bit lanes of a vector.
    pub(crate) fn group_rows(&self) -> usize {
        self.lanes / 4
    }
}

/// How a product is cut into calls of a kernel function.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    /// Most rows of a call.
    pub(crate) rows: usize,
    /// Most tokens of a call.
    pub(crate) tokens: usize,
    /// Rows a thread should have: where there are fewer, threads share rows and split tokens.
    pub(crate) rows_a_thread: usize,
}

impl Panel {
    /// Few groups, so that their sums stay in a first-level cache, and as many tokens as keep their codes in a second-level
    /// cache of 512 KiB.
    pub(crate) fn small(group_rows: usize, cols: usize) -> Self {
        let tokens = ((256 << 10) / cols.max(1)).clamp(8, 64);
        Self { rows: 4 * group_rows, tokens, rows_a_thread: group_rows }
    }
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}

/// Every kernel built for this architecture, slowest first.
pub static KERNELS: &[&Kernel] = &[
    &scalar::KERNEL,
    #[cfg(test)]
    &amx::EMULATED,
    #[cfg(target_arch = "x86_64")]
    &avx2::KERNEL,
    #[cfg(target_arch = "x86_64")]
    &avx512vnni::KERNEL,
    #[cfg(target_arch = "x86_64")]
    &avx512vbmi::KERNEL,
    #[cfg(target_arch = "x86_64")]
    &amx::KERNEL,
    #[cfg(target_arch = "aarch64")]
    &neon::KERNEL,
    #[cfg(target_arch = "aarch64")]
    &neon_dot::KERNEL,
    #[cfg(target_arch = "aarch64")]
    &neon_i8mm::KERNEL,
];

/// The kernels this CPU can run, slowest first.
pub fn supported() -> impl Iterator<Item = &'static Kernel> {
    KERNELS.iter().copied().filter(|kernel| kernel.is_supported())
}

/// The kernel to use, chosen once: the fastest that runs here, or the one named by the environment variable `BITNET_KERNEL`.
///
/// # Errors
/// If that variable names no kernel, or one that this CPU cannot run; the text lists the names that work.
pub fn best() -> Result<&'static Kernel, String> {
    static CHOICE: OnceLock<Result<&'static Kernel, String>> = OnceLock::new();
    CHOICE
        .get_or_init(|| match std::env::var(KERNEL_VARIABLE) {
            Ok(name) => by_name(&name).map_err(|reason| format!("{KERNEL_VARIABLE}: {reason}")),
            Err(_) => Ok(supported().last().expect("the scalar kernel runs everywhere")),
        })
        .clone()
}

/// Looks a kernel up.
///
/// # Errors
/// If there is none of that name, or this CPU cannot run it; the text lists the names that work.
pub fn by_name(name: &str) -> Result<&'static Kernel, String> {
    let usable = || supported().map(|kernel| kernel.name).collect::<Vec<_>>().join(", ");
    match KERNELS.iter().find(|kernel| kernel.name == name) {
        Some(kernel) if kernel.is_supported() => Ok(kernel),
        Some(_) => Err(format!(
            "kernel `{name}` needs instructions that this CPU or system lacks, expected one of: {}",
            usable()
        )),
        None => Err(format!("there is no kernel `{name}`, expected one of: {}", usable())),
    }
}

/// Overrides the choice of [`best`].
pub const KERNEL_VARIABLE: &str = "BITNET_KERNEL";
