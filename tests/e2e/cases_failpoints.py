"""Each process dies at each of its failpoints (base/failpoints.h), which stand at every commit and every send: what was
acknowledged is there once, and every job ends with the very bytes of an undisturbed run."""

import concurrent.futures
import os
import re
import signal
import time

from harness import MODEL, check, wait_for, write_chat
from cases_faults import FLAGS
from cases_rounds import LEASES, MOST_FAILURES, WORKER_FLAGS, Killings

STEPS = 12

# Of commands that end with them (storage_test kills those), and of a GPU.
ELSEWHERE = {"access_commit", "migration_commit", "backup_before_mark", "backup_after_mark", "backup_before_database",
             "backup_after_database", "cuda_wrong_token", "cuda_copy_out", "cuda_copy_in"}
# What a Create goes through. Starting commits, too, and so does a worker: those are counted off and left out.
COMMIT = ("dispatcher_before_commit", "dispatcher_after_commit", "dispatcher_before_publish", "dispatcher_before_answer",
          "store_begin", "store_commit")
COMMIT_HITS = (2, 3)
CREATES = 4  # are more than those hits
UPLOADED_ROWS = 40_000  # some pieces of an upload
AWAY_S = 2  # longer than a client needs to see that nobody listens any more
TRAINER = {"train_step_N", "train_checkpoint_written", "train_artifact_written", "trainer_after_step",
           "checkpoint_between_files"}


def failpoints():
    """All that the header lists."""
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    with open(os.path.join(root, "base", "failpoints.h"), encoding="utf-8") as file:
        table = file.read().split("Every place", 1)[1].split("#pragma once", 1)[0]
    lists = re.findall(r"^//   ((?:\w+, )*\w+)", table, re.MULTILINE)
    return [name for names in lists for name in names.split(", ")]


