"""Real processes for one end-to-end case: a scheduler, workers, the CLI; fresh folders, free ports, all gone at the end.

Waiting is for events: a line of a watch, a file that appears, a process that ends. GUARD_S only bounds a broken run.
"""

import glob
import json
import os
import re
import selectors
import signal
import subprocess
import time

GUARD_S = 300
POLL_S = 0.02

MODEL = "tiny"


class Failure(Exception):
    """A check that did not hold; the message says which."""


class Skip(Exception):
    """The case needs something that this machine does not allow."""


def check(condition, message):
    if not condition:
        raise Failure(message)


def check_in(part, text, what):
    check(part in text, "%s lacks %r; it is:\n%s" % (what, part, text))


def wait_for(what, predicate, alive=None, guard_s=GUARD_S):
    """Until predicate() gives something true, which is returned. `alive` is a process that must not end meanwhile."""
    end = time.monotonic() + guard_s
    while True:
        result = predicate()
        if result:
            return result
        check(alive is None or alive.poll() is None, "%s: the process ended first" % what)
        check(time.monotonic() < end, "%s: nothing after %d s" % (what, guard_s))
        time.sleep(POLL_S)


def stat_fields(path):
    """Of a stat file below /proc, from the state on; None when it is gone."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None


def start_ticks(pid):
    """The kernel's start time of a process, which tells it from a later one with its number; None when gone or a zombie."""
    fields = stat_fields("/proc/%d/stat" % pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def stands_still(pid):
    """Stopped, with each of its threads."""
    threads = [stat_fields(path) for path in glob.glob("/proc/%d/task/*/stat" % pid)]
    return bool(threads) and all(fields is not None and fields[0] == "T" for fields in threads)


class Trainer:
    """A running longhaul-train, found by the pid file of its attempt folder."""

    def __init__(self, pid, ticks, folder):
        self.pid, self.ticks, self.folder = pid, ticks, folder

    def alive(self):
        return start_ticks(self.pid) == self.ticks

    def hold(self):
        """It stands still where it is, until go_on(). False: it has ended."""
        if self.alive():
            try:
                os.kill(self.pid, signal.SIGSTOP)
            except ProcessLookupError:
                return False
        wait_for("a trainer that stands still", lambda: not self.alive() or stands_still(self.pid))
        return self.alive()

    def go_on(self):
        self.signal(signal.SIGCONT)

    def asked_to_stop(self):
        """One that stands still: whether its agent's SIGTERM waits for it."""
        with open("/proc/%d/status" % self.pid, encoding="utf-8") as file:
            pending = next(line for line in file if line.startswith("ShdPnd:"))
        return bool(int(pending.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    def log(self):
        """What it has written to stderr; "" where its folder has been cleared away."""
        try:
            with open(os.path.join(self.folder, "stderr.log"), encoding="utf-8", errors="replace") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def step(self):
        """The last one that it has made."""
        return max((int(step) for step in re.findall(r"\bstep (\d+)/", self.log())), default=0)

    def signal(self, number):
        check(self.alive(), "trainer %d has ended already" % self.pid)
        os.kill(self.pid, number)

    def kill(self):
        """-9, where it has not ended by itself."""
        if self.alive():
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def __eq__(self, other):
        return (self.pid, self.ticks) == (other.pid, other.ticks)


class Watch:
    """`longhaul watch -o json` of a job from its first event; itself a test of the client's reconnect."""

    def __init__(self, cluster, job_id):
        self.seen = []
        self.process = cluster.popen(
            "watch", [cluster.bin("longhaul"), "watch", job_id, "--after-sequence", "0", "-o", "json"],
            stdout=subprocess.PIPE, env=cluster.client_env)
        self.buffer = b""

    def next(self):
        """The next message, or None at the end."""
        selector = selectors.DefaultSelector()
        selector.register(self.process.stdout, selectors.EVENT_READ)
        while b"\n" not in self.buffer:
            check(selector.select(GUARD_S), "the watch was silent for %d s; last: %s" % (GUARD_S, self.seen[-3:]))
            piece = os.read(self.process.stdout.fileno(), 1 << 16)
            if not piece:
                return None
            self.buffer += piece
        line, self.buffer = self.buffer.split(b"\n", 1)
        self.seen.append(json.loads(line))
        return self.seen[-1]

    def until(self, what, predicate):
        while True:
            message = self.next()
            check(message is not None, "the watch ended before %s; last: %s" % (what, json.dumps(self.seen[-3:])))
            if predicate(message):
                return message

    def until_state(self, *states):
        def reached(message):
            job = message.get("snapshot", {}).get("job", {})
            return message.get("event", {}).get("state") in states or job.get("state") in states
        return self.until("/".join(states), reached)

    def until_step(self, step):
        # Who comes late has it from the snapshot.
        def reached(message):
            job = message.get("snapshot", {}).get("job", {})
            return int((message.get("progress") or job.get("progress") or {}).get("step", 0)) >= step
        return self.until("step %d" % step, reached)

    def to_end(self):
        while self.next() is not None:
            pass
        return self.process.wait(GUARD_S)

    def sequences(self):
        return [int(m["event"]["sequence"]) for m in self.seen if "event" in m]


class Cluster:
    def __init__(self, bin_dir, work_dir, model_dir):
        self.bin_dir, self.dir, self.model_dir = bin_dir, work_dir, model_dir
        self.processes = []
        self.server = None
        self.ports = {}
        self.client_env = {}  # how the CLI reaches a secured scheduler
        os.makedirs(work_dir)

    def bin(self, name):
        return os.path.join(self.bin_dir, name)

    def path(self, name):
        return os.path.join(self.dir, name)

    def popen(self, name, argv, env=None, **options):
        log = open(self.path("%s.log" % name), "ab")
        environment = {**os.environ, "LONGHAUL_SERVER": self.address(), **(env or {})}
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=log, env=environment,
                                   stdout=options.pop("stdout", log), **options)
        log.close()
        self.processes.append(process)
        return process

    def address(self):
        return "127.0.0.1:%d" % self.ports.get("grpc_port", 0)

    def launch_server(self, *flags, state="scheduler", env=None, files=None):
        """start_server's first half: nothing is waited for."""
        port_file = self.path("ports-%d.json" % len(self.processes))
        argv = [self.bin("longhauld"), "--state-dir", self.path(state), "--port-file", port_file,
                "--listen", "127.0.0.1:%d" % self.ports.get("grpc_port", 0),
                "--http-listen", "127.0.0.1:%d" % self.ports.get("http_port", 0), *flags]
        if files:
            argv = ["bash", "-c", "ulimit -n %d && exec \"$@\"" % files, "bash", *argv]
        self.server = self.popen("longhauld", argv, env=env)
        return port_file

    def start_server(self, *flags, **options):
        """Again after a kill: the same ports and state. `files`: how many it may open."""
        port_file = self.launch_server(*flags, **options)
        wait_for("longhauld's port file", lambda: os.path.exists(port_file), self.server)
        with open(port_file, encoding="utf-8") as file:
            self.ports = json.load(file)
        return self.server

    def launch_worker(self, *flags, name="worker", env=None):
        """start_worker's first half: nothing is waited for."""
        argv = [self.bin("longhaul-worker"), "--scheduler", self.address(), "--state-dir", self.path(name),
                "--models", self.model_dir, "--worker-id", name, *flags]
        return self.popen(name, argv, env=env)

    def start_worker(self, *flags, name="worker", env=None):
        log = self.path("%s.log" % name)
        before = os.path.getsize(log) if os.path.exists(log) else 0
        process = self.launch_worker(*flags, name=name, env=env)

        def online():
            # The scheduler may not have missed the process before this one: by its own word, then.
            with open(log, "rb") as file:
                file.seek(before)
                if b"with the scheduler is open" not in file.read():
                    return False
            workers = json.loads(self.cli("workers", "-o", "json").stdout or "{}").get("workers", [])
            return any(w["id"] == name and w["state"] == "WORKER_ONLINE" for w in workers)
        wait_for("%s registered" % name, online, process)
        return process

    def cli(self, *arguments, code=None, env=None):
        """Runs `longhaul`; `code` is the exit code that must come."""
        result = subprocess.run([self.bin("longhaul"), *arguments], stdin=subprocess.DEVNULL, text=True, check=False,
                                capture_output=True, timeout=GUARD_S,
                                env={**os.environ, "LONGHAUL_SERVER": self.address(), **self.client_env, **(env or {})})
        check(code is None or result.returncode == code,
              "longhaul %s exited %d instead of %s\nstdout: %s\nstderr: %s" % (
                  " ".join(arguments), result.returncode, code, result.stdout, result.stderr))
        return result

    def submit(self, data, *flags, steps=8):
        return self.cli("submit", "--model", MODEL, "--data", data, "--steps", str(steps), "--max-seq-len", "128",
                        "--rank", "4", *flags, code=0).stdout.strip()

    def job(self, job_id):
        return json.loads(self.cli("get", job_id, "-o", "json", code=0).stdout)

    def checkpoints(self, job_id):
        """Those that the scheduler has: {(attempt, step)}."""
        answer = json.loads(self.cli("checkpoints", job_id, "-o", "json", code=0).stdout)
        return {(int(c["attempt"]), int(c["step"])) for c in answer["checkpoints"]}

    def jobs(self, *flags):
        return json.loads(self.cli("list", "-o", "json", *flags, code=0).stdout)["jobs"]

    def wait(self, job_id, code):
        return self.cli("wait", job_id, "--timeout", str(GUARD_S - 10), code=code)

    def trainers(self, worker="worker"):
        """The live trainers of a worker."""
        found = []
        for path in glob.glob(os.path.join(self.path(worker), "**", "pid"), recursive=True):
            try:
                with open(path, encoding="utf-8") as file:
                    fields = file.read().split()
            except FileNotFoundError:  # its attempt has just been cleared away
                continue
            if len(fields) == 2:
                found.append(Trainer(int(fields[0]), int(fields[1]), os.path.dirname(path)))
        return [trainer for trainer in found if trainer.alive()]

    def trainer(self, worker="worker"):
        """The one live trainer of a worker."""
        live = wait_for("a trainer's pid file", lambda: self.trainers(worker))
        check(len(live) == 1, "%d trainers are alive; expected one" % len(live))
        return live[0]

    def adapter_digest(self, job_id):
        job = self.job(job_id)
        check(job["state"] == "SUCCEEDED", "%s is %s: %s" % (job_id, job["state"], json.dumps(job.get("failure"))))
        files = {file["path"]: file["sha256"] for file in job["artifact"]["files"]}
        return files["adapter_model.safetensors"]

    def kill(self, process, number=signal.SIGKILL):
        process.send_signal(number)
        return process.wait(GUARD_S)

    def left(self):
        """Processes whose command line names a path of this case: trainers, which outlive their worker by design. Those
        that were just being started have no pid file."""
        mark, found = os.fsencode(self.dir + os.sep), []
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                with open("/proc/%d/cmdline" % pid, "rb") as file:
                    if mark in file.read() and pid != os.getpid():
                        found.append(pid)
            except OSError:  # it has just ended
                pass
        return found

    def end_what_is_left(self):
        """Whether nothing was."""
        left = self.left()
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return not left

    def stop(self):
        """Ends what this case started, by pid, and all that came of it."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        wait_for("the end of what is left", self.end_what_is_left)


def write_chat(path, rows=40, bad_lines=()):
    """Deterministic chat rows; `bad_lines` replaces 1-based lines."""
    words = ["red", "green", "blue", "north", "south", "east", "west", "iron", "salt", "river"]
    replaced = dict(bad_lines)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(rows):
            question = "What comes after the %s %s?" % (words[i % 10], words[(i * 3 + 1) % 10])
            answer = "After it comes the %s one, number %d, then the %s." % (words[(i * 7) % 10], i, words[(i + 5) % 10])
            row = json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
            file.write(replaced.get(i + 1, row) + "\n")
    return path
