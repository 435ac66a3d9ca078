#!/usr/bin/env python3
"""Loss curves of one config under the readable ops and under each way of the fused ones, side by side.

    python3 scripts/compare_curves.py configs/dickens.toml --set data.source.path=dickens-train.txt \\
      --set data.validation.source.path=dickens-valid.txt [--steps 300] [--seeds 1,2,3] [--runs DIR] [--plot losses.svg]

Each seed trains every variant with the same batches and the same initial weights. `nudged` is `f32` from initial weights
that differ by a rounding (the standard deviation is 0.02 times 1 + 5e-8): how far two runs of the same arithmetic end
apart, because the codes that a rounding flips make another run of it. A difference between variants means something
beside that one only. `reference-nudged` is the same of the readable ops.

Prints validation losses in nats a token, means over the seeds, and distances from the reference in percent. A run that is
complete in DIR is not made again, so an interrupted comparison goes on. BIN is the folder of the program (target/release).
Needs nothing but Python.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys

NUDGE = "model.init_std=0.020000001"
VARIANTS = {
    "reference": ["run.ops=reference"],
    "reference-nudged": ["run.ops=reference", NUDGE],
    "f32": [],
    "nudged": [NUDGE],
    "bf16": ["train.precision=bf16"],
    "int8": ["train.backward=int8"],
}


def train(options, variant, seed):
    """Makes the run if it is not there yet; gives its folder."""
    name = f"{options.config.stem}-{variant}-{seed}"
    folder = options.runs / name
    if (folder / "result.json").exists():
        return folder
    program = os.path.join(os.environ.get("BIN", "target/release"), "bitnet-train")
    command = [*options.prefix, program, "run", str(options.config), "--overwrite"]
    fixed = [f"run.name={name}", f"run.dir={options.runs}", f"run.seed={seed}", f"run.threads={options.threads}",
             f"train.steps={options.steps}", f"evaluation.every={options.every}", "evaluation.sample_tokens=0",
             "checkpoint.every=0", "checkpoint.keep_best=false", "export.at_end=false"]
    for assignment in fixed + options.set + VARIANTS[variant]:
        command += ["--set", assignment]
    print(f"{name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        sys.exit(f"{name}: exit code {done.returncode}: {last}")
    return folder


def validation(folder):
    """Validation losses by step."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["step"]: line["loss_nats"] for line in lines if line["kind"] == "validation"}


def table(losses, seeds):
    """`losses[variant][seed]` maps steps to losses."""
    steps = sorted(next(iter(losses.values()))[seeds[0]])
    last = steps[-1]
    base = "reference" if "reference" in losses else next(iter(losses))
    means = {v: {s: statistics.mean(by_seed[seed][s] for seed in seeds) for s in steps} for v, by_seed in losses.items()}
    print(f"| | {' | '.join(f'step {s}' for s in steps)} | from {base} | each seed at {last} | from {base}, each |")
    print("|---" * (len(steps) + 4) + "|")
    percent = lambda a, b: f"{(a / b - 1) * 100:+.2f} %"
    for variant, by_seed in losses.items():
        row = [f"{means[variant][s]:.3f}" for s in steps]
        row.append(percent(means[variant][last], means[base][last]))
        row.append(", ".join(f"{by_seed[seed][last]:.4f}" for seed in seeds))
        row.append(", ".join(percent(by_seed[seed][last], losses[base][seed][last]) for seed in seeds))
        print(f"| {variant} | {' | '.join(row)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=pathlib.Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `bitnet-train run`")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=100, help="steps between two validations")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--variants", default="reference,f32,nudged,bf16,int8", help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--threads", type=int, default=0, help="of each run; 0: one per core")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/curves"), help="folder of the runs")
    parser.add_argument("--plot", type=pathlib.Path, help="SVG of the first seed's curves")
    parser.add_argument("--prefix", type=shlex.split, default=[], help="a command before every run")
    options = parser.parse_args()
    seeds, variants = options.seeds.split(","), options.variants.split(",")
    unknown = [v for v in variants if v not in VARIANTS]
    if unknown:
        sys.exit(f"--variants: unknown {', '.join(unknown)}, expected some of {', '.join(VARIANTS)}")

    folders = {v: {seed: train(options, v, seed) for seed in seeds} for v in variants}
    table({v: {seed: validation(f) for seed, f in by_seed.items()} for v, by_seed in folders.items()}, seeds)
    if options.plot:
        plot = pathlib.Path(__file__).with_name("plot_metrics.py")
        first = [str(folders[v][seeds[0]]) for v in variants]
        subprocess.run([sys.executable, str(plot), *first, "--out", str(options.plot)], check=True)


if __name__ == "__main__":
    main()
