"""Pause, resume, drain, preempt, a stopped worker: a job gives its device back and goes on, there or elsewhere, with the very
bytes of an undisturbed run; and whoever waits is told why, where and when."""

import json
import signal

from harness import GUARD_S, Watch, check, check_in, wait_for, write_chat
from cases_faults import LEASES, SLOW, STEPS, KILL_AT_STEP, begin, finish, go_on_once_asked
from cases_jobs import ENDLESS_STEPS

# Longer than a trainer has that is asked to stop and writes nothing: half a minute, and three steps.
SLOW_CHECKPOINT_MS = 35000


def worker_of(cluster, name):
    workers = json.loads(cluster.cli("workers", "-o", "json", code=0).stdout)["workers"]
    return next(w for w in workers if w["id"] == name)


def train_attempts(cluster, job_id):
    attempts = json.loads(cluster.cli("attempts", job_id, "-o", "json", code=0).stdout)["attempts"]
    return [a for a in attempts if a["kind"] == "ATTEMPT_KIND_TRAIN"]


def check_moved(cluster, job_id, worker):
    """It went on from the step where it was asked to stop, on `worker`, and nothing counts as a failure."""
    job = cluster.job(job_id)
    check(job["failed_attempts"] == 0, "%d failed attempts are counted" % job["failed_attempts"])
    check(job["attempt"]["worker_id"] == worker, "it ended on %s" % job["attempt"]["worker_id"])
    check(KILL_AT_STEP <= int(job["attempt"]["resumed_from_step"]) < STEPS,
          "it resumed from step %s" % job["attempt"]["resumed_from_step"])
    outcomes = [a["outcome"] for a in train_attempts(cluster, job_id)]
    check(outcomes == ["ATTEMPT_OUTCOME_STOPPED", "ATTEMPT_OUTCOME_SUCCEEDED"], "the attempts ended %s" % outcomes)


def pause_resume(cluster):
    """Paused it holds no device, outlives a restart of the scheduler, and resumes at the step where it stopped."""
    _, job_id, watch, trainer, expected = begin(cluster)
    check(json.loads(cluster.cli("pause", job_id, "-o", "json", code=0).stdout)["pause_cause"] == "PAUSE_CAUSE_USER",
          "the cause is not the user")
    go_on_once_asked(trainer)
    watch.until_state("PAUSED")
    wait_for("the trainer's end", lambda: not trainer.alive())
    wait_for("the device", lambda: not worker_of(cluster, "worker")["attempts"])
    check(worker_of(cluster, "worker")["host_bytes_reserved"] == "0", "a paused job holds memory")
    check(cluster.job(job_id)["reason"] == "PAUSED_BY_USER", "it is paused for %s" % cluster.job(job_id)["reason"])
    cluster.cli("pause", job_id, code=0)  # in force already
    check_in("longhaul resume " + job_id, cluster.cli("explain", job_id, code=0).stdout, "the explanation")
    cluster.kill(cluster.server)
    cluster.start_server()
    check(cluster.job(job_id)["state"] == "PAUSED", "the pause did not outlive the scheduler")
    cluster.cli("resume", job_id, code=0)
    finish(cluster, job_id, watch, expected)
    check_moved(cluster, job_id, "worker")
    cluster.cli("pause", job_id, code=7)  # it has ended
    cluster.cli("resume", job_id, code=7)


def pause_in_a_slow_checkpoint(cluster):
    """The disk takes longer for the checkpoint than a trainer has that does not stop: it is waited for, not cut off."""
    cluster.start_server()
    data = write_chat(cluster.path("train.jsonl"))
    cluster.start_worker(env={"LONGHAUL_FAILPOINTS": "checkpoint_between_files=sleep:%d" % SLOW_CHECKPOINT_MS})
    job_id = cluster.submit(data, "--checkpoint-every-steps", str(ENDLESS_STEPS), steps=ENDLESS_STEPS)
    watch = Watch(cluster, job_id)
    watch.until_step(5)
    cluster.cli("pause", job_id, code=0)
    watch.until_state("PAUSED")
    check([step for _, step in cluster.checkpoints(job_id) if step >= 5], "the checkpoint of its pause is lost")
    cluster.cli("cancel", job_id, code=0)
    cluster.wait(job_id, 5)


