//! The configurations of published models.

use bitnet_model::ModelConfig;
use bitnet_model::config::Storage;

use crate::data_folder::shared;

#[test]
fn published_configurations_load() {
    // Layers, end token, epsilon, base, storage, as the files say or their classes have it.
    for (name, layers, end, theta, storage) in [
        ("bitnet-b1.58-2B-4T", 30, 128_001, 5e5, Storage::Packed),
        ("bitnet_b1_58-large", 24, 2, 1e4, Storage::Float),
        ("Llama3-8B-1.58-100B-tokens", 32, 128_009, 5e5, Storage::PackedInverseScale),
    ] {
        let Some(path) = shared(&format!("bitnet-configs/{name}/config.json")) else { continue };
        let found = ModelConfig::read(&path).expect(name);
        assert_eq!((found.num_hidden_layers, &found.eos_token_ids[..]), (layers, &[end][..]), "{name}");
        assert_eq!((found.rms_norm_eps, found.rope_theta, found.rope_scaling), (1e-5, theta, None), "{name}");
        assert_eq!((found.storage, found.quantization.weight_name()), (storage, "ternary"), "{name}");
    }
}
