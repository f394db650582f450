#!/usr/bin/env python3
"""Proves that the memory plan is the truth: random configurations, each trained in a process of its own.

    python3 tests/bench/plan_truth.py --bench build/release/bin/longhaul-bench [--small 170] [--large 40] [--seed 1]

For each: the arena is as large as planned, at least 98% of it was written, and the process's resident memory is the
plan, but for 2% of it + 64 MiB. Small: random shapes. Large: the shape of SmolLM2-135M. Prints a line a
configuration that fails and a summary as JSON; exits 1 if any failed.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import tempfile

MIB = 1 << 20


def small_shape(rng):
    heads_each, kv_heads, head_dim = rng.randint(1, 3), rng.randint(1, 3), 16 * rng.randint(1, 4)
    family = rng.choice(["llama", "qwen3"])
    return {
        "model_type": family, "architectures": ["LlamaForCausalLM" if family == "llama" else "Qwen3ForCausalLM"],
        "num_hidden_layers": rng.randint(2, 8), "hidden_size": 16 * rng.randint(8, 24),
        "intermediate_size": 16 * rng.randint(8, 48), "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * heads_each, "head_dim": head_dim, "vocab_size": rng.randint(2000, 12000),
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": rng.random() < 0.5,
    }


def options(rng, large):
    flags = {
        "base": rng.choice(["nf4", "as_stored"]), "compute": rng.choice(["f32", "bf16"]),
        "share": rng.choice(["whole", "balanced", "minimum"]), "rank": rng.choice([1, 4, 8, 16, 24, 64]),
        "batch": rng.randint(1, 4), "threads": rng.choice([1, 2]), "documents": rng.choice([1, 1, 3]),
        "steps": 1,  # every target trains: with fewer a loss tile may stay part empty
    }
    flags["tokens"] = rng.randint(64, 512) if large else rng.randint(64, 700)
    command = [f"--{name}={value}" for name, value in flags.items()]
    return command + (["--dropout"] if rng.random() < 0.25 else [])


def problems(report):
    found = []
    if report["arena_high_water_bytes"] < 0.98 * report["arena_bytes"]:
        found.append("written %.1f%% of the arena" % (100 * report["arena_high_water_bytes"] / report["arena_bytes"]))
    if abs(report["rss_bytes"] - report["plan_bytes"]) > 0.02 * report["plan_bytes"] + 64 * MIB:
        found.append("RSS %.1f MiB, plan %.1f MiB" % (report["rss_bytes"] / MIB, report["plan_bytes"] / MIB))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", required=True)
    parser.add_argument("--small", type=int, default=170)
    parser.add_argument("--large", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    failed, over, water = 0, [], []
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "config.json"
        for i in range(args.small + args.large):
            large = i >= args.small
            config.write_text(json.dumps(small_shape(rng)))
            command = [args.bench, "train", "--json", "--shape", "smollm2-135m" if large else str(config)]
            command += options(rng, large)
            run = subprocess.run(command, capture_output=True, text=True)
            found = [run.stderr.strip()] if run.returncode != 0 else problems(json.loads(run.stdout))
            if run.returncode == 0:
                report = json.loads(run.stdout)
                over.append((report["rss_bytes"] - report["plan_bytes"]) / MIB)
                water.append(report["arena_high_water_bytes"] / report["arena_bytes"])
            if found:
                failed += 1
                print(f"{i}: {'; '.join(found)}: {' '.join(command)} {config.read_text() if not large else ''}")
    print(json.dumps({"configurations": args.small + args.large, "large": args.large, "seed": args.seed,
                      "failed": failed, "rss_over_plan_mib_most": round(max(over), 1),
                      "rss_over_plan_mib_least": round(min(over), 1), "high_water_ratio_least": round(min(water), 4)}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
