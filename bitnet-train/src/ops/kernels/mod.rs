//! Training-only arithmetic on slices: matrix products and SIMD loops. The only unsafe code of this crate is here.

pub mod aligned;
pub mod columns;
pub mod elementwise;
pub mod product;
pub mod softmax;

/// Compiles a function three times, for AVX-512, for AVX2 and for the baseline, and chooses at run time.
///
/// The body is ordinary safe Rust that the compiler vectorizes. Rust neither reorders float sums nor fuses
/// multiply-adds by itself, so the three forms give the same bits.
macro_rules! multiversion {
    ($(#[$meta:meta])* pub fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        pub fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::ops::kernels::width() {
                    // SAFETY: the CPU was found to have these features; the function is otherwise safe.
                    $crate::ops::kernels::AVX512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: the CPU was found to have these features; the function is otherwise safe.
                    $crate::ops::kernels::AVX2 => return unsafe { avx2($($arg),*) },
                    _ => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

#[cfg(target_arch = "x86_64")]
pub(crate) const AVX512: u8 = 3;
#[cfg(target_arch = "x86_64")]
pub(crate) const AVX2: u8 = 2;
#[cfg(target_arch = "x86_64")]
const BASELINE: u8 = 1;

/// The widest vectors that [`multiversion`] functions may use on this CPU; asked once, because short rows are many.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn width() -> u8 {
    use std::sync::atomic::{AtomicU8, Ordering};

    static KNOWN: AtomicU8 = AtomicU8::new(0);

    #[cold]
    fn ask() -> u8 {
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let width = match (avx512 && avx2, avx2) {
            (true, _) => AVX512,
            (_, true) => AVX2,
            _ => BASELINE,
        };
        KNOWN.store(width, Ordering::Relaxed);
        width
    }
    match KNOWN.load(Ordering::Relaxed) {
        0 => ask(),
        width => width,
    }
}

/// Begins to load what lies at `x[at..]` into the caches, if there is anything; never a result.
#[inline(always)]
pub(crate) fn prefetch(x: &[f32], at: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(x) = x.get(at) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 CPU has the instruction, and the address is that of a number.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (x, at);
}

/// Independent partial sums that let a float sum vectorize with one fixed order.
pub(crate) const LANES: usize = 16;

/// Sum of `f(i)` over `0..len` in [`LANES`] interleaved partial sums, added in pairs: the same bits on every machine.
#[inline(always)]
pub(crate) fn lane_sum(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let whole = len / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
        i += LANES;
    }
    for (l, lane) in lanes.iter_mut().enumerate().take(len - whole) {
        *lane += f(whole + l);
    }
    reduce(lanes, |a, b| a + b)
}

/// Halves against halves, until one number is left.
#[inline(always)]
pub(crate) fn reduce(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut count = LANES / 2;
    while count > 0 {
        for i in 0..count {
            lanes[i] = f(lanes[i], lanes[i + count]);
        }
        count /= 2;
    }
    lanes[0]
}
