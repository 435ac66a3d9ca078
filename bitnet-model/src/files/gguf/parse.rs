//! The header of a GGUF file: keys, values and tensors, all checked.

use std::collections::BTreeMap;

use super::MAGIC;
use super::cursor::Cursor;
use super::spans;
use super::types::TensorType;
use crate::error::{Error, Result};

/// A parsed GGUF file over bytes that live elsewhere.
///
/// Invariant: every tensor lies within the bytes, overlaps no other, and has as many bytes as its type and shape take.
#[derive(Debug)]
pub struct GgufFile<'a> {
    origin: String,
    bytes: &'a [u8],
    version: u32,
    values: BTreeMap<&'a str, Value<'a>>,
    tensors: BTreeMap<&'a str, TensorInfo>,
}

/// The value of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// Values of one kind.
    Array(Array<'a>),
}

/// Values of one kind, still as bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: Kind,
    len: usize,
    bytes: &'a [u8],
}

/// Kinds of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    U64,
    I64,
    F64,
}

/// Where a tensor is and what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Its type.
    pub kind: TensorType,
    /// Dimensions, the slowest first, as everywhere in this project (the file has them the other way round).
    pub shape: Vec<usize>,
    /// Where it begins in the file.
    pub offset: usize,
    /// Its bytes.
    pub len: usize,
}

impl Kind {
    const ALL: [(u32, Self); 12] = [
        (0, Self::U8),
        (1, Self::I8),
        (2, Self::U16),
        (3, Self::I16),
        (4, Self::U32),
        (5, Self::I32),
        (6, Self::F32),
        (7, Self::Bool),
        (8, Self::Text),
        (10, Self::U64),
        (11, Self::I64),
        (12, Self::F64),
    ];

    fn by_id(id: u32) -> Result<Self, String> {
        Self::ALL
            .iter()
            .find(|(number, _)| *number == id)
            .map(|(_, kind)| *kind)
            .ok_or_else(|| format!("has a value of kind {id}, expected 0 to 8 or 10 to 12"))
    }

    /// Bytes of a value; `None` for texts.
    pub fn byte_count(self) -> Option<usize> {
        match self {
            Self::U8 | Self::I8 | Self::Bool => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text => None,
        }
    }

    /// The value of exactly its bytes.
    fn value(self, bytes: &[u8]) -> Result<Value<'static>, String> {
        fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
            bytes.try_into().expect("as many bytes as the kind has")
        }
        Ok(match self {
            Self::U8 => Value::Unsigned(bytes[0].into()),
            Self::I8 => Value::Signed((bytes[0] as i8).into()),
            Self::U16 => Value::Unsigned(u16::from_le_bytes(array(bytes)).into()),
            Self::I16 => Value::Signed(i16::from_le_bytes(array(bytes)).into()),
            Self::U32 => Value::Unsigned(u32::from_le_bytes(array(bytes)).into()),
            Self::I32 => Value::Signed(i32::from_le_bytes(array(bytes)).into()),
            Self::F32 => Value::Float(f32::from_le_bytes(array(bytes)).into()),
            Self::U64 => Value::Unsigned(u64::from_le_bytes(array(bytes))),
            Self::I64 => Value::Signed(i64::from_le_bytes(array(bytes))),
            Self::F64 => Value::Float(f64::from_le_bytes(array(bytes))),
            Self::Bool => match bytes[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(format!("is a truth value of {other}, expected 0 or 1")),
            },
            Self::Text => unreachable!("texts have no fixed size"),
        })
    }
}

impl<'a> Array<'a> {
    /// How many values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The texts, as bytes; `None` if the values are of another kind.
    pub fn texts(self) -> Option<impl Iterator<Item = &'a [u8]>> {
        let mut cursor = Cursor::new(self.bytes, 0);
        let next = move |_| cursor.string("a text").expect("checked when the file was parsed");
        (self.kind == Kind::Text).then(|| (0..self.len).map(next))
    }

    /// The f32 values; `None` if they are of another kind.
    pub fn floats(self) -> Option<impl Iterator<Item = f32>> {
        (self.kind == Kind::F32).then(|| self.bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)))
    }

    /// The values, each by itself, `None` for a truth value that is none; `None` for texts.
    pub fn values(self) -> Option<impl Iterator<Item = Option<Value<'static>>>> {
        let size = self.kind.byte_count()?;
        Some(self.bytes.chunks_exact(size).map(move |bytes| self.kind.value(bytes).ok()))
    }

    /// Integers of any width, signed or not; `None` if the values are of another kind, or one is beyond `i64`.
    pub fn integers(self) -> Option<impl Iterator<Item = i64>> {
        let integer = |value| match value {
            Some(Value::Unsigned(n)) => i64::try_from(n).ok(),
            Some(Value::Signed(n)) => Some(n),
            _ => None,
        };
        let is_float = matches!(self.kind, Kind::F32 | Kind::F64 | Kind::Bool);
        let all_fit = !is_float && self.values()?.all(|value| integer(value).is_some());
        if all_fit { self.values().map(|values| values.filter_map(integer)) } else { None }
    }
}

