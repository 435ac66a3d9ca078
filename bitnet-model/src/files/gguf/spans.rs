//! Which of several layouts a file means by type 42.
//!
//! llama.cpp, PrismML and Tencent each gave that number to blocks of their own, and nothing in a file says whose it is. The
//! distances between tensors do: each tensor takes its bytes, filled up to the alignment, and nothing lies between two.

use std::collections::BTreeMap;

use super::parse::TensorInfo;
use super::types::TensorType;

/// Name, weights of a block, bytes of a block. The first is the one that is read.
const LAYOUTS: [(&str, usize, usize); 3] =
    [("Q2_0 of llama.cpp", 64, 18), ("Q2_0 of PrismML", 128, 34), ("STQ1_0", 256, 42)];

/// Refuses a file whose tensors of type 42 are none of 64 weights in 18 bytes, or may be others too. Offsets are those from the
/// first tensor, and `bytes` is what the file has from there on.
///
/// # Errors
/// A tensor of the type, and what the distances say.
pub(super) fn check<'a>(
    tensors: &BTreeMap<&'a str, TensorInfo>,
    bytes: usize,
    alignment: usize,
) -> Result<(), (&'a str, String)> {
    let mut order: Vec<(usize, &str, &TensorInfo)> =
        tensors.iter().map(|(name, info)| (info.offset, *name, info)).collect();
    order.sort_unstable_by_key(|&(offset, ..)| offset);
    let ends = order.iter().skip(1).map(|&(offset, ..)| Some(offset)).chain([None]);
    let of_type: Vec<_> = order.iter().zip(ends).filter(|((_, _, info), _)| info.kind == TensorType::Q2_0).collect();
    let Some(&((_, first, _), _)) = of_type.first() else { return Ok(()) };
    let fits = |&(_, block, block_bytes): &(&str, usize, usize)| {
        of_type.iter().all(|((offset, _, info), end)| {
            let (cols, weights) = (info.shape[info.shape.len() - 1], info.shape.iter().product::<usize>());
            let size = weights / block * block_bytes;
            let (span, padded) = (end.unwrap_or(bytes).checked_sub(*offset), size.next_multiple_of(alignment));
            // The padding behind the last tensor may be missing.
            cols.is_multiple_of(block) && (span == Some(padded) || (end.is_none() && span == Some(size)))
        })
    };
    let shown = |layouts: &[&(&str, usize, usize)]| {
        let each = layouts.iter().map(|(name, block, bytes)| format!("{block} weights in {bytes} bytes ({name})"));
        each.collect::<Vec<_>>().join(", ")
    };
    let possible: Vec<_> = LAYOUTS.iter().filter(|layout| fits(layout)).collect();
    let reason = match possible[..] {
        [only] if *only == LAYOUTS[0] => return Ok(()),
        [] => {
            let all: Vec<_> = LAYOUTS.iter().collect();
            format!("has type 42, but the distances between the tensors fit none of: {}", shown(&all))
        }
        [other] => {
            format!(
                "has type 42 in blocks of {}, which are not read; expected {}",
                shown(&[other]),
                shown(&[&LAYOUTS[0]])
            )
        }
        ref several => format!("has type 42, and its distances fit several layouts: {}", shown(several)),
    };
    Err((first, reason))
}