def resume_elsewhere(cluster):
    """The worker that it was paused on is gone for good: the checkpoint is in the scheduler's store."""
    worker, job_id, watch, trainer, expected = begin(cluster)
    cluster.cli("pause", job_id, code=0)
    go_on_once_asked(trainer)
    watch.until_state("PAUSED")
    check(cluster.kill(worker, signal.SIGTERM) == 0, "the agent ended with %s" % worker.returncode)
    cluster.start_worker(name="second")
    cluster.cli("resume", job_id, code=0)
    finish(cluster, job_id, watch, expected)
    check_moved(cluster, job_id, "second")


def drain(cluster):
    """Running attempts checkpoint and move, nothing new comes; undrained it takes work again."""
    _, job_id, watch, trainer, expected = begin(cluster)
    cluster.start_worker(name="second")
    check_in("draining", cluster.cli("drain", "worker", code=0).stdout, "the answer")
    event = watch.until_state("PAUSING")
    check_in("draining", event.get("event", {}).get("message", ""), "the event")
    go_on_once_asked(trainer)
    finish(cluster, job_id, watch, expected)
    check_moved(cluster, job_id, "second")
    check(not trainer.alive(), "the trainer goes on on a drained worker")
    drained = worker_of(cluster, "worker")
    check(drained["draining"] and not drained["attempts"], "the drained worker: %s" % drained)
    cluster.cli("drain", "second", code=0)
    waiting = cluster.submit(cluster.path("train.jsonl"))
    wait_for("the reason", lambda: "draining" in cluster.job(waiting).get("reason_detail", ""))
    cluster.cli("undrain", "worker", code=0)
    cluster.wait(waiting, 0)
    check(cluster.job(waiting)["attempt"]["worker_id"] == "worker", "the undrained worker was not used")


def worker_sigterm(cluster):
    """SIGTERM drains: the agent hands its job back once, gets nothing new meanwhile, and ends with 0."""
    worker, job_id, watch, trainer, expected = begin(cluster)
    worker.send_signal(signal.SIGTERM)
    go_on_once_asked(trainer)
    watch.until_state("QUEUED")
    check(worker.wait(GUARD_S) == 0, "the agent ended with %s" % worker.returncode)
    check(not trainer.alive(), "the trainer outlived a drained agent")
    cluster.start_worker(name="second")
    finish(cluster, job_id, watch, expected)
    check_moved(cluster, job_id, "second")


def preempt(cluster):
    """A job of a higher class takes the device through a checkpoint; the other one goes on from there."""
    cluster.start_server("--preempt-after-ms", "1")
    data = write_chat(cluster.path("train.jsonl"))
    cluster.start_worker()
    low = cluster.submit(data, "--priority", "LOW", steps=ENDLESS_STEPS)
    low_watch = Watch(cluster, low)
    low_watch.until_step(5)
    high = cluster.submit(data, "--priority", "HIGH")
    event = low_watch.until_state("PAUSING")
    check_in(high, event["event"]["message"], "why it makes room")
    low_watch.until_state("QUEUED")
    cluster.wait(high, 0)
    low_watch.until_state("RUNNING")
    job = cluster.job(low)
    resumed = int(job["attempt"]["resumed_from_step"])
    check(resumed >= 5, "it resumed from step %d" % resumed)
    check(job["failed_attempts"] == 0 and job["preemptions"] == 1, "failed %s, preempted %s times" % (
        job["failed_attempts"], job["preemptions"]))
    low_watch.until_step(resumed + 3)
    cluster.cli("cancel", low, code=0)
    cluster.wait(low, 5)


