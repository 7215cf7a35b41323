"""Real etcd processes, alone or with TLS and authentication, each in a directory of its own on free loopback ports."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from base64 import b64decode, b64encode
from contextlib import suppress
from pathlib import Path

ETCD = shutil.which("etcd")


def free_port():
    """Return a port that nobody listens on, and that nobody is given who does not ask for it.

    The kernel gives its own from 32768 on, to clients too: one of those may be another's by the time it is bound, and
    who connects again and again to one that nobody listens on is at last given it himself, and talks to himself.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


class EtcdServer:
    """One member that is its own cluster; ``tls`` is a Certificates."""

    def __init__(self, directory, tls=None):
        self.directory = Path(directory)
        self.tls = tls
        scheme = "https" if tls else "http"
        self.port, peer = free_port(), f"http://127.0.0.1:{free_port()}"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._command = [
            # No etcd outlives a killed pytest; to be started by its main thread.
            *("setpriv", "--pdeathsig=KILL", "--"),
            ETCD,
            f"--data-dir={self.directory / 'data'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--logger=zap",
            "--log-level=error",
            "--auth-token-ttl=300",
        ]
        if tls:
            self._command += [f"--cert-file={tls.server.cert}", f"--key-file={tls.server.key}"]
            self._command += ["--client-cert-auth", f"--trusted-ca-file={tls.ca.cert}"]
        self._process = None

    def start(self):
        with open(self.directory / "log", "ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + 300
        while True:
            try:
                self.call("/v3/kv/range", {"key": encode("/")})
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return self

    @property
    def pid(self):
        return self._process.pid

    def stop(self):
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def pause(self):
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self._process.pid, signal.SIGCONT)

    def call(self, path, body, token=""):
        context = None
        if self.tls:
            context = ssl.create_default_context(cafile=self.tls.ca.cert)
            context.load_cert_chain(self.tls.client.cert, self.tls.client.key)
        headers = {"Authorization": token} if token else {}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=120, context=context) as response:
            return json.loads(response.read())

    def keys(self, prefix):
        """Return every key below a prefix, and its value."""
        beyond = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        reply = self.call("/v3/kv/range", {"key": encode(prefix), "range_end": encode(beyond)})
        return {
            b64decode(kv["key"]).decode(): (b64decode(kv.get("value", "")).decode(), kv) for kv in reply.get("kvs", ())
        }

    def enable_authentication(self, user, password, prefix):
        """Make root and a user who may use the prefix alone; return nothing."""
        bounds = {"key": encode(prefix), "range_end": encode(prefix[:-1] + chr(ord(prefix[-1]) + 1))}
        for path, body in (
            ("user/add", {"name": "root", "password": "root's"}),
            ("role/add", {"name": "root"}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("user/add", {"name": user, "password": password}),
            ("role/add", {"name": "leases"}),
            ("role/grant", {"name": "leases", "perm": {"permType": "READWRITE", **bounds}}),
            ("user/grant", {"user": user, "role": "leases"}),
            ("enable", {}),
        ):
            self.call(f"/v3/auth/{path}", body)


class Pair:
    """One certificate and its key."""

    def __init__(self, directory, name):
        self.cert, self.key = str(directory / f"{name}.pem"), str(directory / f"{name}.key")


class Certificates:
    """A CA, and what it signed for a server on 127.0.0.1 and for a client."""

    def __init__(self, directory):
        directory.mkdir(parents=True, exist_ok=True)
        self.ca, self.server, self.client = (Pair(directory, name) for name in ("ca", "server", "client"))
        _openssl("req", "-x509", *_NEW_KEY, "-subj", "/CN=test CA", "-keyout", self.ca.key, "-out", self.ca.cert)
        for pair, name in ((self.server, "etcd"), (self.client, "node")):
            request, extensions = Path(pair.key + ".csr"), Path(pair.key + ".ext")
            extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
            # No CN: etcd's gateway refuses certificates with one once authentication is enabled.
            subject = "/O=vferry test" if name == "node" else f"/CN={name}"
            _openssl("req", *_NEW_KEY, "-subj", subject, "-keyout", pair.key, "-out", str(request))
            _openssl(
                *("x509", "-req", "-in", str(request), "-CA", self.ca.cert, "-CAkey", self.ca.key, "-CAcreateserial"),
                *("-days", "2", "-extfile", str(extensions), "-out", pair.cert),
            )


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def encode(key):
    return b64encode(key.encode()).decode()
