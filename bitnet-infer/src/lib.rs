//! Runs packed 1-bit and 1.58-bit language models: bit-level kernels, engine, generation, perplexity.

