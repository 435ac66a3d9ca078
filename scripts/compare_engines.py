#!/usr/bin/env python3
"""Prefill and decode beside llama.cpp and its relatives, in turns, so that both see the same machine.

    python3 scripts/compare_engines.py --model FOLDER --head stored \\
        llama.cpp=LLAMA_BENCH:model-tq2_0-f16.gguf ik_llama.cpp=IK_LLAMA_BENCH:model-iq2_bn-f16.gguf

Each round runs every engine once, `bitnet-infer bench` first; the table gives medians over the rounds and this engine's
ratio to each. FOLDER is a model folder; one of random weights is written by `bitnet-infer bench --shape 2b-4t --write FOLDER`.
Run it on a quiet machine. Needs nothing but Python, and BIN=target/release (the default) with the built program.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys


def ours(options, threads):
    program = os.path.join(os.environ.get("BIN", "target/release"), "bitnet-infer")
    command = [program, "bench", "--model", options.model, "--head", options.head, "--threads", str(threads)]
    command += ["--prompt", options.prompt, "--generate", str(options.generate), "--repeats", "3", "--json"]
    report = json.loads(run(command))
    tests = {row["test"]: row["tok_per_s"] for row in report["rows"]}
    machine = report["machine"]
    tests["read GB/s"] = machine["read_gb_per_s"]
    tests["decode GB/s"] = next(row["gb_per_s"] for row in report["rows"] if row["test"].startswith("tg"))
    return tests, f"{machine['cpu']}, kernel {machine['kernel']}, ternary {report['ternary']}"


def theirs(program, model, options, threads):
    command = [program, "-m", model, "-t", str(threads), "-p", options.prompt, "-n", str(options.generate), "-r", "3"]
    output = run(command + ["-o", "json"], fatal=False)
    rows = json.loads(output) if output else []
    name = lambda row: f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"
    return {name(row): statistics.median(row["samples_ts"]) for row in rows}


def run(command, fatal=True):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode == 0:
        return done.stdout
    print(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
    if fatal:
        sys.exit(1)
    return ""  # A peer that fails has no figures; the others keep theirs.


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--head", default="stored")
    parser.add_argument("--threads", default="2", help="several, separated by commas")
    parser.add_argument("--prompt", default="128,512")
    parser.add_argument("--generate", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("peers", nargs="+", metavar="NAME=PROGRAM:MODEL")
    options = parser.parse_args()
    peers = []
    for peer in options.peers:
        name, _, rest = peer.partition("=")
        program, _, model = rest.partition(":")
        if not (name and program and model):
            parser.error(f"{peer}: expected NAME=PROGRAM:MODEL")
        peers.append((name, program, model))
    for threads in map(int, options.threads.split(",")):
        samples, machine = {}, ""
        for _ in range(options.rounds):
            tests, machine = ours(options, threads)
            results = [("bitnet-infer", tests)]
            results += [(name, theirs(program, model, options, threads)) for name, program, model in peers]
            for name, tests in results:
                for test, rate in tests.items():
                    samples.setdefault(name, {}).setdefault(test, []).append(rate)
        medians = {name: {test: statistics.median(rates) for test, rates in tests.items()} for name, tests in samples.items()}
        print(f"{machine}, threads {threads}, head {options.head}, medians of {options.rounds} rounds")
        tests = list(next(iter(medians.values())))
        print(f"{'engine':<24}" + "".join(f"{test:>16}" for test in tests))
        for name, row in medians.items():
            cell = lambda test: f"{row[test]:.1f}" + (
                f" ({medians['bitnet-infer'][test] / row[test]:.2f}x)" if name != "bitnet-infer" else ""
            )
            print(f"{name:<24}" + "".join(f"{cell(test) if test in row else '-':>16}" for test in tests))


if __name__ == "__main__":
    main()