def explained(cluster):
    """Who waits is told why, what would let it start, its place, when and where; an estimate counts the queue."""
    cluster.start_server()
    data = write_chat(cluster.path("train.jsonl"))
    cluster.start_worker()
    running = cluster.submit(data, steps=ENDLESS_STEPS)
    Watch(cluster, running).until_step(3)
    waiting = [cluster.submit(data) for _ in range(2)]
    for job_id in waiting:
        Watch(cluster, job_id).until_state("QUEUED")
    last = waiting[1]
    answer = wait_for("its place", lambda: (lambda a: a if a["job"]["queue_position"] == 2 else None)(
        json.loads(cluster.cli("explain", last, "-o", "json", code=0).stdout)))
    check(answer["job"]["reason"] == "WAITING_FOR_CPU_THREADS", "it waits for %s" % answer["job"]["reason"])
    check(answer["waiting_jobs"] == 2 and answer["reserved"], "the queue: %s" % answer)
    check(answer["job"]["expected_start_time"], "no expected start")
    check(answer["unblocks"], "nothing is said of what would let it start")
    check([p["worker_id"] for p in answer["places"]] == ["worker"] and answer["places"][0]["possible"],
          "places: %s" % answer["places"])
    text = cluster.cli("explain", last, code=0).stdout
    for part in ("position:  2 of 2", "starts:    about", "unblocks:", "CPU threads"):
        check_in(part, text, "the explanation")
    flags = ["--model", "tiny", "--data", data, "--steps", "8", "--max-seq-len", "128", "--rank", "4"]
    # A scheduler that stood still for a while has no time to work this out at once.
    wait_for("the estimate's place", lambda: "be number 3" in cluster.cli("estimate", *flags, code=0).stdout)
    queue = json.loads(cluster.cli("estimate", *flags, "-o", "json", code=0).stdout)["queue"]
    check(queue["position"] == 3 and queue["expected_start_time"] and queue["expected_finish_time"], "the queue: %s" % queue)
    urgent = json.loads(cluster.cli("estimate", *flags, "--priority", "HIGH", "-o", "json", code=0).stdout)["queue"]
    check(urgent["position"] == 1, "an urgent one would be number %s" % urgent["position"])
    check(len(cluster.jobs()) == 3, "an estimate made a job")
    check_in("runs on worker worker", cluster.cli("explain", running, code=0).stdout, "the running job's explanation")
    for job_id in waiting + [running]:
        cluster.cli("cancel", job_id, code=0)
    cluster.wait(running, 5)
    check_in("cancelled", cluster.cli("explain", last, code=0).stdout, "the cancelled job's explanation")


def stopped_worker(cluster):
    """An agent stopped past its lease: its trainer holds by its own clock, another worker takes over, and what the first
    one says when it wakes up changes nothing."""
    worker, job_id, watch, trainer, expected = begin(cluster, *LEASES)
    worker.send_signal(signal.SIGSTOP)
    stopped = cluster.job(job_id)["attempt"]["number"]
    trainer.go_on()
    wait_for("the trainer that holds", lambda: "holding at the step boundary" in trainer.log())
    wait_for("the lost lease", lambda: train_attempts(cluster, job_id)[-1]["outcome"] == "ATTEMPT_OUTCOME_LOST")
    cluster.start_worker(name="second", env=SLOW)

    def taken_over():
        job = cluster.job(job_id)
        return job["state"] == "RUNNING" and job["attempt"]["worker_id"] == "second"
    wait_for("the second worker's attempt", taken_over)
    check(trainer.alive(), "the trainer did not wait for its agent")
    worker.send_signal(signal.SIGCONT)
    wait_for("the fenced trainer's end", lambda: not trainer.alive())
    finish(cluster, job_id, watch, expected)
    # On a machine that stands still for a while, others may be lost, too, before this one and after it.
    attempts = [(a["number"], a["worker_id"], a["outcome"]) for a in train_attempts(cluster, job_id)]
    check((stopped, "worker", "ATTEMPT_OUTCOME_LOST") in attempts, "attempts: %s" % attempts)
    check({outcome for _, _, outcome in attempts[:-1]} == {"ATTEMPT_OUTCOME_LOST"}, "attempts: %s" % attempts)
    check(attempts[-1][2] == "ATTEMPT_OUTCOME_SUCCEEDED", "attempts: %s" % attempts)


CASES = [pause_resume, pause_in_a_slow_checkpoint, resume_elsewhere, drain, worker_sigterm, preempt, explained, stopped_worker]
