#!/usr/bin/env python3
"""Compares model folders here and in transformers: logits of windows of a text, and greedy tokens of prompts. Where tokens part,
it says how far the two best are apart there, and how far the two programs' logits are: a choice closer than that is no
disagreement about the model. A quantized folder is run in the type of its floats: half precision there is coarser than here.

Needs torch, transformers and accelerate.

    python3 scripts/compare_transformers.py --bitnet-infer target/release/bitnet-infer --text TEXT [--context 64] [--windows 4] FOLDER...
"""
import argparse
import json
import os
import subprocess
import tempfile

import numpy
import torch
import transformers


def our_logits(program, folder, text, context, vocabulary):
    """Logits of the windows of a text, `[windows, context, vocabulary]`."""
    with tempfile.TemporaryDirectory() as scratch:
        text_file, logits_file = os.path.join(scratch, "text"), os.path.join(scratch, "logits")
        with open(text_file, "w", encoding="utf-8") as file:
            file.write(text)
        subprocess.check_output([program, "perplexity", folder, text_file, "--context", str(context), "--logits", logits_file])
        return numpy.fromfile(logits_file, dtype="<f4").reshape(-1, context, vocabulary)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--bitnet-infer", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", action="append", default=[])
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    with open(args.text, encoding="utf-8") as file:
        text = file.read()
    for folder in args.folders:
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"))
        tokens = tokenizer(text[:20 * args.context * args.windows], add_special_tokens=False)["input_ids"]
        # One token more than the windows read: the last one's successor.
        cut = tokenizer.decode(tokens[:args.context * args.windows + 1])
        tokens = tokenizer(cut, add_special_tokens=False)["input_ids"]
        # A quantized model runs in the type of its file alone.
        quantized = hasattr(transformers.AutoConfig.from_pretrained(folder), "quantization_config")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto" if quantized else torch.float32)
        model.eval()
        ours = our_logits(args.bitnet_infer, folder, cut, args.context, model.config.vocab_size)
        windows = torch.tensor(tokens[:len(ours) * args.context]).reshape(len(ours), args.context)
        theirs = model(windows).logits.float().numpy()
        deviation = theirs.std()
        difference = ours - theirs
        print(f"{os.path.basename(folder.rstrip('/'))} ({type(model).__name__}): {theirs.shape[0] * theirs.shape[1]} positions, rms "
              f"{numpy.sqrt((difference ** 2).mean()) / deviation:.2e} and largest {numpy.abs(difference).max() / deviation:.2e} of the "
              f"logits' deviation, same first token {100 * (ours.argmax(-1) == theirs.argmax(-1)).mean():.1f} %")
        bos = [model.config.bos_token_id] if model.config.bos_token_id is not None else []
        for prompt in args.prompt or ["One day, Tom", "It was a cold morning.", "Sam was", "A dog"]:
            given = bos + tokenizer(prompt, add_special_tokens=False)["input_ids"]
            out = model.generate(torch.tensor([given]), max_new_tokens=args.tokens, do_sample=False, use_cache=True,
                                 attention_mask=torch.ones(1, len(given), dtype=torch.long))
            new = out[0, len(given):].tolist()
            found = json.loads(subprocess.check_output(
                [args.bitnet_infer, "generate", folder, prompt, "--temperature", "0", "-n", str(args.tokens), "--json"]))
            same = next((i for i, (a, b) in enumerate(zip(new, found["tokens"])) if a != b), min(len(new), len(found["tokens"])))
            print(f"  {prompt!r}: the first {same} of {len(new)} greedy tokens equal")
            if same < len(new):
                seen = given + new[:same]
                rows = model(torch.tensor([seen])).logits.float().numpy()[0]
                until = tokenizer.decode(seen + new[same:same + 1])
                mine = our_logits(args.bitnet_infer, folder, until, len(seen), model.config.vocab_size)
                if bos or mine.shape[:2] != (1, len(seen)):
                    print("  (the text does not come back from its tokens: no closer look)")
                    continue
                best = numpy.sort(rows[-1])[-2:]
                print(f"  at the next one the two best are {(best[1] - best[0]) / deviation:.2e} apart there, and its logits differ by up to "
                      f"{numpy.abs(rows[-1] - mine[0, -1]).max() / deviation:.2e} here, both over the logits' deviation")


if __name__ == "__main__":
    main()
