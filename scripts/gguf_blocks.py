#!/usr/bin/env python3
"""Writes the blocks that bitnet-model/tests/suite/gguf.rs compares with: bytes of every type of GGUF, and what they stand for.

The numbers come from the PyPI package gguf (which needs no llama.cpp), and for the types that it lacks (Q1_0, Q2_0) from the library
of llama.cpp that the PyPI package xllamacpp holds; Q8_0 and Q6_K come from both, which must agree. Bytes are random where a decoder is tested and
those that the other program makes of random numbers where an encoder is.

    python3 scripts/gguf_blocks.py bitnet-model/tests/fixtures/gguf_blocks.json
"""
import ctypes
import glob
import json
import os
import sys

import gguf
import numpy

# Type, number, weights of a block, bytes of a block, and where its f16 scales are.
TYPES = [
    ("Q4_0", 2, 32, 18, [0]),
    ("Q4_1", 3, 32, 20, [0, 2]),
    ("Q8_0", 8, 32, 34, [0]),
    ("Q4_K", 12, 256, 144, [0, 2]),
    ("Q6_K", 14, 256, 210, [208]),
    ("BF16", 30, 1, 2, []),
    ("TQ1_0", 34, 256, 54, [52]),
    ("TQ2_0", 35, 256, 66, [64]),
    ("Q1_0", 41, 128, 18, [0]),
    ("Q2_0", 42, 64, 18, [0]),
]
WEIGHTS = 256


class Traits(ctypes.Structure):
    """ggml_type_traits of ggml.h."""
    _fields_ = [("name", ctypes.c_char_p), ("block", ctypes.c_int64), ("interleave", ctypes.c_int64), ("bytes", ctypes.c_size_t),
                ("is_quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p), ("from_float", ctypes.c_void_p)]


def library():
    import xllamacpp
    ggml = ctypes.CDLL(glob.glob(os.path.join(os.path.dirname(xllamacpp.__file__), "*.so"))[0])
    ggml.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
    return ggml


def traits(ggml, name, number, block, size):
    found = ggml.ggml_get_type_traits(number).contents
    assert (found.name.decode().upper(), found.block, found.bytes) == (name, block, size), (name, found.name, found.block, found.bytes)
    return found


def decoded(found, data):
    out = numpy.zeros(len(data) // found.bytes * found.block, numpy.float32)
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(found.to_float)
    function(data.ctypes.data, out.ctypes.data, len(out))
    return out


def encoded(found, values):
    out = numpy.zeros(len(values) // found.block * found.bytes, numpy.uint8)
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(found.from_float)
    function(values.ctypes.data, out.ctypes.data, len(values))
    return out


def main():
    rng = numpy.random.default_rng(0)
    ggml = library()
    cases = []
    for name, number, block, size, scales in TYPES:
        blocks = WEIGHTS // block
        data = rng.integers(0, 256, (blocks, size), dtype=numpy.uint8)
        if name == "TQ1_0":
            # Bytes that hold five digits, or four in the last four.
            digits = rng.integers(0, 243, (blocks, 52))
            digits[:, 48:] = rng.integers(0, 81, (blocks, 4)) * 3
            data[:, :52] = (digits * 256 + 242) // 243
        if name in ("TQ2_0", "Q2_0"):
            codes = data[:, :64] if name == "TQ2_0" else data[:, 2:]
            fields = rng.integers(0, 3, codes.shape + (4,))
            codes[:] = (fields << numpy.array([0, 2, 4, 6])).sum(axis=-1)
        if name == "BF16":
            data[:, 1] &= 0x3F
        for at in scales:
            data[:, at:at + 2] = rng.uniform(0.001, 0.1, blocks).astype("<f2").view(numpy.uint8).reshape(blocks, 2)
        raw = numpy.ascontiguousarray(data).reshape(-1)
        values, sources = None, []
        if name not in ("Q1_0", "Q2_0"):
            kind = getattr(gguf.GGMLQuantizationType, name)
            values = gguf.quants.dequantize(raw.reshape(1, -1), kind).astype(numpy.float32).reshape(-1)
            sources.append(f"gguf {gguf_version()}")
        if name in ("Q8_0", "Q6_K", "Q1_0", "Q2_0"):
            other = decoded(traits(ggml, name, number, block, size), raw)
            assert values is None or (values == other).all(), name
            values = other
            sources.append("llama.cpp")
        cases.append({"type": name, "source": " and ".join(sources), "bytes": raw.tobytes().hex(), "values": values.astype("<f4").tobytes().hex()})
    numbers = (rng.normal(size=WEIGHTS) * 0.05).astype(numpy.float32)
    theirs = encoded(traits(ggml, "Q8_0", 8, 32, 34), numbers)
    assert (theirs == gguf.quants.quantize(numbers.reshape(1, -1), gguf.GGMLQuantizationType.Q8_0).reshape(-1)).all()
    cases.append({"type": "Q8_0", "source": f"gguf {gguf_version()} and llama.cpp", "encodes": numbers.astype("<f4").tobytes().hex(),
                  "bytes": theirs.tobytes().hex()})
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(cases, file, indent=1)
        file.write("\n")


def gguf_version():
    import importlib.metadata
    return importlib.metadata.version("gguf")


if __name__ == "__main__":
    main()
