"""Peers of the Kubernetes stores that are no API server, or one with other terms: a clear error, and soon."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time

import pytest

from conf.errors import StoreUnavailable
from ipam.stores.contract import Deadline
from ipam.stores.kubeconfig import Access, find_access
from ipam.stores.kubernetes_api import KubernetesApi, Refused
from tests.stores.api_server import ApiServer
from tests.stores.etcd_server import Certificates

# A deadline so long that whoever reaches it did not see that waiting is of no use.
NEVER_S = 300.0
# By how much whoever ends at a deadline may be late: by what this machine is slow.
LATE_S = 20.0


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    certificates = Certificates(tmp_path_factory.mktemp("tls"))
    directory = tmp_path_factory.mktemp("api-tls")
    given = certificates.server
    with ApiServer(
        directory, cert=given.cert, key=given.key, ca=certificates.ca.cert, client_ca=certificates.ca.cert
    ) as server:
        server.certificates = certificates
        yield server


def reach(server, **kubeconfig):
    access = find_access(str(server.write_kubeconfig(**kubeconfig)))
    api = KubernetesApi(access, deadline=Deadline(NEVER_S), crds="c", rbac="r")
    try:
        return api.get("/api/v1/nodes/x")
    finally:
        api.close()


def test_a_client_certificate_from_files_and_from_the_kubeconfig(tls):
    client, ca = tls.certificates.client, tls.certificates.ca
    assert reach(tls, user={"client-certificate": client.cert, "client-key": client.key}) is None
    encoded = {
        "client-certificate-data": _base64(client.cert),
        "client-key-data": _base64(client.key),
    }
    cluster = {"certificate-authority": None, "certificate-authority-data": _base64(ca.cert)}
    assert reach(tls, user=encoded, cluster=cluster) is None
    assert reach(tls, user=encoded, cluster={"tls-server-name": "localhost"}) is None
    cluster = {"certificate-authority": None, "insecure-skip-tls-verify": True}
    assert reach(tls, user=encoded, cluster=cluster) is None


@pytest.mark.parametrize(
    ("cluster", "user", "says"),
    [
        ({"certificate-authority": None}, {}, "certificate is not accepted"),
        ({"tls-server-name": "other.example"}, {}, "certificate is not accepted"),
    ],
    ids=["authority", "name"],
)
def test_tls_that_cannot_work_is_an_error_at_once(tls, cluster, user, says):
    client = tls.certificates.client
    user = {"client-certificate": client.cert, "client-key": client.key, **user}
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as raised:
        reach(tls, cluster=cluster, user=user)
    assert time.monotonic() - started < NEVER_S / 2
    assert says in raised.value.details


def test_a_server_that_wants_a_client_certificate_says_so_at_once(tls):
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as raised:
        reach(tls, user={"token": "s3cret"})
    assert time.monotonic() - started < NEVER_S / 2
    assert "CERTIFICATE" in raised.value.details.upper()


def test_plain_http_to_a_server_that_expects_tls_is_an_error_at_once(tls):
    started = time.monotonic()
    with pytest.raises(StoreUnavailable) as raised:
        reach(tls, cluster={"server": f"http://127.0.0.1:{tls.port}"})
    assert time.monotonic() - started < NEVER_S / 2
    assert "TLS" in raised.value.details
    assert "https://" in raised.value.hint


def peer_with(tmp_path, serve, *, scheme="https", host="127.0.0.1", deadline_s=1.0):
    """Return how long it took to fail to reach a peer that serves each connection so, and the error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_say, args=(listener, serve), daemon=True).start()
        server = ApiServer(tmp_path)
        url = f"{scheme}://{host}:{listener.getsockname()[1]}"
        access = find_access(str(server.write_kubeconfig(cluster={"server": url})))
        api = KubernetesApi(access, deadline=Deadline(deadline_s), crds="c", rbac="r")
        started = time.monotonic()
        with pytest.raises(StoreUnavailable) as raised:
            api.get("/api/v1/nodes/x")
        return time.monotonic() - started, raised.value


def test_tls_to_a_server_of_plain_http_is_an_error_at_once(tmp_path):
    took_s, error = peer_with(tmp_path, b"HTTP/1.1 400 Bad Request\r\n\r\n", deadline_s=NEVER_S)
    assert took_s < NEVER_S / 2
    assert "speaks no TLS" in error.details


def test_a_peer_that_dribbles_is_an_error_within_the_deadline(tmp_path):
    def handshake(connection):
        connection.sendall(bytes.fromhex("1603030200 020001fc 0303"))
        while True:
            connection.sendall(b"\x01")
            time.sleep(0.05)

    def answer(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n{")
        while True:
            connection.sendall(b" ")
            time.sleep(0.05)

    for scheme, serve in (("https", handshake), ("http", answer)):
        took_s, _ = peer_with(tmp_path, serve, scheme=scheme)
        assert took_s < 1 + LATE_S


def test_a_name_server_that_does_not_answer_is_an_error_within_the_deadline(tmp_path, monkeypatch):
    answered = threading.Event()

    def hang(*_, **__):
        answered.wait(NEVER_S)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        took_s, error = peer_with(tmp_path, b"", scheme="http", host="api.example")
    finally:
        answered.set()
    assert took_s < 1 + LATE_S
    assert "api.example" in str(error)


def test_a_namespace_that_is_not_there_is_named():
    """As the server says it of a reservation: 404, and of the namespace."""
    answer = {"details": {"name": "nowhere", "kind": "namespaces"}, "reason": "NotFound", "message": "no nowhere"}
    access = Access("127.0.0.1", 1, "", None, "", lambda: "", "nowhere", "/etc/kubeconfig")
    api = KubernetesApi(access, deadline=Deadline(1), crds="c", rbac="r")
    with pytest.raises(Refused) as raised:
        api._decoded(404, None, json.dumps(answer).encode())
    assert "create that namespace" in api._denied(raised.value).hint


def test_a_peer_that_says_nonsense_or_nothing_is_an_error_within_the_deadline(tmp_path):
    for words in (
        b"hello\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
    ):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            threading.Thread(target=_say, args=(listener, words), daemon=True).start()
            kubeconfig = ApiServer(tmp_path)
            kubeconfig.port = listener.getsockname()[1]
            access = find_access(str(kubeconfig.write_kubeconfig()))
            api = KubernetesApi(access, deadline=Deadline(1), crds="c", rbac="r")
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                api.get("/api/v1/nodes/x")
            assert time.monotonic() - started < 1 + LATE_S


def _say(listener, words):
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            words(connection) if callable(words) else connection.sendall(words)


def _base64(path):
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()
