#!/usr/bin/env python3
"""Writes for an attempt that is over, as its worker that has slept through it would: in an open session of that worker,
whole messages, and only the epoch is of before. Every one must be refused for that.

Needs grpcio and grpcio-reflection alone.   usage: stale_write.py HOST:PORT WORKER_ID JOB_ID ATTEMPT EPOCH PLAN_VERSION
"""

import sys

import grpc
from reflection_client import Api

LATE_STEP = 1000  # later than any that the job has


def main():
    address, worker_id, job_id, attempt, epoch, plan_version = sys.argv[1:]
    api = Api(address)
    job = api.call("FineTuneService", "GetFineTuneJob", api.message("GetFineTuneJobRequest", id=job_id))
    opening = api.message("OpenSessionRequest", worker_id=worker_id, protocol_version=1, build="stale_write",
                          plan_version=int(plan_version))
    opening.inventory.host_name = "asleep"
    session = api.call("WorkerService", "OpenSession", opening).session_id
    key = api.message("AttemptKey", job_id=job_id, attempt=int(attempt), lease_epoch=int(epoch))

    checkpoint = api.message("CommitCheckpointRequest", session_id=session, key=key)
    checkpoint.checkpoint.step, checkpoint.checkpoint.attempt = LATE_STEP, key.attempt
    artifact = api.message("CommitArtifactRequest", session_id=session, key=key)
    for files in (checkpoint.checkpoint.files, artifact.artifact.files):
        # A blob that the scheduler has: nothing else is wrong with these.
        files.add(path="adapter_model.safetensors", sha256=job.spec.dataset.sha256, size_bytes=job.spec.dataset.size_bytes)
    log = api.message("AppendLogRequest", session_id=session, key=key, data=b"stale\n")
    refused = 0
    for method, request in (("CommitCheckpoint", checkpoint), ("CommitArtifact", artifact), ("AppendLog", log)):
        try:
            api.call("WorkerService", method, request)
        except grpc.RpcError as error:
            details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
            assert b"LEASE_FENCED" in details and "is stale" in error.details(), (method, error)
            refused += 1
        else:
            sys.exit("%s of a stale epoch was taken" % method)
    print(refused)


if __name__ == "__main__":
    main()
