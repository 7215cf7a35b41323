"""How an API server is reached and as whom: a kubeconfig, or what a pod is given; nothing is sent here.

Certificates and tokens are read, credential plugins are not run: a plugin that root starts runs no programs of others.
Nothing of a file's content ever gets into a message.

Source: https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/,
k8s.io/client-go tools/clientcmd/api/v1 types.go, rest/config.go InClusterConfig.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import yaml

from conf.errors import CniError, InvalidNetworkConfig, StoreUnavailable

Json = dict[str, Any]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_NAMESPACE = "kube-system"
_UNSUPPORTED = ("exec", "auth-provider", "username", "password", "as")


class NotConfigured(InvalidNetworkConfig):
    """No configuration says where an API server is; nothing can ever have been kept there."""


@dataclass(frozen=True)
class Access:
    """One API server, and who we are to it. ``token`` is read anew for each request: tokens are rotated."""

    host: str
    port: int
    path: str
    tls: Callable[[], ssl.SSLContext] | None
    server_name: str
    token: Callable[[], str]
    namespace: str
    source: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


def find_access(
    kubeconfig: str, *, environ: Mapping[str, str] = os.environ, service_account: Path = SERVICE_ACCOUNT
) -> Access:
    """Return the access that a kubeconfig tells, or, without one, a pod's own.

    Raises: NotConfigured when there is neither, StoreUnavailable when what is there cannot be used.
    """
    if kubeconfig:
        return _Kubeconfig(Path(kubeconfig)).access()
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise NotConfigured(
            "ipam: no API server is known",
            details='"kubernetes" has no "kubeconfig", and this is no pod',
            hint='set "kubernetes": {"kubeconfig": PATH} in the ipam object, the flat file or /etc/vferry/vferry.toml',
        )
    return Access(
        host=host,
        port=int(port),
        path="",
        tls=lambda: _context(service_account, cafile=str(service_account / "ca.crt")),
        server_name="",
        token=lambda: _text(service_account / "token"),
        namespace=_text(service_account / "namespace") or DEFAULT_NAMESPACE,
        source=str(service_account),
    )


class _Kubeconfig:
    """One file, of which the current context counts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        document = self._load()
        name = document.get("current-context") or ""
        context = self._named(document, "context", name)
        self._cluster = self._named(document, "cluster", context.get("cluster"))
        self._user = self._named(document, "user", context.get("user")) if context.get("user") else {}
        self._namespace = str(context.get("namespace") or DEFAULT_NAMESPACE)

    def access(self) -> Access:
        for key in _UNSUPPORTED:
            if self._user.get(key):
                self._fail(f'the user\'s "{key}" is not supported', "give a token, a tokenFile or a client certificate")
        if self._cluster.get("proxy-url"):
            self._fail('the cluster\'s "proxy-url" is not supported', "name a server that is reached without a proxy")
        url = urlsplit(str(self._cluster.get("server") or ""))
        if url.scheme not in ("http", "https") or not url.hostname:
            self._fail('the cluster\'s "server" is no URL', "write it as https://HOST:PORT")
        return Access(
            host=url.hostname or "",
            port=url.port or (443 if url.scheme == "https" else 80),
            path=url.path.rstrip("/"),
            tls=self._tls if url.scheme == "https" else None,
            server_name=str(self._cluster.get("tls-server-name") or ""),
            token=self._token,
            namespace=self._namespace,
            source=str(self._path),
        )

    def _load(self) -> Json:
        content = _read(self._path)
        try:
            # Every JSON is YAML, and is read far faster as what it is.
            document = json.loads(content)
        except ValueError:
            document = self._load_yaml(content)
        if not isinstance(document, dict):
            self._fail("it is no kubeconfig", "write it anew, or let the installer do it")
        return document

    def _load_yaml(self, content: bytes) -> Any:
        try:
            return yaml.load(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else type(error).__name__
            self._fail(f"it is no YAML: {where}", "write it anew, or let the installer do it")

    def _named(self, document: Json, kind: str, name: object) -> Json:
        for entry in document.get(f"{kind}s") or []:
            if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(kind), dict):
                return dict(entry[kind])
        return self._fail(f"it has no {kind} {name!r}", 'check "current-context" and the names it leads to')

    def _token(self) -> str:
        file = self._user.get("tokenFile")
        # As in client-go: a file that is given comes before the token beside it.
        return _text(self._beside(file)) if file else str(self._user.get("token") or "")

    def _tls(self) -> ssl.SSLContext:
        cluster, user = self._cluster, self._user
        authority, authority_file = (
            self._decoded(cluster, "certificate-authority-data"),
            cluster.get("certificate-authority"),
        )
        context = _context(
            self._path,
            cadata=authority.decode("ascii", errors="replace") if authority else None,
            cafile=str(self._beside(authority_file)) if authority_file and not authority else None,
        )
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate, key = (
            self._decoded(user, f"{name}-data") or (_read(self._beside(user[name])) if user.get(name) else b"")
            for name in ("client-certificate", "client-key")
        )
        if certificate or key:
            _load_pair(context, certificate + b"\n" + key, self._path)
        return context

    def _decoded(self, section: Json, key: str) -> bytes:
        try:
            return base64.b64decode(str(section.get(key) or ""), validate=True)
        except ValueError:
            return self._fail(f'"{key}" is not base64', "write it anew, or let the installer do it")

    def _beside(self, name: object) -> Path:
        return self._path.parent / str(name)

    def _fail(self, details: str, hint: str) -> NoReturn:
        raise _unusable(self._path, details, hint)


def _context(source: Path, *, cafile: str | None = None, cadata: str | None = None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=cafile, cadata=cadata)
    except (OSError, ValueError) as error:
        raise _unusable(source, f"the certificate authority cannot be loaded: {_reason(error)}") from error


def _load_pair(context: ssl.SSLContext, pem: bytes, source: Path) -> None:
    # OpenSSL reads a key from a path only; a file in memory leaves nothing on a disk when we are killed.
    fd = os.memfd_create("client")
    try:
        os.write(fd, pem)
        # Without a word of its own an encrypted key would be asked for at the terminal.
        context.load_cert_chain(f"/dev/fd/{fd}", password="")
    except (OSError, ValueError) as error:
        raise _unusable(source, f"the client certificate cannot be loaded: {_reason(error)}") from error
    finally:
        os.close(fd)


def _text(path: Path) -> str:
    return _read(path).decode(errors="replace").strip()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unusable(path, _reason(error), "make it readable for root, or let the installer write it") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'not PEM'}"
    return getattr(error, "strerror", None) or type(error).__name__


def _unusable(path: Path, details: str, hint: str = "write it anew, or let the installer do it") -> CniError:
    return StoreUnavailable(f"access to the API server by {path} cannot be used", details=details, hint=hint)
