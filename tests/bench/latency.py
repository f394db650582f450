#!/usr/bin/env python3
"""How long users wait, over real processes on loopback: Estimate, create to first step, a trainer's start, an event's way.

    build/e2e-venv/bin/python tests/bench/latency.py --bin build/dev/bin --model MODEL.gguf [--estimates 2000] [--jobs 12]

The virtual environment is the one that tests/e2e/run.sh makes (grpcio, grpcio-reflection). Prints JSON:
  estimate_ms              EstimateFineTuneJob by the model's name, p50 and p99
  create_to_first_step_s   Create called -> the watcher sees step 1 (2 x 64 tokens, worker idle): first job, median of the rest
  placed_to_first_step_s   the event STARTING -> the event RUNNING: the trainer's start, base read / base cached
  event_ms                 an event's time (taken before its commit) -> the watcher has it, p50 and p99
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import harness  # noqa: E402
from reflection_client import Api, upload  # noqa: E402


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def seconds(timestamp):
    return timestamp.seconds + timestamp.nanos * 1e-9


def estimates(api, model, count):
    request = api.message("EstimateFineTuneJobRequest")
    request.spec.model = model
    request.spec.hyperparameters.max_sequence_length = 2048
    taken = []
    for _ in range(count):
        begin = time.monotonic()
        answer = api.call("FineTuneService", "EstimateFineTuneJob", request)
        taken.append(1000 * (time.monotonic() - begin))
    assert answer.fits_somewhere, answer
    return taken


def run_job(api, model, blob, number):
    request = api.message("CreateFineTuneJobRequest", request_id="latency-%d" % number)
    request.spec.model = model
    request.spec.dataset.sha256 = blob.sha256
    request.spec.dataset.size_bytes = blob.size_bytes
    request.spec.dataset.file_name = "train.jsonl"
    hyper = request.spec.hyperparameters
    hyper.max_steps, hyper.max_sequence_length, hyper.batch_size = 6, 64, 2
    begin = time.monotonic()
    job = api.call("FineTuneService", "CreateFineTuneJob", request)
    states = job.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number
    first_step, delays, when = None, [], {}
    watch = api.message("WatchFineTuneJobRequest", id=job.id, after_sequence=0)
    for message in api.call("FineTuneService", "WatchFineTuneJob", watch, "server"):
        kind = message.WhichOneof("message")
        if kind == "event":
            sent = seconds(message.event.time)
            # What happened before this watch began was not on its way to it.
            if message.event.sequence > 2:
                delays.append(1000 * (time.time() - sent))
            when.setdefault(states[message.event.state].name, sent)
        elif kind == "progress" and first_step is None and message.progress.step >= 1:
            first_step = time.monotonic() - begin
    final = api.call("FineTuneService", "GetFineTuneJob", api.message("GetFineTuneJobRequest", id=job.id))
    assert states[final.state].name == "SUCCEEDED", final
    return first_step, delays, when["RUNNING"] - when["STARTING"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bin", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--estimates", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=12)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cluster = harness.Cluster(os.path.abspath(args.bin), os.path.join(folder, "run"), os.path.abspath(args.model))
        try:
            cluster.start_server()
            cluster.start_worker()
            api = Api(cluster.address())
            model = os.path.basename(os.path.abspath(args.model)).removesuffix(".gguf")
            data = os.path.join(folder, "train.jsonl")
            harness.write_chat(data, rows=200)
            blob = upload(api, data)
            taken = estimates(api, model, args.estimates)
            jobs = [run_job(api, model, blob, number) for number in range(args.jobs)]
        finally:
            cluster.stop()
    delays = [delay for _, each, _ in jobs for delay in each]
    print(json.dumps({
        "estimate_ms": {"p50": round(percentile(taken, 0.5), 2), "p99": round(percentile(taken, 0.99), 2)},
        "create_to_first_step_s": {"first": round(jobs[0][0], 2),
                                   "then": round(statistics.median(job[0] for job in jobs[1:]), 2)},
        "placed_to_first_step_s": {"base_read": round(jobs[0][2], 2),
                                   "base_cached": round(statistics.median(job[2] for job in jobs[1:]), 2)},
        "event_ms": {"events": len(delays), "p50": round(percentile(delays, 0.5), 1),
                     "p99": round(percentile(delays, 0.99), 1)},
    }))


if __name__ == "__main__":
    main()
