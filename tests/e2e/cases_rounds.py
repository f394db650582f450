"""The same disturbance many times over, with real processes: a short form in every run of the tests, the long ones in
tests/soak.sh.

LONGHAUL_SOAK_ROUNDS is how often, LONGHAUL_SOAK_SEED where the draws begin, LONGHAUL_SOAK_OUTAGE_S how long an outage is,
LONGHAUL_SOAK_DEMO_S how long ten jobs are disturbed.
"""

import datetime
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request

from harness import GUARD_S, Watch, check, wait_for, write_chat
from cases_control import train_attempts, worker_of
from cases_faults import FLAGS, begin, folder_of, slow
from cases_jobs import ENDLESS_STEPS

# The trainer holds after seconds; no worker is lost that only had no processor for ten.
LEASES = ["--lease-ms", "3000", "--worker-lost-ms", "12000", "--sync-hold-ms", "1000"]
# A worker that stands still is lost after seconds.
LOST_SOON = ["--lease-ms", "3000", "--worker-lost-ms", "4000", "--sync-hold-ms", "1000"]
OUTAGE_LEASES = ["--lease-ms", "3000", "--worker-lost-ms", "60000", "--sync-hold-ms", "1000"]
OUTAGE_STEP_MS = 500  # the steps that are left take longer than a lease
# The figure is that of the soak's machine; others may stand still for ten. One that does not heed it is killed after 30.
CANCELLED_WITHIN_S = 10 if "LONGHAUL_SOAK_ROUNDS" in os.environ else 25
MOST_FAILURES = 100
AGENT_BACK_S = 15  # from its session until it has told what it runs, on a slow machine
STILL_S = 14  # longer than the lost time of LEASES
SHORT_LEASES_OUTAGE_S = 15  # longer than leases, lost times and the agent's longest wait
DEMO_JOBS = 10
DEMO_STEP_MS = 200
WORKER_FLAGS = ["--cpu-threads", "2"]  # as many attempts at a time on every machine


def rounds(short):
    return int(os.environ.get("LONGHAUL_SOAK_ROUNDS", short))


def draws():
    return random.Random(int(os.environ.get("LONGHAUL_SOAK_SEED", "1")))


def fenced_writes(cluster):
    """How many the scheduler has refused since it was started."""
    with urllib.request.urlopen("http://127.0.0.1:%d/metrics" % cluster.ports["http_port"], timeout=GUARD_S) as response:
        return int(float(re.search(r"^longhaul_fenced_writes_total ([0-9.e+]+)$", response.read().decode(), re.M).group(1)))


def write_stale(cluster, job_id, attempt):
    """In the name of the worker that stands still; how often. What it writes itself when it wakes up mostly meets its
    closed session, and says nothing of the epochs."""
    here = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(here, "..", "..", "model", "memory_plan.h"), encoding="utf-8") as file:
        plan_version = re.search(r"kPlanVersion = (\d+);", file.read()).group(1)
    result = subprocess.run(
        [os.environ.get("LONGHAUL_E2E_PYTHON", sys.executable), os.path.join(here, "stale_write.py"), cluster.address(),
         attempt["worker_id"], job_id, str(attempt["number"]), str(attempt["lease_epoch"]), plan_version],
        stdin=subprocess.DEVNULL, text=True, capture_output=True, timeout=GUARD_S, check=False)
    check(result.returncode == 0, "the stale writes: %s%s" % (result.stdout, result.stderr))
    return int(result.stdout)


def running_attempt(cluster, job_id, after=0):
    """The job's, where it runs and is a later one than `after`."""
    job = cluster.job(job_id)
    return job["attempt"] if job["state"] == "RUNNING" and job["attempt"]["number"] > after else None


def stop_worker_of(cluster, agents, job_id, trainer_too):
    """Its agent stands still, and its trainer where that is asked for: (attempt, trainer)."""
    while True:
        attempt = wait_for("an attempt that runs", lambda: running_attempt(cluster, job_id))
        agent = agents[attempt["worker_id"]]
        agent.send_signal(signal.SIGSTOP)
        trainers = [trainer for trainer in cluster.trainers(attempt["worker_id"])
                    if os.path.basename(trainer.folder) == folder_of(job_id, attempt)]
        # On a machine that stood still it may have been lost just before.
        if len(trainers) == 1 and (not trainer_too or trainers[0].hold()):
            return attempt, trainers[0]
        agent.send_signal(signal.SIGCONT)


