//! One block of keys or values of all heads, in one of the types that a cache may have.

use std::ops::Range;

use bitnet_model::quant::{self, ActivationScheme};
use half::f16;

use super::KvType;
use crate::engine::kernels::{BLOCK, LANES, Vectors};

/// How the numbers of one head lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// `[head_dim, BLOCK]`, as attention reads keys: so that both of its products add whole rows.
    Columns,
    /// `[BLOCK, width]`, as it reads values; `width` is `head_dim` rounded up to whole vectors, the rest is zero.
    Rows,
}

/// Numbers `[kv_heads, ..]` at [`BLOCK`] positions.
#[derive(Clone, Debug)]
pub(super) struct Store {
    numbers: Numbers,
    order: Order,
    kv_heads: usize,
    head_dim: usize,
}

#[derive(Clone, Debug)]
enum Numbers {
    F32(Box<[f32]>),
    F16(Box<[f16]>),
    /// `steps` is `[kv_heads, BLOCK]`.
    Int8 {
        codes: Box<[i8]>,
        steps: Box<[f32]>,
    },
}

impl Store {
    pub(super) fn new(kv_type: KvType, order: Order, kv_heads: usize, head_dim: usize) -> Self {
        let len = kv_heads * head_len(order, head_dim);
        let numbers = match kv_type {
            KvType::F32 => Numbers::F32(vec![0.0; len].into()),
            KvType::F16 => Numbers::F16(vec![f16::ZERO; len].into()),
            KvType::Int8 => Numbers::Int8 { codes: vec![0; len].into(), steps: vec![0.0; kv_heads * BLOCK].into() },
        };
        Self { numbers, order, kv_heads, head_dim }
    }

    pub(super) fn byte_count(&self) -> usize {
        match &self.numbers {
            Numbers::F32(numbers) => size_of_val(&**numbers),
            Numbers::F16(numbers) => size_of_val(&**numbers),
            Numbers::Int8 { codes, steps } => size_of_val(&**codes) + size_of_val(&**steps),
        }
    }

    /// Writes rows `[tokens, kv_heads * head_dim]` from position `slot` of the block on.
    pub(super) fn write(&mut self, slot: usize, rows: &[f32]) {
        let (kv_heads, d, order) = (self.kv_heads, self.head_dim, self.order);
        // Head by head: what is written stays in the first-level cache, whichever the order.
        for head in 0..kv_heads {
            let tokens = rows.chunks_exact(kv_heads * d).map(|row| &row[head * d..][..d]);
            for (slot, row) in (slot..BLOCK).zip(tokens) {
                let place = (order, head, slot);
                match &mut self.numbers {
                    Numbers::F32(numbers) => scatter(numbers, place, row, |&number| number),
                    Numbers::F16(numbers) => scatter(numbers, place, row, |&number| to_f16(number)),
                    Numbers::Int8 { codes, steps } => {
                        let mut row_codes = vec![0; d];
                        steps[head * BLOCK + slot] = scheme().quantize(row, &mut row_codes);
                        scatter(codes, place, &row_codes, |&code| code);
                    }
                }
            }
        }
    }

    /// The numbers of one head as f32, in `scratch` unless they are stored as that.
    pub(super) fn head<'a>(&'a self, head: usize, vectors: Vectors, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let len = head_len(self.order, self.head_dim);
        let own = head * len..(head + 1) * len;
        if let Numbers::F32(numbers) = &self.numbers {
            return &numbers[own];
        }
        scratch.resize(len, 0.0);
        match &self.numbers {
            Numbers::F32(_) => {}
            Numbers::F16(numbers) => vectors.widen_f16(&numbers[own], scratch),
            Numbers::Int8 { codes, steps } => {
                let steps = &steps[head * BLOCK..][..BLOCK];
                match self.order {
                    Order::Columns => vectors.widen_int8_columns(&codes[own], steps, scratch),
                    Order::Rows => vectors.widen_int8_rows(&codes[own], steps, scratch),
                }
            }
        }
        scratch
    }

    /// Appends what stands at position `slot`, head by head: the step, if there is one, then the numbers, little-endian.
    pub(super) fn append_slot(&self, slot: usize, bytes: &mut Vec<u8>) {
        for head in 0..self.kv_heads {
            let places = places((self.order, head, slot), self.head_dim);
            match &self.numbers {
                Numbers::F32(numbers) => places.for_each(|i| bytes.extend(numbers[i].to_le_bytes())),
                Numbers::F16(numbers) => places.for_each(|i| bytes.extend(numbers[i].to_le_bytes())),
                Numbers::Int8 { codes, steps } => {
                    bytes.extend(steps[head * BLOCK + slot].to_le_bytes());
                    places.for_each(|i| bytes.extend(codes[i].to_le_bytes()));
                }
            }
        }
    }

    /// Puts back what [`Store::append_slot`] has given out.
    pub(super) fn restore_slot(&mut self, slot: usize, bytes: &[u8]) {
        let (kv_heads, d, order) = (self.kv_heads, self.head_dim, self.order);
        for (head, bytes) in bytes.chunks_exact(bytes.len() / kv_heads).enumerate() {
            let place = (order, head, slot);
            match &mut self.numbers {
                Numbers::F32(numbers) => scatter(numbers, place, bytes.as_chunks().0, |&b| f32::from_le_bytes(b)),
                Numbers::F16(numbers) => scatter(numbers, place, bytes.as_chunks().0, |&b| f16::from_le_bytes(b)),
                Numbers::Int8 { codes, steps } => {
                    let (step, row) = bytes.split_at(bytes.len() - d);
                    steps[head * BLOCK + slot] = step.first_chunk().map_or(0.0, |&step| f32::from_le_bytes(step));
                    scatter(codes, place, row, |&byte| i8::from_le_bytes([byte]));
                }
            }
        }
    }
}

/// Numbers of one head.
fn head_len(order: Order, head_dim: usize) -> usize {
    match order {
        Order::Columns => head_dim * BLOCK,
        Order::Rows => BLOCK * head_dim.next_multiple_of(LANES),
    }
}

/// Where the numbers of one head at one position are.
fn places((order, head, slot): (Order, usize, usize), head_dim: usize) -> std::iter::StepBy<Range<usize>> {
    let first = head * head_len(order, head_dim);
    match order {
        Order::Columns => (first + slot..first + head_dim * BLOCK).step_by(BLOCK),
        Order::Rows => {
            let row = first + slot * head_dim.next_multiple_of(LANES);
            (row..row + head_dim).step_by(1)
        }
    }
}

fn scatter<T, U>(numbers: &mut [T], place: (Order, usize, usize), row: &[U], convert: impl Fn(&U) -> T) {
    places(place, row.len()).zip(row).for_each(|(i, number)| numbers[i] = convert(number));
}

/// The nearest f16 that is finite; a NaN becomes 0, as it does in int8.
fn to_f16(number: f32) -> f16 {
    let number = if number.is_nan() { 0.0 } else { number };
    f16::from_f32(number.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))
}

fn scheme() -> &'static dyn ActivationScheme {
    quant::activation_scheme("int8").ok().flatten().expect("int8 is in the table")
}
