#!/usr/bin/env python3
"""Predicted against measured device memory: configurations of `longhaul-bench train --device cuda`, a process each.

    python3 tests/bench/plan_truth_cuda.py --bench longhaul-bench [--seconds 280] [--first 0] [--seed 1] [--out FILE]

Nothing else may use the device. Predicted: the plan's device total. Measured: the driver's count of memory in use after
a step. Of the list, 33 configurations have 8B shapes, and a cap on device memory that the plan fills to within 5%
counts as near the cap. Runs them in an order that mixes sizes until --seconds are over; --first goes on where another
call ended. FILE gets a JSON line each. Prints a line a run and a summary; exits 1 where one ran out of memory, failed, or was
off by more than max(1%, 64 MiB). Standard library only.
"""

import argparse
import json
import pathlib
import random
import subprocess
import sys
import time

MIB = 1 << 20
GIB = 1 << 30
LIMIT_RATIO, LIMIT_BYTES = 0.01, 64 * MIB
SHAPES_8B = ["qwen3-8b", "llama-3.1-8b"]
SMALL = ["smollm2-135m", "smollm2-360m", "smollm2-1.7b", "qwen3-0.6b", "llama-3.2-1b"]


def of_8b(rng):
    """33: a third under caps, where the plan fills what is there."""
    found = []
    for i in range(33):
        tokens = rng.choice([512, 1024, 2048, 2048, 4096])
        flags = {"shape": SHAPES_8B[i % 2], "tokens": tokens, "batch": rng.choice([1, 1, 2]), "rank": rng.choice([8, 16, 32, 64])}
        if i % 11 == 10:
            flags.update(tokens=rng.choice([8192, 16384]), batch=1)
        if i % 3 == 0:
            flags["vram-cap"] = rng.choice(["9GiB", "12GiB", "16GiB", "20GiB", "24GiB", "32GiB"])
        found.append(flags)
    return found


def of_small_ones(rng):
    found = []
    for i in range(75):
        flags = {"shape": rng.choice(SMALL), "tokens": rng.choice([128, 333, 512, 1024, 2048, 4096]),
                 "batch": rng.choice([1, 1, 2, 4, 8]), "rank": rng.choice([1, 4, 8, 16, 32, 64, 128])}
        if i % 4 == 0:
            flags["vram-cap"] = rng.choice(["2GiB", "3GiB", "4GiB", "6GiB"])
        if i % 7 == 3:
            flags["base"] = "as_stored"
        found.append(flags)
    return found


def configurations(seed):
    rng = random.Random(seed)
    large, small = of_8b(rng), of_small_ones(rng)
    for i, flags in enumerate(large + small):
        flags["documents"] = rng.choice([1, 1, 1, 3, 12]) if flags["tokens"] >= 512 else 1
        flags["compute"] = "fp8" if i % 4 == 1 else "bf16"
        for option, share in (("deterministic", 0.15), ("dropout", 0.15), ("host-checkpoints", 0.15)):
            if rng.random() < share:
                flags[option] = True
    # Mixed, so that a call that ends early has some of both.
    mixed = []
    while large or small:
        mixed += large[:3] + small[:7]
        large, small = large[3:], small[7:]
    return mixed


def run(bench, flags):
    options = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
    command = [bench, "train", "--device", "cuda", "--json", "--steps", "1"] + options
    done = subprocess.run(command, capture_output=True, text=True)
    row = {"flags": " ".join(options), "shape": flags["shape"], "rc": done.returncode}
    if done.returncode != 0:
        row["error"] = done.stderr.strip()[-300:]
        return row
    found = json.loads(done.stdout)
    row.update({key: found[key] for key in ("device_bytes_predicted", "device_bytes_measured", "device_arena_bytes", "plan",
                                            "load_seconds", "device")})
    row["cap"] = int(flags["vram-cap"][:-3]) * GIB if "vram-cap" in flags else 0
    return row


def judge(row):
    """"" where all is well; "refused" where the plan said before it began that the memory is too small."""
    if row["rc"] != 0:
        return "refused" if "needs" in row["error"] and "are there" in row["error"] else row["error"]
    off = row["device_bytes_predicted"] - row["device_bytes_measured"]
    if abs(off) > max(LIMIT_RATIO * row["device_bytes_measured"], LIMIT_BYTES):
        return f"off by {off / MIB:.1f} MiB"
    return "over its cap" if row["cap"] and row["device_bytes_measured"] > row["cap"] else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", required=True)
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    rows, bad = [], 0
    every = configurations(args.seed)
    at = args.first
    while at < len(every) and time.monotonic() < end:
        begun = time.monotonic()
        row = run(args.bench, every[at])
        row.update(index=at, seconds=round(time.monotonic() - begun, 1), verdict=judge(row))
        rows.append(row)
        if args.out:
            with open(args.out, "a") as out:
                out.write(json.dumps(row) + "\n")
        bad += row["verdict"] not in ("", "refused")
        off = (row["device_bytes_predicted"] - row["device_bytes_measured"]) / MIB if row["rc"] == 0 else float("nan")
        print(f"{at:3d} {row['seconds']:5.1f} s {off:+7.1f} MiB {row['flags']} {row['verdict']}", flush=True)
        at += 1
    ran = [row for row in rows if row["rc"] == 0]
    offs = [(row["device_bytes_predicted"] - row["device_bytes_measured"]) / MIB for row in ran]
    print(json.dumps({
        "ran": len(ran), "refused_at_plan_time": sum(row["verdict"] == "refused" for row in rows), "next": at, "of": len(every),
        "8b": sum(row["shape"] in SHAPES_8B for row in ran),
        "within_5_percent_of_cap": sum(row["cap"] > 0 and row["device_bytes_predicted"] >= 0.95 * row["cap"] for row in ran),
        "predicted_minus_measured_mib": [round(min(offs), 1), round(max(offs), 1)] if offs else [], "failed": bad}))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
