//! Small models, a small tokenizer, and comparisons.

use std::path::Path;

use bitnet_infer::engine::argmax;
use bitnet_model::ModelConfig;
use bitnet_model::config::{HiddenAct, Quantization, Storage};
use bitnet_model::files::hugging_face::{self, ModelParts};
use bitnet_model::files::tensors::TensorFile;
use bitnet_model::reference::Reference;
use bitnet_model::rng::{Stream, generator};
use bitnet_model::weights::{FloatMatrix, FloatType, LayerWeights, LinearWeights};
use rand::Rng;

/// Begins a text in [`tiny_config`]'s models.
pub const BOS: u32 = 256;
/// Ends a text in [`tiny_config`]'s models.
pub const EOS: u32 = 257;

/// A model of odd sizes with quantizers by name.
pub fn tiny_config(weight: &str, activation: &str) -> ModelConfig {
    let quantization = Quantization::by_name(weight, activation).expect("known schemes");
    ModelConfig {
        vocab_size: 258,
        hidden_size: 60,
        intermediate_size: 101,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 22,
        hidden_act: HiddenAct::Relu2,
        max_position_embeddings: 300,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        tie_word_embeddings: true,
        sub_norms: true,
        quantization,
        storage: if quantization.weight.is_none() { Storage::Float } else { Storage::Packed },
        bos_token_id: Some(BOS),
        eos_token_ids: vec![EOS],
    }
}

/// Writes a model of random latent weights, quantized as `config` says, with the byte tokenizer.
pub fn write_model(folder: &Path, config: &ModelConfig, seed: u64) {
    let mut rng = generator(seed, Stream::Init);
    let mut values =
        |n: usize, low: f32, high: f32| -> Vec<f32> { (0..n).map(|_| rng.random_range(low..high)).collect() };
    let h = config.hidden_size;
    let mut table =
        || FloatMatrix::new(config.vocab_size, h, &values(config.vocab_size * h, -1.0, 1.0), FloatType::F32);
    let embedding = table();
    let head = (!config.tie_word_embeddings).then(&mut table);
    let mut norm = |n| values(n, 0.5, 1.5);
    let final_norm = norm(h);
    let layers = (0..config.num_hidden_layers)
        .map(|_| {
            let mut norm = |n| values(n, 0.5, 1.5);
            let input_layernorm = norm(h);
            let post_attention_layernorm = norm(h);
            let attn_sub_norm = config.sub_norms.then(|| norm(config.query_size()));
            let ffn_sub_norm = config.sub_norms.then(|| norm(config.intermediate_size));
            let mut projections = config.projections().into_iter();
            let mut linear = || {
                let (_, rows, cols) = projections.next().expect("seven projections");
                let spread = 2.0 / (cols as f32).sqrt();
                let latent = values(rows * cols, -spread, spread);
                match config.quantization.weight {
                    Some(scheme) => LinearWeights::Packed(
                        hugging_face::quantize(scheme, &latent, rows, cols).expect("finite weights"),
                    ),
                    None => LinearWeights::Float(FloatMatrix::new(rows, cols, &latent, FloatType::F32)),
                }
            };
            LayerWeights {
                input_layernorm,
                q_proj: linear(),
                k_proj: linear(),
                v_proj: linear(),
                attn_sub_norm,
                o_proj: linear(),
                post_attention_layernorm,
                gate_proj: linear(),
                up_proj: linear(),
                ffn_sub_norm,
                down_proj: linear(),
            }
        })
        .collect();
    let tokenizer_json = Some(byte_tokenizer(&[]));
    let parts = ModelParts { config, embedding, head, final_norm, layers, tokenizer_json };
    hugging_face::write(folder, &parts).expect("the model is written");
}

/// The scalar reference of a model folder.
pub fn reference(folder: &Path) -> Reference {
    let config = ModelConfig::read(&folder.join("config.json")).expect("config");
    let bytes = std::fs::read(folder.join("model.safetensors")).expect("weights");
    Reference::load(config, &TensorFile::parse(&bytes, "model.safetensors").expect("header")).expect("weights")
}

/// A `tokenizer.json` with a token for every byte, `<s>` (256) and `</s>` (257), and `more` tokens behind.
pub fn byte_tokenizer(more: &[&str]) -> Vec<u8> {
    // GPT-2's spelling of bytes: printable ones are themselves, the others follow from U+0100 on.
    let printable = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=255u8).filter(|byte| !printable(byte)).zip(0x100u32..);
    let others: std::collections::BTreeMap<u8, u32> = others.collect();
    let spelling = |byte: u8| char::from_u32(others.get(&byte).copied().unwrap_or(byte.into())).expect("a character");
    let vocab: serde_json::Map<_, _> = (0..=255u8).map(|byte| (spelling(byte).to_string(), byte.into())).collect();
    let added = ["<s>", "</s>"].iter().chain(more).zip(256u32..).map(|(content, id)| {
        serde_json::json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
    });
    let byte_level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added.collect::<Vec<_>>(), "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    tokenizer.to_string().into_bytes()
}

/// How far two sets of logits are apart.
#[derive(Debug)]
pub struct Difference {
    /// Root mean square of the difference, over the standard deviation of the expected logits.
    pub rms: f64,
    /// Largest difference, over the same.
    pub worst: f64,
    /// Share of positions whose largest logit is at the same token.
    pub argmax: f64,
}

/// The largest of numbers that are not negative; NaN if there is one, which `f64::max` would drop.
pub fn largest_of(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().max_by(f64::total_cmp).unwrap_or(0.0)
}

/// Compares logits `[t, vocab]`.
pub fn compare(found: &[f32], expected: &[f32], vocab: usize) -> Difference {
    assert_eq!(found.len(), expected.len());
    let n = expected.len() as f64;
    let mean = expected.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let deviation = (expected.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    let distances = || found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b));
    let rows = found.chunks(vocab).zip(expected.chunks(vocab));
    let same = rows.clone().filter(|(a, b)| argmax(a) == argmax(b)).count();
    Difference {
        rms: (distances().map(|d| d * d).sum::<f64>() / n).sqrt() / deviation,
        worst: largest_of(distances().map(f64::abs)) / deviation,
        argmax: same as f64 / rows.count() as f64,
    }
}

/// Floats agree to 1e-5 of the logits' deviation. With quantized activations a difference in the last bit of a float before
/// the quantizer may move a code by one, which no two implementations can avoid: 1 % of the deviation, and nearly every
/// position's first choice.
pub fn assert_close(name: &str, difference: &Difference, exact_floats: bool) {
    println!(
        "{name}: rms {:.2e}, worst {:.2e}, argmax {:.1} %",
        difference.rms,
        difference.worst,
        difference.argmax * 100.0
    );
    if exact_floats {
        assert!(difference.worst < 1e-5 && difference.argmax >= 0.98, "{name}: {difference:?}");
    } else {
        assert!(difference.rms < 0.01, "{name}: {difference:?}");
        assert!(difference.argmax >= 0.98, "{name}: {difference:?}");
    }
}
