"""lm-evaluation-harness (PyPI) over HTTP, offline, and every log-likelihood beside the one that the engine gives directly.

    python scripts/check_lm_eval.py --serve MODEL --data FOLDER [--limit 100]

FOLDER holds blimp-67.tar.xz and ARC-Easy-Dev.jsonl. Needs `pip install "lm-eval[api]"`. BLiMP's first subtasks and ARC-Easy run
through `local-completions` with the server's own tokenizer; then `bitnet-infer score` gets the same contexts and continuations.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from serving import ROOT, Server

BLIMP = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: ""
doc_to_target: 0
doc_to_choice: "{{{{[sentence_good, sentence_bad]}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""

ARC = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: choices
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", required=True, metavar="MODEL")
    parser.add_argument("--binary", default=ROOT / "target/release/bitnet-infer")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--limit", type=int, default=100, help="items of each task")
    parser.add_argument("--blimp", type=int, default=4, help="subtasks of BLiMP (67: all)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        tasks = write_tasks(folder, args.data, args.blimp)
        server = Server.bitnet(args.binary, args.serve, "--name", "bitnet")
        try:
            samples = evaluate(server, folder, tasks, args.limit)
        finally:
            server.stop()
        compare(args, samples)


def write_tasks(folder, data, blimp):
    tasks = []

    def task(name, template, lines):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / f"{name}.yaml").write_text(template.format(name=name, path=path))
        tasks.append(name)

    with tarfile.open(data / "blimp-67.tar.xz") as archive:
        members = sorted((m for m in archive.getmembers() if m.name.endswith(".jsonl")), key=lambda m: m.name)
        for member in members[:blimp]:
            lines = [json.loads(line) for line in archive.extractfile(member)]
            kept = [{"sentence_good": line["sentence_good"], "sentence_bad": line["sentence_bad"]} for line in lines]
            task("blimp_" + Path(member.name).stem, BLIMP, kept)
    arc = []
    for line in (data / "ARC-Easy-Dev.jsonl").read_text().splitlines():
        item = json.loads(line)
        choices = item["question"]["choices"]
        gold = [choice["label"] for choice in choices].index(item["answerKey"])
        arc.append({"question": item["question"]["stem"], "choices": [c["text"] for c in choices], "gold": gold})
    task("arc_easy_dev", ARC, arc)
    return tasks


def evaluate(server, folder, tasks, limit):
    """Runs the harness; returns the requests of all samples with their answers."""
    settings = {
        "model": "bitnet", "base_url": server.url + "/v1/completions", "tokenizer_backend": "remote",
        "tokenized_requests": "True", "num_concurrent": "4", "max_retries": "3", "max_length": "2048",
    }
    command = [
        sys.executable, "-m", "lm_eval", "--model", "local-completions", "--include_path", str(folder),
        "--tasks", ",".join(tasks), "--limit", str(limit), "--batch_size", "8", "--log_samples",
        "--output_path", str(folder / "out"), "--model_args", ",".join(f"{k}={v}" for k, v in settings.items()),
    ]
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none",
                   "HF_HOME": str(folder / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"lm_eval failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    print(done.stdout[done.stdout.find("|"):])
    samples = []
    for path in sorted((folder / "out").rglob("samples_*.jsonl")):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            requests = sample["arguments"]
            requests = requests.values() if isinstance(requests, dict) else requests
            for request, answers in zip(requests, sample["resps"]):
                context, continuation = request.values() if isinstance(request, dict) else request
                (logprob, greedy), = answers
                samples.append((context, continuation, float(logprob), str(greedy) == "True"))
    return samples


def compare(args, samples):
    lines = "".join(json.dumps({"context": c, "continuation": t}) + "\n" for c, t, _, _ in samples)
    command = [args.binary, "score", args.serve, "--kv", "f16"]
    done = subprocess.run([str(part) for part in command], input=lines, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"bitnet-infer score failed: {done.stderr}")
    equal = same_greedy = 0
    largest = 0.0
    for (_, _, logprob, greedy), line in zip(samples, done.stdout.splitlines(), strict=True):
        scored = json.loads(line)
        # Added as the harness adds them: in order, as the numbers that JSON holds.
        direct = sum(scored["token_logprobs"])
        equal += direct == logprob
        same_greedy += scored["greedy"] == greedy
        largest = max(largest, abs(direct - logprob))
    print(f"{len(samples)} log-likelihoods: {equal} equal to the engine's to the last bit, largest difference {largest:.1e}, "
          f"{same_greedy} with the same greedy flag")
    sys.exit(equal != len(samples) or same_greedy != len(samples))


if __name__ == "__main__":
    main()
