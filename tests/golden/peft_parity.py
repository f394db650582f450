#!/usr/bin/env python3
"""Trains two adapters with Longhaul, loads them into Hugging Face PEFT, and compares the held-out loss. Exits 1 where the
two are more than 0.3% apart, or where ids, masks, weights or the adapter's files differ.

usage: peft_parity.py --model SmolLM2-135M-Instruct.Q4_1.gguf [--bin build/dev/bin] [--steps 20] [--output FILE]

  as_stored  the demo's kind of run; PEFT over what Transformers itself dequantises from the same GGUF
  nf4        a run on NF4; PEFT over the weights that `longhaul-tool export-base --base nf4` writes

The data are the demo's (deploy/demo/prepare_wordnet.py). Hugging Face renders the chat template, tokenises and masks on
its own: what trains is what comes after the generation prompt, through the end of the turn. Its arithmetic is f32.

Needs: torch transformers peft safetensors gguf numpy (CONTRIBUTING.md), and Debian's wordnet-base.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

GOLDEN = pathlib.Path(__file__).resolve().parent
ROOT = GOLDEN.parent.parent
LIMIT = 0.003
END_OF_TURN = "<|im_end|>"


def train(arguments, work, base, train_file, held_out_file):
    """The demo's job with fewer steps. Returns the adapter's folder and the losses of its model card."""
    job = (ROOT / "deploy/demo/job.yaml").read_text()
    job = re.sub(r"max_steps: \d+", f"max_steps: {arguments.steps}\n    base_storage: {base}", job)
    job_file = work / f"{base}.yaml"
    job_file.write_text(job)
    run = [f"{arguments.bin}/longhaul-train", "--out", str(work / f"run-{base}"), "--job", str(job_file), "--model",
           arguments.model, "--data", str(train_file), "--eval-data", str(held_out_file)]
    with open(work / f"{base}.log", "w") as log:
        adapter = subprocess.run(run, check=True, stdout=subprocess.PIPE, stderr=log, text=True).stdout.strip()
    card = (pathlib.Path(adapter) / "README.md").read_text()
    loss = {when: float(re.search(rf"Held-out loss {when} \| ([0-9.]+)", card).group(1)) for when in ("before", "after")}
    return pathlib.Path(adapter), loss


def encode(tokenizer, messages):
    """Ids and what trains, by Hugging Face's template and offsets alone."""
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text.startswith(prompt)
    end = text.rindex(END_OF_TURN) + len(END_OF_TURN)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    mask = [int(begin >= len(prompt) and stop <= end) for begin, stop in encoded["offset_mapping"]]
    return encoded["input_ids"], mask


def preview(arguments, held_out_file, count):
    command = [f"{arguments.bin}/longhaul-tool", "data", "preview", "--model", arguments.model, "--data", str(held_out_file),
               "--count", str(count), "--max-sequence-length", "512", "-o", "json"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return [(row["ids"], [int(t) for t in row["train"]]) for row in json.loads(out)["examples"]]


@torch.no_grad()
def held_out_loss(model, examples):
    total, targets = 0.0, 0
    for ids, mask in examples:
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
        labels = torch.tensor([i if m else -100 for i, m in zip(ids, mask)])[1:]
        total += torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        targets += int((labels != -100).sum())
    return total / targets, targets


def same_files_as_peft(model, adapter, work):
    """Saved again by PEFT: the tensors' names, shapes, types and bits; and the config's values."""
    again = work / f"again-{adapter.parent.name}"
    model.save_pretrained(again)
    ours, theirs = load_file(adapter / "adapter_model.safetensors"), load_file(again / "adapter_model.safetensors")
    tensors = list(ours) == list(theirs) and all(
        ours[k].dtype == theirs[k].dtype and ours[k].shape == theirs[k].shape and torch.equal(ours[k], theirs[k])
        for k in ours)
    config = json.loads((adapter / "adapter_config.json").read_text())
    peft_config = json.loads((again / "adapter_config.json").read_text())
    peft_config["target_modules"].sort()
    different = [k for k in config if config[k] != peft_config.get(k)]
    return tensors and not different, len(ours), different


def check_case(arguments, name, model, adapter, loss, examples, work, report):
    model.eval()
    base_loss, targets = held_out_loss(model, examples)
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    tuned_loss, _ = held_out_loss(tuned, examples)
    good = True
    for what, ours, theirs in (("base", loss["before"], base_loss), ("adapter", loss["after"], tuned_loss)):
        apart = abs(ours - theirs) / theirs
        good &= apart <= LIMIT
        report(f"{name}, {what}: Longhaul {ours:.4f}, Hugging Face {theirs:.4f}, {100 * apart:.3f}% apart, {targets} targets")
    good &= loss["after"] < loss["before"]
    same, tensors, different = same_files_as_peft(tuned, adapter, work)
    report(f"{name}, adapter files as PEFT saves them: {same} ({tensors} tensors{', differ: ' + ', '.join(different) if different else ''})")
    return good and same


def export(arguments, work, base):
    folder = work / f"base-{base}"
    subprocess.run([f"{arguments.bin}/longhaul-tool", "export-base", "--model", arguments.model, "--base", base, "--out",
                    str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder


def run(arguments, work, report):
    gguf = pathlib.Path(arguments.model)
    train_file, held_out_file = work / "train.jsonl", work / "held_out.jsonl"
    subprocess.run([sys.executable, ROOT / "deploy/demo/prepare_wordnet.py", "--train", train_file, "--eval", held_out_file],
                   check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line)["messages"] for line in open(held_out_file, encoding="utf-8")]
    report(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}; {gguf.name}, "
           f"{arguments.steps} steps, {len(rows)} held-out rows")
    good = True

    stored = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    folder = export(arguments, work, "as_stored")
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    same = all(torch.equal(exported[k], v) for k, v in stored.state_dict().items()) and len(exported) == len(stored.state_dict())
    report(f"export-base as_stored equals Transformers' reading of the GGUF, bit for bit: {same} ({len(exported)} tensors)")
    good &= same
    del exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = [encode(tokenizer, messages) for messages in rows]
    equal = sum(a == b for a, b in zip(examples, preview(arguments, held_out_file, len(rows))))
    report(f"ids and masks equal on {equal} of {len(rows)} held-out rows")
    good &= equal == len(rows)

    adapter, loss = train(arguments, work, "as_stored", train_file, held_out_file)
    good &= check_case(arguments, "as_stored", stored, adapter, loss, examples, work, report)
    del stored
    adapter, loss = train(arguments, work, "nf4", train_file, held_out_file)
    nf4 = AutoModelForCausalLM.from_pretrained(export(arguments, work, "nf4"), dtype=torch.float32)
    good &= check_case(arguments, "nf4", nf4, adapter, loss, examples, work, report)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--bin", default=str(ROOT / "build/dev/bin"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", default=str(GOLDEN / "peft_parity.txt"))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    written = []

    def report(line):
        print(line, flush=True)
        written.append(line)

    with tempfile.TemporaryDirectory() as work:
        good = run(arguments, pathlib.Path(work), report)
    report("within 0.3%, and the same in all else" if good else "NOT the same")
    pathlib.Path(arguments.output).write_text("\n".join(written) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