impl<'a> GgufFile<'a> {
    /// Parses and checks everything in front of the tensors' bytes, and where these are; `origin` names the file in errors.
    ///
    /// # Errors
    /// What is wrong, with its offset, key or tensor.
    pub fn parse(bytes: &'a [u8], origin: &str) -> Result<Self> {
        let fail = |reason: String| Error::format(origin, reason);
        let mut cursor = Cursor::new(bytes, 0);
        if cursor.take(4, "the magic number").map_err(fail)? != MAGIC {
            return Err(fail("is no GGUF file: it does not begin with `GGUF`".into()));
        }
        let version = cursor.u32("the version").map_err(fail)?;
        if !(2..=3).contains(&version) {
            let hint = if (2..=3).contains(&version.swap_bytes()) { " (it is big-endian)" } else { "" };
            return Err(fail(format!("has GGUF version {version}{hint}, expected 2 or 3")));
        }
        let tensor_count = cursor.count(MOST_ENTRIES, "the number of tensors").map_err(fail)?;
        let key_count = cursor.count(MOST_ENTRIES, "the number of keys").map_err(fail)?;
        let least = tensor_count * LEAST_TENSOR_BYTES + key_count * LEAST_KEY_BYTES;
        if least > cursor.remaining() {
            return Err(fail(format!(
                "claims {key_count} keys and {tensor_count} tensors, which take {least} bytes at least, and {} are there",
                cursor.remaining()
            )));
        }
        let mut values = BTreeMap::new();
        for _ in 0..key_count {
            let key = cursor.name(LONGEST_KEY, "a key").map_err(fail)?;
            let value = value(&mut cursor, key).map_err(|reason| Error::config(origin, key, reason))?;
            if values.insert(key, value).is_some() {
                return Err(Error::config(origin, key, "is there twice"));
            }
        }
        let alignment = alignment(&values).map_err(|reason| Error::config(origin, ALIGNMENT_KEY, reason))?;
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = cursor.name(LONGEST_NAME, "the name of a tensor").map_err(fail)?;
            let info = tensor(&mut cursor, alignment).map_err(|reason| Error::tensor(origin, name, reason))?;
            if tensors.insert(name, info).is_some() {
                return Err(Error::tensor(origin, name, "is there twice"));
            }
        }
        let start = cursor.position().checked_next_multiple_of(alignment);
        let start = start.ok_or_else(|| fail("is too long for this machine".into()))?;
        spans::check(&tensors, bytes.len().saturating_sub(start), alignment)
            .map_err(|(name, reason)| Error::tensor(origin, name, reason))?;
        place(&mut tensors, start, bytes.len()).map_err(|(name, reason)| Error::tensor(origin, name, reason))?;
        Ok(Self { origin: origin.to_owned(), bytes, version, values, tensors })
    }

    /// The name of the file in errors.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The value of `key`.
    pub fn value(&self, key: &str) -> Option<Value<'a>> {
        self.values.get(key).copied()
    }

    /// Which part of how many this file is, counted from 1, if its model is split over several.
    pub fn part(&self) -> Option<(u64, u64)> {
        let number = |key| match self.value(key) {
            Some(Value::Unsigned(n)) => Some(n),
            Some(Value::Signed(n)) => u64::try_from(n).ok(),
            _ => None,
        };
        let parts = number("split.count").filter(|&parts| parts > 1)?;
        Some((number("split.no").unwrap_or(0).saturating_add(1), parts))
    }

    /// All keys and values, sorted.
    pub fn values(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> {
        self.values.iter().map(|(key, value)| (*key, *value))
    }

    /// The tensor `name`.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&'a str, &TensorInfo)> {
        self.tensors.iter().map(|(name, info)| (*name, info))
    }

    /// The bytes of a tensor of this file.
    ///
    /// # Panics
    /// If it is not one of this file's.
    pub fn bytes(&self, info: &TensorInfo) -> &'a [u8] {
        &self.bytes[info.offset..info.offset + info.len]
    }
}