def stopped_past_lease(cluster):
    """Agent and trainer of a worker stand still until another worker has its job; stale writes come in its name, and awake
    again they write what they had. Nothing of it is taken: every checkpoint that comes from then on is of the newer
    attempt."""
    cluster.start_server(*LOST_SOON)
    data = write_chat(cluster.path("train.jsonl"))
    agents = {name: cluster.start_worker(name=name) for name in ("one", "two")}
    draw = draws()
    for _ in range(rounds(1)):
        job_id = cluster.submit(data, *FLAGS, steps=ENDLESS_STEPS)
        watch = Watch(cluster, job_id)
        watch.until_step(draw.randrange(5, 40))
        # The trainer alone holds at its own lease; both asleep know nothing of it when they wake up.
        both = draw.random() < 0.5
        attempt, trainer = stop_worker_of(cluster, agents, job_id, both)
        agent = agents[attempt["worker_id"]]

        newer = wait_for("the other worker's attempt", lambda: running_attempt(cluster, job_id, attempt["number"]))
        check(newer["worker_id"] != attempt["worker_id"], "the worker that stands still got the job again")
        before, refused = cluster.checkpoints(job_id), fenced_writes(cluster)
        written = write_stale(cluster, job_id, attempt)
        check(written > 0 and fenced_writes(cluster) >= refused + written,
              "%d stale writes are counted as %d" % (written, fenced_writes(cluster) - refused))
        if both:
            trainer.go_on()
        agent.send_signal(signal.SIGCONT)
        wait_for("the fenced trainer's end", lambda: not trainer.alive())
        # The newer one may be lost in its turn, on a machine that stands still for a while.
        stale = {c for c in cluster.checkpoints(job_id) - before if c[0] < newer["number"]}
        check(not stale, "checkpoints of attempt %d were taken after attempt %d had begun: %s" % (
            attempt["number"], newer["number"], sorted(stale)))
        cluster.cli("cancel", job_id, code=0)
        watch.to_end()
        numbers = [a["number"] for a in train_attempts(cluster, job_id) if a["outcome"] == "ATTEMPT_OUTCOME_LOST"]
        check(attempt["number"] in numbers, "attempt %d is not counted as lost" % attempt["number"])


def cancelled_while_running(cluster):
    """The trainer is gone and its memory back within seconds of a cancel."""
    cluster.start_server()
    data = write_chat(cluster.path("train.jsonl"))
    cluster.start_worker()
    draw = draws()
    longest = 0.0
    for _ in range(rounds(2)):
        job_id = cluster.submit(data, *FLAGS, steps=ENDLESS_STEPS)
        watch = Watch(cluster, job_id)
        watch.until_step(draw.randrange(1, 30))
        trainer = cluster.trainer()
        begun = time.monotonic()
        cluster.cli("cancel", job_id, code=0)
        wait_for("the trainer's end", lambda: not trainer.alive())
        wait_for("its memory", lambda: worker_of(cluster, "worker")["host_bytes_reserved"] == "0")
        took = time.monotonic() - begun
        longest = max(longest, took)
        check(took < CANCELLED_WITHIN_S, "it took %.1f s until the trainer and its memory were gone" % took)
        check(watch.to_end() == 5, "the watch did not end with CANCELLED")
    print("  slowest cancel %.2f s" % longest)


