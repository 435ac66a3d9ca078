#!/usr/bin/env python3
"""Writes a Hugging Face folder of random bf16 masters in shards: a real shape to measure conversions with.

The numbers have a normal model's size (about 1 / sqrt(columns)) and no meaning. Needs numpy.

    python3 scripts/random_masters.py DIR [--shape 2b-4t] [--shard-gb 1]
"""
import argparse
import json
import os
import struct

import numpy

# layers, hidden, feed-forward, heads, key-value heads, vocabulary, context
SHAPES = {
    "2b-4t": (30, 2560, 6912, 20, 5, 128256, 4096),
    "30m": (8, 512, 1536, 8, 4, 12288, 1024),
}


def tensors(layers, hidden, ffn, heads, kv_heads, vocab):
    """Names and shapes, in the order of the files."""
    kv = hidden // heads * kv_heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        for name, shape in [
            ("input_layernorm", (hidden,)),
            ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (kv, hidden)),
            ("self_attn.v_proj", (kv, hidden)),
            ("self_attn.attn_sub_norm", (hidden,)),
            ("self_attn.o_proj", (hidden, hidden)),
            ("post_attention_layernorm", (hidden,)),
            ("mlp.gate_proj", (ffn, hidden)),
            ("mlp.up_proj", (ffn, hidden)),
            ("mlp.ffn_sub_norm", (ffn,)),
            ("mlp.down_proj", (hidden, ffn)),
        ]:
            yield f"model.layers.{layer}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)


def values(shape, rng):
    """bf16 as 16-bit integers."""
    if len(shape) == 1:
        return numpy.full(shape, 0x3F80, numpy.uint16)
    # Uniform over [-1, 1) in steps of 2^-15, times 2^-k: the upper half of the f32 is the bf16.
    k = round(numpy.log2(shape[1]) / 2)
    numbers = rng.integers(-(1 << 15), 1 << 15, size=shape, dtype=numpy.int16)
    return ((numbers.astype(numpy.float32) * 2.0 ** (-15 - k)).view(numpy.uint32) >> 16).astype(numpy.uint16)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--shape", default="2b-4t", choices=SHAPES)
    parser.add_argument("--shard-gb", type=float, default=1.0)
    args = parser.parse_args()
    layers, hidden, ffn, heads, kv_heads, vocab, context = SHAPES[args.shape]
    os.makedirs(args.folder, exist_ok=True)
    shards, size = [[]], 0
    for name, shape in tensors(layers, hidden, ffn, heads, kv_heads, vocab):
        count = 2 * int(numpy.prod(shape))
        if size and size + count > args.shard_gb * 1e9:
            shards.append([])
            size = 0
        shards[-1].append((name, shape, count))
        size += count
    rng, index = numpy.random.default_rng(0), {}
    for i, shard in enumerate(shards, 1):
        file, header, offset = f"model-{i:05}-of-{len(shards):05}.safetensors", {}, 0
        for name, shape, count in shard:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + count]}
            index[name] = file
            offset += count
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(args.folder, file), "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for _, shape, _ in shard:
                out.write(values(shape, rng).tobytes())
    with open(os.path.join(args.folder, "model.safetensors.index.json"), "w") as out:
        json.dump({"metadata": {}, "weight_map": index}, out)
    config = {
        "architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "hidden_act": "relu2", "max_position_embeddings": context,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True,
        "quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"},
    }
    with open(os.path.join(args.folder, "config.json"), "w") as out:
        json.dump(config, out, indent=2)


if __name__ == "__main__":
    main()
