"""Requests to etcd's JSON gateway as it wants them: keys and values in base64, numbers as text.

What the keys are is etcd_keys', sending is the gateway's.

Source: etcd api/etcdserverpb/rpc.proto.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


def decoded(text: str) -> str:
    return b64decode(text).decode()


def encode(key: str) -> str:
    return b64encode(key.encode()).decode()


def absent(key: str) -> Json:
    """Compare: there is no such key."""
    return {"key": encode(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}


def present(key: str) -> Json:
    """Compare: there is such a key."""
    return {"key": encode(key), "target": "VERSION", "result": "GREATER", "version": "0"}


def unchanged(key: str, revision: int) -> Json:
    """Compare: the key was last written then, or is absent for 0."""
    return {"key": encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def not_after(key: str, revision: int) -> Json:
    """Compare: the key was not written after that, or is absent."""
    return {"key": encode(key), "target": "MOD", "result": "LESS", "mod_revision": str(revision + 1)}


def impossible(key: str) -> Json:
    """Compare: what no key is."""
    return {"key": encode(key), "target": "VERSION", "result": "LESS", "version": "0"}


def put(key: str, value: str, *, expires_with: str = "0") -> Json:
    return {"request_put": {"key": encode(key), "value": encode(value), "lease": expires_with}}


def delete(key: str) -> Json:
    return {"request_delete_range": {"key": encode(key)}}


def get(key: str) -> Json:
    return {"request_range": {"key": encode(key)}}


def count(key: str, beyond: str | None = None) -> Json:
    """Count one key or those from ``key`` up to ``beyond``."""
    bounds = {"key": encode(key), **({"range_end": encode(beyond)} if beyond is not None else {})}
    return {"request_range": {**bounds, "count_only": True}}


def listing(key: str, beyond: str) -> Json:
    return {"request_range": {"key": encode(key), "range_end": encode(beyond), "keys_only": True}}


def page(key: str, beyond: str, *, limit: int, keys_only: bool) -> Json:
    """One page of a longer listing; the body of a range request of its own."""
    return {"key": encode(key), "range_end": encode(beyond), "limit": str(limit), "keys_only": keys_only}


def beyond_prefix(prefix: str) -> str:
    """Return the first key after all that begin with the prefix, which ends with a slash."""
    assert prefix.endswith("/")
    return prefix[:-1] + "0"  # the character after the slash


def transaction(compare: Sequence[Json], success: Sequence[Json], failure: Sequence[Json] = ()) -> Json:
    return {"compare": list(compare), "success": list(success), "failure": list(failure)}


def nested(compare: Sequence[Json], success: Sequence[Json], failure: Sequence[Json] = ()) -> Json:
    """A transaction within another one, done or not without regard to the others."""
    return {"request_txn": transaction(compare, success, failure)}


def kvs(response: Json) -> list[Json]:
    """Return the keys of one answer to get, listing or page."""
    return list(response.get("response_range", response).get("kvs", ()))


def counted(response: Json) -> int:
    return int(response.get("response_range", response).get("count", 0))


def keys_of(response: Json) -> list[str]:
    return [decoded(kv["key"]) for kv in kvs(response)]
