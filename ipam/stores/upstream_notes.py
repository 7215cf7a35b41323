"""What is noted on upstream's objects, in annotations that upstream leaves alone, and the JSON patches that do it.

Which note is on which object is ``ipam.stores.upstream_pool``'s. Source: RFC 6902.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from typing import Protocol

from ipam.stores.contract import REMEMBERED_S, Owner
from ipam.stores.iplease import Json


class Named(Protocol):
    """A pool, as far as a mark names it."""

    name: str

    @property
    def network_name(self) -> str: ...


@dataclass(frozen=True)
class Mark:
    """What upstream's fields have no room for; it counts only beside the same container and interface."""

    id: str
    cid: str
    ifname: str
    network: str
    node: str
    uid: str
    at: float
    # Of a reservation, what it was made for: an address reserved for another pool was not lost to a rival.
    pool: str = ""
    network_name: str = ""

    @classmethod
    def of(cls, owner: Owner, now: float, pool: Named | None = None) -> Mark:
        """Return the mark of a new lease."""
        return cls(
            id=secrets.token_hex(8),
            cid=owner.container_id,
            ifname=owner.ifname,
            network=owner.cni_network,
            node=owner.node,
            uid=owner.pod_uid,
            at=now,
            pool=pool.name if pool else "",
            network_name=pool.network_name if pool else "",
        )

    @classmethod
    def read(cls, annotation: str | None) -> Mark | None:
        """Return what an annotation says, None when it is not ours."""
        try:
            return cls(**json.loads(annotation or ""))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True)
class Cooling:
    """How long a released address cools."""

    released_at: float
    cooldown_s: float
    # Whose interface may have it back at once (``Owner.pod_key``).
    pod_key: str = ""

    def is_over(self, now: float) -> bool:
        """Whether it may be chosen again; a clock that was set back must not make it cool for years."""
        return abs(now - self.released_at) >= self.cooldown_s

    def __str__(self) -> str:
        return f"{self.released_at:.3f}/{self.cooldown_s:.3f}" + (f"/{self.pod_key}" if self.pod_key else "")

    @classmethod
    def read(cls, annotation: str) -> Cooling | None:
        """Return what an annotation says, None when it is not ours."""
        released_at, _, rest = annotation.partition("/")
        cooldown_s, _, pod_key = rest.partition("/")
        try:
            return cls(float(released_at), float(cooldown_s), pod_key)
        except ValueError:
            return None

    def is_forgotten(self, now: float) -> bool:
        """Whether it is of no use any more."""
        return self.is_over(now) and (not self.pod_key or abs(now - self.released_at) >= REMEMBERED_S)


def expecting(path: str, value: object) -> Json:
    """Return the operation that fails unless the value is there; None stands for nothing."""
    return {"op": "test", "path": path, "value": value}


def making(path: str) -> list[Json]:
    """Return the operations that make an empty object where there is nothing."""
    return [expecting(path, None), {"op": "add", "path": path, "value": {}}]


def annotation(key: str) -> str:
    """Return the pointer to an annotation."""
    return "/metadata/annotations/" + key.replace("~", "~0").replace("/", "~1")
