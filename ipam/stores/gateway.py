"""etcd over its JSON gateway: endpoints in turn, one kept connection, a token; every wait ends at the deadline.

What is asked is the caller's; what became of a write whose reply was lost is too, see ReplyLost.

http.client rather than etcd3gw: that library brings requests and a tree of others, and costs 300 ms at each start.

Source: https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/, etcd api/v3rpc/rpctypes/error.go,
google.golang.org/grpc/codes.
"""

from __future__ import annotations

import json
import logging
import random
import ssl
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any, NamedTuple

from conf.errors import CniError, StoreUnavailable
from ipam.stores.bounded import Bounded, cause_of, connect, is_lasting
from ipam.stores.contract import Deadline

Json = dict[str, Any]

# google.golang.org/grpc/codes
NOT_FOUND = 5
_INVALID_ARGUMENT, _PERMISSION_DENIED, _RESOURCE_EXHAUSTED, _FAILED_PRECONDITION = 3, 7, 8, 9
_UNIMPLEMENTED, _UNAUTHENTICATED = 12, 16
# Of these the server knows that nothing was done. Every other failure may come after the deed.
_NOT_DONE = frozenset(
    {
        _INVALID_ARGUMENT,
        NOT_FOUND,
        _PERMISSION_DENIED,
        _RESOURCE_EXHAUSTED,
        _FAILED_PRECONDITION,
        _UNIMPLEMENTED,
        _UNAUTHENTICATED,
    }
)
# One gRPC code stands for several errors of etcd's, which its own clients, too, tell apart by these words.
_NO_SPACE = "etcdserver: mvcc: database space exceeded"
_STALE_TOKEN = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")

_HTTP_OK = 200
_CONNECT_S = 2.0
_TRY_S = 5.0
_PAUSE_S = (0.05, 1.0)

log = logging.getLogger("vferry.ipam.etcd")


class Endpoint(NamedTuple):
    """One member of the cluster."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


class Login(NamedTuple):
    """How a token is got, and where it is kept for the next invocation: checking a password costs etcd 50 ms."""

    username: str
    password: Callable[[], str]
    kept: Callable[[], str]
    keep: Callable[[str], None]


class ReplyLost(Exception):
    """A write was sent and may have been done, now or later."""


class Refused(Exception):
    """etcd answered that it did nothing, and why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Unreached(Exception):
    """Nothing was sent; ``lasting`` when trying again cannot help."""

    def __init__(self, cause: str, *, lasting: bool = False) -> None:
        super().__init__(cause)
        self.lasting = lasting


