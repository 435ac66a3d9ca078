//! A safetensors file that is written tensor by tensor: the header first, from types and shapes alone.

use serde_json::{Map, Value, json};

use super::tensors::Dtype;

/// A tensor that will be written.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Dimensions, row-major.
    pub shape: Vec<usize>,
}

impl PlannedTensor {
    /// Its bytes.
    ///
    /// # Panics
    /// If they leave `usize`, which no model's do.
    pub fn byte_count(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// The header of a file that holds `tensors` in this order; their bytes follow without gaps. The same tensors give the same
/// bytes.
///
/// # Errors
/// The name that two tensors have.
pub fn safetensors_header(tensors: &[PlannedTensor]) -> Result<Vec<u8>, String> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.byte_count();
        let entry = json!({
            "dtype": format!("{:?}", tensor.dtype),
            "shape": tensor.shape,
            "data_offsets": [offset, end],
        });
        if entries.insert(tensor.name.clone(), entry).is_some() {
            return Err(tensor.name.clone());
        }
        offset = end;
    }
    let mut header = Value::Object(entries).to_string().into_bytes();
    // Tensors begin where eight bytes may stand together.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::tensors::TensorFile;

    #[test]
    fn a_streamed_file_is_a_safetensors_file() {
        let plan =
            |name: &str, dtype, shape: &[usize]| PlannedTensor { name: name.into(), dtype, shape: shape.to_vec() };
        let tensors = [plan("b", Dtype::F32, &[2, 3]), plan("a", Dtype::U8, &[5]), plan("c", Dtype::BF16, &[1])];
        let mut bytes = safetensors_header(&tensors).expect("three names");
        let payload: Vec<u8> = (0..24 + 5 + 2).collect();
        bytes.extend(&payload);
        let file = TensorFile::parse(&bytes, "x").expect("valid");
        assert_eq!(file.bytes("b", Dtype::F32, &[2, 3]).expect("there"), &payload[..24]);
        assert_eq!(file.bytes("a", Dtype::U8, &[5]).expect("there"), &payload[24..29]);
        assert_eq!(file.bytes("c", Dtype::BF16, &[1]).expect("there"), &payload[29..]);
        assert_eq!(safetensors_header(&[tensors[0].clone(), tensors[0].clone()]), Err("b".into()));
    }
}
