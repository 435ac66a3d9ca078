//! A row-major matrix handed out in blocks of rows and columns that do not overlap, so that several threads can write to it.

use std::marker::PhantomData;
use std::ops::Range;

/// One block.
pub struct Block<'a> {
    start: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: a block is the only way to its numbers while it lives (see `split`), as a mutable slice would be.
unsafe impl Send for Block<'_> {}

/// Cuts `data`, rows of `stride` numbers, into groups of `group` rows, and each group into blocks of the columns
/// `columns`: `[group of rows][range of columns]`.
///
/// # Panics
/// If the rows are no whole groups, or the ranges of columns are not ascending or leave the row.
pub fn split<'a>(data: &'a mut [f32], stride: usize, group: usize, columns: &[Range<usize>]) -> Vec<Vec<Block<'a>>> {
    assert!(stride > 0 && group > 0 && data.len().is_multiple_of(stride * group), "groups of {group} x {stride}");
    let ascending = columns.windows(2).all(|pair| pair[0].end <= pair[1].start);
    let inside = columns.iter().all(|range| range.start <= range.end && range.end <= stride);
    assert!(ascending && inside, "columns {columns:?} of {stride}");
    let groups = data.chunks_mut(stride * group);
    let blocks = |rows: &'a mut [f32]| -> Vec<Block<'a>> {
        let start = rows.as_mut_ptr();
        let block = |range: &Range<usize>| {
            // SAFETY: the range begins within the first row, or at its end if it is empty.
            let start = unsafe { start.add(range.start) };
            Block { start, stride, rows: group, cols: range.len(), lifetime: PhantomData }
        };
        columns.iter().map(block).collect()
    };
    groups.map(blocks).collect()
}

impl Block<'_> {
    /// Row `row` of the block.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: the row lies inside the slice that `split` borrowed mutably for the lifetime of this block; no other block
        // has these columns of these rows, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.cols) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_one_block() {
        let mut data = vec![0f32; 6 * 7];
        for (g, group) in split(&mut data, 7, 3, &[0..2, 2..2, 3..7]).into_iter().enumerate() {
            for (b, mut block) in group.into_iter().enumerate() {
                for r in 0..3 {
                    block
                        .row(r)
                        .iter_mut()
                        .enumerate()
                        .for_each(|(c, x)| *x += (1000 * g + 100 * b + 10 * r + c + 1) as f32);
                }
            }
        }
        let expected = |i: usize| {
            let (row, col) = (i / 7, i % 7);
            let (block, first) = [(0, 0), (0, 0), (9, 0), (2, 3), (2, 3), (2, 3), (2, 3)][col];
            if block == 9 { 0 } else { 1000 * (row / 3) + 100 * block + 10 * (row % 3) + col - first + 1 }
        };
        assert!(data.iter().enumerate().all(|(i, &x)| x == expected(i) as f32), "{data:?}");
    }

    #[test]
    #[should_panic(expected = "columns")]
    fn overlapping_columns_are_refused() {
        split(&mut [0.0; 8], 4, 1, &[0..3, 2..4]);
    }
}