class Killings:
    """Scheduler, agents and trainers of a cluster, one of them killed -9 at a time."""

    def __init__(self, cluster, workers):
        self.cluster, self.draw, self.env = cluster, draws(), None
        self.data = write_chat(cluster.path("train.jsonl"))
        cluster.start_server(*LEASES)
        self.agents = {name: cluster.start_worker(*WORKER_FLAGS, name=name) for name in workers}
        self.agent_kills = []  # name, and the wall times of its kill and its return

    def submit(self, request_id, *flags, **options):
        return self.cluster.submit(self.data, *FLAGS, "--retry-limit", str(MOST_FAILURES), "--request-id", request_id,
                                   *flags, **options)

    def adapter(self, job_id):
        self.cluster.wait(job_id, 0)
        return self.cluster.adapter_digest(job_id)

    def kill_agent(self, name, env=None):
        """Its trainers live on; the next agent finds them."""
        killed = time.time()
        self.cluster.kill(self.agents[name])
        self.agents[name] = self.cluster.start_worker(*WORKER_FLAGS, name=name, env=env or self.env)
        self.agent_kills.append((name, killed, time.time()))

    def kill_one(self):
        """Which kind it was."""
        victim = self.draw.choice(["scheduler", "agent", "trainer"])
        if victim == "scheduler":
            self.cluster.kill(self.cluster.server)
            self.cluster.start_server(*LEASES)
        elif victim == "agent":
            self.kill_agent(self.draw.choice(sorted(self.agents)))
        else:
            trainers = [t for name in self.agents for t in self.cluster.trainers(name)]
            if trainers:
                self.draw.choice(trainers).kill()
        return victim

    def check_none_lost(self, job_id):
        """An attempt may be lost where its agent was away; never because the scheduler was."""
        for attempt in train_attempts(self.cluster, job_id):
            if attempt["outcome"] != "ATTEMPT_OUTCOME_LOST":
                continue
            end = datetime.datetime.fromisoformat(attempt["end_time"].replace("Z", "+00:00")).timestamp()
            excused = any(name == attempt["worker_id"] and killed <= end <= back + AGENT_BACK_S
                          for name, killed, back in self.agent_kills)
            check(excused, "attempt %d of %s was lost, and nobody had killed its agent: %s" % (
                attempt["number"], job_id, attempt["message"]))

    def live(self):
        ended = {"SUCCEEDED", "FAILED", "CANCELLED"}
        return [job for job in self.cluster.jobs() if job["state"] not in ended]


