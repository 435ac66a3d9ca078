//! Numbers that are not finite, which no weight may be: found fast, and said in one way.
//!
//! A NaN loses every comparison, so a maximum or a limit drops it and whatever is computed from it looks healthy. Whoever
//! takes weights from outside, or changes them, asks here first.

/// The index of the first number that is NaN or infinite.
pub fn first_not_finite(values: &[f32]) -> Option<usize> {
    find(values, |value| !value.is_finite())
}

/// Fails if a number is NaN or infinite.
///
/// # Errors
/// A sentence that names the first such number.
pub fn check(values: &[f32]) -> Result<(), String> {
    first_not_finite(values).map_or(Ok(()), |index| Err(complaint(index)))
}

/// The sentence about a number at `index` of a tensor that is NaN or infinite.
pub fn complaint(index: usize) -> String {
    format!("holds NaN or infinity at element {index}")
}

/// The index of the first number that `is_bad`.
pub(crate) fn find<T: Copy>(numbers: &[T], is_bad: impl Fn(T) -> bool) -> Option<usize> {
    // A loop without an exit tests many numbers at a time; only bad files go on.
    let any = |chunk: &[T]| chunk.iter().fold(false, |any, &number| any | is_bad(number));
    let start = numbers.chunks(CHUNK).position(any)? * CHUNK;
    numbers[start..].iter().position(|&number| is_bad(number)).map(|at| start + at)
}

/// Numbers tested before asking whether one was bad.
const CHUNK: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_several_is_named_wherever_it_stands() {
        for len in [1, 4095, 4096, 4097, 9000] {
            assert_eq!(check(&vec![f32::MAX; len]), Ok(()));
            for (at, bad) in [(0, f32::NAN), (len / 2, f32::INFINITY), (len - 1, f32::NEG_INFINITY)] {
                let mut values = vec![-f32::MAX; len];
                values[len - 1] = f32::NAN;
                values[at] = bad;
                assert_eq!(check(&values), Err(format!("holds NaN or infinity at element {at}")));
            }
        }
    }
}
