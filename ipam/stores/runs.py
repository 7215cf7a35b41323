"""A set of numbers as its runs of consecutive ones, for the taken addresses of a name space."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate


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

    def last_of(self, value: int) -> int | None:
        """Return the last number of the run that a number is in, None when it is not in the set."""
        at = bisect_left(self._last, value)
        return self._last[at] if at < len(self._last) and self._first[at] <= value else None

    def to_json(self) -> list[list[int]]:
        """Return the runs."""
        return [[first, last] for first, last in zip(self._first, self._last, strict=True)]

    @property
    def size(self) -> int:
        """How many there are."""
        return sum(last - first + 1 for first, last in zip(self._first, self._last, strict=True))

    def _below(self, bound: int) -> int:
        if self._sums is None:
            sizes = (last - first + 1 for first, last in zip(self._first, self._last, strict=True))
            self._sums = [0, *accumulate(sizes)]
        at = bisect_left(self._first, bound)
        return self._sums[at] - (max(self._last[at - 1] - bound + 1, 0) if at else 0)
