#!/usr/bin/env python3
"""Training speed beside PyTorch's, in turns, so that both see the same machine.

    python3 scripts/compare_training.py --python PYTHON --peer train_bitnet.py [--size A,B] [--rounds 3]

PYTHON is an interpreter that has PyTorch. The peer takes --vocab, --dim, --layers, --heads, --kv, --ffn, --seq, --batch,
--steps, --threads, --quant, --compile and --bf16, and its last line is JSON with tok_per_s and rss_mb. Each round runs every
variant once; the table gives medians over the rounds and this trainer's ratios. torch.compile compiles in the first round, or
finds its cache of an earlier one. Run it on a quiet machine; --prefix puts a command before every program, such as one that
sees to that. Needs nothing but Python, and BIN=target/release (the default) with the built program.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys

# The peer's name of each number of a model, after this trainer's.
SHAPE = {"vocab": "vocabulary", "dim": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads",
         "kv": "num_key_value_heads", "ffn": "intermediate_size", "seq": "sequence_length", "batch": "batch_size"}


def ours(options, size, precision, weights):
    program = os.path.join(os.environ.get("BIN", "target/release"), "bitnet-train")
    command = [program, "bench", "--size", size, "--steps", str(options.steps), "--json"]
    for key in [f"run.threads={options.threads}", f"train.precision={precision}", f"quantization.weight={weights}"]:
        command += ["--set", key]
    report = json.loads(run(options, command))
    return {"tok": report["tokens_per_second"], "mb": report["peak_memory_mb"] or math.nan, "cpu": report["cpu"],
            "shape": report["model"]}


def theirs(options, shape, flags):
    command = [options.python, options.peer, "--steps", str(options.peer_steps), "--threads", str(options.threads), *flags]
    for flag, key in SHAPE.items():
        command += [f"--{flag}", str(shape[key])]
    report = json.loads(run(options, command).strip().splitlines()[-1])
    # `ru_maxrss` in MiB.
    return {"tok": report["tok_per_s"], "mb": report["rss_mb"] * 1.048576}


def run(options, command):
    done = subprocess.run(options.prefix + command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--size", default="A,B")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="of this trainer, after two that are not timed")
    parser.add_argument("--peer-steps", type=int, default=8, help="of the peer, which leaves the first quarter out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="the peer without torch.compile too")
    parser.add_argument("--peer-weights", default="ternary", help="of the peer: ternary, none or both, as `ternary,none`")
    parser.add_argument("--prefix", type=shlex.split, default=[])
    options = parser.parse_args()

    own = [(w, p) for w in ["ternary", "none"] for p in ["f32", "bf16"]]
    peers = [(w, bf16, compiled) for compiled in ([True, False] if options.eager else [True])
             for w in options.peer_weights.split(",") for bf16 in [False, True]]
    name_of = lambda w, bf16, compiled: (f"PyTorch, {w}, {'bf16 autocast' if bf16 else 'f32'}, "
                                         f"{'compiled' if compiled else 'eager'}")
    for size in options.size.split(","):
        results = {}
        for _ in range(options.rounds):
            for w, p in own:
                results.setdefault(f"ours, {w}, {p}", []).append(ours(options, size, p, w))
            shape = results["ours, ternary, f32"][0]["shape"]
            for w, bf16, compiled in peers:
                flags = ["--quant", w] + ["--bf16"] * bf16 + ["--compile"] * compiled
                results.setdefault(name_of(w, bf16, compiled), []).append(theirs(options, shape, flags))
        median = {name: statistics.median(r["tok"] for r in rows) for name, rows in results.items()}
        cpu = results["ours, ternary, f32"][0]["cpu"]
        print(f"\nsize {size}, {options.threads} threads of {cpu}, medians of {options.rounds}\n")
        print(f"| | tokens/s | spread | peak MB | ours f32 is | ours bf16 is |\n|---|---|---|---|---|---|")
        for name, rows in results.items():
            speeds = [r["tok"] for r in rows]
            ratios = [f"{median[f'ours, ternary, {p}'] / median[name]:.2f} x" for p in ["f32", "bf16"]]
            print(f"| {name} | {median[name]:.0f} | {min(speeds):.0f}-{max(speeds):.0f} | {statistics.median(r['mb'] for r in rows):.0f} "
                  f"| {ratios[0]} | {ratios[1]} |")


if __name__ == "__main__":
    main()
