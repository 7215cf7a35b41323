"""How crowded it is at objects that many change at once: whose turn it is, and how far apart candidates are drawn.

Nothing here keeps anybody out: it only saves requests that would be lost. An API server does a patch anew for as long
as others are faster, at a cost that grows with the object, so that a hundred at once are ten thousand patches for it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from ipam.stores.contract import Deadline
from ipam.stores.scratch import Scratch

# How wide the window of lowest free addresses is after so many lost races; from then on it doubles.
_WINDOWS = (1, 64, 256)
_RECENTLY_S = 1.0
# A change of an object with a hundred entries, on a server that is slow; with more it takes longer in proportion, and
# so do the tries that are made over when changes come faster than they are done.
_TURN_S, _TURN_ENTRIES = 0.03, 128
_LONGEST_TURN_S = 40.0


class Turns:
    """When this invocation may change what others change as well.

    ``answering_s`` tells how long the server took to answer until now.
    """

    def __init__(self, deadline: Deadline, answering_s: Callable[[], float]) -> None:
        self._deadline = deadline
        self._answering_s = answering_s
        # How often others came before us, and how many there may be.
        self.met = 0
        self.among = 2

    def wait(self, entries: int) -> None:
        """Wait for our turn where it is crowded, drawn by lot: to give back an entry there are no more than there are.

        It comes later the longer the server took, as it did for the others: so the wait fits one that is slow, and
        nobody needs to know how many there are. With a third of it, a real API server spends twice the CPU time on a
        hundred at once; with twice of it they take twice as long (docs/performance.md).
        """
        if self.met:
            rivals = max(self.among, entries)
            last = min(
                4 * self._answering_s(),
                _TURN_S * rivals * max(1, rivals / _TURN_ENTRIES) ** 2,
                _LONGEST_TURN_S,
                self._deadline.remaining_s() / 4,
            )
            time.sleep(last * random.random())  # noqa: S311 - no secret


class Races:
    """The races for an address that this invocation lost, and what this node's earlier ones met a moment ago."""

    def __init__(self, scratch: Scratch, about: str, *, first: int, clock: Callable[[], float] = time.time) -> None:
        self._scratch = scratch
        self._about = f"races at {about}"
        self._clock = clock
        self.lost = 0
        self.window = max(first, self._recent())

    def lose(self) -> None:
        """Count one that was lost: the window is wider from now on."""
        self.lost += 1
        self.window = next((each for each in _WINDOWS if each > self.window), self.window * 2)

    def remember(self) -> None:
        """Tell the next invocation on this node, which comes at once where a pod has several networks."""
        window = self.window if self.lost else self.window // 2
        if window > 1:
            self._scratch.keep(self._about, {"at": self._clock(), "window": window})

    def _recent(self) -> int:
        kept = self._scratch.read(self._about)
        try:
            return int(kept["window"]) if 0 <= self._clock() - kept["at"] < _RECENTLY_S else 1
        except (KeyError, TypeError, ValueError):
            return 1
