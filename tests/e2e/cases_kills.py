"""Scheduler, agents and trainers killed -9 at random, while jobs come and end and a client cancels, pauses, resumes and
deletes some of them: whatever it was told is done stays done, once.

LONGHAUL_SOAK_ROUNDS is how many are killed, LONGHAUL_SOAK_SEED where the draws begin.
"""

import collections
import concurrent.futures
import json
import time

from harness import GUARD_S, POLL_S, Failure, check, check_in, wait_for
from cases_rounds import Killings, rounds

STEPS = (8, 60)  # most are over soon; of the others one is in the middle of its run
LIVE_JOBS = 3
KILLED_WITHIN_S = 0.1  # of a command's beginning: about as long as it takes
# Each of them once in so many kills; one kill has the jobs to itself.
OPERATIONS = ("cancel", "pause", "resume", "delete", None)
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
HELD = ("PAUSED", "RESUMED", "PAUSED OR RESUMED")
NO_SCHEDULER, NO_JOB, REFUSED = 3, 4, 7  # exit codes of the CLI


class Client(Killings):
    """Who asks again until there is an answer. `told` is what each job has to be, by the last answer."""

    def __init__(self, cluster):
        super().__init__(cluster, ("one", "two"))
        self.steps, self.request = {}, {}  # by job
        self.expected, self.told = {}, {}
        self.counts = collections.Counter()
        for steps in STEPS:
            job_id = self.create("undisturbed-%d" % steps, steps)
            self.expected[steps] = self.adapter(job_id)

    def create(self, request_id, steps):
        job_id = self.submit(request_id, steps=steps)
        check(job_id not in self.request, "two request ids have one job")
        self.steps[job_id], self.request[job_id] = steps, request_id
        return job_id

    def check_adapter(self, job):
        check(job["state"] == "SUCCEEDED", "%s is %s: %s" % (job["id"], job["state"], json.dumps(job.get("failure"))))
        digests = {file["path"]: file["sha256"] for file in job["artifact"]["files"]}
        check(digests["adapter_model.safetensors"] == self.expected[self.steps[job["id"]]],
              "the adapter of %s differs" % job["id"])

    def ask(self, *command):
        """(the answer, whether one before it was lost)."""
        end, lost = time.monotonic() + GUARD_S, False
        while True:
            result = self.cluster.cli(*command)
            if result.returncode != NO_SCHEDULER:
                return result, lost
            check(time.monotonic() < end, "no answer to %s: %s" % (command, result.stderr))
            lost = True
            time.sleep(POLL_S)

    def ask_for(self, operation, job_id, *others):
        """(whether it is acknowledged, whether an answer before that was lost). `others`: exit codes that may come, too."""
        result, lost = self.ask(operation, job_id)
        check(result.returncode in (0, *others), "%s of %s: %s" % (operation, job_id, result.stderr))
        self.counts["answers lost"] += lost
        self.counts[operation if result.returncode == 0 else operation + " refused"] += 1
        return result.returncode == 0, lost

    def seen(self, job_id):
        """The job, over a scheduler's death, too."""
        return json.loads(self.ask("get", job_id, "-o", "json")[0].stdout)

    def all_jobs(self):
        return self.cluster.jobs("--limit", "100000")

    def free(self):
        """Jobs that go on, and that nobody was told anything of."""
        return [job for job in self.all_jobs() if job["state"] not in ENDED and job["id"] not in self.told]

    def target(self, operation):
        """One that this can be done to, as far as is known; None: there is none."""
        if operation == "delete":
            # As it was told to be: whatever is not is found in the end.
            ids = [job["id"] for job in self.all_jobs()
                   if job["state"] in ENDED and job["state"] == self.told.get(job["id"], "SUCCEEDED")]
        else:
            ids = [job["id"] for job in self.free() if job["state"] != "VALIDATING"]  # a pause is refused then
        return self.draw.choice(sorted(ids)) if ids else None

    def cancel(self, job_id):
        acknowledged, lost = self.ask_for("cancel", job_id, REFUSED)
        if acknowledged:
            self.told[job_id] = "CANCELLED"
            return
        # It has ended, which stays so; by this cancel, where the answer to that was lost.
        self.told[job_id] = self.seen(job_id)["state"]
        check(self.told[job_id] == "SUCCEEDED" or lost and self.told[job_id] == "CANCELLED",
              "a cancel is refused of %s, which is %s" % (job_id, self.told[job_id]))

    def pause(self, job_id):
        acknowledged, _ = self.ask_for("pause", job_id, REFUSED)
        if acknowledged:
            self.told[job_id] = "PAUSED"
        return acknowledged

    def resume(self, job_id):
        """One that it has just paused. A refusal is an answer, too: it stays as it is, and is resumed in the end."""
        if not self.pause(job_id):
            return
        acknowledged, lost = self.ask_for("resume", job_id, REFUSED)
        if acknowledged or lost:
            self.told[job_id] = "RESUMED" if acknowledged else "PAUSED OR RESUMED"

    def delete(self, job_id):
        """An ended one, which is looked at for the last time."""
        job = self.seen(job_id)
        if self.told.get(job_id) != "CANCELLED":
            self.check_adapter(job)
        acknowledged, lost = self.ask_for("delete", job_id, NO_JOB)
        check(acknowledged or lost, "%s was deleted by nobody" % job_id)
        self.told[job_id] = "DELETED"

    def kill_beside(self, operation):
        """A process, right after the answer or before it has come; which kind it was."""
        job_id = operation and self.target(operation)
        if job_id is None:
            return self.kill_one()
        operate = {"cancel": self.cancel, "pause": self.pause, "resume": self.resume, "delete": self.delete}[operation]
        if self.draw.random() < 0.5:
            operate(job_id)
            return self.kill_one()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            answer = pool.submit(operate, job_id)
            time.sleep(self.draw.uniform(0, KILLED_WITHIN_S))
            victim = self.kill_one()
            answer.result()
        return victim

    def states(self, job_id):
        """(before, after) of each change, in their order, of a job that has ended; its events have no gap."""
        output = self.cluster.cli("watch", job_id, "--after-sequence", "0", "-o", "json").stdout
        events = [message["event"] for message in map(json.loads, output.splitlines()) if "event" in message]
        sequences = [int(event["sequence"]) for event in events]
        check(sequences == list(range(1, len(sequences) + 1)), "events of %s: %s" % (job_id, sequences))
        changes = [(event["from_state"], event["state"]) for event in events if event["type"] == "JOB_EVENT_TYPE_STATE"]
        ends = [state for _, state in changes if state in ENDED]
        check(len(ends) == 1 and changes[-1][1] == ends[0], "%s has ended %d times: %s" % (job_id, len(ends), changes))
        return changes

    def check_deleted(self, job_id):
        self.cluster.cli("get", job_id, code=NO_JOB)
        self.cluster.cli("cancel", job_id, code=NO_JOB)
        try:
            again = self.submit(self.request[job_id], steps=self.steps[job_id])
        except Failure as refusal:
            check_in("JOB_NOT_FOUND", str(refusal), "the refusal of a deleted job's repeated Create")
        else:
            raise Failure("the request of the deleted %s has made %s" % (job_id, again))

    def let_go(self, job_id):
        """It is paused until now, or its training was over before it could pause."""
        def settled():
            job = self.cluster.job(job_id)
            return job if job["state"] in ("PAUSED", *ENDED) else None
        job = wait_for("the pause of %s" % job_id, settled)
        if job["state"] == "PAUSED":
            check(job["reason"] == "PAUSED_BY_USER", "%s is paused for another reason" % job_id)
            self.cluster.cli("resume", job_id, code=0)

    def check_held(self, job, changes):
        self.check_adapter(job)
        job_id = job["id"]
        paused = [number for number, change in enumerate(changes) if change[1] == "PAUSED"]
        check(len(paused) <= 1, "%s was paused more than once: %s" % (job_id, changes))
        if paused:
            check(changes[paused[0] + 1] == ("PAUSED", "QUEUED"), "%s: %s" % (job_id, changes))
        elif self.told[job_id] != "PAUSED":  # perhaps resumed before it had paused
            check("PAUSING" in [after for _, after in changes], "the pause of %s is lost: %s" % (job_id, changes))
        else:
            check(("PAUSING", "FINALIZING") in changes, "the pause of %s is lost: %s" % (job_id, changes))
            self.counts["pause too late"] += 1

    def check_cancelled(self, job, changes):
        if job["state"] == "CANCELLED":
            check(not job.get("artifact", {}).get("files"), "the cancelled %s has an adapter" % job["id"])
        else:
            # Its adapter was on its way: then, and only then, the cancel is too late although it was taken.
            check(changes[-1] == ("CANCELLING", "SUCCEEDED"), "the cancel of %s is lost: %s" % (job["id"], changes))
            self.check_adapter(job)
            self.counts["cancel too late"] += 1

    def check_there(self):
        there = {job["id"] for job in self.all_jobs()}
        expected = {job_id for job_id in self.request if self.told.get(job_id) != "DELETED"}
        check(there == expected, "there are jobs that nobody made, or some are gone: %s" % sorted(there ^ expected))

    def all_ended(self):
        jobs = self.all_jobs()
        return jobs if all(job["state"] in ENDED for job in jobs) else None

    def check_all(self):
        for job_id, told in self.told.items():
            if told in HELD and told != "RESUMED":
                self.let_go(job_id)
        self.check_there()
        for job_id, told in self.told.items():
            if told == "DELETED":
                self.check_deleted(job_id)
        for job in wait_for("the end of all jobs", self.all_ended):
            job_id, changes = job["id"], self.states(job["id"])
            told = self.told.get(job_id, "SUCCEEDED")
            if told == "CANCELLED":
                self.check_cancelled(job, changes)
            elif told in HELD:
                self.check_held(job, changes)
            else:
                self.check_adapter(job)
            check(self.submit(self.request[job_id], steps=self.steps[job_id]) == job_id,
                  "request id %s made another job than %s" % (self.request[job_id], job_id))
            self.check_none_lost(job_id)
        self.check_there()  # the repeated Creates made none
        wait_for("the trainers' end", lambda: not any(self.cluster.trainers(name) for name in self.agents))


def killed_at_random(cluster):
    """While jobs come and end, and some are cancelled, paused, resumed and deleted. Nothing that was acknowledged is lost
    or made twice, and every job that ends well has the very bytes of an undisturbed run."""
    client = Client(cluster)
    victims, operations = collections.Counter(), []
    for number in range(rounds(len(OPERATIONS))):
        if len(client.free()) < LIVE_JOBS:
            client.create("cycle-%d" % number, client.draw.choice(STEPS))
        wait_for("something that runs", lambda: any(j["state"] == "RUNNING" for j in client.free()) or not client.free())
        if not operations:
            operations = client.draw.sample(OPERATIONS, len(OPERATIONS))
        victims[client.kill_beside(operations.pop())] += 1
    client.check_all()
    print("  %d jobs; killed: %s; done: %s" % (len(client.request), dict(victims), dict(client.counts)))


CASES = [killed_at_random]
