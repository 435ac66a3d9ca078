#!/usr/bin/env bash
# Compares tokens from a model's stored head with those that the screened head gives (`--head exact`): they must be equal.
#
#   bash scripts/check_exact_head.sh MODEL TEXT [TOKENS]
#
# Prompts are lines of TEXT. TOKENS (default 10000) are generated greedily, then a tenth as many by drawing from the 40 most
# probable. BIN is the folder of the programs.
set -euo pipefail

if [[ $# -lt 2 ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
model=$1 text=$2 wanted=${3:-10000}

if [[ -z ${BIN:-} ]]; then
  (cd "$(dirname "${BASH_SOURCE[0]}")/.." && cargo build --release --locked -p bitnet-infer)
  BIN=${CARGO_TARGET_DIR:-$(dirname "${BASH_SOURCE[0]}")/../target}/release
fi

MODEL=$model TEXT=$text WANTED=$wanted BIN=$BIN python3 - <<'PYTHON'
import json, os, subprocess, sys

model, wanted, program = os.environ["MODEL"], int(os.environ["WANTED"]), os.path.join(os.environ["BIN"], "bitnet-infer")
lines = [line.strip()[:200] for line in open(os.environ["TEXT"], encoding="utf-8") if len(line.strip()) >= 40]


def generate(prompt, head, options):
    command = [program, "generate", model, "-", "-n", "1000", "--json", "--head", head, *options]
    done = subprocess.run(command, input=prompt, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


for name, options, wanted in [
    ("greedy", ["--temperature", "0"], wanted),
    ("top-k", ["--seed", "7", "--repeat-penalty", "1.1"], wanted // 10),
]:
    tokens = rows = 0
    for prompt in lines:
        if tokens >= wanted:
            break
        stored, exact = (generate(prompt, head, options) for head in ("stored", "exact"))
        if stored["tokens"] != exact["tokens"]:
            sys.exit(f"{name}: the tokens behind {prompt!r} differ")
        tokens += len(exact["tokens"])
        rows += exact["rescored_rows"]
    if tokens < wanted:
        sys.exit(f"{name}: the text is too short, it gave {tokens} tokens of {wanted}")
    print(f"{name}: {tokens} tokens equal, {rows / tokens:.1f} rows rescored a token")
PYTHON
