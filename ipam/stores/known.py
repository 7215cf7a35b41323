"""What a node believes to be taken in one name space: listed just now, or remembered from its earlier invocations.

Belief only saves requests: the store decides, and what a belief gets wrong costs one more try. That a range is
exhausted is never believed, it is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from typing import Any

from netaddr import IPAddress

from ipam.choice import FIRST_WINDOW
from ipam.stores.iplease import Cooling
from ipam.stores.runs import Runs

Json = dict[str, Any]

# Candidates are drawn from so many of the lowest free addresses; after a lost one from eight times as many, at most.
_WINDOW, _GROWTH, _WIDEST = FIRST_WINDOW["window"], 8, 4096
# So many cooling addresses are remembered; the others are believed to be taken.
_MOST_COOLING = 1000


class Known:
    """The taken and the cooling addresses of one name space, and for how many more lost tries they are believed.

    ``listed``: that is all of them, just now. ``looked``: it was looked at least where the free ones begin, once.
    ``window``: from how many of the lowest ones believed to be free a candidate is drawn: what is not known is mostly
    at the low end, so that it widens with each lost one, as long as nobody looks.
    """

    def __init__(self, *, patience: int, listed: bool = False, looked: bool = False) -> None:
        self.patience = patience
        self.listed = listed
        self.looked = looked
        self.window = _WINDOW
        self.cooling: dict[IPAddress, Cooling] = {}
        self._taken = {4: Runs(), 6: Runs()}

    def lose(self) -> None:
        """A candidate that was believed to be free was not."""
        self.patience -= 1
        self.window = min(self.window * _GROWTH, _WIDEST)

    def win(self) -> None:
        """It was."""
        self.window = max(self.window // 2, _WINDOW)

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

    def highest(self, version: int) -> int | None:
        """Return the highest address that is believed to be taken, None when there is none."""
        return max((last for _, last in self._taken[version].to_json()), default=None)

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
            "looked": self.looked,
            "window": self.window,
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
    def from_json(cls, kept: Json, *, patience: int, patience_unlooked: int) -> Known:
        """Return what was remembered, and how long it is believed if it was looked, or was not.

        Raises: KeyError, TypeError, ValueError when it isn't what to_json wrote.
        """
        looked = kept.get("looked") is True
        known = cls(patience=patience if looked else patience_unlooked, looked=looked)
        known.window = min(max(int(kept.get("window", _WINDOW)), _WINDOW), _WIDEST)
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
