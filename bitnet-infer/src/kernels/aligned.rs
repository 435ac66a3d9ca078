//! A vector that starts on a cache line and is padded to whole lines, so that vector loads neither split nor overrun.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use half::{bf16, f16};
use memmap2::MmapMut;

/// Plain numbers that may be read from and written to vectors of bytes.
///
/// # Safety
/// Every bit pattern (all zeros included) is a value, the size divides 64 and the alignment is at most 64.
pub unsafe trait Element: Copy + Send + Sync + 'static {}

// SAFETY: plain numbers of 1, 2 or 4 bytes; every bit pattern is a value.
unsafe impl Element for u8 {}
// SAFETY: as above.
unsafe impl Element for i8 {}
// SAFETY: as above.
unsafe impl Element for i32 {}
// SAFETY: as above.
unsafe impl Element for u32 {}
// SAFETY: as above.
unsafe impl Element for f32 {}
// SAFETY: as above; `f16` is a transparent `u16`.
unsafe impl Element for f16 {}
// SAFETY: as above; `bf16` is a transparent `u16`.
unsafe impl Element for bf16 {}

/// A fixed-length vector on 64-byte boundaries.
///
/// Invariant: the storage has room for `len` elements and starts on a line.
pub(crate) struct AlignedVec<T> {
    storage: Storage,
    len: usize,
    element: PhantomData<T>,
}

enum Storage {
    Lines(Vec<Line>),
    Pages(MmapMut),
}

impl<T: Element> AlignedVec<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let lines = vec![Line([0; LINE_BYTES]); (len * size_of::<T>()).div_ceil(LINE_BYTES)];
        Self { storage: Storage::Lines(lines), len, element: PhantomData }
    }

    /// `len` zeros for what stays long and is read from end to end, as weights are for every token: in pages of 2 MiB where
    /// the system has them to give. With pages of 4 KiB a core spends much of its time looking pages up (on a virtual
    /// machine with two Zen 4 cores: 34 GB/s read, against 59).
    pub(crate) fn in_huge_pages(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        match if bytes >= HUGE_PAGE_BYTES { pages(bytes) } else { None } {
            Some(map) => Self { storage: Storage::Pages(map), len, element: PhantomData },
            None => Self::zeroed(len),
        }
    }
}

/// Zeroed memory straight from the system; nothing if it has none to give, and the allocator may try.
fn pages(bytes: usize) -> Option<MmapMut> {
    let map = MmapMut::map_anon(bytes).ok()?;
    // A system without such pages says so; ordinary ones do as well.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Some(map)
}

impl<T: Element> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let start: *const u8 = match &self.storage {
            Storage::Lines(lines) => lines.as_ptr().cast(),
            Storage::Pages(map) => map.as_ptr(),
        };
        // SAFETY: the storage is initialised bytes, at least `len * size_of::<T>()` of them, on a line (a page starts on
        // one); any bits are a `T`.
        unsafe { std::slice::from_raw_parts(start.cast(), self.len) }
    }
}

impl<T: Element> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let start: *mut u8 = match &mut self.storage {
            Storage::Lines(lines) => lines.as_mut_ptr().cast(),
            Storage::Pages(map) => map.as_mut_ptr(),
        };
        // SAFETY: as in `deref`, and `self` is borrowed mutably; any `T` is valid as bytes.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), self.len) }
    }
}

/// The bytes of plain numbers.
pub(crate) fn bytes_of<T: Element>(values: &[T]) -> &[u8] {
    // SAFETY: the numbers are initialised, have no padding, and any byte is a `u8`.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The bytes of plain numbers, to be overwritten.
pub(crate) fn bytes_of_mut<T: Element>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above; the numbers are borrowed mutably, and any bytes are a `T`.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// Bytes as plain numbers of this machine; `None` if they do not begin where such a number may, or end within one.
pub(crate) fn numbers_of<T: Element>(bytes: &[u8]) -> Option<&[T]> {
    if !bytes.as_ptr().cast::<T>().is_aligned() || !bytes.len().is_multiple_of(size_of::<T>()) {
        return None;
    }
    // SAFETY: the bytes are initialised, as many as whole numbers take and aligned for them; any bits are a `T`.
    Some(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) })
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

const LINE_BYTES: usize = 64;

/// From this size on memory comes in pages of its own.
const HUGE_PAGE_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_numbers_where_these_may_stand() {
        let mut line = AlignedVec::<f32>::zeroed(4);
        line.copy_from_slice(&[1.0, -2.0, 0.5, 3.0]);
        let bytes = bytes_of(&line);
        assert_eq!(numbers_of::<f32>(&bytes[4..]), Some(&[-2.0, 0.5, 3.0][..]));
        assert_eq!(numbers_of::<f32>(&bytes[2..6]), None);
        assert_eq!(numbers_of::<f32>(&bytes[..6]), None);
        assert_eq!(numbers_of::<f16>(&bytes[2..6]).map(<[f16]>::len), Some(2));
    }

    #[test]
    fn starts_on_a_line_and_holds_what_is_written() {
        for len in [0, 1, 31, 32, 33, 1000, 1 << 20, (1 << 21) + 3] {
            let mut v = AlignedVec::<f16>::zeroed(len);
            assert_eq!((v.len(), v.as_ptr() as usize % 64), (len, 0));
            let long = AlignedVec::<f16>::in_huge_pages(len);
            assert_eq!((long.len(), long.as_ptr() as usize % 64), (len, 0));
            assert!(long.iter().all(|x| x.to_bits() == 0));
            v.iter_mut().enumerate().for_each(|(i, x)| *x = f16::from_bits(i as u16));
            assert!(v.iter().enumerate().all(|(i, x)| x.to_bits() == i as u16));
        }
    }
}
