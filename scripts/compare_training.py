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
import os
import shlex
import statistics
import subprocess
import sys

SIZES = {
    "A": dict(vocab=4096, dim=256, layers=6, heads=4, kv=4, ffn=768, seq=256, batch=16),
    "B": dict(vocab=8192, dim=512, layers=8, heads=8, kv=4, ffn=1536, seq=512, batch=8),
}


def ours(options, size, precision, weights):
    program = os.path.join(os.environ.get("BIN", "target/release"), "bitnet-train")
    command = [program, "bench", "--size", size, "--steps", str(options.steps), "--json"]
    for key in [f"run.threads={options.threads}", f"train.precision={precision}", f"quantization.weight={weights}"]:
        command += ["--set", key]
    report = json.loads(run(options, command))
    return {"tok": report["tokens_per_second"], "mb": report["peak_memory_mb"], "cpu": report["cpu"]}


def theirs(options, size, flags):
    command = [options.python, options.peer, "--steps", str(options.peer_steps), "--threads", str(options.threads), *flags]
    for key, value in SIZES[size].items():
        command += [f"--{key}", str(value)]
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
    parser.add_argument("--prefix", type=shlex.split, default=[])
    options = parser.parse_args()

    variants = {f"ours, {w}, {p}": lambda size, p=p, w=w: ours(options, size, p, w)
                for w in ["ternary", "none"] for p in ["f32", "bf16"]}
    for compiled in [["--compile"], []] if options.eager else [["--compile"]]:
        for rounding in [[], ["--bf16"]]:
            name = f"PyTorch, ternary, {'bf16 autocast' if rounding else 'f32'}, {'compiled' if compiled else 'eager'}"
            variants[name] = lambda size, flags=compiled + rounding: theirs(options, size, flags)

    for size in options.size.split(","):
        results = {name: [] for name in variants}
        for _ in range(options.rounds):
            for name, measure in variants.items():
                results[name].append(measure(size))
        median = {name: statistics.median(r["tok"] for r in rows) for name, rows in results.items()}
        cpu = results["ours, ternary, f32"][0]["cpu"]
        print(f"\nsize {size}, {options.threads} threads of {cpu}, medians of {options.rounds}\n")
        print(f"| | tokens/s | spread | peak MB | ours f32 is | ours bf16 is |\n|---|---|---|---|---|---|")
        for name, rows in results.items():
            speeds = [r["tok"] for r in rows]
            ratios = [f"{median[f'ours, ternary, {p}'] / median[name]:.2f} x" for p in ["f32", "bf16"]]
            print(f"| {name} | {median[name]:.0f} | {min(speeds):.0f}-{max(speeds):.0f} | {max(r['mb'] for r in rows):.0f} "
                  f"| {ratios[0]} | {ratios[1]} |")


if __name__ == "__main__":
    main()
