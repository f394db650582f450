"""The state folder's disk is full or read-only under a scheduler that runs on: what is asked is answered, what would write
is refused with its reason, and once the disk is well again so is everything else, without a restart."""

import contextlib
import os
import shutil
import subprocess
import time
import urllib.request

from harness import GUARD_S, MODEL, Skip, check, check_in, wait_for, write_chat
from cases_durable import maintain
from cases_faults import FLAGS, begin, finish, slow
from cases_rounds import LEASES, OUTAGE_STEP_MS, STILL_S

# The scheduler keeps a good quarter of a GiB of any disk free (kMinFreeDiskBytes): room for a few datasets is left.
DISK_MIB = 400
RESERVE_LEFT_MIB = 100  # less than it keeps free, and room for many commits
SMALLEST_PIECE = 1024  # a block of a file system of this size


class SmallDisk:
    """A file system of its own for the state folder. ext4, whose immutable files take no write from those who have them
    open already, either; the file that it lies in has holes, so that a full one takes no room."""

    def __init__(self, cluster):
        self.mount_point, self.image = cluster.path("scheduler"), cluster.path("disk.img")
        self.read_only = False
        os.makedirs(self.mount_point)
        with open(self.image, "wb") as file:
            file.truncate(DISK_MIB << 20)
        for argv in (["mkfs.ext4", "-q", "-m", "0", self.image], ["mount", "-o", "loop", self.image, self.mount_point]):
            if not shutil.which(argv[0]) or subprocess.run(argv, capture_output=True, check=False).returncode:
                raise Skip("needs root, mkfs.ext4 and a loop device: this machine allows no %s" % argv[0])
        os.rmdir(os.path.join(self.mount_point, "lost+found"))

    def run(self, *argv):
        result = subprocess.run(argv, capture_output=True, text=True, check=False)
        check(result.returncode == 0, "%s: %s" % (" ".join(argv), result.stderr))

    def fill(self, left_mib=0):
        """With a ballast file, until so much is left."""
        disk = os.statvfs(self.mount_point)
        wanted = disk.f_bavail * disk.f_frsize - (left_mib << 20)
        with open(os.path.join(self.mount_point, "ballast"), "ab") as file:
            piece = wanted
            while piece >= SMALLEST_PIECE and wanted > 0:
                piece = min(piece, wanted)
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, piece)
                    wanted -= piece
                except OSError:  # some blocks go for the ballast's own map
                    piece //= 2

    def make_room(self):
        os.remove(os.path.join(self.mount_point, "ballast"))

    def database(self):
        return [os.path.join(self.mount_point, name) for name in ("state.db", "state.db-wal")]

    def make_read_only(self):
        """As the kernel does with a file system that has an error. Nobody else may while files are open for writing
        (EBUSY): so a read-only mount lies over the folder, and the database, which is open already, is immutable (EPERM)."""
        self.run("chattr", "+i", *self.database())
        self.read_only = True
        self.run("mount", "--bind", self.mount_point, self.mount_point)
        self.run("mount", "-o", "remount,bind,ro", self.mount_point)

    def make_writable(self):
        # What was opened for reading meanwhile keeps the mount beyond its end.
        self.run("umount", "--lazy", self.mount_point)
        self.run("chattr", "-i", *self.database())
        self.read_only = False

    def end(self):
        if self.read_only:
            self.make_writable()
        self.run("umount", self.mount_point)
        os.remove(self.image)


@contextlib.contextmanager
def small_disk(cluster):
    disk = SmallDisk(cluster)
    try:
        yield disk
    finally:
        cluster.stop()
        disk.end()


