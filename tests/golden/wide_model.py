#!/usr/bin/env python3
"""Two layers of Llama 3.1 8B's width: our engine, and Hugging Face + PEFT + bitsandbytes, each against f32.

    python3 tests/golden/wide_model.py --engine engine_gradients [--device cuda] [--seeds 3] [--out FILE]

The model: hidden 4,096, MLP 14,336, 32 query and 8 key heads of 128, 2 layers, vocabulary 4,096 (the real one's 128,256
would add only to the head, which has tests of its own), untied; weights in bf16, uniform, from a counter-based integer
generator (CounterBits of base/counter_rng.h), so that everybody can make them. LoRA of rank 16, alpha 32, on all seven
linears, with *random B*: PEFT's zero makes every dA zero. 2 sequences of 512 tokens.

Reference: Transformers in f32 (TF32 off) over the weights that bitsandbytes dequantises, the same adapter in f32.
Peer: Transformers with BitsAndBytesConfig(nf4, double quantisation, compute type bf16), the model loaded in bf16, PEFT's
adapter in f32, forward pass under torch.autocast(bfloat16), no gradient checkpointing; as it is ("bf16"), and after
prepare_model_for_kbit_training ("prepared"), which casts norms, embedding and head to f32, so that the residual stream
is f32 as well.
Ours: the engine quantises the same file to NF4 itself and computes in bf16 with the residual stream in bf16 (--device
cuda), in FP8, or in f32 (cpu).

Prints loss, cosine and relative error of the gradient, of all modules (A and B of each) and the worst, a seed at a time;
the mean over the seeds; and exits 1 where ours is below a cosine of 0.999 in any module, off by more than 0.2% of the
loss, or on average further from the reference than either peer. Needs torch transformers peft bitsandbytes
safetensors numpy (CONTRIBUTING.md). --hidden and --mlp make it small for a trial on a CPU.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import torch
from safetensors.torch import load_file, save_file

MASK = (1 << 64) - 1
RANK, ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEQUENCES, LENGTH = 2, 512
LEAST_COSINE, MOST_LOSS_ERROR = 0.999, 0.002


def signed(value):
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


def shifted(z, bits):
    """A logical shift to the right of 64-bit integers, which torch has with sign alone."""
    return (z >> bits) & signed((1 << (64 - bits)) - 1)


def mixed(z):
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    return z ^ shifted(z, 31)


STEP = signed(0x9E3779B97F4A7C15)


def bits(key, count, device):
    """CounterBits(key, 0 ... count - 1), as signed integers."""
    stream = mixed(torch.tensor(signed(key + STEP), dtype=torch.int64, device=device))
    counters = torch.arange(1, count + 1, dtype=torch.int64, device=device)
    return mixed(stream + counters * STEP)


def uniform(key, shape, width, shift, device):
    count = 1
    for n in shape:
        count *= n
    return ((shifted(bits(key, count, device), 11).double() * 2.0**-53 - 0.5) * width + shift).float().view(shape)


def make_model(folder, args, seed):
    from transformers import LlamaConfig

    head_dim = args.hidden // 32
    config = LlamaConfig(vocab_size=4096, hidden_size=args.hidden, intermediate_size=args.mlp, num_hidden_layers=2,
                         num_attention_heads=32, num_key_value_heads=8, head_dim=head_dim, rms_norm_eps=1e-5,
                         max_position_embeddings=8192, tie_word_embeddings=False, attention_bias=False, bos_token_id=1,
                         eos_token_id=2, pad_token_id=0, dtype="bfloat16",
                         rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    config.architectures = ["LlamaForCausalLM"]
    kv = 8 * head_dim
    shapes = {"model.embed_tokens.weight": (4096, args.hidden), "lm_head.weight": (4096, args.hidden),
              "model.norm.weight": (args.hidden,)}
    for l in range(2):
        at = f"model.layers.{l}."
        shapes |= {at + "self_attn.q_proj.weight": (args.hidden, args.hidden), at + "self_attn.k_proj.weight": (kv, args.hidden),
                   at + "self_attn.v_proj.weight": (kv, args.hidden), at + "self_attn.o_proj.weight": (args.hidden, args.hidden),
                   at + "mlp.gate_proj.weight": (args.mlp, args.hidden), at + "mlp.up_proj.weight": (args.mlp, args.hidden),
                   at + "mlp.down_proj.weight": (args.hidden, args.mlp), at + "input_layernorm.weight": (args.hidden,),
                   at + "post_attention_layernorm.weight": (args.hidden,)}
    tensors = {}
    for key, (name, shape) in enumerate(sorted(shapes.items())):
        norm, embedding = "norm" in name, "embed" in name
        width = 1.0 if norm or embedding else (12.0 / shape[1]) ** 0.5
        tensors[name] = uniform(seed * 10000 + key, shape, width, 1.0 if norm else 0.0, args.device).bfloat16().cpu()
    folder.mkdir()
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_adapter(model, seed):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0,
                                             task_type="CAUSAL_LM"))
    with torch.no_grad():
        for key, (name, p) in enumerate(sorted((n, p) for n, p in model.named_parameters() if "lora_" in n)):
            width = (12.0 / p.shape[1]) ** 0.5 if "lora_A" in name else 0.1
            p.data = uniform(seed * 10000 + 1000 + key, tuple(p.shape), width, 0.0, p.device)
            p.requires_grad = True
    return model


def step(model, ids, autocast):
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    loss.backward()
    gradients = {n.replace(".default", ""): p.grad.double().cpu() for n, p in model.named_parameters() if "lora_" in n}
    return loss.item(), gradients


def peer(folder, ids, args, seed, prepared):
    """Its loss and gradients, and the weights that it computes with."""
    from bitsandbytes.functional import dequantize_4bit
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantised = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                   bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantised, dtype=torch.bfloat16,
                                                 device_map={"": args.device})
    weights = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            state = module.weight.quant_state
            weights[name + ".weight"] = dequantize_4bit(module.weight.data, state).to(torch.bfloat16).float().cpu()
    if prepared:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = with_adapter(model, seed)
    model.train()
    return (*step(model, ids, autocast=True), weights)


def reference(folder, ids, args, seed, weights, adapter_folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    missing = model.load_state_dict(weights, strict=False)
    assert len(weights) == 14 and not missing.unexpected_keys
    model = with_adapter(model.to(args.device), seed)
    model.save_pretrained(adapter_folder)
    model.train()
    return step(model, ids, autocast=False)


def ours(engine, compute, model, adapter, ids, work):
    tokens = work / "tokens.txt"
    tokens.write_text(f"{SEQUENCES} {LENGTH}\n" + " ".join(str(i) for i in ids.flatten().tolist()) + "\n")
    out = work / ("gradients_" + compute)
    printed = subprocess.run([engine, compute, model, adapter, tokens, out], check=True, stdout=subprocess.PIPE, text=True)
    gradients = load_file(out / "adapter_model.safetensors")
    return float(printed.stdout), {n: g.double() for n, g in gradients.items()}


def compared(gradients, wanted):
    """Cosine and relative error of each module's A and B, and of all of them as one."""
    rows = {}
    for name, want in list(wanted.items()) + [("all", None)]:
        if want is None:
            want = torch.cat([w.flatten() for w in wanted.values()])
            have = torch.cat([gradients[n].flatten() for n in wanted])
        else:
            have, want = gradients[name].flatten(), want.flatten()
        rows[name] = (torch.dot(have, want) / (have.norm() * want.norm())).item(), ((have - want).norm() / want.norm()).item()
    return rows


