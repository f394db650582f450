#!/usr/bin/env python3
"""Runs the end-to-end cases, a few side by side; ends with the line "N passed, N failed".

usage: driver.py BIN_DIR WORK_DIR [CASE ...]
"""

import contextlib
import os
import signal
import sys
import tempfile
import time
import traceback

import cases_control
import cases_disk
import cases_durable
import cases_failpoints
import cases_faults
import cases_jobs
import cases_kills
import cases_ops
import cases_rounds
import cases_security
from harness import MODEL, Cluster, Failure, Skip

CASES = (cases_jobs.CASES + cases_control.CASES + cases_faults.CASES + cases_failpoints.CASES +
         cases_durable.CASES + cases_disk.CASES + cases_ops.CASES + cases_security.CASES + cases_rounds.CASES +
         cases_kills.CASES)
LOG_TAIL_LINES = 15
OUTCOMES = ("passed", "FAILED", "skipped")  # by exit status of a case's process
LANES = 3


def show_logs(directory):
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".log"):
            continue
        with open(os.path.join(directory, name), encoding="utf-8", errors="replace") as file:
            for line in file.read().splitlines()[-LOG_TAIL_LINES:]:
                print("    %s: %s" % (name, line))


def run_case(case, bin_dir, work_dir):
    """"passed", "FAILED" or "skipped"."""
    cluster = Cluster(bin_dir, os.path.join(work_dir, case.__name__), os.path.join(work_dir, "models", MODEL))
    try:
        case(cluster)
        return "passed"
    except Skip as reason:
        print("  %s: %s" % (case.__name__, reason))
        return "skipped"
    except Failure as failure:
        print("  %s: %s" % (case.__name__, failure))
    except Exception:  # a broken case is a failed case; the others still run
        traceback.print_exc(file=sys.stdout)
    finally:
        cluster.stop()
    show_logs(cluster.dir)
    return "FAILED"


class Lane:
    """A process of its own for one case: what it prints comes out in one piece."""

    def __init__(self, case, bin_dir, work_dir):
        self.case, self.begun = case, time.monotonic()
        self.output = tempfile.TemporaryFile(mode="w+", encoding="utf-8")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            sys.stdout = self.output
            # Told to stop, by a soak's end too: what a case has started goes with it.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            status = 1
            try:
                status = OUTCOMES.index(run_case(case, bin_dir, work_dir))
            finally:
                self.output.flush()
                os._exit(status)

    def end(self, status):
        """The outcome, told."""
        self.output.seek(0)
        sys.stdout.write(self.output.read())
        outcome = OUTCOMES[os.WEXITSTATUS(status)] if os.WIFEXITED(status) else "FAILED"
        print("%-26s %-8s %6.1f s" % (self.case.__name__, outcome, time.monotonic() - self.begun), flush=True)
        return outcome


def run_cases(cases, bin_dir, work_dir):
    """LANES at a time, since most of a case is waiting; how many had which outcome."""
    counts = dict.fromkeys(OUTCOMES, 0)
    waiting, running = list(cases), {}

    def stop(*_):
        for pid in running:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGTERM)
        for pid in running:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while waiting or running:
        while waiting and len(running) < LANES:
            lane = Lane(waiting.pop(0), bin_dir, work_dir)
            running[lane.pid] = lane
        pid, status = os.wait()
        counts[running[pid].end(status)] += 1
        del running[pid]
    return counts


def main():
    bin_dir, work_dir, names = os.path.abspath(sys.argv[1]), sys.argv[2], sys.argv[3:]
    known = {case.__name__ for case in CASES}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit("driver.py: no case %s; there are %s" % (", ".join(unknown), ", ".join(sorted(known))))
    counts = run_cases([case for case in CASES if not names or case.__name__ in names], bin_dir, work_dir)
    if counts["skipped"]:
        print("%d skipped" % counts["skipped"])
    print("%d passed, %d failed" % (counts["passed"], counts["FAILED"]))
    sys.exit(1 if counts["FAILED"] else 0)


if __name__ == "__main__":
    main()
