#!/usr/bin/env python3
"""Submits a job and watches it to its end with nothing of Longhaul's: the messages come from server reflection.

Needs grpcio and grpcio-reflection alone.   usage: reflection_client.py HOST:PORT MODEL DATA.jsonl
"""

import hashlib
import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

CHUNK_BYTES = 1 << 20
PACKAGE = "longhaul.v1"


class Api:
    def __init__(self, address):
        self.channel = grpc.insecure_channel(address)
        self.pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))

    def message(self, name, **fields):
        descriptor = self.pool.FindMessageTypeByName("%s.%s" % (PACKAGE, name))
        return message_factory.GetMessageClass(descriptor)(**fields)

    def call(self, service, method, request, streams=""):
        """`streams`: "", "client" or "server"."""
        descriptor = self.pool.FindServiceByName("%s.%s" % (PACKAGE, service)).methods_by_name[method]
        answer = message_factory.GetMessageClass(descriptor.output_type)
        kind = {"": self.channel.unary_unary, "client": self.channel.stream_unary, "server": self.channel.unary_stream}
        return kind[streams]("/%s.%s/%s" % (PACKAGE, service, method), request_serializer=lambda m: m.SerializeToString(),
                             response_deserializer=answer.FromString)(request)


def upload(api, path):
    with open(path, "rb") as file:
        content = file.read()
    blob = api.message("BlobName", sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))

    def chunks():
        for offset in range(0, len(content), CHUNK_BYTES):
            data = content[offset : offset + CHUNK_BYTES]
            last = offset + len(data) == len(content)
            yield api.message("WriteBlobRequest", blob=blob if offset == 0 else None, offset=offset, data=data, finish=last)

    missing = api.call("BlobService", "FindMissing", api.message("FindMissingRequest", blobs=[blob])).missing
    if missing:
        api.call("BlobService", "Write", chunks(), "client")
    return blob


def expect_refusal(call, code, *parts):
    """`call` must end with `code`, from the server itself: its details have `parts`."""
    try:
        for _ in call():
            pass
    except grpc.RpcError as error:
        assert error.code() == code, error
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        for part in parts:
            assert part.encode() in details, (part, details)
    else:
        sys.exit("no refusal that names %s" % (parts,))


def expect_bad_rank_refused(api, request):
    request.spec.hyperparameters.lora_rank = 0
    expect_refusal(lambda: [api.call("FineTuneService", "CreateFineTuneJob", request)], grpc.StatusCode.INVALID_ARGUMENT,
                   "spec.hyperparameters.lora_rank")


def expect_negative_positions_refused(api, job, blob, last_event):
    """Where a log, a blob or a job's events are to be read from: the field, and what it must be."""
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    for position in (-1, -(1 << 63)):
        says = "is %d" % position
        for service, method, request, code, parts in (
                ("FineTuneService", "ReadLogs", api.message("ReadLogsRequest", id=job.id, offset=position), invalid,
                 ("INVALID_FIELD", "offset", says, "must be 0 or more")),
                ("FineTuneService", "WatchFineTuneJob",
                 api.message("WatchFineTuneJobRequest", id=job.id, after_sequence=position), invalid,
                 ("INVALID_FIELD", "after_sequence", says, "must be 0 to %d" % last_event)),
                ("BlobService", "Read", api.message("ReadBlobRequest", blob=blob, length=position), invalid,
                 ("INVALID_FIELD", "length", says, "must be 0 or more")),
                ("BlobService", "Read", api.message("ReadBlobRequest", blob=blob, offset=position), invalid,
                 ("INVALID_FIELD", "offset", says, "must be 0 or more"))):
            expect_refusal(lambda: api.call(service, method, request, "server"), code, *parts)


def main():
    address, model, path = sys.argv[1:]
    api = Api(address)
    blob = upload(api, path)
    request = api.message("CreateFineTuneJobRequest", request_id="reflection-1", suffix="by-reflection")
    request.spec.model = model
    request.spec.dataset.sha256 = blob.sha256
    request.spec.dataset.size_bytes = blob.size_bytes
    request.spec.dataset.file_name = "train.jsonl"
    request.spec.hyperparameters.max_steps = 6
    request.spec.hyperparameters.max_sequence_length = 128
    expect_bad_rank_refused(api, request)
    request.spec.hyperparameters.lora_rank = 4
    job = api.call("FineTuneService", "CreateFineTuneJob", request)
    print("submitted", job.id)

    states = job.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number
    expected_sequence, steps, kinds = 1, set(), []
    watch = api.message("WatchFineTuneJobRequest", id=job.id, after_sequence=0)
    for message in api.call("FineTuneService", "WatchFineTuneJob", watch, "server"):
        kind = message.WhichOneof("message")
        kinds.append(kind)
        if kind == "event":
            assert message.event.sequence == expected_sequence, (message.event.sequence, expected_sequence)
            expected_sequence += 1
            print("event", message.event.sequence, states[message.event.state].name)
        elif kind == "progress":
            steps.add(message.progress.step)
    assert kinds[0] == "snapshot", kinds[:3]
    assert 6 in steps, steps
    expect_negative_positions_refused(api, job, blob, expected_sequence - 1)
    final = api.call("FineTuneService", "GetFineTuneJob", api.message("GetFineTuneJobRequest", id=job.id))
    name = states[final.state].name
    print(name)
    sys.exit(0 if name == "SUCCEEDED" else 1)


if __name__ == "__main__":
    main()
