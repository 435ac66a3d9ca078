//! Models of known size, so that two machines or two programs can be compared by a letter.

/// A config of random tokens. `vocabulary` is its number of entries.
pub struct Size {
    pub name: &'static str,
    pub vocabulary: usize,
    pub config: &'static str,
}

/// Every size.
pub static SIZES: &[Size] =
    &[Size { name: "A", vocabulary: 4096, config: SIZE_A }, Size { name: "B", vocabulary: 8192, config: SIZE_B }];

/// 6.17 M parameters, 4,096 tokens a step.
const SIZE_A: &str = r#"
[run]
name = "A"
[model]
hidden_size = 256
intermediate_size = 768
num_hidden_layers = 6
num_attention_heads = 4
[tokenizer]
type = "bpe"
vocab_size = 4096
[data.source]
type = "stories"
[train]
steps = 100
batch_size = 16
sequence_length = 256
[optimizer]
learning_rate = 1e-3
[schedule]
type = "linear"
warmup_steps = 50
"#;

/// 29.4 M parameters, 4,096 tokens a step.
const SIZE_B: &str = r#"
[run]
name = "B"
[model]
hidden_size = 512
intermediate_size = 1536
num_hidden_layers = 8
num_attention_heads = 8
num_key_value_heads = 4
[tokenizer]
type = "bpe"
vocab_size = 8192
[data.source]
type = "stories"
[train]
steps = 100
batch_size = 8
sequence_length = 512
[optimizer]
learning_rate = 1e-3
[schedule]
type = "linear"
warmup_steps = 50
"#;
