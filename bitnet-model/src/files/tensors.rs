//! Named tensors in a safetensors file: read from bytes (usually a memory map that the caller opened), written synced.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{SafeTensors, TensorView, View};

use super::source::TensorRecord;
use crate::error::{Error, Result};
use crate::finite::{complaint, find};
use crate::weights::{FloatData, FloatMatrix, FloatType};

pub use safetensors::Dtype;

/// Parsed safetensors, of one file or of the shards of one model, over bytes that live elsewhere.
pub struct TensorFile<'a> {
    parts: Vec<Part<'a>>,
    /// Where each tensor is.
    index: BTreeMap<String, usize>,
    origin: String,
}

struct Part<'a> {
    tensors: SafeTensors<'a>,
    bytes: &'a [u8],
}

impl<'a> TensorFile<'a> {
    /// Parses and bounds-checks the header; `origin` names the file in errors.
    ///
    /// # Errors
    /// What is wrong with the header: truncated, oversized, overlapping or out-of-range tensors.
    pub fn parse(bytes: &'a [u8], origin: &str) -> Result<Self> {
        Self::parse_shards(&[(bytes, origin)], origin)
    }

    /// The same for a model in several files, each with its name; `origin` names them together.
    ///
    /// # Errors
    /// As [`TensorFile::parse`], or if two files have a tensor of the same name.
    pub fn parse_shards(files: &[(&'a [u8], &str)], origin: &str) -> Result<Self> {
        let (mut parts, mut index) = (Vec::new(), BTreeMap::new());
        for (number, (bytes, name)) in files.iter().enumerate() {
            let bad = |e: safetensors::SafeTensorError| {
                // A message may quote names from the file; escaped, they can neither break the line nor move the cursor.
                let reason = e.to_string().escape_debug().to_string();
                Error::format(name, format!("is not a valid safetensors file of {} bytes: {reason}", bytes.len()))
            };
            if let Some(reason) = super::mistaken(bytes) {
                return Err(Error::format(name, reason));
            }
            let tensors = SafeTensors::deserialize(bytes).map_err(bad)?;
            for tensor in tensors.names() {
                if index.insert(tensor.to_owned(), number).is_some() {
                    let reason = format!("has a tensor `{}` that another file has too", tensor.escape_debug());
                    return Err(Error::format(name, reason));
                }
            }
            parts.push(Part { tensors, bytes });
        }
        Ok(Self { parts, index, origin: origin.to_owned() })
    }

    /// Every tensor in the order in which they lie: name, type, shape, bytes, and where these begin.
    pub fn records(&self) -> Vec<TensorRecord> {
        let mut records: Vec<(usize, TensorRecord)> = Vec::new();
        for (name, &part) in &self.index {
            let Ok(view) = self.parts[part].tensors.tensor(name) else { continue };
            let offset = view.data().as_ptr().addr() - self.parts[part].bytes.as_ptr().addr();
            let kind = format!("{:?}", view.dtype());
            let (shape, bytes) = (view.shape().to_vec(), view.data().len());
            records.push((part, TensorRecord { name: name.clone(), kind, shape, bytes, offset }));
        }
        records.sort_by_key(|(part, record)| (*part, record.offset));
        records.into_iter().map(|(_, record)| record).collect()
    }

    /// The name of the file in errors.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> Vec<&str> {
        self.index.keys().map(String::as_str).collect()
    }

    /// Whether a tensor of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// A tensor of any type and shape.
    ///
    /// # Errors
    /// If it is missing.
    pub fn view(&self, name: &str) -> Result<TensorView<'a>> {
        let part = self.index.get(name).map(|&part| &self.parts[part]);
        part.and_then(|part| part.tensors.tensor(name).ok())
            .ok_or_else(|| Error::tensor(&self.origin, name, "is missing"))
    }

    /// A float matrix of `[rows, cols]` (f32, f16 or bf16), as stored.
    ///
    /// # Errors
    /// If it is missing, of another type or shape, or holds NaN or infinity.
    pub fn float_matrix(&self, name: &str, rows: usize, cols: usize) -> Result<FloatMatrix> {
        let view = self.shaped(name, &[rows, cols])?;
        let data = self.floats(name, &view)?;
        Ok(FloatMatrix { rows, cols, data })
    }

