"""A scheduler that others reach: TLS, a worker with a certificate, callers with tokens, and all of it renewed while it runs."""

import json
import os
import socket
import ssl
import subprocess
import urllib.error
import urllib.request

from cases_jobs import ENDLESS_STEPS
from harness import GUARD_S, Watch, check, check_in, wait_for, write_chat

NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=GUARD_S)


class Authority:
    def __init__(self, cluster, name):
        self.path = lambda file: cluster.path("%s-%s" % (name, file))
        self.ca = self.path("ca.pem")
        openssl("req", "-x509", *NEW_KEY, "-keyout", self.path("ca.key"), "-out", self.ca, "-days", "2", "-subj", "/CN=" + name)

    def issue(self, label, common_name, *extensions):
        """(certificate, key)"""
        certificate, key = self.path(label + ".pem"), self.path(label + ".key")
        adds = [word for extension in extensions for word in ("-addext", extension)]
        openssl("req", *NEW_KEY, "-keyout", key, "-out", self.path(label + ".csr"), "-subj", "/CN=" + common_name, *adds)
        openssl("x509", "-req", "-in", self.path(label + ".csr"), "-CA", self.ca, "-CAkey", self.path("ca.key"),
                "-CAcreateserial", "-copy_extensions", "copy", "-days", "2", "-out", certificate)
        return certificate, key

    def server(self, label):
        return self.issue(label, "localhost", "subjectAltName=IP:127.0.0.1,DNS:localhost")


def admin(cluster, *arguments):
    """A command of longhauld on the state folder."""
    result = subprocess.run([cluster.bin("longhauld"), *arguments, "--state-dir", cluster.path("scheduler")], text=True,
                            stdin=subprocess.DEVNULL, capture_output=True, timeout=GUARD_S, check=False)
    check(result.returncode == 0, "longhauld %s: %s" % (" ".join(arguments), result.stderr))
    return result.stdout


def make_token(cluster, name, scope, *flags):
    return admin(cluster, "token", "create", "--name", name, "--scope", scope, *flags).strip()


def token_id(token):
    return token.split("_")[1]


def start_tls(cluster, authority):
    certificate, key = authority.server("server")
    cluster.start_server("--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", authority.ca)
    cluster.client_env = {"LONGHAUL_TLS_CA": authority.ca, "LONGHAUL_TOKEN": make_token(cluster, "ops", "admin")}
    return certificate, key


def copy(source, target):
    with open(source, "rb") as file:
        data = file.read()
    with open(target + ".new", "wb") as file:
        file.write(data)
    os.replace(target + ".new", target)


def secured(cluster):
    """A job from submit to adapter over TLS, with a worker's certificate; everybody else is kept out; all is audited."""
    authority = Authority(cluster, "authority")
    certificate, key = start_tls(cluster, authority)
    worker_certificate, worker_key = authority.issue("worker", "worker")
    cluster.start_worker("--tls-ca", authority.ca, "--tls-cert", worker_certificate, "--tls-key", worker_key)
    data = write_chat(cluster.path("train.jsonl"))
    red = {"LONGHAUL_TOKEN": make_token(cluster, "red", "submitter", "--project", "red")}
    blue = {"LONGHAUL_TOKEN": make_token(cluster, "blue", "submitter", "--project", "blue")}
    submit = ["submit", "--model", "tiny", "--data", data, "--steps", "8", "--max-seq-len", "128", "--rank", "4"]
    job_id = cluster.cli(*submit, code=0, env=red).stdout.strip()
    cluster.cli("wait", job_id, "--timeout", str(GUARD_S), code=0, env=red)
    cluster.cli("download", job_id, "-d", cluster.path("adapter"), code=0, env=red)
    check(os.path.exists(cluster.path("adapter/adapter_model.safetensors")), "there is no adapter")

    cluster.cli("get", job_id, code=4, env=blue)
    cluster.cli("download", job_id, "-d", cluster.path("stolen"), code=4, env=blue)
    check("ftjob" not in cluster.cli("list", code=0, env=blue).stdout, "blue sees red's job")
    check_in(job_id, cluster.cli("list", "--project", "-", code=0).stdout, "the administrator's list")
    check_in("NO_CREDENTIALS", cluster.cli("list", code=8, env={"LONGHAUL_TOKEN": ""}).stderr, "the error")
    cluster.cli("drain", "worker", code=8, env=red)
    cluster.cli("list", code=3, env={"LONGHAUL_TLS_CA": "", "LONGHAUL_TOKEN": ""})  # plaintext
    cluster.cli("list", code=3, env={"LONGHAUL_TLS_CA": Authority(cluster, "other").ca})

    page(cluster, authority, make_token(cluster, "prometheus", "viewer", "--project", "*"))
    admin(cluster, "token", "revoke", token_id(red["LONGHAUL_TOKEN"]))
    wait_for("the revoked token refused", lambda: cluster.cli("list", env=red).returncode == 8)
    check_in("TOKEN_INVALID", cluster.cli("list", code=8, env=red).stderr, "the error")

    # A new authority under the running scheduler: certificate first, key a moment later.
    new = Authority(cluster, "new")
    new_certificate, new_key = new.server("server")
    copy(new_certificate, certificate)
    cluster.cli("list", code=0)
    copy(new_key, key)
    cluster.cli("list", code=3)
    cluster.cli("list", code=0, env={"LONGHAUL_TLS_CA": new.ca})

    rows = [json.loads(line) for line in admin(cluster, "audit").splitlines()]
    seen = {(row["caller"], row["method"], row["code"]) for row in rows}
    for wanted in [("token:red", "FineTuneService/CreateFineTuneJob", "OK"), ("token:red", "BlobService/Write", "OK"),
                   ("certificate:worker", "WorkerService/OpenSession", "OK"),
                   ("certificate:worker", "WorkerService/CommitArtifact", "OK"),
                   ("token:red", "WorkerAdminService/DrainWorker", "PERMISSION_DENIED")]:
        check(wanted in seen, "the audit log lacks %s; it has %s" % (wanted, sorted(seen)))
    check([row["number"] for row in rows] == list(range(1, len(rows) + 1)), "the numbers have gaps")
    check(any(row["target"] == job_id and row["project"] == "red" for row in rows), "the job is not in the audit log")


