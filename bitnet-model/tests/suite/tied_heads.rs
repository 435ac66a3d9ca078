//! A configuration that ties the head to the embedding, beside a file that has a head.

use bitnet_model::ModelConfig;
use bitnet_model::files::gguf::{GgufFile, GgufModel, GgufOptions, I2sLayout, TensorType};
use bitnet_model::files::hugging_face::{WEIGHTS_FILE, WeightReader};
use bitnet_model::files::source::WeightSource;
use bitnet_model::files::tensors::TensorFile;
use bitnet_model::reference::Reference;
use bitnet_model::weights::FloatType;

use crate::folder::{Weights, config};
use crate::gguf_file;

fn untied() -> ModelConfig {
    ModelConfig { tie_word_embeddings: false, ..config("none") }
}

/// The bytes of the weights of an untied model, its head changed.
fn with_head(change: impl FnOnce(&mut Weights)) -> Vec<u8> {
    let mut weights = Weights::random(&untied(), FloatType::F32, 5);
    change(&mut weights);
    let root = tempfile::tempdir().expect("temp dir");
    weights.write(&root.path().join("model"), &untied()).expect("written");
    std::fs::read(root.path().join("model").join(WEIGHTS_FILE)).expect("readable")
}

#[test]
fn a_head_with_other_numbers_is_used_whatever_the_configuration_says() {
    let bytes = with_head(|_| {});
    let file = TensorFile::parse(&bytes, "model.safetensors").expect("valid");
    let tied = ModelConfig { tie_word_embeddings: true, ..untied() };
    let reader = WeightReader::new(&tied, &file);
    assert!(!reader.config().tie_word_embeddings);
    let notes = reader.notes();
    assert!(notes.len() == 1 && notes[0].contains("another `lm_head.weight`: that one is used"), "{notes:?}");
    assert!(reader.head().expect("readable").is_some() && reader.head_table().expect("readable").is_some());
    let logits = |config: &ModelConfig| Reference::load(config.clone(), &file).expect("loads").logits(&[1, 2, 3]);
    assert_eq!(logits(&tied), logits(&untied()));
    assert!(WeightReader::new(&untied(), &file).notes().is_empty());
}

#[test]
fn a_head_with_the_embeddings_numbers_stays_tied() {
    let bytes = with_head(|weights| weights.head = Some(weights.embedding.clone()));
    let file = TensorFile::parse(&bytes, "model.safetensors").expect("valid");
    let tied = ModelConfig { tie_word_embeddings: true, ..untied() };
    let reader = WeightReader::new(&tied, &file);
    assert!(reader.config().tie_word_embeddings && reader.notes().is_empty());
    assert!(reader.head().expect("readable").is_none());
    // One number of the last row makes it another head.
    let bytes = with_head(|weights| {
        let mut values = weights.embedding.to_f32();
        *values.last_mut().expect("rows") += 1.0;
        let (rows, cols) = (weights.embedding.rows, weights.embedding.cols);
        weights.head = Some(bitnet_model::weights::FloatMatrix::new(rows, cols, &values, FloatType::F32));
    });
    let file = TensorFile::parse(&bytes, "model.safetensors").expect("valid");
    assert!(!WeightReader::new(&tied, &file).config().tie_word_embeddings);
}

#[test]
fn a_head_of_another_float_type_with_the_embeddings_numbers_stays_tied() {
    // Numbers that f16 holds: one file, two types.
    let bytes = with_head(|weights| {
        let (rows, cols) = (weights.embedding.rows, weights.embedding.cols);
        let values: Vec<f32> = (0..rows * cols).map(|at| (at % 13) as f32 - 6.0).collect();
        weights.embedding = bitnet_model::weights::FloatMatrix::new(rows, cols, &values, FloatType::F16);
        weights.head = Some(bitnet_model::weights::FloatMatrix::new(rows, cols, &values, FloatType::F32));
    });
    let file = TensorFile::parse(&bytes, "model.safetensors").expect("valid");
    let tied = ModelConfig { tie_word_embeddings: true, ..untied() };
    assert!(WeightReader::new(&tied, &file).config().tie_word_embeddings);
}

#[test]
fn a_head_of_a_gguf_file_is_tied_where_it_is_the_embedding() {
    for kind in [TensorType::F32, TensorType::Q8_0, TensorType::Tq2_0] {
        let plain = gguf_file::model_bytes(&gguf_file::config(kind, false), kind, I2sLayout::Group128, 3);
        let file = GgufFile::parse(&plain, "m.gguf").expect("valid");
        let [from, to] = ["token_embd.weight", "output.weight"].map(|name| {
            let info = file.tensor(name).expect("there");
            info.offset..info.offset + info.len
        });
        let parse = |bytes| GgufModel::parse(bytes, "m.gguf", GgufOptions::default()).expect("valid");
        let own = parse(&plain);
        assert!(!own.config().tie_word_embeddings && own.head_table().expect("read").is_some(), "{kind:?}");
        let mut equal = plain.clone();
        equal.copy_within(from.clone(), to.start);
        let tied = parse(&equal);
        assert!(tied.config().tie_word_embeddings && tied.head_table().expect("read").is_none(), "{kind:?}");
        assert!(tied.notes().iter().all(|note| !note.contains("head")), "{kind:?}");
        // The last byte makes it another head.
        let mut other = equal.clone();
        other[to.end - 1] ^= 1;
        assert!(!parse(&other).config().tie_word_embeddings, "{kind:?}");
    }
}
