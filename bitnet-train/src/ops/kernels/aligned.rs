//! Words of 32 bits that begin at a cache line, for operands of matrix products: a vector of 64 bytes then never lies
//! across two lines.

/// Memory that grows when it has to and is otherwise used again as it is.
#[derive(Default)]
pub struct Aligned {
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; WORDS]);

const WORDS: usize = 16;

impl Aligned {
    /// The first `count` words. What they hold is whatever was written last.
    pub fn words(&mut self, count: usize) -> &mut [u32] {
        let lines = count.div_ceil(WORDS);
        if self.lines.len() < lines {
            self.lines.resize(lines, Line([0; WORDS]));
        }
        // SAFETY: a `Line` is exactly `WORDS` words without padding, at least `lines` of them lie one after the other, and
        // `self` is borrowed mutably as long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), count) }
    }

    /// The first `count` words, to be read.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn read(&self, count: usize) -> &[u32] {
        assert!(count <= self.lines.len() * WORDS, "{count} words of {}", self.lines.len() * WORDS);
        // SAFETY: as above, with the number of words checked.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), count) }
    }
}
