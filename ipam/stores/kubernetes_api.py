"""The API server as one invocation talks to it: one kept connection, every wait ends at the deadline.

What is asked is the caller's; what became of a write whose reply was lost is too, see ReplyLost.

http.client rather than lightkube: that library brings httpx and a tree of others, and costs 350 ms at each start.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/, k8s.io/apimachinery pkg/apis/meta/v1 types.go.
"""

from __future__ import annotations

import json
import logging
import random
import ssl
import time
from collections.abc import Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import urlencode

from conf.errors import CniError, InvalidNetworkConfig, StoreUnavailable, TryAgainLater
from ipam.stores.bounded import Bounded, cause_of, connect, is_lasting, refusal, speaks_tls
from ipam.stores.contract import Deadline
from ipam.stores.kubeconfig import Access

Json = dict[str, Any]

PAGE = 500
_METADATA = "application/json;as=PartialObjectMetadata{};v=v1;g=meta.k8s.io,application/json"
_CONNECT_S = 5.0
# After so many requests without any answer, it is looked why.
_DOUBTFUL = 2
_TERMS_S = 1.0
_TRY_S = 10.0
_PAUSE_S = (0.05, 1.0)
_RETRY_AFTER_S = 1.0

log = logging.getLogger("vferry.ipam.kubernetes")


class ReplyLost(Exception):
    """A write was sent and may have been done, now or later."""


