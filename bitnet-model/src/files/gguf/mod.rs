//! GGUF files (versions 2 and 3), the format of llama.cpp and its relatives: read from bytes that live elsewhere, and written.
//!
//! Every count, length, offset and product is checked before it is used, and nothing is allocated by what a file claims: keys
//! and tensors borrow from its bytes. `docs/formats.md` describes the types.

mod blocks;
mod cursor;
mod keys;
mod layout;
mod model;
mod parse;
mod probe;
mod quantize;
mod spans;
mod tokens;
mod types;
mod unread;
mod write;

pub use blocks::{decode_codes, decode_row};
pub use keys::{EOS_TOKENS, NORMS, PROJECTIONS};
pub use layout::{I2sLayout, pack_i2s, unpack_i2s};
pub use model::{GgufModel, GgufOptions};
pub use parse::{Array, GgufFile, TensorInfo, Value};
pub use quantize::{encode_codes, encode_row, half_scale};
pub use tokens::{
    CHAT_TEMPLATE, HUGGING_FACE_JSON, TokenLists, added_tokens, chat_template, token_lists, tokenizer_json,
};
pub use types::TensorType;
pub use write::{HeaderWriter, PlannedTensor, config_keys};

/// What a GGUF file begins with.
pub const MAGIC: &[u8; 4] = b"GGUF";
