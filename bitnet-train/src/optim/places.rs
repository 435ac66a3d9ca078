//! Where the numbers of each parameter lie in a buffer that holds those of all.

use std::ops::Range;

use crate::nn::parameters::Parameters;

/// Parameters in name order, one after the other without gaps.
#[derive(Clone, PartialEq)]
pub struct Places {
    names: Vec<String>,
    /// Where each ends, which is where the next one begins.
    ends: Vec<usize>,
}

impl Places {
    /// Those of `parameters`.
    pub fn of_parameters(parameters: &Parameters) -> Self {
        let names = parameters.iter().map(|(name, _)| name.to_owned()).collect();
        let add = |end: &mut usize, len: usize| {
            *end += len;
            Some(*end)
        };
        let ends = parameters.iter().map(|(_, var)| var.elem_count()).scan(0, add).collect();
        Self { names, ends }
    }

    /// Numbers in all.
    pub fn total(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// How many parameters there are.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// The number of a parameter, counted in name order.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.names.binary_search_by(|of| of.as_str().cmp(name)).ok()
    }

    /// The name of parameter `index`.
    pub fn name(&self, index: usize) -> &str {
        &self.names[index]
    }

    /// Where parameter `index` lies.
    pub fn range(&self, index: usize) -> Range<usize> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        start..self.ends[index]
    }

    /// The pieces of `buffer` that belong to the parameters `indices`, which ascend.
    ///
    /// # Panics
    /// If they do not ascend, or the buffer is of another length than [`Places::total`].
    pub fn split_mut<'a>(&self, buffer: &'a mut [f32], indices: impl IntoIterator<Item = usize>) -> Vec<&'a mut [f32]> {
        assert_eq!(buffer.len(), self.total());
        let (mut rest, mut at) = (buffer, 0);
        let piece = |index| {
            let Range { start, end } = self.range(index);
            assert!(start >= at, "parameter {index} comes twice, or out of order");
            let (piece, behind) = std::mem::take(&mut rest)[start - at..].split_at_mut(end - start);
            (rest, at) = (behind, end);
            piece
        };
        indices.into_iter().map(piece).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        Places { names: ["a", "b", "c", "d"].map(String::from).to_vec(), ends: vec![2, 2, 5, 6] }
    }

    #[test]
    fn every_number_belongs_to_one_parameter() {
        let places = places();
        assert_eq!((places.total(), places.count(), places.index("c"), places.index("e")), (6, 4, Some(2), None));
        let mut buffer: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let pieces: Vec<Vec<f32>> =
            places.split_mut(&mut buffer, 0..4).into_iter().map(|piece| piece.to_vec()).collect();
        assert_eq!(pieces, [vec![0.0, 1.0], vec![], vec![2.0, 3.0, 4.0], vec![5.0]]);
        for (index, piece) in pieces.iter().enumerate() {
            assert_eq!(piece, &buffer[places.range(index)]);
        }
        let two = places.split_mut(&mut buffer, [0, 3]);
        assert_eq!((two[0].len(), two[1][0]), (2, 5.0));
    }

    #[test]
    #[should_panic(expected = "comes twice")]
    fn a_piece_is_given_once() {
        places().split_mut(&mut [0.0; 6], [2, 2]);
    }
}
