"""A process is killed -9 in the middle of a run: the job still ends, with the very bytes of an undisturbed run."""

import os
import signal

from harness import Failure, Watch, check, wait_for, write_chat

STEPS = 40
KILL_AT_STEP = 12
HELD_BY_STEP = 18  # eight slow steps are left
MOST_RUNS = 20  # of which a machine that stands still now and then lets one be held in time
FLAGS = ["--checkpoint-every-steps", "5", "--retry-backoff-seconds", "0", "--lr", "1e-2"]
LEASES = ["--lease-ms", "1500", "--worker-lost-ms", "2500", "--sync-hold-ms", "500"]


def slow(step_ms):
    """Opens a window in the middle of the run, in which it can be held. It changes no number of the training."""
    return {"LONGHAUL_FAILPOINTS": ",".join("train_step_%d=sleep:%d" % (step, step_ms) for step in range(14, 26))}


SLOW = slow(250)


def undisturbed(cluster, data):
    """The adapter of the same job on the same worker with nobody in the way."""
    job_id = cluster.submit(data, *FLAGS, steps=STEPS)
    cluster.wait(job_id, 0)
    return cluster.adapter_digest(job_id)


def folder_of(job_id, attempt):
    return "%s.%d.%d" % (job_id, attempt["number"], int(attempt["lease_epoch"]))


def held(cluster, job_id):
    """The job's trainer, standing still before step HELD_BY_STEP is over; None where it is too late for that."""
    trainers = [trainer for trainer in cluster.trainers() if trainer.hold()]
    job = cluster.job(job_id)
    if job["state"] == "RUNNING" and [os.path.basename(trainer.folder) for trainer in trainers] == [
            folder_of(job_id, job["attempt"])]:
        if trainers[0].step() <= HELD_BY_STEP:
            return trainers[0]
    for trainer in trainers:
        trainer.go_on()
    return None


def begin(cluster, *server_flags, env=None):
    """A job in the middle of its run: (worker, job id, watch, trainer, digest to expect). The trainer stands still, so
    that whatever comes next comes before its end, and goes on with go_on()."""
    cluster.start_server(*server_flags)
    data = write_chat(cluster.path("train.jsonl"))
    fast = cluster.start_worker()
    expected = undisturbed(cluster, data)
    cluster.kill(fast)
    worker = cluster.start_worker(env=env or SLOW)
    for _ in range(MOST_RUNS):
        job_id = cluster.submit(data, *FLAGS, steps=STEPS)
        watch = Watch(cluster, job_id)
        watch.until_step(KILL_AT_STEP)
        trainer = held(cluster, job_id)
        if trainer is not None:
            return worker, job_id, watch, trainer, expected
        cluster.cli("cancel", job_id)
        watch.to_end()
    raise Failure("of %d runs none could be held before step %d was over" % (MOST_RUNS, HELD_BY_STEP))


def go_on_once_asked(trainer):
    """To stop: so it cannot end before its agent has said that."""
    wait_for("the agent's SIGTERM", trainer.asked_to_stop)
    trainer.go_on()


def finish(cluster, job_id, watch, expected):
    check(watch.to_end() == 0, "the watch did not end with SUCCEEDED")
    sequences = watch.sequences()
    check(sequences == list(range(1, len(sequences) + 1)), "the watch has a gap or a duplicate: %s" % sequences)
    check(cluster.adapter_digest(job_id) == expected, "the adapter differs from that of an undisturbed run")
    # A watch that was cut off may have come back when all was over: its snapshot has the last progress then.
    points = [m.get("progress") or m.get("snapshot", {}).get("job", {}).get("progress") for m in watch.seen]
    points = [int(p.get("step", 0)) for p in points if p]
    check(points[-1] == STEPS, "the last progress is of step %d" % points[-1])


def kill_trainer(cluster):
    """A new attempt resumes from the last durable checkpoint."""
    _, job_id, watch, trainer, expected = begin(cluster)
    before = cluster.job(job_id)["attempt"]["number"]
    trainer.signal(signal.SIGKILL)
    watch.until_state("RECOVERING")
    finish(cluster, job_id, watch, expected)
    job = cluster.job(job_id)
    check(job["attempt"]["number"] == before + 1, "attempt %d followed %d" % (job["attempt"]["number"], before))
    check(int(job["attempt"]["resumed_from_step"]) >= 5, "it did not resume from a checkpoint")
    check(job["failed_attempts"] == 1, "%d failed attempts are counted" % job["failed_attempts"])


def kill_agent(cluster):
    """The trainer lives on; the next agent finds it and the attempt continues."""
    worker, job_id, watch, trainer, expected = begin(cluster)
    before = cluster.job(job_id)["attempt"]
    cluster.kill(worker)
    check(trainer.alive(), "the trainer died with its agent")
    cluster.start_worker()
    check(trainer.alive(), "the next agent ended the trainer")
    check(cluster.trainer() == trainer, "another trainer runs")
    trainer.go_on()
    finish(cluster, job_id, watch, expected)
    after = cluster.job(job_id)
    check(after["attempt"]["number"] == before["number"], "a new attempt was made for a healthy trainer")
    check(after["attempt"]["lease_epoch"] == before["lease_epoch"], "the lease epoch changed")
    check(after["failed_attempts"] == 0, "an agent's restart counts as a failure")


def kill_scheduler(cluster):
    """Nothing that was committed is lost; worker, trainer and watcher find the new scheduler by themselves."""
    _, job_id, watch, trainer, expected = begin(cluster)
    before = cluster.job(job_id)["attempt"]
    cluster.kill(cluster.server)
    check(trainer.alive(), "the trainer died with the scheduler")
    cluster.start_server()
    wait_for("the worker's return", lambda: "ONLINE" in cluster.cli("workers").stdout)
    check(trainer.alive(), "the trainer was ended after the scheduler's restart")
    trainer.go_on()
    finish(cluster, job_id, watch, expected)
    after = cluster.job(job_id)
    check(after["attempt"]["number"] == before["number"], "a new attempt was made for a healthy trainer")
    check(after["failed_attempts"] == 0, "a scheduler's restart counts as a failure")


def kill_agent_and_trainer(cluster):
    """A whole host goes away: its lease runs out, another worker takes the job from the checkpoint."""
    worker, job_id, watch, _, expected = begin(cluster, *LEASES)
    # What the host has not handed over is lost with it.
    wait_for("a checkpoint at the scheduler", lambda: cluster.checkpoints(job_id))
    cluster.kill(worker)
    for trainer in cluster.trainers():
        trainer.kill()
    cluster.start_worker(name="second")
    finish(cluster, job_id, watch, expected)
    job = cluster.job(job_id)
    check(job["attempt"]["worker_id"] == "second", "the job ended on %s" % job["attempt"]["worker_id"])
    check(int(job["attempt"]["resumed_from_step"]) >= 5, "it did not resume from a checkpoint")


CASES = [kill_trainer, kill_agent, kill_scheduler, kill_agent_and_trainer]