class Gateway:
    """The cluster as one invocation talks to it; the counters are for measuring."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        deadline: Deadline,
        tls: Callable[[], ssl.SSLContext],
        login: Login | None = None,
        try_s: float = _TRY_S,
    ) -> None:
        # Nodes that all begin with the same member would be all that member's load.
        self._endpoints = random.SystemRandom().sample(list(endpoints), len(endpoints))
        self._deadline = deadline
        self._tls = tls
        self._login = login
        self._token: str | None = None
        self._try_s = try_s
        self._connection: tuple[HTTPConnection, Bounded] | None = None
        self.calls = self.sent_bytes = self.received_bytes = self.lost = 0

    def __str__(self) -> str:
        return "etcd at " + ", ".join(sorted(map(str, self._endpoints)))

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection[0].close()
            self._connection = None

    def read(self, path: str, body: Json, *, patient: bool = True) -> Json:
        """Ask what may be asked again and again.

        ``patient``: wait for a store that is not there until the deadline, else ask every endpoint once.
        Raises: StoreUnavailable, TryAgainLater, Refused.
        """
        return self._call(path, body, repeatable=True, patient=patient)

    def write(self, path: str, body: Json) -> Json:
        """Have a change made, which is sent to one endpoint only.

        Raises: ReplyLost, StoreUnavailable, TryAgainLater, Refused.
        """
        return self._call(path, body, repeatable=False, patient=True)

    def _call(self, path: str, body: Json, *, repeatable: bool, patient: bool) -> Json:
        document = json.dumps(body, separators=(",", ":")).encode()
        pause, pause_max = _PAUSE_S
        while True:
            unreached = []
            for _ in self._endpoints:
                try:
                    return self._authenticated(path, document)
                except _Unreached as error:
                    unreached.append(error)
                    self._rotate(str(error))
                except ReplyLost as error:
                    unreached.append(_Unreached(str(error)))
                    self._rotate(str(error))
                    if not repeatable:
                        raise
                if self._deadline.remaining_s() == 0:
                    break
            if not patient or all(error.lasting for error in unreached) or self._deadline.remaining_s() == 0:
                raise self._unavailable("; ".join(dict.fromkeys(map(str, unreached))))
            time.sleep(min(pause * random.uniform(0.5, 1), self._deadline.remaining_s()))  # noqa: S311 - no secret
            pause = min(pause * 2, pause_max)

    def _authenticated(self, path: str, document: bytes) -> Json:
        if self._login is None:
            return self._when_accepted(path, document, "")
        if self._token is None:
            self._token = self._login.kept() or self._new_token(self._login)
        try:
            return self._when_accepted(path, document, self._token)
        except Refused as refused:
            if refused.code != _UNAUTHENTICATED and refused.text not in _STALE_TOKEN:
                raise
        self._token = self._new_token(self._login)
        try:
            return self._when_accepted(path, document, self._token)
        except Refused as refused:
            raise self._denied(refused) if refused.code == _UNAUTHENTICATED else refused from refused

    def _new_token(self, login: Login) -> str:
        credential = {"name": login.username, "password": login.password()}
        try:
            token = str(self._once("/v3/auth/authenticate", json.dumps(credential).encode(), "")["token"])
        except Refused as refused:
            if refused.code == _FAILED_PRECONDITION:
                return ""  # authentication is not enabled there
            raise self._denied(refused) from refused
        except ReplyLost as error:
            raise _Unreached(str(error)) from error
        login.keep(token)
        return token

    def _when_accepted(self, path: str, document: bytes, token: str) -> Json:
        try:
            return self._once(path, document, token)
        except Refused as refused:
            if refused.code == _RESOURCE_EXHAUSTED and refused.text != _NO_SPACE:
                raise _Unreached(f"{self._endpoints[0]}: {refused.text}") from refused  # overloaded, and nothing done
            if refused.code in (_UNAUTHENTICATED, NOT_FOUND) or refused.text in _STALE_TOKEN:
                raise
            raise self._denied(refused) from refused

    def _once(self, path: str, document: bytes, token: str) -> Json:
        endpoint = self._endpoints[0]
        if self._connection is None:
            self._connection = self._connect(endpoint)
        connection, bounded = self._connection
        headers = {"Content-Type": "application/json", **({"Authorization": token} if token else {})}
        self.calls += 1
        self.sent_bytes += len(document)
        try:
            bounded.limit(self._bound(self._try_s))
            connection.request("POST", path, document, headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, HTTPException) as error:
            self.lost += 1
            cause = f"{endpoint}: {cause_of(error)}"
            if is_lasting(error):
                # With TLS 1.3 a server refuses our certificate only after the handshake, before it reads a request.
                raise _Unreached(cause, lasting=True) from error
            raise ReplyLost(cause) from error
        self.received_bytes += len(text)
        return self._decode(endpoint, response, text)

    def _decode(self, endpoint: Endpoint, response: HTTPResponse, text: bytes) -> Json:
        try:
            reply = json.loads(text)
        except ValueError:
            reply = None
        if response.status == _HTTP_OK and isinstance(reply, dict):
            return reply
        if isinstance(reply, dict) and reply.get("code") in _NOT_DONE:
            raise Refused(int(reply["code"]), str(reply.get("error", "")))
        status = f"{endpoint}: HTTP status {response.status} {response.reason}"
        if reply is None and 400 <= response.status < 500:
            # No word of the gateway's: a path it does not know, or a server that expects TLS.
            raise _Unreached(status, lasting=True)
        self.lost += 1
        raise ReplyLost(f"{status}: {reply.get('error', '')}" if isinstance(reply, dict) else status)

    def _connect(self, endpoint: Endpoint) -> tuple[HTTPConnection, Bounded]:
        tls = self._tls() if endpoint.scheme == "https" else None
        try:
            bounded = connect(endpoint.host, endpoint.port, self._bound(_CONNECT_S), tls)
        except OSError as error:
            raise _Unreached(f"{endpoint}: {cause_of(error)}", lasting=is_lasting(error)) from error
        connection = HTTPConnection(endpoint.host, endpoint.port)
        connection.sock = bounded
        return connection, bounded

    def _bound(self, seconds: float) -> float:
        return min(seconds, self._deadline.remaining_s())

    def _rotate(self, cause: str) -> None:
        log.debug("%s", cause)
        self.close()
        self._endpoints.append(self._endpoints.pop(0))

    def _denied(self, refused: Refused) -> CniError:
        hints = {
            _INVALID_ARGUMENT: 'check "username" and "password_file" of "etcd"',
            _UNAUTHENTICATED: 'check "username" and "password_file" of "etcd"',
            _PERMISSION_DENIED: 'grant the etcd user read and write on the "prefix"',
            _RESOURCE_EXHAUSTED: "compact and defragment etcd, then disarm its NOSPACE alarm",
        }
        return StoreUnavailable(
            f"{self} refuses", details=refused.text, hint=hints.get(refused.code, "etcd 3.4 or later is needed")
        )

    def _unavailable(self, cause: str) -> CniError:
        return StoreUnavailable(
            f"{self} does not answer",
            details=cause or f"nothing within {self._deadline.seconds:g} s",
            hint='check "endpoints" of "etcd" (http or https?), its certificates, and the health of its members',
        )