def without_weight(gradients):
    return {n.removesuffix(".weight"): g for n, g in gradients.items()}


def one_seed(args, seed, work):
    """By who: loss over the reference's, and compared()."""
    work.mkdir()
    make_model(work / "model", args, seed)
    ids = (shifted(bits(seed * 10000 + 77, SEQUENCES * LENGTH, args.device), 11) % 4096).view(SEQUENCES, LENGTH)
    *bf16, weights = peer(work / "model", ids, args, seed, prepared=False)
    prepared = peer(work / "model", ids, args, seed, prepared=True)[:2]
    want_loss, wanted = reference(work / "model", ids, args, seed, weights, work / "adapter")
    wanted = without_weight(wanted)
    all_of = {"bitsandbytes bf16": bf16, "bitsandbytes prepared": prepared}
    for compute in ["cuda", "fp8"] if args.device == "cuda" else ["cpu"]:
        all_of["ours " + compute] = ours(args.engine, compute, work / "model", work / "adapter", ids, work)
    results = {w: (loss / want_loss - 1, compared(without_weight(g), wanted)) for w, (loss, g) in all_of.items()}
    print(f"seed {seed}: f32 loss {want_loss:.6f}")
    for who, (off, rows) in results.items():
        worst = min(rows, key=lambda n: rows[n][0])
        print(f"  {who:22} loss {off * 100:+.4f}%   gradient: cosine {rows['all'][0]:.6f}, error {rows['all'][1] * 100:.3f}%; "
              f"worst {rows[worst][0]:.6f}, {rows[worst][1] * 100:.3f}% ({worst.removeprefix('base_model.model.model.')})")
    return results


def print_means(runs):
    print(f"mean error of the gradient over {len(runs)} seeds, in %, by module")
    people = list(runs[0])
    print("  " + " " * 34 + "".join(f"{who:>24}" for who in people))
    means = {}
    for name in runs[0][people[0]][1]:
        means[name] = {who: sum(run[who][1][name][1] for run in runs) / len(runs) for who in people}
        print(f"  {name.removeprefix('base_model.model.model.'):34}" + "".join(f"{means[name][who] * 100:24.3f}" for who in people))
    return means["all"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--mlp", type=int, default=14336)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    import bitsandbytes
    import peft
    import transformers

    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{name}; torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}, "
          f"bitsandbytes {bitsandbytes.__version__}; hidden {args.hidden}, MLP {args.mlp}")
    runs = []
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_seed(args, seed, pathlib.Path(folder) / "work"))
    means = print_means(runs)
    us = "ours " + args.device
    good = means[us] <= min(means["bitsandbytes bf16"], means["bitsandbytes prepared"])
    for run in runs:
        off, rows = run[us]
        good = good and min(c for c, _ in rows.values()) >= LEAST_COSINE and abs(off) <= MOST_LOSS_ERROR
    print(f"ours / bitsandbytes bf16: {means[us] / means['bitsandbytes bf16']:.4f}, / prepared: "
          f"{means[us] / means['bitsandbytes prepared']:.4f}; " + ("holds" if good else "does not hold"))
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(runs))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
