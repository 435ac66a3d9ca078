#!/usr/bin/env python3
"""Compares a GGUF file here and in llama.cpp: greedy tokens of prompts, and the perplexity of a text by the same convention.

Needs llama-cpp-python (its folder may be given by PYTHONPATH and its library by LLAMA_CPP_LIB_PATH).

    python3 scripts/compare_llama_cpp.py --bitnet-infer target/release/bitnet-infer --text TEXT [--context 256] [--chunks 20] MODEL.gguf...
"""
import argparse
import json
import math
import os
import subprocess
import tempfile

import llama_cpp
import numpy


def log_softmax(rows):
    rows = rows.astype(numpy.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    return rows - numpy.log(numpy.exp(rows).sum(axis=1, keepdims=True))


def perplexity(model, tokens, context, chunks):
    """llama-perplexity: windows of `context` tokens, BOS in place of the first, the second half of the predictions scored."""
    bos = model.token_bos() if model._model.add_bos_token() else None
    if bos is not None:
        tokens = [bos] + tokens
    total, count = 0.0, 0
    for start in range(0, min(len(tokens) // context, chunks) * context, context):
        window = list(tokens[start:start + context])
        if bos is not None:
            window[0] = bos
        model.reset()
        model.eval(window)
        scores = log_softmax(model.scores[:context])
        for i in range(context // 2, context - 1):
            total -= scores[i, tokens[start + i + 1]]
            count += 1
    return math.exp(total / count), count


def greedy(model, prompt, n):
    tokens = model.tokenize(prompt.encode(), add_bos=model._model.add_bos_token(), special=True)
    model.reset()
    model.eval(tokens)
    new = []
    for _ in range(n):
        token = int(model.scores[model.n_tokens - 1].argmax())
        new.append(token)
        if token == model.token_eos():
            break
        model.eval([token])
    return tokens, new


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--bitnet-infer", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--prompt", action="append", default=[])
    args = parser.parse_args()
    prompts = args.prompt or ["Once upon a time", "One day, Tom", "The"]
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    for path in args.models:
        model = llama_cpp.Llama(path, n_ctx=max(args.context, 128), n_batch=args.context, logits_all=True, verbose=False)
        tokens = model.tokenize(text.encode(), add_bos=False, special=True)
        # Both get the same windows: the text is cut where they end.
        windows = min(args.chunks, len(tokens) // args.context)
        theirs, count = perplexity(model, tokens, args.context, windows)
        bos = int(model._model.add_bos_token())
        tokens = tokens[:windows * args.context - bos]
        cut = model.detokenize(tokens, special=True).decode("utf-8", "ignore")
        # SentencePiece puts a space in front of a text, which is not part of it.
        cut = cut.removeprefix(" ") if model.tokenize(cut.encode(), add_bos=False, special=True) != tokens else cut
        if model.tokenize(cut.encode(), add_bos=False, special=True) != tokens:
            print(f"{os.path.basename(path)}: the text does not come back from its tokens: the windows differ a little")
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", delete=False) as file:
            file.write(cut)
        ours = json.loads(subprocess.check_output(
            [args.bitnet_infer, "perplexity", path, file.name, "--convention", "llama", "--context", str(args.context), "--json"]))
        os.unlink(file.name)
        print(f"{os.path.basename(path)}: perplexity {theirs:.4f} in llama.cpp ({count} tokens), {ours['perplexity']:.4f} here "
              f"({ours['tokens_scored']} tokens)")
        for prompt in prompts:
            given, new = greedy(model, prompt, args.tokens)
            found = json.loads(subprocess.check_output(
                [args.bitnet_infer, "generate", path, prompt, "--temperature", "0", "-n", str(args.tokens), "--json"]))
            same = next((i for i, (a, b) in enumerate(zip(new, found["tokens"])) if a != b), min(len(new), len(found["tokens"])))
            print(f"  {prompt!r}: {len(given)} and {found['prompt_tokens']} prompt tokens, the first {same} of {len(new)} greedy tokens equal")


if __name__ == "__main__":
    main()
