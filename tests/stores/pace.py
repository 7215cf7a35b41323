"""How long callers live that are to be killed at any moment: on every machine some too short for a lease, some not."""

from __future__ import annotations

import random
import time

_MISSES = 10
_STEP = 1.5


class Pace:
    """Pauses between two bounds; longer where callers are killed before they have anything, so slow is the machine."""

    def __init__(self, rng: random.Random, shortest_s: float, longest_s: float) -> None:
        self._rng = rng
        self._bounds_s = shortest_s, longest_s
        self._factor = 1.0
        self._misses = 0

    def pause(self) -> None:
        """Let the caller live."""
        time.sleep(self._rng.uniform(*self._bounds_s) * self._factor)

    def learn(self, *, had_leases: bool) -> None:
        """Take note of what a DEL found."""
        self._misses = 0 if had_leases else self._misses + 1
        if had_leases:
            self._factor = max(1.0, self._factor / _STEP)
        elif self._misses == _MISSES:
            self._misses = 0
            self._factor = min(100.0, self._factor * _STEP)
