"""What an operator meets: start-up errors, a failing disk, metrics; and a client made from reflection alone."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import urllib.request

from harness import GUARD_S, MODEL, Watch, check, check_in, wait_for, write_chat
from cases_jobs import ENDLESS_STEPS

MOST_TRIES = 10
SERIES = ["longhaul_jobs{", "longhaul_jobs_created_total", "longhaul_jobs_finished_total", "longhaul_worker_up{",
          "longhaul_host_memory_bytes{", "longhaul_host_memory_reserved_bytes{", "longhaul_host_memory_used_bytes{",
          "longhaul_estimate_error_ratio", "longhaul_grpc_requests_total{", "longhaul_training_tokens_total"]


def refused_start(argv, *parts):
    """The program must end by itself with a non-zero code and one line on stderr that has `parts`
    and what to do."""
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GUARD_S, check=False)
    name = os.path.basename(argv[0])
    check(result.returncode != 0, "%s started although it must not" % name)
    lines = result.stderr.strip().splitlines()
    check(len(lines) == 1, "%s printed %d lines instead of one:\n%s" % (name, len(lines), result.stderr))
    for part in (*parts, "; what to do: "):
        check_in(part, lines[0], "the error of %s" % name)


def startup_errors(cluster):
    """Port taken, state folder locked, unwritable or of a wrong kind, model folder absent: one line, non-zero."""
    cluster.start_server()
    server = cluster.bin("longhauld")
    anywhere = ["--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
    port = str(cluster.ports["grpc_port"])
    refused_start([server, "--state-dir", cluster.path("other"), "--listen", "127.0.0.1:" + port,
                   "--http-listen", "127.0.0.1:0"], port)
    http_port = str(cluster.ports["http_port"])
    refused_start([server, "--state-dir", cluster.path("other2"), "--listen", "127.0.0.1:0",
                   "--http-listen", "127.0.0.1:" + http_port], http_port)
    refused_start([server, "--state-dir", cluster.path("scheduler"), *anywhere], cluster.path("scheduler"), "process ")
    plain_file = cluster.path("plain")
    with open(plain_file, "w", encoding="utf-8") as file:
        file.write("x")
    refused_start([server, "--state-dir", os.path.join(plain_file, "state"), *anywhere], plain_file)
    refused_start([server, "--state-dir", "/proc/longhaul", *anywhere], "/proc/longhaul")
    refused_start([server, "--state-dir", cluster.path("other3"), "--listen", "0.0.0.0:0", "--http-listen", "127.0.0.1:0"],
                  "0.0.0.0")
    worker = [cluster.bin("longhaul-worker"), "--scheduler", cluster.address()]
    refused_start([*worker, "--state-dir", cluster.path("w"), "--models", cluster.path("no-models")], "no-models")
    cluster.start_worker()
    refused_start([*worker, "--state-dir", cluster.path("worker"), "--models", cluster.model_dir], cluster.path("worker"))


def failing_disk(cluster):
    """A disk that fails under the blob store, the log and the database: an error each, nothing half done, and on."""
    data = write_chat(cluster.path("train.jsonl"))

    def restarted(failpoints):
        if cluster.server is not None:
            cluster.kill(cluster.server, signal.SIGTERM)
        cluster.start_server(env={"LONGHAUL_FAILPOINTS": failpoints})

    restarted("blob_append=error")
    cluster.start_worker()
    submit = ["submit", "--model", MODEL, "--data", data, "--steps", "4", "--max-seq-len", "128", "--rank", "4"]
    check_in("blob_append", cluster.cli(*submit, code=3).stderr, "the upload's error")
    check(cluster.jobs() == [], "a job was stored without its dataset")
    # The upload comes through, the Create does not: its commit fails, and with it everything that it said.
    restarted("dispatcher_before_commit=error")
    error = cluster.cli(*submit, "--retry-for", "1", code=3).stderr
    check_in("STORE_UNAVAILABLE", error, "the error")
    check("start the scheduler" not in error, "a scheduler that answers is not to be started:\n" + error)
    check(cluster.jobs() == [], "a job is there that was not acknowledged")
    # No log can be written: a job runs to its end all the same, and its log comes once it can. Nor does the next job
    # wait for the log of the one before for long, nor a pause.
    def log_comes_late():
        """False where the machine stood still for longer than an end waits for its log."""
        restarted("log_append=error")
        wait_for("the worker's return", lambda: "ONLINE" in cluster.cli("workers").stdout)
        job_id = cluster.submit(data, steps=4)
        cluster.wait(job_id, 0)
        check(cluster.cli("logs", job_id, code=0).stdout == "", "a log was written over the failpoint")
        restarted("")

        def outcome():
            if "step 4/4" in cluster.cli("logs", job_id, code=0).stdout:
                return "came"
            with open(cluster.path("worker.log"), encoding="utf-8", errors="replace") as file:
                return "given up" if job_id + ": ends without the rest of its log" in file.read() else None
        return wait_for("the log that comes late", outcome) == "came"
    check(any(log_comes_late() for _ in range(MOST_TRIES)), "a log was given up %d times" % MOST_TRIES)
    restarted("log_append=error")
    cluster.wait(cluster.submit(data, steps=4), 0)
    paused = cluster.submit(data, steps=100000)
    wait_for("the next job's first step", lambda: int(cluster.job(paused).get("progress", {}).get("step", 0)) > 0)
    cluster.cli("pause", paused, code=0)
    wait_for("a pause without its log", lambda: cluster.job(paused)["state"] == "PAUSED")


def model_left_out(cluster):
    """A damaged model is left out with its reason; the others are offered."""
    models = cluster.path("models")
    shutil.copytree(cluster.model_dir, os.path.join(models, MODEL))
    torn = os.path.join(models, "torn")
    shutil.copytree(cluster.model_dir, torn)
    weights = os.path.join(torn, "model.safetensors")
    os.truncate(weights, os.path.getsize(weights) - 1000)
    with open(os.path.join(models, "broken.gguf"), "wb") as file:
        file.write(b"GGUF" + struct.pack("<I", 3) + b"\xff" * 16)
    cluster.model_dir = models
    cluster.start_server()
    cluster.start_worker()
    worker = json.loads(cluster.cli("workers", "-o", "json", code=0).stdout)["workers"][0]
    names = [model["name"] for model in worker["inventory"]["models"]]
    check(names == [MODEL], "the worker offers %s" % names)
    with open(cluster.path("worker.log"), encoding="utf-8") as file:
        log = file.read()
    for path in (torn, os.path.join(models, "broken.gguf")):
        lines = [line for line in log.splitlines() if "model %s is left out" % path in line]
        check(len(lines) == 1, "the log does not say why %s is left out:\n%s" % (path, log))
    data = write_chat(cluster.path("train.jsonl"))
    error = cluster.cli("submit", "--model", "torn", "--data", data, code=2).stderr
    check_in("MODEL_UNKNOWN", error, "the error")


def demo_without_its_model(cluster):
    """The demo of a model that the worker leaves out says so and ends."""
    broken = cluster.path("broken.gguf")
    with open(broken, "wb") as file:
        file.write(b"GGUF but not really")
    data = write_chat(cluster.path("train.jsonl"))
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    result = subprocess.run(["bash", os.path.join(root, "deploy", "demo.sh"), "--model", broken, "--data", data],
                            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=GUARD_S, check=False)
    check(result.returncode == 1, "the demo exited %d:\n%s" % (result.returncode, result.stderr))
    check_in("is left out", result.stderr, "the demo's error")
    check_in("broken", result.stderr, "the demo's error")


def metrics(cluster):
    """During a run /metrics has job, worker, memory, estimate-error and gRPC series, and promtool accepts it."""
    cluster.start_server()
    cluster.start_worker()
    data = write_chat(cluster.path("train.jsonl"))
    cluster.wait(cluster.submit(data), 0)
    running = cluster.submit(data, steps=ENDLESS_STEPS)
    watch = Watch(cluster, running)
    watch.until_step(3)
    url = "http://127.0.0.1:%d/metrics" % cluster.ports["http_port"]

    def scrape():
        with urllib.request.urlopen(url, timeout=GUARD_S) as response:
            return response.read().decode()

    def value(text, name):
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    # A running attempt's measured memory comes with its next Sync.
    text = wait_for("measured memory", lambda: (lambda t: t if value(t, "longhaul_host_memory_used_bytes{") > 0 else None)(
        scrape()))
    for series in SERIES:
        check("\n" + series in text, "/metrics lacks %s" % series)
    check(value(text, 'longhaul_jobs{state="RUNNING"}') == 1, "the running job is not counted")
    check(value(text, "longhaul_jobs_created_total") == 2, "two jobs were created")
    check(value(text, "longhaul_worker_up{") == 1, "one worker is up")
    used, reserved = value(text, "longhaul_host_memory_used_bytes{"), value(text, "longhaul_host_memory_reserved_bytes{")
    check(0 < used and reserved > 0, "memory: used %s, reserved %s" % (used, reserved))
    check(running not in text, "a job id is a label")
    check(shutil.which("promtool"), "promtool is not installed (deploy/install_deps.sh)")
    result = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    check(result.returncode == 0, "promtool: %s%s" % (result.stdout, result.stderr))
    cluster.cli("cancel", running, code=0)
    cluster.wait(running, 5)


def reflection_client(cluster):
    """A client that has only grpcio and grpcio-reflection submits and watches a job."""
    cluster.start_server()
    cluster.start_worker()
    data = write_chat(cluster.path("train.jsonl"))
    python = os.environ.get("LONGHAUL_E2E_PYTHON", sys.executable)
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reflection_client.py")
    result = subprocess.run([python, script, cluster.address(), "tiny", data], stdin=subprocess.DEVNULL, text=True,
                            capture_output=True, timeout=GUARD_S, check=False)
    check(result.returncode == 0, "the script failed:\n%s%s" % (result.stdout, result.stderr))
    check_in("SUCCEEDED", result.stdout, "the script's output")
    check(len(cluster.jobs()) == 1, "the script's refused job was stored")


CASES = [startup_errors, failing_disk, model_left_out, demo_without_its_model, metrics, reflection_client]
