"""The ``etcd`` object of ``whereabouts``: where etcd is and who we are there; nothing is opened or read here.

The flat keys of upstream up to 0.5 (``etcd_host`` and others) are understood where the object gives nothing.

Source: etcd's client configuration; whereabouts release/v0.5-etcd pkg/types/types.go; reference 1.7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from conf.section import Json, Section, lookup

DEFAULT_PREFIX = "/vferry"
_DEFAULT_PORT = 2379
# Upstream's key -> ours. Its etcd_password has none: a secret belongs in a file that only root reads.
_UPSTREAM = {
    "etcd_username": "username",
    "etcd_ca_cert_file": "ca_cert_file",
    "etcd_cert_file": "cert_file",
    "etcd_key_file": "key_file",
}


def absolute(path: str) -> str:
    """Refuse a path that depends on the working directory."""
    if path and not path.startswith("/"):
        raise ValueError("it is not an absolute path")
    return path


def _prefix(prefix: str) -> str:
    if not prefix.startswith("/") or not prefix.strip("/"):
        raise ValueError("it is not a path such as /vferry")
    return prefix.rstrip("/")


AbsolutePath = Annotated[str, AfterValidator(absolute)]


class Etcd(Section):
    """Access to one etcd cluster."""

    endpoints: list[str] = Field(
        default=[], description="URLs of its members, such as https://192.0.2.1:2379; the next one is tried on failure"
    )
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default=DEFAULT_PREFIX, description="everything of ours is below this key"
    )
    ca_cert_file: AbsolutePath = Field(
        default="", description="certificates that may sign the servers'; absent: the system's"
    )
    cert_file: AbsolutePath = Field(default="", description="our certificate, where the servers want one")
    key_file: AbsolutePath = Field(default="", description="the private key of cert_file")
    username: str = Field(default="", description="name of the etcd user, where authentication is enabled")
    password_file: AbsolutePath = Field(default="", description="file with the password of username")

    @model_validator(mode="after")
    def _is_complete(self) -> Etcd:
        for number, endpoint in enumerate(self.endpoints):
            # Not a validator of the element: what pydantic quotes may hold a password.
            complaint = _complaint(endpoint)
            if complaint:
                raise ValueError(f"etcd.endpoints[{number}] {complaint}")
        for key, other in (("cert_file", "key_file"), ("key_file", "cert_file"), ("username", "password_file")):
            if getattr(self, key) and not getattr(self, other):
                raise ValueError(f'etcd "{key}" is given without "{other}"')
        return self

    @property
    def addresses(self) -> list[tuple[str, str, int]]:
        """Scheme, host and port of every endpoint."""
        split = [urlsplit(_with_scheme(endpoint)) for endpoint in self.endpoints]
        return [(url.scheme, url.hostname or "", url.port or _DEFAULT_PORT) for url in split]


def _with_scheme(endpoint: str) -> str:
    return endpoint if "://" in endpoint else f"http://{endpoint}"


def _complaint(endpoint: str) -> str:
    try:
        url = urlsplit(_with_scheme(endpoint))
        port = url.port
    except ValueError:
        return "is no URL"
    if url.username is not None or url.password is not None:
        return 'holds a user or password: use "username" and "password_file"'
    if url.scheme not in ("http", "https"):
        return "is neither http:// nor https://"
    if not url.hostname or port == 0 or url.path.strip("/") or url.query or url.fragment:
        return "is not a host with an optional port"
    return ""


def upstreams_etcd(ipam: Mapping[str, Any]) -> Json:
    """Return upstream's flat keys as an ``etcd`` object, empty when there are none."""
    found = {ours: lookup(ipam, upstream) for upstream, ours in _UPSTREAM.items() if lookup(ipam, upstream)}
    host = lookup(ipam, "etcd_host")
    if isinstance(host, str) and host:
        found["endpoints"] = [part.strip() for part in host.split(",")]
    return found
