#!/usr/bin/env python3
"""The peer of `longhaul-bench train --device cpu`: Hugging Face + PEFT on the same cores, the same shape, random tokens.

    python3 tests/bench/hf_peer.py [--compute bf16|f32] [--batch 2] [--tokens 512] [--rank 16] [--steps 4] [--threads 2]

Needs torch, transformers, peft. SmolLM2-135M's shape with made-up weights, LoRA on all seven linears, AdamW; bf16 is
torch.autocast over f32 weights. Prints JSON: tokens_per_s (median of the measured steps), rss_bytes (peak).
"""

import argparse
import json
import resource
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compute", default="bf16", choices=["bf16", "f32"])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
                         rope_theta=100000.0, rms_norm_eps=1e-5, tie_word_embeddings=True)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=args.rank, lora_alpha=2 * args.rank,
                                                                target_modules=targets, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    seconds = []
    for _ in range(1 + args.steps):
        ids = torch.randint(0, config.vocab_size, (args.batch, args.tokens))
        begin = time.monotonic()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.compute == "bf16"):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.monotonic() - begin)
    rate = args.batch * args.tokens / statistics.median(seconds[1:])
    print(json.dumps({"tokens_per_s": round(rate, 1), "compute": args.compute, "torch": torch.__version__,
                      "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


if __name__ == "__main__":
    main()
