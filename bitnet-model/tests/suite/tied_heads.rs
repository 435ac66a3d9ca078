//! A configuration that ties the head to the embedding, beside a file that has a head.

use bitnet_model::ModelConfig;
use bitnet_model::files::hugging_face::{WEIGHTS_FILE, WeightReader};
use bitnet_model::files::source::WeightSource;
use bitnet_model::files::tensors::TensorFile;
use bitnet_model::reference::Reference;
use bitnet_model::weights::FloatType;

use crate::folder::{Weights, config};

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