def armed(failpoint, hit=""):
    return {"LONGHAUL_FAILPOINTS": "%s=crash%s" % (failpoint.replace("_N", "_%d" % (STEPS // 2)), hit)}


class Deaths(Killings):
    """One job for each failpoint; they are waited for together."""

    def __init__(self, cluster):
        super().__init__(cluster, ("one",))
        self.first = self.submit("undisturbed", steps=STEPS)
        self.expected = self.adapter(self.first)
        self.number = {}  # by failpoint, which is the request id, too
        self.jobs = {}

    def command(self, failpoint):
        """Its dataset is a new blob with the same rows, so that it has to be uploaded and fetched."""
        data = self.cluster.path("%s.jsonl" % failpoint)
        spaces = 1 + self.number.setdefault(failpoint, len(self.number))
        with open(self.data, encoding="utf-8") as source, open(data, "w", encoding="utf-8") as file:
            file.write("{" + " " * spaces + source.read()[1:])
        return ["submit", "--model", MODEL, "--data", data, "--steps", str(STEPS), "--max-seq-len", "128", "--rank", "4",
                *FLAGS, "--retry-limit", str(MOST_FAILURES), "--request-id", failpoint]

    def acknowledge(self, failpoint):
        job_id = self.cluster.cli(*self.command(failpoint), code=0).stdout.strip()
        check(self.jobs.setdefault(failpoint, job_id) == job_id, "request id %s made two jobs" % failpoint)

    def killed_trainers(self):
        """By the agent's log: with its artifact written, an attempt has not failed."""
        with open(self.cluster.path("one.log"), encoding="utf-8") as file:
            return file.read().count("the trainer was ended by signal 9")

    def dies(self, process, failpoint):
        wait_for("the end at %s" % failpoint, lambda: process.poll() is not None)
        check(process.returncode == -signal.SIGKILL, "at %s: exit status %d" % (failpoint, process.returncode))

    def scheduler(self, failpoint):
        """Dies with a client that submits, one that watches and one that reads a log, or before them, over its own start
        and its worker's return; nobody knows what was acknowledged."""
        self.cluster.kill(self.cluster.server)
        port_file = self.cluster.launch_server(*LEASES, env=armed(failpoint))
        server = self.cluster.server
        wait_for("longhauld", lambda: os.path.exists(port_file) or server.poll() is not None)
        clients = [self.cluster.popen("client", [self.cluster.bin("longhaul"), *command]) for command in (
            self.command(failpoint), ["watch", self.first, "--after-sequence", "0"], ["logs", self.first])]
        self.dies(server, failpoint)
        self.cluster.start_server(*LEASES)
        self.acknowledge(failpoint)
        for client in clients:
            client.kill()

    def agent(self, failpoint):
        """Dies over a new job, and comes back."""
        killed = time.time()
        self.cluster.kill(self.agents["one"])
        agent = self.cluster.launch_worker(*WORKER_FLAGS, name="one", env=armed(failpoint))
        self.acknowledge(failpoint)
        self.dies(agent, failpoint)
        self.agents["one"] = self.cluster.start_worker(*WORKER_FLAGS, name="one")
        self.agent_kills.append(("one", killed, time.time()))

    def trainer(self, failpoint):
        """Dies in every attempt, of whichever job, for as long as its agent hands the failpoint on."""
        before = self.killed_trainers()
        self.kill_agent("one", armed(failpoint))
        self.acknowledge(failpoint)
        wait_for("a trainer's end at %s" % failpoint, lambda: self.killed_trainers() > before)
        self.kill_agent("one")


def killed_at_every_failpoint(cluster):
    """The scheduler, the agent or the trainer, whichever has it; the processes' own tests have the others."""
    names = [name for name in failpoints() if name not in ELSEWHERE]
    check(len(names) > 20, "base/failpoints.h seems to list only %s" % names)
    deaths = Deaths(cluster)
    for name in names:
        begun = time.monotonic()
        kind = "trainer" if name in TRAINER else "agent" if name.startswith("agent_") else "scheduler"
        getattr(deaths, kind)(name)
        print("  %-26s %-9s %4.1f s" % (name, kind, time.monotonic() - begun))
    for name, job_id in deaths.jobs.items():
        check(deaths.adapter(job_id) == deaths.expected, "the adapter of %s (%s) differs" % (job_id, name))
        deaths.acknowledge(name)
        deaths.check_none_lost(job_id)
    check(len(cluster.jobs("--limit", "1000")) == len(deaths.jobs) + 1, "there are jobs that nobody made")


def killed_over_creates(cluster):
    """The scheduler dies at each step of a commit, of Creates alone: what a client was told is there after it, what it was
    not told is there once when it asks again."""
    cluster.start_server()
    data = write_chat(cluster.path("train.jsonl"))
    cluster.kill(cluster.start_worker())  # it has told what models there are
    create = ["submit", "--model", MODEL, "--data", data, "--retry-for", "1", "--request-id"]
    jobs = {"first": cluster.cli(*create, "first", code=0).stdout.strip()}
    cut_off, told = 0, 0
    for failpoint, hit in [(failpoint, hit) for failpoint in COMMIT for hit in COMMIT_HITS]:
        cluster.kill(cluster.server)
        server = cluster.start_server(env=armed(failpoint, "@%d" % hit))
        request_ids = ["%s-%d-%d" % (failpoint, hit, number) for number in range(CREATES)]
        for request_id in request_ids:
            result = cluster.cli(*create, request_id)
            if result.returncode != 0:
                cut_off += 1
                told += "--request-id %s " % request_id in result.stderr
                break
            jobs[request_id] = result.stdout.strip()
        wait_for("the end at %s@%d" % (failpoint, hit), lambda: server.poll() is not None)
        check(server.returncode == -signal.SIGKILL, "at %s: exit status %d" % (failpoint, server.returncode))
        cluster.start_server()
        for request_id in request_ids:
            again = cluster.cli(*create, request_id, code=0).stdout.strip()
            check(jobs.setdefault(request_id, again) == again, "request id %s made two jobs" % request_id)
    check(cut_off > 0, "no client was cut off")
    check(told > 0, "no client was told how to repeat its Create")
    ids = sorted(job["id"] for job in cluster.jobs("--limit", "1000"))
    check(ids == sorted(set(jobs.values())), "%d jobs are there for %d request ids" % (len(ids), len(jobs)))
    print("  %d creates, %d of them cut off, %d told how to repeat" % (len(jobs), cut_off, told))


def killed_over_an_upload(cluster):
    """The scheduler dies in the middle of a submit's upload, and another is there a while later: the submit goes on."""
    cluster.start_server()
    data = write_chat(cluster.path("train.jsonl"), rows=UPLOADED_ROWS)
    cluster.kill(cluster.start_worker())  # it has told what models there are
    cluster.kill(cluster.server)
    server = cluster.start_server(env=armed("blob_append", "@4"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        submit = pool.submit(cluster.cli, "submit", "--model", MODEL, "--data", data, "--retry-for", "5m", code=0)
        wait_for("the end within the upload", lambda: server.poll() is not None)
        time.sleep(AWAY_S)
        cluster.start_server()
        result = submit.result()
    check("connection lost" in result.stderr, "the upload was not cut off:\n%s" % result.stderr)
    jobs = [job["id"] for job in cluster.jobs()]
    check(jobs == [result.stdout.strip()], "there are jobs %s" % jobs)


CASES = [killed_at_every_failpoint, killed_over_creates, killed_over_an_upload]