    /// The bytes of a float matrix of `[rows, cols]` (f32, f16 or bf16) and their type. The numbers are not looked at.
    ///
    /// # Errors
    /// If it is missing or of another type or shape.
    pub fn float_bytes(&self, name: &str, rows: usize, cols: usize) -> Result<FloatBytes<'a>> {
        let view = self.shaped(name, &[rows, cols])?;
        Ok(FloatBytes { float_type: self.float_type(name, &view)?, bytes: view.data() })
    }

    /// The complaint about a number at `index` of a tensor that is NaN or infinite.
    pub fn not_finite(&self, name: &str, index: usize) -> Error {
        Error::tensor(&self.origin, name, complaint(index))
    }

    /// A float vector of `len`, as f32.
    ///
    /// # Errors
    /// As [`TensorFile::float_matrix`].
    pub fn float_vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let view = self.shaped(name, &[len])?;
        let data = self.floats(name, &view)?;
        Ok(FloatMatrix { rows: 1, cols: len, data }.to_f32())
    }

    /// The bytes of a tensor of `dtype` and `shape`.
    ///
    /// # Errors
    /// If it is missing or of another type or shape.
    pub fn bytes(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&'a [u8]> {
        let view = self.shaped(name, shape)?;
        if view.dtype() != dtype {
            return Err(Error::tensor(&self.origin, name, format!("is {:?}, expected {dtype:?}", view.dtype())));
        }
        Ok(view.data())
    }

    fn shaped(&self, name: &str, shape: &[usize]) -> Result<TensorView<'a>> {
        let view = self.view(name)?;
        if view.shape() != shape {
            return Err(Error::tensor(&self.origin, name, format!("has shape {:?}, expected {shape:?}", view.shape())));
        }
        Ok(view)
    }

    fn float_type(&self, name: &str, view: &TensorView) -> Result<FloatType> {
        match view.dtype() {
            Dtype::F32 => Ok(FloatType::F32),
            Dtype::F16 => Ok(FloatType::F16),
            Dtype::BF16 => Ok(FloatType::Bf16),
            other => Err(Error::tensor(&self.origin, name, format!("is {other:?}, expected F32, F16 or BF16"))),
        }
    }

    fn floats(&self, name: &str, view: &TensorView) -> Result<FloatData> {
        let floats = FloatBytes { float_type: self.float_type(name, view)?, bytes: view.data() };
        match floats.first_not_finite() {
            Some(index) => Err(self.not_finite(name, index)),
            None => Ok(floats.to_data()),
        }
    }
}

/// Floats as a file holds them: little-endian, at any address.
#[derive(Clone, Copy, Debug)]
pub struct FloatBytes<'a> {
    /// Their type.
    pub float_type: FloatType,
    /// Their bytes, a whole number of floats.
    pub bytes: &'a [u8],
}

impl FloatBytes<'_> {
    /// The index of the first number that is NaN or infinite.
    pub fn first_not_finite(&self) -> Option<usize> {
        // All bits of the exponent are set.
        let two = |mask: u16| move |number| u16::from_le_bytes(number) & mask == mask;
        let mask = 0x7f80_0000;
        match self.float_type {
            FloatType::F32 => find(self.bytes.as_chunks::<4>().0, |number| u32::from_le_bytes(number) & mask == mask),
            FloatType::F16 => find(self.bytes.as_chunks::<2>().0, two(0x7c00)),
            FloatType::Bf16 => find(self.bytes.as_chunks::<2>().0, two(0x7f80)),
        }
    }

    /// Writes the numbers into `out`, which has as many, as f32.
    pub fn to_f32(&self, out: &mut [f32]) {
        let twos = self.bytes.as_chunks::<2>().0;
        match self.float_type {
            FloatType::F32 => {
                let fours = self.bytes.as_chunks::<4>().0;
                out.iter_mut().zip(fours).for_each(|(out, &b)| *out = f32::from_le_bytes(b));
            }
            FloatType::F16 => out.iter_mut().zip(twos).for_each(|(out, &b)| *out = f16::from_le_bytes(b).to_f32()),
            FloatType::Bf16 => out.iter_mut().zip(twos).for_each(|(out, &b)| *out = bf16::from_le_bytes(b).to_f32()),
        }
    }

    /// A copy of the numbers.
    pub fn to_data(&self) -> FloatData {
        let twos = self.bytes.as_chunks::<2>().0.iter();
        match self.float_type {
            FloatType::F32 => {
                FloatData::F32(self.bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
            }
            FloatType::F16 => FloatData::F16(twos.map(|&b| f16::from_le_bytes(b)).collect()),
            FloatType::Bf16 => FloatData::Bf16(twos.map(|&b| bf16::from_le_bytes(b)).collect()),
        }
    }
}

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnedTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, row-major.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

impl OwnedTensor {
    /// An f32 tensor.
    ///
    /// # Panics
    /// If the shape does not hold `values.len()` elements.
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "one value per element");
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
    }

    /// A float matrix in its own type.
    pub fn float_matrix(matrix: &FloatMatrix) -> Self {
        let (dtype, bytes) = match &matrix.data {
            FloatData::F32(v) => (Dtype::F32, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
            FloatData::F16(v) => (Dtype::F16, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
            FloatData::Bf16(v) => (Dtype::BF16, v.iter().flat_map(|v| v.to_le_bytes()).collect()),
        };
        Self { dtype, shape: vec![matrix.rows, matrix.cols], bytes }
    }
}

impl View for &OwnedTensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes tensors to a new safetensors file and syncs it. `metadata` is one key and its text: with more, the format's
/// hash map would make the bytes differ from run to run.
///
/// # Errors
/// If two tensors share a name, or the file cannot be written.
pub fn write<'a, T>(path: &Path, tensors: &'a [(String, T)], metadata: (&str, String)) -> Result<()>
where
    &'a T: View,
{
    let mut sorted: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    sorted.sort_by_key(|(name, _)| *name);
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::tensor(&path.display().to_string(), pair[0].0, "would be written twice"));
    }
    let metadata = HashMap::from([(metadata.0.to_owned(), metadata.1)]);
    safetensors::serialize_to_file(sorted, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(e) => Error::io(path, "write")(e),
        other => Error::format(&path.display().to_string(), format!("cannot be written: {other}")),
    })?;
    make_ordinary(path)?;
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(Error::io(path, "sync"))
}

/// The safetensors crate writes through a private temporary file (mode 0600); a model is an ordinary file.
#[cfg(unix)]
fn make_ordinary(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(Error::io(path, "set permissions of"))
}

#[cfg(not(unix))]
fn make_ordinary(_path: &Path) -> Result<()> {
    Ok(())
}
