#!/usr/bin/env python3
"""Jobs through the whole system on a GPU: longhauld, longhaul-worker, longhaul-train and longhaul of a folder that
deploy/gpu_folder.sh made, with a real model and real data. Prints what a user would see; exits 1 where a check failed.

usage: gpu_job.py FOLDER MODEL TRAIN.jsonl HELD_OUT.jsonl [--steps N] [--cpu] [CASE ...]

Every run but the short ones is of the same deterministic job, and its adapter must have the same bytes: twice in
peace, paused and resumed, its trainer killed -9, its GPU faulted. Then memory that another program holds, and a last
run. Without a GPU it stops, unless --cpu: then only what a CPU can do is run.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "e2e"))
from harness import Cluster, Failure, Watch, check, check_in, wait_for  # noqa: E402

JOB = os.path.join(HERE, "..", "deploy", "demo", "job.yaml")
SHORT_STEPS = 20
LEFT_MIB = 1024  # of the device: a context fits, the plan does not


class Run:
    """A scheduler, a worker, and the jobs of all cases."""

    def __init__(self, options, work_dir):
        self.options, self.steps = options, options.steps
        self.model = os.path.splitext(os.path.basename(options.model))[0]
        self.cluster = Cluster(os.path.abspath(options.folder), os.path.join(work_dir, "run"), os.path.abspath(options.model))
        self.worker = None
        self.digest = None  # of the adapter that every run must make

    def start(self):
        self.cluster.start_server()
        self.restart_worker()
        self.show("workers", "-o", "wide")

    def restart_worker(self, failpoints="", blocking=False):
        if self.worker is not None:
            self.worker.send_signal(signal.SIGTERM)
            self.worker.wait()
        env = {"LONGHAUL_FAILPOINTS": failpoints}
        if blocking:
            env["CUDA_LAUNCH_BLOCKING"] = "1"
        say("worker" + "".join(" %s=%s" % item for item in env.items() if item[1]))
        log = self.cluster.path("worker.log")
        begin = os.path.getsize(log) if os.path.exists(log) else 0
        self.worker = self.cluster.start_worker(env=env)

        # The scheduler may still have the one before for online.
        def session_log():
            with open(log, encoding="utf-8") as file:
                file.seek(begin)
                text = file.read()
            return "is open" in text and text
        offered = wait_for("the worker's session", session_log, self.worker)
        print(offered.rstrip(), flush=True)
        # A large one that is new here is read first.
        wait_for("the model", lambda: '"name": "%s"' % self.model in self.cluster.cli("workers", "-o", "json").stdout,
                 self.worker, guard_s=1800)
        if not self.options.cpu:
            check_in("offers GPU", offered, "the worker's log")

    def show(self, *arguments):
        print("$ longhaul " + " ".join(arguments))
        print(self.cluster.cli(*arguments).stdout.rstrip(), flush=True)

    def submit(self, *flags, steps=None):
        steps = steps or self.steps
        arguments = ["submit", "-f", JOB, "--model", self.model, "--data", self.options.train,
                     "--eval-data", self.options.held_out, "--deterministic", "--steps", str(steps),
                     "--checkpoint-every-steps", str(max(1, steps // 6)), "--retry-backoff-seconds", "2", *flags]
        print("$ longhaul " + " ".join(os.path.basename(a) for a in arguments))
        return self.cluster.cli(*arguments, code=0).stdout.strip()

    def attempts(self, job_id):
        answer = json.loads(self.cluster.cli("attempts", job_id, "-o", "json", code=0).stdout)
        return [a for a in answer["attempts"] if a["kind"] == "ATTEMPT_KIND_TRAIN"]

    def failed_attempt(self, job_id):
        """The one attempt that failed: on the GPU, after which another one there ended the job."""
        attempts = self.attempts(job_id)
        failed = [a for a in attempts if a["outcome"] == "ATTEMPT_OUTCOME_FAILED"]
        check(len(failed) == 1, "%d attempts failed" % len(failed))
        check(attempts[-1]["device_id"] == failed[0]["device_id"], "the next attempt was on another device")
        return failed[0]

    def finish(self, job_id, begin, same=True):
        """To the end, as a user sees it. `same`: the adapter must have the bytes of the first run."""
        self.cluster.wait(job_id, 0)
        self.show("attempts", job_id)
        seconds = time.monotonic() - begin
        job = self.cluster.job(job_id)
        result = job["result"]
        print("held-out loss %.4f -> %.4f; updates took %.1f s, submit to end %.1f s" % (
            result["eval_loss_before"], result["eval_loss_after"], result["train_seconds"], seconds))
        digest = self.cluster.adapter_digest(job_id)
        print("adapter_model.safetensors  sha256 %s" % digest, flush=True)
        if not self.options.cpu:
            check(all(a["device_id"].startswith("GPU-") for a in self.attempts(job_id)), "not all of it ran on the GPU")
        if same:
            self.digest = self.digest or digest
            check(digest == self.digest, "the adapter differs from that of the first run")


def say(text):
    print("\n== %s" % text, flush=True)


def whole(run):
    """A run in peace."""
    begin = time.monotonic()
    job_id = run.submit()
    run.finish(job_id, begin)
    log = run.cluster.cli("logs", job_id, code=0).stdout.splitlines()
    print("$ longhaul logs %s | head -6" % job_id)
    print("\n".join(log[:6]), flush=True)


def again(run):
    """The same once more."""
    whole(run)


def paused(run):
    """Paused a third of the way, and resumed."""
    begin = time.monotonic()
    job_id = run.submit()
    watch = Watch(run.cluster, job_id)
    watch.until_step(run.steps // 3)
    run.show("pause", job_id)
    watch.until_state("PAUSED")
    run.show("resume", job_id)
    run.finish(job_id, begin)
    outcomes = [a["outcome"] for a in run.attempts(job_id)]
    check(outcomes == ["ATTEMPT_OUTCOME_STOPPED", "ATTEMPT_OUTCOME_SUCCEEDED"], "the attempts ended %s" % outcomes)


def killed(run):
    """Half of the way its trainer is killed -9."""
    begin = time.monotonic()
    job_id = run.submit()
    Watch(run.cluster, job_id).until_step(run.steps // 2)
    run.cluster.trainer().signal(signal.SIGKILL)
    run.finish(job_id, begin)
    check(run.failed_attempt(job_id)["reason"] == "TRAINER_CRASHED", "the killed trainer's attempt has another reason")


def fault(run, where, part):
    worker = run.worker.pid
    begin = time.monotonic()
    # Counted in micro-batches of an attempt, the first evaluation's included. The attempt after it has fewer left.
    job_id = run.submit()
    run.finish(job_id, begin)
    failed = run.failed_attempt(job_id)
    check(failed["reason"] == "DEVICE_FAULT", "the fault is called %s" % failed["reason"])
    for text in [where, "CUDA error", part]:
        check_in(text, failed["message"], "the attempt's message")
    check(run.worker.poll() is None and run.worker.pid == worker, "the worker has ended")
    print("the worker lives on")
    # The GPU serves on, for the same worker.
    run.finish(run.submit(steps=SHORT_STEPS), time.monotonic(), same=False)


def faulted(run):
    """Late in the run a kernel faults (failpoint cuda_wrong_token)."""
    run.restart_worker("cuda_wrong_token=error@%d" % (run.steps * 3 // 4))
    try:
        fault(run, "in step ", "CUDA_LAUNCH_BLOCKING=1")
    finally:
        run.restart_worker()


def named(run):
    """The same with launches that block: the op is named."""
    run.restart_worker("cuda_wrong_token=error@%d" % (run.steps * 3 // 4), blocking=True)
    try:
        fault(run, "in step ", "GatherRows: kernel launch failed")
    finally:
        run.restart_worker()


def taken(run):
    """Another program takes the GPU's memory after the worker has offered it: a job fails before its first step."""
    with subprocess.Popen([sys.executable, os.path.join(HERE, "hold_gpu_memory.py"), str(LEFT_MIB)], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hold:
        print("another program %s MiB" % hold.stdout.readline().strip())
        job_id = run.submit("--retry-limit", "1", steps=SHORT_STEPS)
        code = run.cluster.wait(job_id, None).returncode
        run.show("get", job_id)
        run.show("attempts", job_id)
        check(code == 1, "the job ended with code %d" % code)
        for failed in run.attempts(job_id):
            check(failed["reason"] == "DEVICE_FAULT", "it is called %s" % failed["reason"])
            for text in ["cannot allocate", "that nvidia-smi names"]:
                check_in(text, failed["message"], "the attempt's message")
        say("taken, and given back while a job waits to try again")
        begin = time.monotonic()
        job_id = run.submit(steps=SHORT_STEPS)
        wait_for("its first failure", lambda: run.cluster.job(job_id)["failed_attempts"] > 0)
        run.show("get", job_id)
        hold.stdin.close()
        hold.wait()
        run.finish(job_id, begin, same=False)


def last(run):
    """After all that: a run in peace, by the same worker."""
    whole(run)


CASES = [whole, again, paused, killed, faulted, named, taken, last]
NEED_GPU = [faulted, named, taken]


def run_cases(run):
    """The names of those that failed."""
    failed = []
    run.start()
    for case in CASES:
        if run.options.cases and case.__name__ not in run.options.cases or run.options.cpu and case in NEED_GPU:
            continue
        say("%s: %s" % (case.__name__, case.__doc__))
        try:
            case(run)
        except Failure as failure:
            print("FAILED: %s" % failure, flush=True)
            failed.append(case.__name__)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("model", help="a .gguf file or a model folder")
    parser.add_argument("train", help="JSONL")
    parser.add_argument("held_out", help="JSONL")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--cpu", action="store_true", help="go on where there is no GPU")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(case.__name__ for case in CASES))
    options = parser.parse_args()
    unknown = set(options.cases) - {case.__name__ for case in CASES}
    if unknown:
        parser.error("no case " + ", ".join(sorted(unknown)))
    print(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    if not options.cpu:
        subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version,memory.used", "--format=csv,noheader"], check=True)
    with tempfile.TemporaryDirectory() as work_dir:
        run = Run(options, work_dir)
        try:
            failed = run_cases(run)
        except Failure as failure:  # before the first case
            for name in ["longhauld.log", "worker.log"]:
                if os.path.exists(run.cluster.path(name)):
                    with open(run.cluster.path(name), encoding="utf-8") as log:
                        print(log.read().rstrip())
            sys.exit("gpu_job.py: %s" % failure)
        finally:
            run.cluster.stop()
    say("%d cases failed%s" % (len(failed), "".join(" " + name for name in failed)) if failed else "all cases passed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
