"""The state folder as an operator treats it: checked, backed up while everything runs, restored."""

import glob
import os
import shutil
import subprocess

from harness import GUARD_S, Watch, check, check_in
from cases_jobs import ENDLESS_STEPS, running_cluster


def maintain(cluster, state, *words, code):
    """`longhauld --state-dir STATE WORDS...`; what it printed, both streams."""
    result = subprocess.run([cluster.bin("longhauld"), "--state-dir", cluster.path(state), *words], text=True,
                            stdin=subprocess.DEVNULL, capture_output=True, timeout=GUARD_S, check=False)
    check(result.returncode == code, "longhauld %s exited %d instead of %d\n%s%s" % (
        " ".join(words), result.returncode, code, result.stdout, result.stderr))
    return result.stdout + result.stderr


def backup_and_restore(cluster):
    """A backup of a running scheduler, twice, is whole; a scheduler on it has what was there and fences what runs on."""
    data = running_cluster(cluster)
    first = cluster.submit(data)
    cluster.wait(first, 0)
    digest = cluster.adapter_digest(first)
    second = cluster.submit(data, "--checkpoint-every-steps", "5", steps=ENDLESS_STEPS)
    Watch(cluster, second).until("a checkpoint", lambda m: m.get("event", {}).get("type") == "JOB_EVENT_TYPE_CHECKPOINT")
    check_in("in order", maintain(cluster, "scheduler", "check", "--hash-blobs", code=0), "the check")
    check_in("2 jobs", maintain(cluster, "scheduler", "backup", cluster.path("backup"), code=0), "the backup")
    again = maintain(cluster, "scheduler", "backup", cluster.path("backup"), code=0)
    check(" 0 there already" not in again, "the second backup copied everything once more: " + again)
    third = cluster.submit(data)
    cluster.cli("get", third, code=0)

    cluster.kill(cluster.server)
    shutil.copytree(cluster.path("backup"), cluster.path("restored"))
    cluster.start_server(state="restored")
    check(cluster.adapter_digest(first) == digest, "the adapter is another one")
    cluster.cli("download", first, "-d", cluster.path("adapter"), code=0)
    cluster.cli("get", third, code=4)
    # Its trainer has gone on meanwhile: fenced, and begun again from the backup's checkpoint, on the same worker.
    watch = Watch(cluster, second)
    watch.until("the fence", lambda m: "restored from a backup" in m.get("event", {}).get("message", ""))
    watch.until_state("RUNNING")
    check(cluster.job(second)["attempt"]["number"] > 50, "the attempt's number could be one of the lost ones")
    check_in("in order", maintain(cluster, "restored", "check", "--hash-blobs", code=0), "the check of what was restored")
    cluster.cli("cancel", second, code=0)
    check(watch.to_end() is not None, "the watch did not end")

    blob = sorted(glob.glob(cluster.path("backup/blobs/*/*")))[0]
    with open(blob, "r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    check_in(os.path.basename(blob), maintain(cluster, "backup", "check", "--hash-blobs", code=1), "the damage")
    check_in("in order", maintain(cluster, "backup", "check", code=0), "the check that reads no bytes")
    check_in("no state.db", maintain(cluster, "nowhere", "check", code=1), "the error")


CASES = [backup_and_restore]
