"""etcd that dribbles, talks nonsense or refuses: an error within the deadline, and at once where waiting is no use.

One that is down or slow is in test_contract_outages, as every store is.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from functools import partial

import pytest

from conf.errors import CniError, StoreUnavailable, TryAgainLater
from conf.etcd import Etcd
from ipam.stores.contract import Deadline, Want
from ipam.stores.etcd import EtcdStore
from tests.stores.conftest import owner, pool
from tests.stores.etcd_server import ETCD, Certificates, EtcdServer, free_port
from tests.stores.flapping_proxy import FlappingProxy
from tests.stores.outages import together

PASSWORD = "correct horse battery"
PREFIX = "/vferry"
WANTS = [Want(pool("10.0.0.0/24"))]
DEADLINE_S = 1.0
# A deadline so long that whoever reaches it did not see that waiting is of no use.
NEVER_S = 300.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, certificates):
    """An etcd that wants a client certificate, and a user with a password."""
    if ETCD is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")
    server = EtcdServer(tmp_path_factory.mktemp("guarded"), tls=certificates).start()
    server.enable_authentication("node", PASSWORD, f"{PREFIX}/")
    yield server
    server.stop()


@pytest.fixture
def own_server(tmp_path):
    """An etcd that the test may stop."""
    if ETCD is None:
        pytest.skip("etcd is not installed (Debian: etcd-server)")
    server = EtcdServer(tmp_path).start()
    yield server
    server.stop()


@pytest.fixture
def open_store(tmp_path):
    def make(*urls, deadline_s=DEADLINE_S, try_s=5.0, **conf):
        return EtcdStore(
            Etcd(endpoints=list(urls), **{"prefix": PREFIX, **conf}),
            deadline=Deadline(deadline_s),
            cooldown_s=0,
            scratch=tmp_path / "run" / "stores",
            try_s=try_s,
        )

    return make


@pytest.fixture
def open_guarded(guarded, certificates, tmp_path, open_store):
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD + "\n")

    def make(**conf):
        access = {
            "ca_cert_file": certificates.ca.cert,
            "cert_file": certificates.client.cert,
            "key_file": certificates.client.key,
            "username": "node",
            "password_file": str(password_file),
            "deadline_s": NEVER_S,
        }
        return open_store(guarded.url, **{**access, **conf})

    return make


def calls(store):
    return {
        "reserve": lambda: store.reserve(owner("a"), WANTS, allocation="window"),
        "release": lambda: store.release(owner("a")),
        "find": lambda: store.find(owner("a")),
        "leases": lambda: list(store.leases()),
        "probe": store.probe,
    }


def refusals(open_one):
    """Return the error of each call, all at once and each in a store of its own."""

    def refused(name):
        with open_one() as store, pytest.raises(CniError) as raised:
            calls(store)[name]()
        return raised.value

    names = ("reserve", "release", "find", "leases", "probe")
    errors = dict(zip(names, together(*(partial(refused, name) for name in names)), strict=True))
    assert all(isinstance(error, CniError) for error in errors.values()), errors
    return errors


def bounded_refusals(open_one, *, deadline_s=DEADLINE_S):
    started = time.monotonic()
    errors = refusals(open_one)
    # By so much may they be late on a machine that is slow.
    assert time.monotonic() - started < deadline_s + 20
    assert all(isinstance(error, StoreUnavailable | TryAgainLater) for error in errors.values())
    assert all(PASSWORD not in str(error) for error in errors.values())
    return errors


@contextlib.contextmanager
def peer(serve):
    """A server whose behaviour towards each connection is ``serve``."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:

        def accept():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=_quietly, args=(serve, client), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _quietly(serve, client):
    with client, contextlib.suppress(OSError):
        serve(client)


def _dribble(client):
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        client.sendall(b" ")
        time.sleep(0.02)


def _dribble_headers(client):
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        client.sendall(b"X: y\r\n"[:1])
        time.sleep(0.02)


def _say_nothing(client):
    while client.recv(65536):
        pass


def _talk_nonsense(client):
    client.recv(65536)
    client.sendall(b"220 mail.example ESMTP\r\n")


def _be_a_portal(client):
    client.recv(65536)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>")


@pytest.mark.parametrize("behaviour", [_dribble, _dribble_headers, _talk_nonsense, _be_a_portal])
def test_a_peer_that_is_no_etcd(open_store, behaviour):
    with peer(behaviour) as url:
        errors = bounded_refusals(lambda: open_store(url))
    assert all(url in str(error) for error in errors.values())


def test_a_host_name_that_does_not_exist(open_store):
    errors = bounded_refusals(lambda: open_store("http://no-such-host.invalid:2379"))
    assert isinstance(errors["release"], StoreUnavailable)


