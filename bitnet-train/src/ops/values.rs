//! From candle tensors to plain slices and back.

use std::cell::Cell;
use std::ops::Deref;

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Storage, Tensor, Var, bail};
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

/// Calls `write` with the numbers of all of `vars`, which may be changed.
///
/// candle gives no guard that one could keep, as it does for reading: it lends the numbers of one variable for the time of
/// an op. So the op on each variable lends the next one, and the last one calls `write` while all are lent.
///
/// # Errors
/// If one is not f32, contiguous and on the CPU; then `write` was not called.
///
/// # Panics
/// Or never returns, if a variable comes twice.
pub fn values_mut(vars: &[&Var], write: impl FnOnce(Vec<&mut [f32]>)) -> Result<()> {
    lend(vars, Vec::with_capacity(vars.len()), write)
}

fn lend<W: FnOnce(Vec<&mut [f32]>)>(vars: &[&Var], lent: Vec<&mut [f32]>, write: W) -> Result<()> {
    match vars.split_first() {
        Some((first, left)) => first.inplace_op1(&Lend { left, state: Cell::new(Some((lent, write))) }),
        None => {
            write(lent);
            Ok(())
        }
    }
}

/// What is lent already, and what to do with all.
type Lent<'a, W> = (Vec<&'a mut [f32]>, W);

/// The op that lends one variable.
struct Lend<'a, W> {
    left: &'a [&'a Var],
    /// Taken when candle runs the op, which it does once.
    state: Cell<Option<Lent<'a, W>>>,
}

impl<W: FnOnce(Vec<&mut [f32]>)> InplaceOp1 for Lend<'_, W> {
    fn name(&self) -> &'static str {
        "lend"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("expected a contiguous f32 variable");
        };
        let Some((lent, write)) = self.state.take() else { bail!("an op runs once") };
        let mut lent: Vec<&mut [f32]> = lent;
        lent.push(&mut values[start..end]);
        lend(self.left, lent, write)
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn all_variables_are_written_at_once_or_none() {
        let var = |values: &[f32]| Var::from_slice(values, values.len(), &Device::Cpu).expect("a variable");
        let (a, b) = (var(&[1.0, 2.0]), var(&[3.0]));
        let swap = |mut lent: Vec<&mut [f32]>| {
            let (first, second) = lent.split_at_mut(1);
            std::mem::swap(&mut first[0][1], &mut second[0][0]);
        };
        values_mut(&[&a, &b], swap).expect("f32");
        assert_eq!((&*values(&a).expect("f32"), &*values(&b).expect("f32")), (&[1.0, 3.0][..], &[2.0][..]));

        let integers = Var::zeros(2, DType::U32, &Device::Cpu).expect("a variable");
        let refused = values_mut(&[&a, &integers], |lent| lent.into_iter().for_each(|values| values.fill(0.0)));
        assert!(refused.is_err());
        assert_eq!(&*values(&a).expect("f32"), &[1.0, 3.0]);
        values_mut(&[], |lent| assert!(lent.is_empty())).expect("nothing to lend");
    }
}