class Refused(Exception):
    """The server answered that it did nothing; ``reason`` is metav1.StatusReason."""

    def __init__(self, status: int, reason: str, text: str, *, named: bool, kind: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text
        self.named = named  # it speaks of the object, not of its kind
        self.kind = kind


class _Unanswered(Exception):
    """No answer; ``sent`` when the server may have seen the request, ``busy`` when it had no time for it."""

    def __init__(self, cause: str, *, sent: bool = False, busy: bool = False, pause_s: float = 0) -> None:
        super().__init__(cause)
        self.sent = sent
        self.busy = busy
        self.pause_s = pause_s


class _Call(NamedTuple):
    method: str
    path: str
    body: Json | list[Json] | None = None
    kind: str = "application/json"
    accept: str = "application/json"


class KubernetesApi:
    """One connection; the counters are for measuring."""

    def __init__(self, access: Access, *, deadline: Deadline, crds: str, rbac: str) -> None:
        self.access = access
        self._deadline = deadline
        self._hints = {
            401: f"renew the token or certificate of {access.source}",
            403: f"kubectl apply -f conf/deploy/{rbac}, and let {access.source} be of that service account",
            404: f"kubectl apply -f conf/deploy/crds/{crds}",
        }
        self._connection: tuple[HTTPConnection, Bounded] | None = None
        self._pause_s = _PAUSE_S[0]
        self._complained = ""  # what the server said last, where it did not serve us
        self._date = ""
        self._is_answered = False
        self._unanswered = 0
        # Wait for a server that is not there until the deadline; else ask it once.
        self.patient = True
        self.calls = self.sent_bytes = self.received_bytes = self.lost = 0
        self.answering_s = 0.0

    def __str__(self) -> str:
        return f"API server {self.access}"

    def age_s(self, obj: Json) -> float:
        """Return how old an object is by the server's clock, 0 when that is not known."""
        return self.since_s((obj.get("metadata") or {}).get("creationTimestamp"))

    def since_s(self, timestamp: str | None) -> float:
        """Return how long ago that was by the server's clock, 0 when that is not known."""
        try:
            moment = datetime.fromisoformat((timestamp or "").replace("Z", "+00:00"))
            return (parsedate_to_datetime(self._date) - moment).total_seconds()
        except (TypeError, ValueError):
            return 0.0

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection[0].close()
            self._connection = None

    def get(self, path: str, *, cached: bool = False) -> Json | None:
        """Return an object, None when there is none; ``cached`` as with ``listed``.

        Raises: StoreUnavailable, TryAgainLater.
        """
        try:
            return self._read(_Call("GET", path + ("?resourceVersion=0" if cached else "")))
        except Refused as refused:
            if refused.status == 404 and refused.named:
                return None
            raise self._denied(refused) from refused

    def listed(
        self, path: str, *, selector: str = "", metadata_only: bool = False, cached: bool = False
    ) -> Iterator[Json]:
        """Yield every object once, in pages of one moment; begun anew when the server forgets the moment meanwhile.

        ``cached``: as the server has them in its memory, which may be a moment old. For a selector it then need not
        read all objects of the kind anew, which takes it tens of milliseconds with thousands of them.
        Raises: StoreUnavailable, TryAgainLater.
        """
        # From its memory the server gives no pages.
        query = {"resourceVersion": "0"} if cached else {"limit": str(PAGE)}
        query |= {"labelSelector": selector} if selector else {}
        accept = _METADATA.format("List") if metadata_only else "application/json"
        seen: set[str] = set()
        token = ""
        while True:
            self._deadline.require(f"listing {path}")
            asked = {**query, **({"continue": token} if token else {})}
            try:
                page = self._read(_Call("GET", f"{path}?{urlencode(asked)}", accept=accept))
            except Refused as refused:
                if refused.status != 410:
                    raise self._denied(refused) from refused
                token = ""
                self._pause("the list has expired while it was read", busy=True)
                continue
            for item in page.get("items") or []:
                name = item["metadata"]["name"]
                if name not in seen:
                    seen.add(name)
                    yield item
            token = page["metadata"].get("continue") or ""
            if not token:
                return

    def number(self, path: str) -> int | None:
        """Return about how many objects of a kind there are, None when the server does not say.

        Raises: StoreUnavailable, TryAgainLater.
        """
        try:
            # The whole object, for with its metadata alone Kubernetes (1.20) leaves the number out.
            page = self._read(_Call("GET", f"{path}?limit=1"))
        except Refused as refused:
            raise self._denied(refused) from refused
        remaining = page["metadata"].get("remainingItemCount")
        if remaining is None:
            return None if page["metadata"].get("continue") else len(page.get("items") or [])
        return int(remaining) + 1

    def create(self, path: str, body: Json, *, dry_run: bool = False) -> Json:
        """Create an object; with ``dry_run`` the server checks everything and writes nothing.

        Raises: Refused with 409 when it exists, ReplyLost, StoreUnavailable, TryAgainLater.
        """
        return self._write(_Call("POST", path + ("?dryRun=All" if dry_run else ""), body), expected=(409,))

    def replace(self, path: str, body: Json) -> Json:
        """Replace an object, of exactly the UID and resourceVersion that the body has.

        Raises: Refused with 404 or 409, ReplyLost, StoreUnavailable, TryAgainLater.
        """
        return self._write(_Call("PUT", path, body), expected=(404, 409))

    def patch(self, path: str, operations: list[Json], *, metadata_only: bool = False) -> Json:
        """Apply a JSON patch, all of it or none, and return the object, or as much of it as was asked for.

        Raises: Refused with 404, 409, or 422 when a test failed, ReplyLost, StoreUnavailable, TryAgainLater.
        """
        accept = _METADATA.format("") if metadata_only else "application/json"
        call = _Call("PATCH", path, operations, "application/json-patch+json", accept)
        return self._write(call, expected=(404, 409, 422))

    def delete(self, path: str, *, uid: str, resource_version: str = "") -> None:
        """Delete an object, of exactly this UID, and this resourceVersion where one is given.

        Raises: Refused with 404 or 409, ReplyLost, StoreUnavailable, TryAgainLater.
        """
        preconditions = {"uid": uid, **({"resourceVersion": resource_version} if resource_version else {})}
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        self._write(_Call("DELETE", path, body), expected=(404, 409))

    def _read(self, call: _Call) -> Json:
        while True:
            try:
                return self._authenticated(call)
            except _Unanswered as lost:
                self._pause(str(lost), busy=lost.busy, seconds=lost.pause_s)

    def _write(self, call: _Call, *, expected: tuple[int, ...]) -> Json:
        while True:
            try:
                answer = self._authenticated(call)
            except _Unanswered as lost:
                self._pause(str(lost), busy=lost.busy, seconds=lost.pause_s)
                if lost.sent:
                    raise ReplyLost(str(lost)) from lost
            except Refused as refused:
                if refused.status in expected and (refused.status != 404 or refused.named):
                    raise
                raise self._denied(refused) from refused
            else:
                return answer

    def _authenticated(self, call: _Call) -> Json:
        token = self.access.token()
        try:
            return self._once(call, token)
        except Refused as refused:
            if refused.status != 401:
                raise
            renewed = self.access.token()
            if renewed != token:  # rotated since we read it
                return self._once(call, renewed)
            raise self._denied(refused) from refused

    def _once(self, call: _Call, token: str) -> Json:
        document = b"" if call.body is None else json.dumps(call.body, separators=(",", ":")).encode()
        headers = {"Accept": call.accept, "Content-Type": call.kind, "User-Agent": "vferry"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        if self._connection is None:
            self._connection = self._connect()
        connection, bounded = self._connection
        self.calls += 1
        self.sent_bytes += len(document)
        begun = time.monotonic()
        try:
            bounded.limit(self._bound(min(_TRY_S, self._deadline.seconds / 3)))
            connection.request(call.method, self.access.path + call.path, document or None, headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, HTTPException) as error:
            self.lost += 1
            self.close()
            if is_lasting(error):
                # With TLS 1.3 a server refuses our certificate only after the handshake, before it reads a request.
                raise self._unreachable(cause_of(error)) from error
            if isinstance(error, HTTPException | ConnectionError | ssl.SSLError):
                self._require_terms()
            raise _Unanswered(cause_of(error), sent=True) from error
        self._is_answered = True
        self.answering_s += time.monotonic() - begun
        self.received_bytes += len(text)
        self._date = response.getheader("Date", "")
        if response.will_close:
            self.close()
        if response.status == HTTPStatus.BAD_REQUEST and text[:1] != b"{":
            self._is_answered, self._unanswered = False, _DOUBTFUL - 1
            self._require_terms()
        return self._decoded(response.status, response.getheader("Retry-After"), text)

    def _decoded(self, status: int, retry_after: str | None, text: bytes) -> Json:
        self._complained = ""
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if 200 <= status < 300 and isinstance(answer, dict):
            self._pause_s = _PAUSE_S[0]
            return answer
        answer = answer if isinstance(answer, dict) else {}
        cause = f"HTTP status {status} {answer.get('reason', '')}: {answer.get('message', '')}".rstrip(" :")
        if status == 429:
            self._complained = cause
            raise _Unanswered(cause, busy=True, pause_s=_seconds(retry_after))
        if 200 <= status < 300 or status >= 500:
            # Storage may have failed after the deed, and a box between us may have cut the answer.
            self.lost += 1
            self._complained = cause
            raise _Unanswered(cause, sent=True, pause_s=_seconds(retry_after) if retry_after else 0)
        details = answer.get("details") or {}
        raise Refused(
            status,
            str(answer.get("reason", "")),
            str(answer.get("message", "") or cause),
            named=bool(details.get("name")),
            kind=str(details.get("kind", "")),
        )

    def _connect(self) -> tuple[HTTPConnection, Bounded]:
        access = self.access
        tls = access.tls() if access.tls else None
        try:
            bounded = connect(access.host, access.port, self._bound(_CONNECT_S), tls, server_name=access.server_name)
        except OSError as error:
            if is_lasting(error):
                raise self._unreachable(cause_of(error)) from error
            raise _Unanswered(cause_of(error)) from error
        connection = HTTPConnection(access.host, access.port)
        connection.sock = bounded
        # Without a socket http.client would connect by itself, and without TLS.
        connection.auto_open = 0
        return connection, bounded

    def _require_terms(self) -> None:
        """Raise where a server never answered because it expects TLS, or another certificate.

        One that hung up once may only be busy.
        """
        self._unanswered += 1
        if self._is_answered or (self.patient and self._unanswered != _DOUBTFUL):
            return
        access, seconds = self.access, self._bound(_TERMS_S)
        if access.tls is None:
            if speaks_tls(access.host, access.port, seconds):
                raise StoreUnavailable(
                    f"{self} does not answer",
                    details="it expects TLS, and was spoken to in plain HTTP",
                    hint=f'write "https://" into the "server" of {access.source}',
                )
        elif cause := refusal(access.host, access.port, seconds, access.tls(), server_name=access.server_name):
            raise self._unreachable(cause)

    def _bound(self, seconds: float) -> float:
        return min(seconds, self._deadline.remaining_s())

    def _pause(self, cause: str, *, busy: bool, seconds: float = 0) -> None:
        log.debug("%s: %s", self, cause)
        wait = max(seconds, self._pause_s * random.uniform(0.5, 1))  # noqa: S311 - no secret
        self._pause_s = min(self._pause_s * 2, _PAUSE_S[1])
        remaining = self._deadline.remaining_s()
        if not self.patient:
            raise self._unreachable(cause)
        if busy and remaining <= wait:
            raise TryAgainLater(f"{self} is too busy", details=cause, hint="the runtime tries again")
        if remaining <= wait:
            raise self._unreachable(cause if self._complained in ("", cause) else f"{self._complained}; then: {cause}")
        time.sleep(wait)

    def _unreachable(self, cause: str) -> CniError:
        return StoreUnavailable(
            f"{self} does not answer",
            details=cause,
            hint=f"check server and certificates of {self.access.source}, and the server's health",
        )

    def _denied(self, refused: Refused) -> CniError:
        if refused.status == 422:
            return InvalidNetworkConfig(f"{self} does not accept the object", details=refused.text)
        hint = self._hints.get(refused.status, "see the API server's log")
        if refused.kind == "namespaces":
            hint = f"create that namespace, or name another one in the context of {self.access.source}"
        return StoreUnavailable(f"{self} refuses", details=f"{refused.status}: {refused.text}", hint=hint)


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdigit() else _RETRY_AFTER_S
