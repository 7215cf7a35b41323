"""What is known to be leased in a name space, so that the next search for the lowest free address need not count it.

Who counted leaves the intervals in which every address had a lease, and which release was the last one then: it is so
for as long as there is no other one. For every release writes the key ``freed`` anew, with what it gave back, and of
one more release that is enough to know. The transaction that rests on it compares that key, or the one before has read
it. Leases are ended by releases alone; should somebody delete their keys by hand, it is seen within ten minutes.

Source: reference 8.2.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ipam.stores.contract import Lease, Pool
from ipam.stores.etcd_keys import Keys
from ipam.stores.etcd_requests import Json, absent, get, kvs, nested, present, put, unchanged
from ipam.stores.runs import Runs

# Below so many leases it is quicker to ask again.
_FEWEST = 64
_MOST_RUNS = 64
_BELIEVED_S = 600.0


class Freed(NamedTuple):
    """The last release: its revision, how many there were, and what it gave back; nothing where none leaves a trace."""

    revision: int = 0
    version: int = 0
    released: Sequence[int] = ()


class Full(NamedTuple):
    """``runs``: addresses that all had a lease when they were counted, and at the release of this revision, if any."""

    revision: int
    version: int
    counted_at: float
    runs: Runs

    def as_of(self, freed: Freed, now: float) -> Full | None:
        """Return what of it is so after the last release, itself if that is the one it knows; None if it can't tell."""
        if not freed.revision or not self.is_recent(now):
            return None
        if self.revision == freed.revision:
            return self
        if self.version + 1 != freed.version:
            return None
        runs = Runs(self.runs.to_json())
        for value in freed.released:
            runs.discard(value)
        return Full(freed.revision, freed.version, self.counted_at, runs)

    def is_recent(self, now: float) -> bool:
        """Whether it was counted not long ago."""
        return abs(now - self.counted_at) < _BELIEVED_S

    @property
    def is_worth_keeping(self) -> bool:
        """Whether to count it again costs more than to remember it."""
        return self.runs.size >= _FEWEST

    def to_json(self) -> Json:
        """Return it as it is kept; of very many runs the first ones."""
        return {
            "revision": self.revision,
            "version": self.version,
            "counted_at": self.counted_at,
            "runs": self.runs.to_json()[:_MOST_RUNS],
        }


def nothing_known(freed: Freed, now: float) -> Full:
    """Return what who begins to count now knows."""
    return Full(freed.revision, freed.version, now, Runs())


def questions(keys: Keys, pool: Pool) -> list[Json]:
    """Return the two requests that ask for what was left, and for the last release."""
    return [get(keys.of_pool(kind, pool)) for kind in ("freed", "full")]


def read(responses: Sequence[Json]) -> tuple[Freed, Full | None]:
    """Read the answers to ``questions``."""
    freed, left = (kvs(response) for response in responses)
    last = Freed()
    if freed:
        released = _loaded(freed[0])
        is_ours = isinstance(released, list) and all(type(value) is int for value in released)
        # What nobody can read may have been any number of releases.
        last = Freed(int(freed[0]["mod_revision"]), int(freed[0]["version"]) if is_ours else 0, released)
    return last, of_json(_loaded(left[0])) if left else None


def of_json(kept: Any) -> Full | None:
    """Return what was kept, None when that can't be used."""
    try:
        numbers = int(kept["revision"]), int(kept["version"]), float(kept["counted_at"])
        full = Full(*numbers, Runs([int(first), int(last)] for first, last in kept["runs"]))
    except (KeyError, TypeError, ValueError):
        return None
    return full if full.revision > 0 else None


def unreleased(keys: Keys, pool: Pool, full: Full) -> Json:
    """Compare: nothing was released since."""
    return unchanged(keys.of_pool("freed", pool), full.revision)


def left(keys: Keys, pool: Pool, full: Full) -> list[Json]:
    """Return the changes that leave it for others; where no release leaves a trace yet, that it does from now on."""
    if not full.is_worth_keeping:
        return []
    freed = keys.of_pool("freed", pool)
    if not full.revision:
        return [nested([absent(freed)], [put(freed, "[]")])]
    value = json.dumps(full.to_json(), separators=(",", ":"))
    return [nested([unchanged(freed, full.revision)], [put(keys.of_pool("full", pool), value)])]


def nobody_left(keys: Keys, pool: Pool, requests: Sequence[Json]) -> Json:
    """Return the request that asks only where nothing was left."""
    return nested([present(keys.of_pool("full", pool))], [], requests)


def released(keys: Keys, leases: Iterable[Lease]) -> list[Json]:
    """Return the changes that go with a release."""
    freed: dict[str, list[int]] = {}
    for lease in leases:
        freed.setdefault(keys.around("freed", lease), []).append(lease.address.value)
    return [nested([present(key)], [put(key, json.dumps(values))]) for key, values in freed.items()]


def _loaded(kv: Json) -> Any:
    try:
        return json.loads(b64decode(kv.get("value", "")))
    except ValueError:
        return None
