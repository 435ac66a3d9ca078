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
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the CPU has just been found to have these features; the function is otherwise safe.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the CPU has just been found to have these features; the function is otherwise safe.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// Independent partial sums that let a float sum vectorize with one fixed order.
pub(crate) const LANES: usize = 16;

/// Sum of `f(i)` over `0..len` in [`LANES`] interleaved partial sums, added in order: the same bits on every machine.
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
    lanes.iter().sum()
}
