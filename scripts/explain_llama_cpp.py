#!/usr/bin/env python3
"""Explains where greedy tokens of a GGUF file part from llama.cpp's.

llama.cpp rounds the inputs of a product with quantized weights (Q4_0, Q4_1, Q8_0, TQ, ...) to 8 bits, a scale for each 32 or 256;
this program does not. So the file is run in both, and so is what it converts to as F16, whose products llama.cpp computes
without such rounding. Where tokens part, the script says how far llama.cpp's two best are apart and how far the log-probabilities of
its five best are from this program's, and their root mean square over all positions up to there. Files without a BOS token.

Needs numpy and xllamacpp (PyPI, with llama.cpp inside).

    python3 scripts/explain_llama_cpp.py --bitnet-infer target/release/bitnet-infer [--tokens 32] [--prompt TEXT]... MODEL.gguf
"""
import argparse
import json
import os
import subprocess
import tempfile

import numpy
import xllamacpp


def theirs(path, prompts, count):
    """For each prompt its number of tokens, and for each greedy token its id, its text and the five best."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_predict, params.cpuparams.n_threads, params.warmup = path, 512, count, 2, False
    server = xllamacpp.Server(params)
    for prompt in prompts:
        answer = server.handle_completions({
            "prompt": prompt, "max_tokens": count, "temperature": 0, "top_k": 1, "seed": 1, "repeat_penalty": 1.0, "logprobs": 5,
            "cache_prompt": False,
        })
        answer = json.loads(answer) if isinstance(answer, str) else answer
        yield answer["usage"]["prompt_tokens"], answer["choices"][0]["logprobs"]["content"]


def log_probabilities(program, path, text, context):
    """Of each position of a text of `context` tokens and one more."""
    with tempfile.TemporaryDirectory() as scratch:
        text_file, logits_file = os.path.join(scratch, "text"), os.path.join(scratch, "logits")
        with open(text_file, "w", encoding="utf-8") as file:
            file.write(text)
        subprocess.check_output([program, "perplexity", path, text_file, "--context", str(context), "--logits", logits_file])
        rows = numpy.fromfile(logits_file, dtype="<f4").reshape(context, -1).astype(numpy.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return rows - numpy.log(numpy.exp(rows).sum(axis=1, keepdims=True))


def compare(program, path, prompts, count):
    for prompt, (prompt_tokens, steps) in zip(prompts, theirs(path, prompts, count)):
        found = json.loads(subprocess.check_output(
            [program, "generate", path, prompt, "--temperature", "0", "-n", str(count), "--json"]))["tokens"]
        ids = [step["id"] for step in steps]
        same = next((i for i, (a, b) in enumerate(zip(ids, found)) if a != b), min(len(ids), len(found)))
        print(f"  {prompt!r}: the first {same} of {len(ids)} greedy tokens equal")
        last = min(same, len(ids) - 1)
        # One more token ends the last window: an end token has no text.
        text = prompt + "".join(step["token"] for step in steps[:last]) + (steps[last]["token"] or " .")
        ours = log_probabilities(program, path, text, prompt_tokens + last)
        apart = [abs(best["logprob"] - ours[prompt_tokens - 1 + i, best["id"]])
                 for i in range(last + 1) for best in steps[i]["top_logprobs"]]
        print(f"    log-probabilities of the five best differ by {numpy.sqrt(numpy.mean(numpy.square(apart))):.1e} (rms), {max(apart):.1e} (most)")
        if same < len(ids):
            first, second = steps[same]["top_logprobs"][:2]
            here = ours[-1]
            print(f"    at the next one llama.cpp's two best are {first['logprob'] - second['logprob']:.3f} apart, the same two here "
                  f"{here[first['id']] - here[second['id']]:.3f}; its five best differ by up to {max(apart[-5:]):.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bitnet-infer", required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", action="append", default=[])
    args = parser.parse_args()
    prompts = args.prompt or ["The capital of France is", "Once upon a time", "def fibonacci(n):"]
    print(os.path.basename(args.model))
    compare(args.bitnet_infer, args.model, prompts, args.tokens)
    with tempfile.TemporaryDirectory() as scratch:
        plain = os.path.join(scratch, "f16.gguf")
        subprocess.check_output([args.bitnet_infer, "convert", args.model, plain, "--to", "gguf-f16", "--verify", "0"])
        print("the same as F16")
        compare(args.bitnet_infer, plain, prompts, args.tokens)


if __name__ == "__main__":
    main()
