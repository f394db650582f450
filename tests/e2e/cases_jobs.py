"""Jobs that run, jobs that are refused, jobs that are cancelled, jobs that share a machine."""

import json
import os
import struct

from harness import MODEL, Watch, check, check_in, wait_for, write_chat

ENDLESS_STEPS = 1000000


def running_cluster(cluster, *worker_flags):
    cluster.start_server()
    cluster.start_worker(*worker_flags)
    return write_chat(cluster.path("train.jsonl"))


def success(cluster):
    """From submit --follow to a downloaded adapter that names every linear."""
    data = running_cluster(cluster)
    held_out = write_chat(cluster.path("held_out.jsonl"), rows=6)
    result = cluster.cli("submit", "--model", MODEL, "--data", data, "--eval-data", held_out, "--steps", "12",
                         "--max-seq-len", "128", "--rank", "4", "--lr", "1e-2", "--name", "first", "--follow", code=0)
    job_id = result.stdout.strip()
    check("\n" not in job_id and job_id.startswith("ftjob-"), "stdout has more than the id: %r" % result.stdout)
    check_in("step 12/12", result.stderr, "the follow")
    check("\x1b" not in result.stderr, "escape sequences off a terminal")
    check_in("longhaul download", result.stderr, "the outcome")
    job = cluster.job(job_id)
    before, after = job["result"]["eval_loss_before"], job["result"]["eval_loss_after"]
    check(after < before, "the held-out loss rose: %s -> %s" % (before, after))
    check(job["data_report"]["examples"] == "40", "the report counts %s examples" % job["data_report"]["examples"])
    check(job["resolved_spec"]["hyperparameters"]["lora_alpha"] == 8, "alpha's default is not 2 x rank")
    adapter = cluster.path("adapter")
    cluster.cli("download", job_id[:12], "-d", adapter, code=0)
    with open(os.path.join(adapter, "adapter_config.json"), encoding="utf-8") as file:
        config = json.load(file)
    check(config["peft_type"] == "LORA" and config["r"] == 4, "adapter_config.json: %s" % config)
    with open(os.path.join(adapter, "adapter_model.safetensors"), "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    key = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    check(header[key]["shape"] == [64, 4], "%s is %s" % (key, header.get(key)))
    check(len(header) - ("__metadata__" in header) == 2 * 7 * 2, "the adapter has %d tensors" % len(header))
    points = json.loads(cluster.cli("metrics", job_id, "-o", "json", code=0).stdout)["points"]
    check([int(p["step"]) for p in points][-1] == 12, "the last metric is of step %s" % points[-1]["step"])
    wait_for("the log", lambda: cluster.cli("logs", job_id, code=0).stdout)  # its end comes after the adapter
    attempts = json.loads(cluster.cli("attempts", job_id, "-o", "json", code=0).stdout)["attempts"]
    check([a["kind"] for a in attempts] == ["ATTEMPT_KIND_VALIDATE", "ATTEMPT_KIND_TRAIN"], "attempts: %s" % attempts)
    cluster.cli("delete", job_id, code=0)
    cluster.cli("get", job_id, code=4)


def same_job_twice(cluster):
    """One request id and one body is one job; another body is refused. The same spec gives the same adapter."""
    data = running_cluster(cluster)
    first = cluster.submit(data, "--request-id", "r1")
    check(cluster.submit(data, "--request-id", "r1") == first, "the same request made another job")
    refused = cluster.cli("submit", "--model", MODEL, "--data", data, "--steps", "9", "--request-id", "r1", code=7)
    check_in("what to do", refused.stderr, "the refusal")
    second = cluster.submit(data)
    cluster.wait(first, 0)
    cluster.wait(second, 0)
    check(cluster.adapter_digest(first) == cluster.adapter_digest(second), "two equal jobs gave different adapters")


def refused_spec(cluster):
    """Model, rank, learning rate, sequence length, unknown keys: the field's path, and nothing stored."""
    data = running_cluster(cluster)
    base = ["submit", "--model", MODEL, "--data", data]
    unknown = cluster.cli("submit", "--model", "tinny", "--data", data, code=2)
    check_in("MODEL_UNKNOWN", unknown.stderr, "an unknown model's error")
    check_in("what to do", unknown.stderr, "an unknown model's error")
    for flags, path in (
            (["--rank", "0"], "spec.hyperparameters.lora_rank"),
            (["--lr", "-0.1"], "spec.hyperparameters.learning_rate"),
            (["--max-seq-len", "100000"], "spec.hyperparameters.max_sequence_length"),
            (["--targets", "q_prok"], "spec.hyperparameters.target_modules"),
            (["--batch-size", "many"], "spec.hyperparameters.batch_size")):
        check_in(path, cluster.cli(*base, *flags, code=2).stderr, "the error of %s" % flags)
    job_file = cluster.path("job.yaml")
    with open(job_file, "w", encoding="utf-8") as file:
        file.write("spec:\n  model: %s\n  hyperparameters:\n    lora_rnak: 4\n" % MODEL)
    error = cluster.cli("submit", "-f", job_file, "--data", data, code=2).stderr
    check_in("lora_rnak", error, "an unknown key's error")
    check_in("lora_rank", error, "an unknown key's error")
    check(cluster.jobs() == [], "a refused job was stored")


def bad_data(cluster):
    """FAILED INVALID_DATASET with line, field and reason of the bad lines and their count."""
    running_cluster(cluster)
    bad = {3: "{not json", 7: json.dumps({"messages": [{"role": "robot", "content": "x"}]}), 20: "[]"}
    data = write_chat(cluster.path("bad.jsonl"), bad_lines=bad.items())
    job_id = cluster.submit(data)
    cluster.wait(job_id, 1)
    job = cluster.job(job_id)
    check(job["failure"]["reason"] == "INVALID_DATASET", "failure: %s" % job["failure"])
    check(job["failure"]["user_can_fix"], "bad data is the user's to fix")
    check(job["data_report"]["error_count"] == "3", "the report counts %s bad lines" % job["data_report"]["error_count"])
    lines = [int(error["line"]) for error in job["data_report"]["errors"]]
    check(lines == [3, 7, 20], "the report names lines %s" % lines)
    check_in("role", job["data_report"]["errors"][1]["field"], "line 7's field")
    text = cluster.cli("get", job_id, code=0).stdout
    for line in (3, 7, 20):
        check_in(":%d: " % line if "bad.jsonl:" in text else "line %d: " % line, text, "`longhaul get`")
    empty = cluster.path("empty.jsonl")
    with open(empty, "w", encoding="utf-8"):
        pass
    check_in("empty", cluster.cli("submit", "--model", MODEL, "--data", empty, code=2).stderr, "an empty file's error")


def does_not_fit(cluster):
    """Refused at submit with bytes by part and the longest sequence that would fit; estimate says the same."""
    data = running_cluster(cluster, "--host-bytes", "400MiB")
    flags = ["--model", MODEL, "--batch-size", "4096", "--max-seq-len", "512"]
    refused = cluster.cli("submit", "--data", data, *flags, code=1)
    check_in("EXCEEDS_EVERY_DEVICE", refused.stderr, "the refusal")
    check_in("400", refused.stderr, "the bytes there")
    check_in("longest", refused.stderr, "the longest sequence that fits")
    check_in("activations", refused.stderr, "the bytes by part")
    check(cluster.jobs() == [], "a refused job was stored")
    estimate = json.loads(cluster.cli("estimate", *flags, "-o", "json", code=1).stdout)
    entry = estimate["classes"][0]
    check(not entry["fits"] and int(entry["longest_sequence_length"]) < 512, "the estimate: %s" % entry)
    small = json.loads(cluster.cli("estimate", "--model", MODEL, "--max-seq-len", "128", "-o", "json", code=0).stdout)
    check(small["fits_somewhere"] and int(small["classes"][0]["estimate"]["host_bytes"]) > 0, "the small estimate")
    shape = os.path.join(cluster.model_dir, "config.json")
    cluster.cli("estimate", "--shape", shape, "--max-seq-len", "128", code=0)


def job_that_waits(cluster, job_id):
    """Once it is told why, which is worked out beside the commit; None before. It has to be QUEUED still."""
    job = cluster.job(job_id)
    check(job["state"] == "QUEUED", "%s is %s" % (job_id, job["state"]))
    return job if job.get("reason", "REASON_UNSPECIFIED") != "REASON_UNSPECIFIED" and job.get("queue_position") else None


def cancel(cluster):
    """Cancel a running job and one that waits behind it."""
    data = running_cluster(cluster)
    running = cluster.submit(data, steps=ENDLESS_STEPS)
    watch = Watch(cluster, running)
    watch.until_step(3)
    queued = cluster.submit(data)
    Watch(cluster, queued).until_state("QUEUED")
    waiting = wait_for("its reason", lambda: job_that_waits(cluster, queued))
    check(waiting["reason"].startswith("WAITING_FOR"), "it waits for %s" % waiting["reason"])
    check(waiting["reason_detail"], "the reason has no sentence for people")
    trainer = cluster.trainer()
    cluster.cli("cancel", queued, code=0)
    check(cluster.job(queued)["state"] == "CANCELLED", "a queued job is not cancelled at once")
    cluster.cli("cancel", running, code=0)
    check(watch.to_end() == 5, "the watch of a cancelled job must exit 5")
    cluster.wait(running, 5)
    check(not trainer.alive(), "the trainer of a cancelled job goes on")
    cluster.cli("cancel", running, code=7)


def side_by_side(cluster):
    """Two jobs run at once when both fit; a third that does not waits with its reason, then runs."""
    data = running_cluster(cluster, "--cpu-threads", "2")
    jobs = [cluster.submit(data, "--cpu-threads", "1", steps=ENDLESS_STEPS) for _ in range(2)]
    for job_id in jobs:
        Watch(cluster, job_id).until_step(2)
    third = cluster.submit(data, "--cpu-threads", "2")
    Watch(cluster, third).until_state("QUEUED")
    waiting = wait_for("its reason", lambda: job_that_waits(cluster, third))
    states = [cluster.job(job_id)["state"] for job_id in jobs]
    check(states == ["RUNNING", "RUNNING"], "the two are %s" % states)
    check(waiting["reason"] == "WAITING_FOR_CPU_THREADS", "the third waits for %s" % waiting["reason"])
    check(waiting["queue_position"] == 1, "its position is %s" % waiting["queue_position"])
    worker = json.loads(cluster.cli("workers", "-o", "json", code=0).stdout)["workers"][0]
    check(worker["cpu_threads_reserved"] == 2 and len(worker["attempts"]) == 2, "the worker: %s" % worker)
    for job_id in jobs:
        cluster.cli("cancel", job_id, code=0)
    cluster.wait(third, 0)


CASES = [success, same_job_twice, refused_spec, bad_data, does_not_fit, cancel, side_by_side]
