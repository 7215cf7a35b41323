"""What a node believes to be taken in one name space: listed just now, or remembered from its earlier invocations.

Belief only saves requests: the store decides, and what a belief gets wrong costs one more try. That a range is
exhausted is never believed, it is listed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from heapq import nsmallest
from itertools import accumulate
from typing import Any

from netaddr import IPAddress

from ipam.stores.iplease import Cooling

Json = dict[str, Any]

# So many cooling addresses are remembered; the others are believed to be taken.
_MOST_COOLING = 1000


class Runs:
    """A set of numbers as its runs of consecutive ones: what is taken is mostly the low end of a range."""

    def __init__(self, runs: Iterable[Sequence[int]] = ()) -> None:
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in runs:
            self.add(first, last)
        self._sums: list[int] | None = None

    @classmethod
    def of(cls, values: Iterable[int]) -> Runs:
        """Return the set of these values, given in any order."""
        found = cls()
        for value in sorted(values):
            if found._last and value <= found._last[-1] + 1:
                found._last[-1] = value
            else:
                found._first.append(value)
                found._last.append(value)
        return found

    def add(self, first: int, last: int) -> None:
        """Add all numbers from the first to the last one."""
        low, high = bisect_left(self._last, first - 1), bisect_right(self._first, last + 1)
        if low < high:
            first, last = min(first, self._first[low]), max(last, self._last[high - 1])
        self._first[low:high], self._last[low:high] = [first], [last]
        self._sums = None

    def discard(self, value: int) -> None:
        """Take one number out, if it is there."""
        at = bisect_left(self._last, value)
        if at == len(self._last) or self._first[at] > value:
            return
        kept = [(self._first[at], value - 1), (value + 1, self._last[at])]
        kept = [(first, last) for first, last in kept if first <= last]
        self._first[at : at + 1], self._last[at : at + 1] = [run[0] for run in kept], [run[1] for run in kept]
        self._sums = None

    def count(self, first: int, last: int) -> int:
        """Return how many there are between two bounds, inclusive."""
        return self._below(last + 1) - self._below(first)

    def between(self, first: int, last: int) -> list[int]:
        """Return those between two bounds, inclusive."""
        low, high = bisect_left(self._last, first), bisect_right(self._first, last)
        runs = zip(self._first[low:high], self._last[low:high], strict=True)
        return [value for begin, end in runs for value in range(max(begin, first), min(end, last) + 1)]

    def to_json(self) -> list[list[int]]:
        """Return the runs."""
        return [[first, last] for first, last in zip(self._first, self._last, strict=True)]

    def _below(self, bound: int) -> int:
        if self._sums is None:
            sizes = (last - first + 1 for first, last in zip(self._first, self._last, strict=True))
            self._sums = [0, *accumulate(sizes)]
        at = bisect_left(self._first, bound)
        return self._sums[at] - (max(self._last[at - 1] - bound + 1, 0) if at else 0)


class Known:
    """The taken and the cooling addresses of one name space, and for how many more lost tries they are believed."""

    def __init__(self, *, patience: int, listed: bool = False) -> None:
        self.patience = patience
        self.listed = listed
        self.cooling: dict[IPAddress, Cooling] = {}
        self._taken = {4: Runs(), 6: Runs()}

    def take(self, address: IPAddress) -> None:
        """Believe that somebody has it."""
        self.cooling.pop(address, None)
        self._taken[address.version].add(address.value, address.value)

    def take_run(self, version: int, first: int, last: int) -> None:
        """Believe that all of these are taken."""
        self._taken[version].add(first, last)

    def free(self, address: IPAddress, cooling: Cooling | None = None) -> None:
        """Believe that nobody has it, or that it only cools."""
        self._taken[address.version].discard(address.value)
        if cooling is None:
            self.cooling.pop(address, None)
        else:
            self.cooling[address] = cooling

    def given_back_by(self, pod_key: str) -> list[IPAddress]:
        """Return what a pod's interface gave back and nobody took since, the latest first."""
        if not pod_key:
            return []
        found = [(state.released_at, address) for address, state in self.cooling.items() if state.pod_key == pod_key]
        return [address for _, address in sorted(found, reverse=True)]

    def occupancy(self, version: int, now: float) -> Believed:
        """Return one family as ``ipam.choice`` asks for it, at this moment."""
        cooling = (
            address.value
            for address, state in self.cooling.items()
            if address.version == version and not state.is_over(now)
        )
        return Believed(self._taken[version], Runs.of(cooling))

    def to_json(self) -> Json:
        """Return it as it is remembered."""
        cooling = self.cooling
        taken = self._taken
        if len(cooling) > _MOST_COOLING:
            # Those that were released first may be chosen first.
            kept = nsmallest(_MOST_COOLING, cooling, key=lambda each: cooling[each].released_at)
            taken = {version: Runs(runs.to_json()) for version, runs in taken.items()}
            for address in cooling.keys() - set(kept):
                taken[address.version].add(address.value, address.value)
            cooling = {address: cooling[address] for address in kept}
        return {
            "taken": {str(version): runs.to_json() for version, runs in taken.items()},
            "cooling": {
                str(address): [
                    state.uid,
                    state.resource_version,
                    state.released_at,
                    state.cooldown_s,
                    state.pod_key,
                ]
                for address, state in cooling.items()
            },
        }

    @classmethod
    def from_json(cls, kept: Json, *, patience: int) -> Known:
        """Return what was remembered.

        Raises: KeyError, TypeError, ValueError when it isn't what to_json wrote.
        """
        known = cls(patience=patience)
        for version, runs in kept["taken"].items():
            known._taken[int(version)] = Runs(runs)
        for address, state in kept["cooling"].items():
            known.cooling[IPAddress(address)] = Cooling(*state)
        return known

    def fill(self, addresses: Sequence[IPAddress]) -> None:
        """Believe that somebody has each of them."""
        for version in self._taken:
            self._taken[version] = Runs.of(each.value for each in addresses if each.version == version)


class Believed:
    """One family of what is known."""

    def __init__(self, taken: Runs, cooling: Runs) -> None:
        self._taken = taken
        self._cooling = cooling

    def count(self, first: int, last: int) -> int:
        return self._taken.count(first, last) + self.cooling(first, last)

    def taken(self, first: int, last: int) -> list[int]:
        return self._taken.between(first, last) + self._cooling.between(first, last)

    def cooling(self, first: int, last: int) -> int:
        return self._cooling.count(first, last)