class Bystander:
    """A client of a scheduler with one job that has succeeded and one in the middle of its run, before, while and after its
    disk is broken. Each job that was acknowledged is in `known`, and no other is there."""

    def __init__(self, cluster):
        self.cluster = cluster
        _, self.running, self.watch, self.trainer, self.expected = begin(cluster, *LEASES, env=slow(OUTAGE_STEP_MS))
        self.attempt = cluster.job(self.running)["attempt"]
        self.done = next(job["id"] for job in cluster.jobs() if job["state"] == "SUCCEEDED")
        wait_for("its log", lambda: cluster.cli("logs", self.done, code=0).stdout)  # whose end comes after the adapter
        self.known = {job["id"] for job in cluster.jobs()}
        self.data = cluster.path("train.jsonl")
        self.uploaded = 0

    def submit(self, data):
        result = self.cluster.cli("submit", "--model", MODEL, "--data", data, "--steps", "4", "--max-seq-len", "128",
                                  "--rank", "4", *FLAGS, "--retry-for", "0")
        if result.returncode == 0:
            self.known.add(result.stdout.strip())
        return result

    def upload(self):
        """With a dataset that the scheduler has not."""
        self.uploaded += 1
        return self.submit(write_chat(self.cluster.path("new-%d.jsonl" % self.uploaded), rows=40 + self.uploaded))

    def expect_refused(self, result, code, reason):
        check(result.returncode == code, "exit code %d instead of %d: %s%s" % (
            result.returncode, code, result.stdout, result.stderr))
        check_in(reason, result.stderr, "the refusal")
        check("start the scheduler" not in result.stderr, "a scheduler that answers is not to be started:\n" + result.stderr)

    def expect_no_commit(self):
        """Whatever changes a job."""
        for command in (["cancel", self.running], ["pause", self.running], ["delete", self.done]):
            self.expect_refused(self.cluster.cli(*command), 3, "STORE_UNAVAILABLE")
        check(self.cluster.job(self.running)["state"] == "RUNNING", "a refused cancel or pause is seen")

    def expect_reads(self):
        for command in ("list", "workers"):
            check(self.cluster.cli(command, code=0).stdout, "%s has nothing to say" % command)
        for command in ("get", "explain", "attempts", "checkpoints", "metrics", "logs"):
            check(self.cluster.cli(command, self.done, code=0).stdout, "%s has nothing to say" % command)
        events = self.cluster.cli("watch", self.done, "--after-sequence", "0", "-o", "json", code=0).stdout
        check_in("SUCCEEDED", events, "the finished job's events")
        folder = self.cluster.path("adapter-%d" % time.monotonic_ns())
        self.cluster.cli("download", self.done, "-d", folder, code=0)
        for page in ("healthz", "metrics"):
            url = "http://127.0.0.1:%d/%s" % (self.cluster.ports["http_port"], page)
            with urllib.request.urlopen(url, timeout=GUARD_S) as response:
                check(response.read(), "/%s is empty" % page)
        ids = {job["id"] for job in self.cluster.jobs()}
        check(ids == self.known, "there are jobs %s, acknowledged are %s" % (sorted(ids), sorted(self.known)))

    def outlive(self):
        """The running job goes on as far as it can, for longer than a worker may be away, and nothing is held against it."""
        end = time.monotonic() + STILL_S
        self.trainer.go_on()
        wait_for("the end of the lost time", lambda: time.monotonic() >= end, self.cluster.server)
        self.expect_reads()
        job = self.cluster.job(self.running)
        check(job["state"] == "RUNNING", "the running job is %s" % job["state"])

    def expect_recovered(self):
        for what, result in (("a Create", self.submit(self.data)), ("an upload", self.upload())):
            check(result.returncode == 0, "%s is refused although the disk is well again: %s" % (what, result.stderr))
        finish(self.cluster, self.running, self.watch, self.expected)
        job = self.cluster.job(self.running)
        for part in ("number", "lease_epoch"):
            check(job["attempt"][part] == self.attempt[part], "the healthy trainer's %s is %s instead of %s" % (
                part, job["attempt"][part], self.attempt[part]))
        check(job["failed_attempts"] == 0, "a disk of the scheduler counts as the job's failure")
        for job_id in self.known:
            if self.cluster.job(job_id)["state"] != "CANCELLED":  # begin()'s, where it came too late
                self.cluster.wait(job_id, 0)
        self.expect_reads()
        self.cluster.cli("delete", self.done, code=0)
        self.cluster.cli("get", self.done, code=4)
        check(self.cluster.server.poll() is None, "the scheduler has ended")
        check_in("in order", maintain(self.cluster, "scheduler", "check", "--hash-blobs", code=0), "the check")


def disk_full(cluster):
    """First of what the scheduler keeps for itself: no dataset is taken any more, all else goes on. Then of everything."""
    with small_disk(cluster) as disk:
        client = Bystander(cluster)
        disk.fill(RESERVE_LEFT_MIB)
        refused = client.upload()
        client.expect_refused(refused, 7, "DISK_FULL")
        check_in("free disk space", refused.stderr, "the error")
        check(client.submit(client.data).returncode == 0, "a Create that uploads nothing is refused: the room is kept for it")
        client.expect_reads()

        def create_refused():
            disk.fill()
            result = client.submit(client.data)
            return result if result.returncode != 0 else None
        refused = wait_for("a Create that finds no room", create_refused)  # the database's log may have some of its own
        client.expect_refused(refused, 3, "STORE_UNAVAILABLE")
        check_in("full", refused.stderr, "the error")
        client.expect_refused(client.upload(), 7, "DISK_FULL")
        client.expect_no_commit()
        client.expect_reads()
        client.outlive()
        disk.fill()
        client.expect_no_commit()
        disk.make_room()
        client.expect_recovered()


def disk_read_only(cluster):
    """Nothing can be written, by whatever name: UNAVAILABLE, and the words say which folder."""
    with small_disk(cluster) as disk:
        client = Bystander(cluster)
        disk.make_read_only()
        refused = client.upload()
        client.expect_refused(refused, 3, "STORE_IO")
        check_in("Read-only file system", refused.stderr, "the error")
        client.expect_refused(client.submit(client.data), 3, "STORE_UNAVAILABLE")
        client.expect_no_commit()
        client.expect_reads()
        client.outlive()
        client.expect_no_commit()
        disk.make_writable()
        client.expect_recovered()


CASES = [disk_full, disk_read_only]