fn value<'a>(cursor: &mut Cursor<'a>, key: &str) -> Result<Value<'a>, String> {
    let id = cursor.u32("the kind of a value")?;
    if id != ARRAY {
        return match Kind::by_id(id)? {
            Kind::Text => {
                let text = cursor.string("a text")?;
                std::str::from_utf8(text).map(Value::Text).map_err(|e| format!("is not UTF-8: {e}"))
            }
            kind => kind.value(cursor.take(kind.byte_count().expect("not a text"), "a value")?),
        };
    }
    let id = cursor.u32("the kind of an array's values")?;
    if id == ARRAY {
        return Err("is an array of arrays, expected one of single values".into());
    }
    let kind = Kind::by_id(id)?;
    let least = kind.byte_count().unwrap_or(8);
    let len = cursor.count(cursor.remaining() / least, &format!("the length of the array `{key}`"))?;
    Ok(Value::Array(Array { kind, len, bytes: cursor.values(kind, len, "an array")? }))
}

fn alignment(values: &BTreeMap<&str, Value>) -> Result<usize, String> {
    let Some(&value) = values.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    // Other programs store it as any kind of integer.
    let number = match value {
        Value::Unsigned(n) => usize::try_from(n).ok(),
        Value::Signed(n) => usize::try_from(n).ok(),
        _ => None,
    };
    number.filter(|n| n.is_power_of_two() && (8..=1 << 20).contains(n)).ok_or_else(|| {
        format!("is {}, expected an integer that is a power of two from 8 to {}", super::keys::shown(value), 1 << 20)
    })
}

/// A tensor as the file describes it; its offset is still that from the first tensor.
fn tensor(cursor: &mut Cursor, alignment: usize) -> Result<TensorInfo, String> {
    let dims = cursor.u32("the number of dimensions")?;
    if !(1..=4).contains(&dims) {
        return Err(format!("has {dims} dimensions, expected 1 to 4"));
    }
    let mut shape = Vec::with_capacity(4);
    for _ in 0..dims {
        let dim = cursor.u64("a dimension")?;
        shape.push(usize::try_from(dim).ok().filter(|&n| n > 0).ok_or(format!("has a dimension of {dim}"))?);
    }
    let kind = TensorType::by_id(cursor.u32("a type")?)?;
    let offset = cursor.u64("an offset")?;
    let offset = usize::try_from(offset).map_err(|_| format!("begins at {offset}, beyond any file"))?;
    if !offset.is_multiple_of(alignment) {
        return Err(format!("begins at {offset}, expected a multiple of the alignment {alignment}"));
    }
    let rows = shape[1..].iter().try_fold(1usize, |rows, &dim| rows.checked_mul(dim));
    let len = rows.and_then(|rows| kind.tensor_bytes(rows, shape[0])).ok_or_else(|| {
        format!(
            "has dimensions {shape:?}, which are no whole number of {} blocks of {} or too many",
            kind.name(),
            kind.block()
        )
    })?;
    shape.reverse();
    Ok(TensorInfo { kind, shape, offset, len })
}

/// Turns offsets into those from the beginning of the file, and refuses tensors that reach beyond it or into another.
fn place<'a>(tensors: &mut BTreeMap<&'a str, TensorInfo>, start: usize, end: usize) -> Result<(), (&'a str, String)> {
    for (name, info) in tensors.iter_mut() {
        let (offset, len) = (info.offset, info.len);
        let placed = start.checked_add(offset).filter(|at| at.checked_add(len).is_some_and(|last| last <= end));
        info.offset = placed.ok_or_else(|| {
            (*name, format!("needs {len} bytes at {offset} behind offset {start}, but the file has {end} in all"))
        })?;
    }
    let mut order: Vec<(usize, usize, &str)> =
        tensors.iter().map(|(name, info)| (info.offset, info.len, *name)).collect();
    order.sort_unstable();
    match order.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
        Some(pair) => Err((pair[1].2, format!("overlaps tensor `{}`", pair[0].2))),
        None => Ok(()),
    }
}

const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: usize = 32;
const ARRAY: u32 = 9;

/// More keys or tensors than any model has.
const MOST_ENTRIES: usize = 1 << 16;
/// A length, a kind and one byte; names are not empty.
const LEAST_KEY_BYTES: usize = 8 + 1 + 4 + 1;
/// A length, a byte, one dimension, a type and an offset.
const LEAST_TENSOR_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;
const LONGEST_KEY: usize = 256;
const LONGEST_NAME: usize = 128;
