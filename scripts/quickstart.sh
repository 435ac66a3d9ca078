#!/usr/bin/env bash
# Trains the small ternary model of configs/quickstart.toml on the built-in stories, packs it, measures it and lets it speak.
# Needs a Rust toolchain and no download of data. Arguments go to `bitnet-train run`:
#
#   bash scripts/quickstart.sh --set train.steps=200
#   bash scripts/quickstart.sh --set quantization.weight=binary --set run.name=quickstart-binary
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*" >&2; }

# Where the run will lie: the config's choice, unless an argument says otherwise.
config=configs/quickstart.toml
overwrite=--overwrite
dir=$(sed -n 's/^dir *= *"\(.*\)".*/\1/p' "$config")
name=$(sed -n 's/^name *= *"\(.*\)".*/\1/p' "$config" | head -n 1)
for argument in "$@"; do
  case ${argument#--set=} in
    run.dir=*) dir=${argument#*run.dir=} ;;
    # Another name may be that of another run: it is not replaced unasked.
    run.name=*) name=${argument#*run.name=}; overwrite= ;;
  esac
done
run=${dir:-runs}/$name

if [[ -n ${BIN:-} ]]; then
  step "using the programs in $BIN"
else
  step "building the programs (the first time this takes minutes)"
  cargo build --release --locked
  BIN=${CARGO_TARGET_DIR:-target}/release
fi

step "training $name; TensorBoard shows it with: tensorboard --logdir $run/events"
"$BIN/bitnet-train" run "$config" $overwrite "$@"

# The held-out stories of this run: its seed, combinations of people and things that no training story has.
seed=$(sed -n '/^\[data\.source\]/,/^\[/s/^seed = //p' "$run/config.toml")
context=$(sed -n 's/^sequence_length = //p' "$run/config.toml")
stories=$run/held-out.txt
"$BIN/bitnet-train" stories --split validation --count 300 --seed "${seed:-0}" > "$stories"

step "what the packed model holds"
"$BIN/bitnet-infer" inspect "$run/model"

step "its perplexity on 300 held-out stories, in windows of $context tokens as in training"
"$BIN/bitnet-infer" perplexity "$run/model" "$stories" --context "$context" --strict

opening=$(head -n 1 "$stories")
opening=${opening%%.*}.
step "a story that begins like a held-out one"
printf '%s' "$opening"
"$BIN/bitnet-infer" generate "$run/model" "$opening" --max-tokens 200 --temperature 0.3 --stop 'Question:'

# The shortest of the held-out stories that are followed by a question, up to the word `Answer:`.
prompt= expected=
while IFS= read -r -d $'\x1e' story || [[ -n $story ]]; do
  candidate=${story%%Answer:*}Answer:
  if [[ $story == *Answer:* && ( -z $prompt || ${#candidate} -lt ${#prompt} ) ]]; then
    prompt=$candidate
    expected=${story#*Answer: }
  fi
done < <(sed $'s/<|endoftext|>/\x1e/g' "$stories")
step "a question about a held-out story"
printf '%s' "$prompt"
"$BIN/bitnet-infer" generate "$run/model" "$prompt" --max-tokens 40 --temperature 0 --stop $'\n' ||
  echo "(a context of $context tokens is too short for this question)"
printf 'Expected: %s\n' "${expected%%$'\n'*}"

step "done: the run is in $run, the model in $run/model"
