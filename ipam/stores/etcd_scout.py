"""Where to look for free addresses of a pool in etcd: at small windows of it, for etcd counts a range key by key.

A claim that fails, or one that wants news, asks about a few windows along with itself: those that begin where free
addresses are believed to be, some above, further and further apart, some below, for what was released since. So a /64
costs what a /24 does, and 60,000 taken addresses cost hardly more than none. What is found so is near the lowest free
addresses, not certainly the lowest: who wants those counts (see ``ipam.stores.etcd_taken``), and so does everybody to
whom no window shows a free address.

Source: reference 8.1, 8.2.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

from ipam.stores.contract import Pool
from ipam.stores.etcd_taken import Question

WINDOW = 64
# As many free addresses as rivals can spread over.
SPREAD = 16 * WINDOW
_WIDEST = 512
_CONTIGUOUS = 4
_SPREAD = 8
# How far above the base, in addresses: twice as far each time up to a /16, then four times.
_AHEAD = [256 * 2**step for step in range(9)] + [65536 * 4**step for step in range(1, 9)]


class Scout:
    """Taken is all but the addresses believed to be free; without such a belief the first ones are taken for free.

    ``full``: up to this address nothing is free, as far as was seen.
    """

    def __init__(self, pool: Pool, free: Sequence[int] = (), *, full: int | None = None) -> None:
        self._line = Line(pool.range.spans)
        self._free = free or self._line.first(SPREAD)
        self._base = self._line.index(free[0]) if free else 0
        self._full = full

    def count(self, first: int, last: int) -> int:
        return last - first + 1 - len(_within(self._free, first, last))

    def taken(self, first: int, last: int) -> Sequence[int]:
        free = frozenset(_within(self._free, first, last))
        return [value for value in range(first, last + 1) if value not in free]

    def cooling(self, first: int, last: int) -> int:
        return 0

    @property
    def unseen(self) -> int:
        """How many addresses there are between what is known to be full and the lowest that is believed to be free."""
        return self._base - min(self._line.index(self._full) + 1, self._base) if self._full is not None else self._base

    @property
    def news(self) -> list[Question]:
        """What a claim that succeeds should bring along, for the next one."""
        return [*self._here, *self._below]

    @property
    def questions(self) -> list[Question]:
        """What a claim that fails should bring along."""
        base = self._base
        beyond = [index for index in _AHEAD if index < self._line.size - base]
        ahead = [self._line.window(base + index, size=min(max(index // 4, WINDOW), _WIDEST)) for index in beyond]
        end = [self._line.window(max(self._line.size - WINDOW, base))]
        return list(dict.fromkeys([*self._here, *ahead[:4], *end, *self._below, *ahead[4:]]))

    @cached_property
    def _here(self) -> list[Question]:
        base = self._base
        indices = range(base, min(base + _CONTIGUOUS * WINDOW, self._line.size), WINDOW)
        # A listing of what is full is long, a count of it is not.
        return [self._line.window(index, listed=index == base) for index in indices]

    @cached_property
    def _below(self) -> list[Question]:
        # Between what is known to be full and the base the free addresses may begin; below that, some were released.
        seen = self._base - self.unseen
        return [*self._spread(seen, self._base), *self._spread(0, seen)]

    def _spread(self, begin: int, end: int) -> list[Question]:
        """Return windows spread evenly over an interval of indices, or all of it, at a random phase."""
        gap = end - begin
        number = min(_SPREAD, -(-gap // WINDOW))
        if number == 0:
            return []
        step = max(gap // number, WINDOW)
        phase = random.randrange(step - WINDOW + 1)  # noqa: S311 - no secret
        return [self._line.window(begin + at * step + phase) for at in range(number)]


class Line:
    """The addresses of several spans, one after the other, by their index."""

    def __init__(self, spans: Sequence[tuple[int, int]]) -> None:
        self._spans = spans
        self._begins = [0, *accumulate(last - first + 1 for first, last in spans)]

    @property
    def size(self) -> int:
        return self._begins[-1]

    def first(self, number: int) -> list[int]:
        """Return the first addresses."""
        return [self.at(index) for index in range(min(number, self.size))]

    def at(self, index: int) -> int:
        """Return the address of an index."""
        span = bisect_right(self._begins, index) - 1
        return self._spans[span][0] + index - self._begins[span]

    def index(self, value: int) -> int:
        """Return the index of an address, of one between two spans that of the address before."""
        span = bisect_right([first for first, _ in self._spans], value) - 1
        if span < 0:
            return 0
        first, last = self._spans[span]
        return self._begins[span] + min(value, last) - first

    def window(self, index: int, *, size: int = WINDOW, listed: bool = False) -> Question:
        """Return the question about the window that begins there and ends with its span at the latest."""
        span = bisect_right(self._begins, index) - 1
        first = self.at(index)
        return Question(first, min(first + size - 1, self._spans[span][1]), listed)


def _within(values: Sequence[int], first: int, last: int) -> Sequence[int]:
    return values[bisect_left(values, first) : bisect_right(values, last)]
