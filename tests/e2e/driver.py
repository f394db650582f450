#!/usr/bin/env python3
"""Runs the end-to-end cases one after the other; ends with the line "N passed, N failed".

usage: driver.py BIN_DIR WORK_DIR [CASE ...]
"""

import os
import signal
import sys
import time
import traceback

import cases_control
import cases_durable
import cases_faults
import cases_jobs
import cases_ops
import cases_rounds
import cases_security
from harness import MODEL, Cluster, Failure, Skip

CASES = (cases_jobs.CASES + cases_control.CASES + cases_faults.CASES + cases_durable.CASES + cases_ops.CASES +
         cases_security.CASES + cases_rounds.CASES)
LOG_TAIL_LINES = 15


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


def main():
    bin_dir, work_dir, names = os.path.abspath(sys.argv[1]), sys.argv[2], sys.argv[3:]
    known = {case.__name__ for case in CASES}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit("driver.py: no case %s; there are %s" % (", ".join(unknown), ", ".join(sorted(known))))
    # Told to stop, by a soak's end too: what a case has started goes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    counts = {"passed": 0, "FAILED": 0, "skipped": 0}
    for case in CASES:
        if names and case.__name__ not in names:
            continue
        start = time.monotonic()
        outcome = run_case(case, bin_dir, work_dir)
        counts[outcome] += 1
        print("%-24s %-8s %6.1f s" % (case.__name__, outcome, time.monotonic() - start), flush=True)
    if counts["skipped"]:
        print("%d skipped" % counts["skipped"])
    print("%d passed, %d failed" % (counts["passed"], counts["FAILED"]))
    sys.exit(1 if counts["FAILED"] else 0)


if __name__ == "__main__":
    main()