def page(cluster, authority, token):
    context = ssl.create_default_context(cafile=authority.ca)
    base = "https://127.0.0.1:%d" % cluster.ports["http_port"]

    def get(path, header=None):
        request = urllib.request.Request(base + path, headers={"Authorization": header} if header else {})
        try:
            with urllib.request.urlopen(request, timeout=GUARD_S, context=context) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    check(get("/")[0] == 401, "the page is open")
    check(get("/metrics")[0] == 401, "the metrics are open")
    check(get("/healthz") == (200, "ok\n"), "the probe is closed")
    check(get("/", "Bearer " + token)[0] == 200, "the page refuses a viewer")
    check_in("longhaul_auth_failures_total{cause=", get("/metrics", "Bearer " + token)[1], "/metrics")


def renewed_worker_token(cluster):
    """A worker whose token is revoked in the middle of a job goes on with the next one: nothing of the job is lost."""
    authority = Authority(cluster, "authority")
    start_tls(cluster, authority)
    token_file = cluster.path("worker.token")
    first = make_token(cluster, "fleet", "worker")
    with open(token_file, "w", encoding="utf-8") as file:
        file.write(first + "\n")
    cluster.start_worker("--tls-ca", authority.ca, "--token-file", token_file)
    job_id = cluster.submit(write_chat(cluster.path("train.jsonl")), steps=ENDLESS_STEPS)
    watch = Watch(cluster, job_id)
    watch.until_step(3)
    admin(cluster, "token", "revoke", token_id(first))

    def refused():
        with open(cluster.path("worker.log"), encoding="utf-8", errors="replace") as file:
            return "the token is unknown, expired or revoked" in file.read()
    wait_for("the worker's refusal", refused)
    trainer = cluster.trainer()
    with open(token_file + ".new", "w", encoding="utf-8") as file:
        file.write(make_token(cluster, "fleet", "worker") + "\n")
    os.replace(token_file + ".new", token_file)
    last = max(int(message["progress"]["step"]) for message in watch.seen if "progress" in message)
    watch.until_step(last + 20)
    check(trainer.alive(), "the trainer was ended")
    check(cluster.job(job_id)["failed_attempts"] == 0, "the attempt was counted as failed")
    cluster.cli("cancel", job_id, code=0)
    cluster.wait(job_id, 5)


def idle_connections(cluster):
    """Who only connects, many times, keeps nobody out, however few files the scheduler may open."""
    cluster.start_server(files=256)
    with open(cluster.path("longhauld.log"), encoding="utf-8") as file:
        check_in("this process may open 256 files", file.read(), "the log")
    hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    idle = []
    try:
        for _ in range(400):
            idle.append(socket.create_connection(("127.0.0.1", cluster.ports["grpc_port"]), timeout=GUARD_S))
            idle[-1].sendall(hello)
        cluster.start_worker()
        cluster.cli("list", code=0)
        job_id = cluster.submit(write_chat(cluster.path("train.jsonl")), steps=4)
        cluster.wait(job_id, 0)
    finally:
        for connection in idle:
            connection.close()
    cluster.cli("list", code=0)


CASES = [secured, renewed_worker_token, idle_connections]