class Demo(Killings):
    """Ten jobs on three workers. With nobody in the way first; then with steps that are slowed down (which changes no
    number of the training), so that there is always one in the middle of a run."""

    def __init__(self, cluster, seconds):
        super().__init__(cluster, ("one", "two", "three"))
        # Six run at a time, two a worker: with nobody in the way they would take a tenth longer than the time.
        self.steps = max(20, seconds * 6 * 1100 // (DEMO_JOBS * DEMO_STEP_MS))
        self.undisturbed = [self.adapter(job_id) for job_id in self.submit_all("undisturbed")]
        check(len(set(self.undisturbed)) == DEMO_JOBS, "jobs that differ have the same adapter")
        self.env = {"LONGHAUL_FAILPOINTS": ",".join(
            "train_step_%d=sleep:%d" % (step, DEMO_STEP_MS) for step in range(1, self.steps + 1))}
        for name in self.agents:
            self.kill_agent(name)

    def submit_all(self, request):
        return [self.submit("%s-%d" % (request, number), "--seed", str(number), "--cpu-threads", "1", steps=self.steps)
                for number in range(DEMO_JOBS)]


def three_workers_ten_jobs(cluster):
    """Three workers, ten jobs, and something of them killed -9 at random moments for LONGHAUL_SOAK_DEMO_S: every adapter
    has the very bytes of an undisturbed run."""
    seconds = int(os.environ.get("LONGHAUL_SOAK_DEMO_S", "20"))
    demo = Demo(cluster, seconds)
    jobs, victims = demo.submit_all("disturbed"), {}
    end = time.monotonic() + seconds
    while time.monotonic() < end and demo.live():
        moment = time.monotonic() + demo.draw.uniform(0.2, 2.5)
        wait_for("the next kill", lambda: time.monotonic() >= moment)
        victim = demo.kill_one()
        victims[victim] = victims.get(victim, 0) + 1
    late = end - time.monotonic()
    check(late <= 0, "all ten had ended %.0f s before the time was over" % late)
    for number, job_id in enumerate(jobs):
        wait_for("the end of %s" % job_id, lambda: job_id not in {job["id"] for job in demo.live()}, guard_s=seconds * 4 + 300)
        digest = demo.adapter(job_id)
        attempts = train_attempts(cluster, job_id)
        print("  job %d: %d steps, %d attempts on %s, adapter %s" % (
            number, demo.steps, len(attempts), "/".join(sorted({a["worker_id"] for a in attempts})), digest[:16]))
        check(digest == demo.undisturbed[number], "the adapter of %s differs from that of an undisturbed run" % job_id)
    print("  %d s; killed: %s" % (seconds, victims))


def outlive_outage(cluster, leases, seconds):
    _, job_id, watch, trainer, expected = begin(cluster, *leases, env=slow(OUTAGE_STEP_MS))
    before = cluster.job(job_id)["attempt"]
    cluster.kill(cluster.server)
    trainer.go_on()
    wait_for("the trainer that holds", lambda: "holding at the step boundary" in trainer.log())
    end = time.monotonic() + seconds
    wait_for("the end of the outage", lambda: time.monotonic() >= end, guard_s=seconds + 60)
    check(trainer.alive(), "the trainer did not outlive the outage")
    cluster.start_server(*leases)
    # Its progress may be over before the watch has found the scheduler again; its events are not.
    check(watch.to_end() == 0, "the watch did not end with SUCCEEDED")
    sequences = watch.sequences()
    check(sequences == list(range(1, len(sequences) + 1)), "the watch has a gap or a duplicate: %s" % sequences)
    check(cluster.adapter_digest(job_id) == expected, "the adapter differs from that of an undisturbed run")
    after = cluster.job(job_id)
    check(after["attempt"]["number"] == before["number"], "a new attempt was made for a healthy trainer")
    check(after["attempt"]["lease_epoch"] == before["lease_epoch"], "the lease epoch changed")
    check(after["failed_attempts"] == 0, "an outage counts as a failure")


def outage(cluster):
    """The scheduler is away for longer than any lease: the trainer holds, is taken up again, and nothing counts as a
    failure."""
    outlive_outage(cluster, OUTAGE_LEASES, int(os.environ.get("LONGHAUL_SOAK_OUTAGE_S", "5")))


def outage_of_short_leases(cluster):
    """The same where a worker is lost after seconds: the agent, which asks less and less often, still comes in time."""
    outlive_outage(cluster, LEASES, int(os.environ.get("LONGHAUL_SOAK_OUTAGE_S", SHORT_LEASES_OUTAGE_S)))


def scheduler_stands_still(cluster):
    """The scheduler's process is stopped for longer than the lost time, as where its machine sleeps, and goes on before
    it has read what its workers sent meanwhile: the same attempt runs on under the same epoch."""
    _, job_id, watch, trainer, expected = begin(cluster, *LEASES, env=slow(OUTAGE_STEP_MS))
    before = cluster.job(job_id)["attempt"]
    cluster.server.send_signal(signal.SIGSTOP)
    trainer.go_on()
    wait_for("the trainer that holds", lambda: "holding at the step boundary" in trainer.log())
    end = time.monotonic() + STILL_S
    wait_for("the end of its sleep", lambda: time.monotonic() >= end, guard_s=STILL_S + 60)
    check(trainer.alive(), "the trainer did not outlive the scheduler's sleep")
    cluster.server.send_signal(signal.SIGCONT)
    check(watch.to_end() == 0, "the watch did not end with SUCCEEDED")
    check(cluster.adapter_digest(job_id) == expected, "the adapter differs from that of an undisturbed run")
    after = cluster.job(job_id)
    check(after["attempt"]["number"] == before["number"], "a new attempt was made for a healthy trainer")
    check(after["attempt"]["lease_epoch"] == before["lease_epoch"], "the lease epoch changed")
    check(after["failed_attempts"] == 0, "the scheduler's own sleep counts as a failure")


CASES = [stopped_past_lease, cancelled_while_running, three_workers_ten_jobs, outage, outage_of_short_leases,
         scheduler_stands_still]
