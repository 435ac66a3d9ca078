//! From candle tensors to plain slices and back.

use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};
use parking_lot::RwLockReadGuard;

/// The numbers of a contiguous f32 tensor on the CPU, readable as a slice while this lives.
pub struct Values<'a> {
    storage: RwLockReadGuard<'a, Storage>,
    start: usize,
    end: usize,
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.start..self.end],
            _ => unreachable!("checked when the view was made"),
        }
    }
}

/// A view of `tensor`.
///
/// # Errors
/// If it is not f32, contiguous and on the CPU.
pub fn values(tensor: &Tensor) -> Result<Values<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
    if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
        bail!("expected an f32 tensor on the CPU, got {:?} on {:?}", tensor.dtype(), tensor.device());
    }
    Ok(Values { storage, start, end })
}

/// The numbers of an operand of a custom op.
///
/// # Errors
/// If they are not f32 and contiguous.
pub fn operand<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// A tensor of `values` with the shape of `like`.
///
/// # Errors
/// If the number of values differs.
pub fn tensor_like(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}
