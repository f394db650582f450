"""A process is killed -9 in the middle of a run: the job still ends, with the very bytes of an undisturbed run."""

import signal

from harness import Watch, check, wait_for, write_chat

STEPS = 40
KILL_AT_STEP = 12
FLAGS = ["--checkpoint-every-steps", "5", "--retry-backoff-seconds", "0", "--lr", "1e-2"]
# Opens a window in the middle of the run for the signal to fall into. It changes no number of the training.
SLOW = {"LONGHAUL_FAILPOINTS": ",".join("train_step_%d=sleep:250" % step for step in range(14, 26))}


def undisturbed(cluster, data):
    """The adapter of the same job on the same worker with nobody in the way."""
    job_id = cluster.submit(data, *FLAGS, steps=STEPS)
    cluster.wait(job_id, 0)
    return cluster.adapter_digest(job_id)


def begin(cluster, *server_flags):
    """A job in the middle of its run: (worker, job id, watch, trainer, digest to expect)."""
    cluster.start_server(*server_flags)
    data = write_chat(cluster.path("train.jsonl"))
    worker = cluster.start_worker(env=SLOW)
    expected = undisturbed(cluster, data)
    job_id = cluster.submit(data, *FLAGS, steps=STEPS)
    watch = Watch(cluster, job_id)
    step = int(watch.until_step(KILL_AT_STEP)["progress"]["step"])
    check(step < STEPS, "the run was over before it could be disturbed")
    return worker, job_id, watch, cluster.trainer(), expected


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
    cluster.start_worker(env=SLOW)
    check(trainer.alive(), "the next agent ended the trainer")
    check(cluster.trainer() == trainer, "another trainer runs")
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
    finish(cluster, job_id, watch, expected)
    after = cluster.job(job_id)
    check(after["attempt"]["number"] == before["number"], "a new attempt was made for a healthy trainer")
    check(after["failed_attempts"] == 0, "a scheduler's restart counts as a failure")


def kill_agent_and_trainer(cluster):
    """A whole host goes away: its lease runs out, another worker takes the job from the checkpoint."""
    worker, job_id, watch, trainer, expected = begin(
        cluster, "--lease-ms", "1500", "--worker-lost-ms", "2500", "--sync-hold-ms", "500")
    # What the host has not handed over is lost with it.
    wait_for("a checkpoint at the scheduler", lambda: cluster.checkpoints(job_id))
    cluster.kill(worker)
    trainer.signal(signal.SIGKILL)
    cluster.start_worker(name="second", env=SLOW)
    finish(cluster, job_id, watch, expected)
    job = cluster.job(job_id)
    check(job["attempt"]["worker_id"] == "second", "the job ended on %s" % job["attempt"]["worker_id"])
    check(int(job["attempt"]["resumed_from_step"]) >= 5, "it did not resume from a checkpoint")


CASES = [kill_trainer, kill_agent, kill_scheduler, kill_agent_and_trainer]
