#!/usr/bin/env bash
# Checks that a killed and resumed run is the same run: trains a tiny model twice, once without interruption and once with
# SIGKILL half-way and `bitnet-train resume`, and compares every line of metrics.jsonl and the exported weights.
#
#   bash scripts/resume_check.sh [arguments of bitnet-train run, such as --set quantization.weight=binary]
#
# BIN is the folder of the programs (default: build them), STEPS the length (default 200). Prints PASS or FAIL.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${BIN:-} ]]; then
  cargo build --release --locked -p bitnet-train
  BIN=${CARGO_TARGET_DIR:-target}/release
fi
steps=${STEPS:-200}
kill_after=$((steps / 2))
work=$(mktemp -d)
child=
cleanup() {
  if [[ -n $child ]]; then kill -KILL "$child" 2>/dev/null || true; fi
  rm -rf "$work"
}
trap cleanup EXIT
export BITNET_CACHE=$work/cache

cat > "$work/tiny.toml" <<TOML
[run]
name = "whole"
dir = "$work"

[model]
hidden_size = 64
intermediate_size = 160
num_hidden_layers = 2
num_attention_heads = 4

[tokenizer]
type = "bpe"
vocab_size = 512

[data.source]
type = "stories"
count = 400

[train]
steps = $steps
batch_size = 8
sequence_length = 64
log_every = 1

[optimizer]
learning_rate = 3e-3

[schedule]
type = "two-stage"
warmup_steps = 10

[evaluation]
every = 50
windows = 16
sample_tokens = 16

[checkpoint]
every = 10
TOML

fail() {
  echo "FAIL: $*"
  exit 1
}

echo "== $steps steps without interruption"
"$BIN/bitnet-train" run "$work/tiny.toml" "$@" > "$work/whole.log" 2>&1 || fail "the run failed: $(tail -n 1 "$work/whole.log")"

echo "== the same run, killed after step $kill_after"
"$BIN/bitnet-train" run "$work/tiny.toml" "$@" --set run.name=killed > "$work/killed.log" 2>&1 &
child=$!
# A step that is no multiple of the checkpoints' distance, so that some steps are taken twice.
until grep -qs "\"step\":$((kill_after + 5))," "$work/killed/metrics.jsonl"; do
  kill -0 "$child" 2>/dev/null || fail "the run ended before it could be killed: $(tail -n 1 "$work/killed.log")"
  sleep 0.02
done
kill -KILL "$child"
wait "$child" 2>/dev/null || true
child=
[[ ! -e $work/killed/result.json ]] || fail "the run ended before it could be killed; try a larger STEPS"
echo "   killed at step $(grep -c '"kind":"train"' "$work/killed/metrics.jsonl"), checkpoints: $(ls "$work/killed/checkpoints" | tr '\n' ' ')"

echo "== resumed"
"$BIN/bitnet-train" resume "$work/killed" > "$work/resumed.log" 2>&1 || fail "the resume failed: $(tail -n 1 "$work/resumed.log")"
grep '^resuming' "$work/resumed.log" | sed 's/^/   /'

python3 - "$work/whole/metrics.jsonl" "$work/killed/metrics.jsonl" <<'PYTHON' || fail "the metrics differ"
import json, sys

def lines(path):
    out = [json.loads(line) for line in open(path)]
    for line in out:
        line.pop("tok_per_s", None)  # The one thing that time may change.
    return out

whole, killed = map(lines, sys.argv[1:])
for number, (a, b) in enumerate(zip(whole, killed), 1):
    if a != b:
        keys = [key for key in a if a[key] != b.get(key)]
        sys.exit(f"   line {number}, step {a.get('step')}: {keys} differ, such as {a[keys[0]]!r} and {b.get(keys[0])!r}" if keys else f"   line {number} differs")
if len(whole) != len(killed):
    sys.exit(f"   {len(whole)} lines and {len(killed)}")
last = [line for line in whole if line["kind"] == "train"][-1]
print(f"   {len(whole)} lines of metrics are equal; loss of step {last['step']}: {last['loss_nats']!r}")
PYTHON
cmp "$work/whole/model/model.safetensors" "$work/killed/model/model.safetensors" || fail "the exported weights differ"
echo "   the exported weights are equal, byte for byte"
echo PASS