def test_an_etcd_that_is_stopped_and_goes_on(open_store, own_server):
    with open_store(own_server.url) as store:
        store.reserve(owner("before"), WANTS, allocation="window")
    own_server.pause()
    with open_store(own_server.url) as store, pytest.raises(CniError):
        store.reserve(owner("a"), WANTS, allocation="window")
    threading.Timer(0.5, own_server.resume).start()
    with open_store(own_server.url, deadline_s=NEVER_S, try_s=1.0) as store:
        (lease,) = store.reserve(owner("after"), WANTS, allocation="window")
        assert store.find(owner("after"))[0].address == lease.address
        store.release(owner("a"))  # what was asked of it while it stood still
        assert {lease.owner.container_id for lease in store.leases()} == {"before", "after"}


def test_an_endpoint_that_is_gone_is_passed_over(open_store, own_server):
    gone = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    for n in range(6):
        with open_store(*gone, own_server.url, deadline_s=NEVER_S) as store:
            assert store.reserve(owner(f"c{n}"), WANTS, allocation="window")
            store.probe()


def test_an_endpoint_that_hangs_is_passed_over(open_store, own_server):
    with peer(_say_nothing) as hanging:
        for n in range(4):
            with open_store(hanging, own_server.url, deadline_s=NEVER_S, try_s=1.0) as store:
                store.reserve(owner(f"c{n}"), WANTS, allocation="window")
                assert store.find(owner(f"c{n}"))


def test_a_lost_reply_does_not_take_a_second_address(open_store, own_server):
    for n in range(5):
        proxy = FlappingProxy(own_server.port, seed=n, mishaps={"lose the reply": 0.7})
        with open_store(proxy.url, deadline_s=NEVER_S) as store:
            (given,) = store.reserve(owner(f"c{n}"), WANTS, allocation="window")
        with open_store(own_server.url) as store:
            assert [lease.address for lease in store.find(owner(f"c{n}"))] == [given.address]


# Credentials and certificates. None of these waits.


def test_with_certificate_and_password(open_guarded):
    with open_guarded() as store:
        (lease,) = store.reserve(owner("a"), WANTS, allocation="window")
        store.probe()
        assert store.release(owner("a"))[0].address == lease.address


def test_the_token_is_kept_for_the_next_invocation(open_guarded, tmp_path):
    for n, calls_expected in ((0, 2), (1, 1)):
        with open_guarded() as store:
            store.reserve(owner(f"t{n}"), [Want(pool("10.7.0.0/24"))], allocation="window")
            assert store.gateway.calls == calls_expected
    kept = [path for path in (tmp_path / "run" / "stores").iterdir() if "token" in path.read_text()]
    assert len(kept) == 1
    assert PASSWORD not in kept[0].read_text()


@pytest.mark.parametrize("token", ["made.up", "x", ""])
def test_a_token_that_is_not_valid_any_more_is_renewed(open_guarded, tmp_path, token):
    with open_guarded() as store:
        store.find(owner("a"))
    (path,) = (tmp_path / "run" / "stores").iterdir()
    kept = path.read_text()
    start = kept.index('"token":"') + 9
    path.write_text(kept[:start] + token + kept[kept.index('"', start) :])
    with open_guarded() as store:
        assert store.find(owner("a")) == ()
        assert store.gateway.calls <= 3


def _wrong(tmp_path, **conf):
    (tmp_path / "wrong").write_text("wrong horse")
    (tmp_path / "no pem").write_text("no certificate")
    return {
        key: str(tmp_path / value) if value in ("wrong", "no pem", "absent") else value for key, value in conf.items()
    }


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"password_file": "wrong"}, "authentication failed"),
        ({"username": "nobody"}, "authentication failed"),
        ({"username": "", "password_file": ""}, "refuses"),
        ({"prefix": "/others"}, "permission denied"),
        ({"password_file": "absent"}, "absent cannot be read"),
        ({"ca_cert_file": ""}, "certificate is not accepted"),
        ({"cert_file": "", "key_file": ""}, "TLS"),
        ({"ca_cert_file": "no pem"}, "certificates of etcd cannot be loaded"),
        ({"key_file": "absent"}, "certificates of etcd cannot be loaded"),
        ({"cert_file": "no pem"}, "certificates of etcd cannot be loaded"),
    ],
)
def test_what_is_refused_is_refused_at_once(open_guarded, tmp_path, conf, said):
    started = time.monotonic()
    for name, error in refusals(lambda: open_guarded(**_wrong(tmp_path, **conf))).items():
        assert isinstance(error, StoreUnavailable), name
        assert said in str(error), name
        assert error.hint
        assert not any(secret in str(error) for secret in (PASSWORD, "wrong horse"))
    assert time.monotonic() - started < NEVER_S / 2


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_other_scheme_is_hinted_at(open_store, own_server, guarded, certificates, scheme):
    # Etcd says nothing to a client that speaks TLS where it does not, or does not where it does.
    server = guarded if scheme == "http" else own_server
    url = f"{scheme}://127.0.0.1:{server.port}"
    for error in bounded_refusals(lambda: open_store(url, ca_cert_file=certificates.ca.cert)).values():
        assert isinstance(error, StoreUnavailable)
        assert "http or https" in error.hint
