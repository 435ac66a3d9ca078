//! The types of tensors, and what a block of each takes.

/// A type of numbers in a GGUF tensor. Names and numbers are ggml's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// 32-bit floats.
    F32,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 weights: f16 scale, 4-bit codes 0 to 15 less 8.
    Q4_0,
    /// 32 weights: f16 scale and minimum, 4-bit codes.
    Q4_1,
    /// 32 weights: f16 scale, int8 codes.
    Q8_0,
    /// 256 weights: f16 scale of scales and of minima, 6-bit scales and minima of 32 weights each, 4-bit codes.
    Q4K,
    /// 256 weights: 6-bit codes less 32, int8 scales of 16 weights each, f16 scale of scales.
    Q6K,
    /// 256 weights: ternary, five digits a byte, f16 scale.
    Tq1_0,
    /// 256 weights: ternary, two bits, f16 scale.
    Tq2_0,
    /// A whole matrix: ternary, two bits, one f32 scale behind (Microsoft's bitnet.cpp).
    I2S,
    /// 128 weights: one bit, f16 scale.
    Q1_0,
    /// 64 weights: two bits, codes -1 to 2, f16 scale.
    Q2_0,
}

/// Number in files, name, weights of a block, bytes of a block.
const TABLE: [(TensorType, u32, &str, usize, usize); 13] = [
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Q4_0, 2, "Q4_0", 32, 18),
    (TensorType::Q4_1, 3, "Q4_1", 32, 20),
    (TensorType::Q8_0, 8, "Q8_0", 32, 34),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
    (TensorType::Bf16, 30, "BF16", 1, 2),
    (TensorType::Tq1_0, 34, "TQ1_0", 256, 54),
    (TensorType::Tq2_0, 35, "TQ2_0", 256, 66),
    (TensorType::I2S, 36, "I2_S", 128, 32),
    (TensorType::Q1_0, 41, "Q1_0", 128, 18),
    (TensorType::Q2_0, 42, "Q2_0", 64, 18),
];

/// Names of types that exist and are not read here, to say so.
const OTHERS: [(u32, &str); 17] = [
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (13, "Q5_K"),
    (15, "Q8_K"),
    (24, "I8"),
    (26, "I32"),
    (28, "F64"),
    (37, "I8_S"),
    (38, "TL1"),
    (39, "TL2 or MXFP4"),
    (43, "STQ1_0 or FV5"),
    (44, "FV5B"),
    (142, "PQ2_0 of PrismML"),
    (143, "PTQ1_0 of PrismML"),
];

impl TensorType {
    /// The type with this number in files.
    ///
    /// # Errors
    /// A sentence with the number, its name if it has one, and the types that are read.
    pub fn by_id(id: u32) -> Result<Self, String> {
        TABLE.iter().find(|row| row.1 == id).map(|row| row.0).ok_or_else(|| {
            let name = OTHERS.iter().find(|(other, _)| *other == id).map_or("unknown", |(_, name)| name);
            let known: Vec<&str> = TABLE.iter().map(|row| row.2).collect();
            format!("has type {id} ({name}), expected one of: {}", known.join(", "))
        })
    }

    fn row(self) -> &'static (Self, u32, &'static str, usize, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("every type has a row")
    }

    /// The number in files.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// ggml's name.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Weights of a block: a row is a whole number of blocks.
    pub fn block(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.row().4
    }

    /// Bytes of a tensor of `rows` rows of `cols` weights; `None` if a row is no whole number of blocks, or the product leaves
    /// `usize`.
    pub fn tensor_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block()) {
            return None;
        }
        let bytes = (cols / self.block()).checked_mul(self.block_bytes())?.checked_mul(rows)?;
        bytes.checked_add(if self == Self::I2S { I2S_TAIL } else { 0 })
    }

    /// Whether a tensor is floats that need no decoding.
    pub fn float_type(self) -> Option<crate::weights::FloatType> {
        use crate::weights::FloatType;
        match self {
            Self::F32 => Some(FloatType::F32),
            Self::F16 => Some(FloatType::F16),
            Self::Bf16 => Some(FloatType::Bf16),
            _ => None,
        }
    }

    /// Whether all its codes are -1, 0 and 1 (Q2_0 may also hold 2).
    pub fn is_ternary(self) -> bool {
        matches!(self, Self::Tq1_0 | Self::Tq2_0 | Self::I2S | Self::Q2_0)
    }
}

/// Bytes behind the codes of an I2_S tensor: the scale, and padding.
pub(super) const I2S_TAIL: usize = 32;
