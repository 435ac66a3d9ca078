#!/usr/bin/env bash
# Trains one config once for each weight scheme, on the same data and seed, and prints the validation losses in a table.
#
#   bash scripts/compare_schemes.sh configs/quickstart.toml [arguments of bitnet-train run]
#   SCHEMES="ternary binary none:1.2e-3 int8 int4" bash scripts/compare_schemes.sh configs/quickstart.toml
#
# SCHEMES lists schemes, each with a learning rate after a colon where the config's is not right for it: full precision
# (`none`) usually wants a lower one. RUNS is the folder of the runs (default `runs/compare`), BIN that of the programs.
# A run that is complete already is not repeated. One that was begun and is not complete ends the script, unless
# `--overwrite` is among the arguments: then it is replaced. Paths are relative to the root of the repository.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $# -lt 1 || $1 == -* ]]; then
  sed -n '2,10s/^# \{0,1\}//p' scripts/compare_schemes.sh >&2
  exit 2
fi
config=$1
shift
runs=${RUNS:-runs/compare}
base=$(basename "$config" .toml)

if [[ -z ${BIN:-} ]]; then
  cargo build --release --locked -p bitnet-train
  BIN=${CARGO_TARGET_DIR:-target}/release
fi

folders=()
for entry in ${SCHEMES:-ternary binary none}; do
  scheme=${entry%%:*}
  arguments=(--set "quantization.weight=$scheme" --set "run.dir=$runs" --set "run.name=$base-$scheme")
  if [[ $entry == *:* ]]; then arguments+=(--set "optimizer.learning_rate=${entry#*:}"); fi
  folder=$runs/$base-$scheme
  folders+=("$folder")
  if [[ -e $folder/result.json ]]; then
    echo "== $scheme: $folder is complete" >&2
  else
    echo "== $scheme: training in $folder" >&2
    "$BIN/bitnet-train" run "$config" "$@" "${arguments[@]}"
  fi
done

python3 - "${folders[@]}" <<'PYTHON'
import json, pathlib, re, sys

rows = []
for folder in map(pathlib.Path, sys.argv[1:]):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in lines if line["kind"] == "validation"]
    last, best = validations[-1], min(validations, key=lambda line: line["loss_nats"])
    config = (folder / "config.toml").read_text()
    rate = re.search(r"^learning_rate = (\S+)", config, re.M)[1]
    speeds = sorted(line["tok_per_s"] for line in lines if line["kind"] == "train")
    rows.append((
        folder.name, f"{float(rate):g}", str(last["step"]), f"{last['loss_nats']:.4f}", f"{last['perplexity']:.2f}",
        f"{last['bits_per_byte']:.4f}", f"{best['loss_nats']:.4f} at {best['step']}", f"{speeds[len(speeds) // 2]:.0f}",
    ))
header = ("run", "learning rate", "step", "val. loss", "perplexity", "bits/byte", "best val. loss", "median tok/s")
widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
line = lambda row: "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
print(line(header))
print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
print("\n".join(map(line, rows)))
PYTHON
