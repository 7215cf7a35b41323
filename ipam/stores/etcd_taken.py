"""What etcd said of small windows of a pool: which addresses are taken, or only how many.

Source: reference 8.2.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from ipam.stores.contract import Pool
from ipam.stores.etcd_keys import Keys, value_of
from ipam.stores.etcd_requests import Json, count, counted, keys_of, listing

# A window of no more addresses than this is listed, where only their number is known.
_LISTED = 512

Ask = Callable[[list[Json]], list[Json]]


class Inquiry(NamedTuple):
    """Requests that go with a claim, and who hears the answers."""

    requests: Sequence[Json] = ()
    hear: Callable[[Sequence[Json]], None] = lambda responses: None


class Question(NamedTuple):
    """Which, or only how many, addresses of an interval are taken."""

    first: int
    last: int
    listed: bool

    def requests(self, keys: Keys, pool: Pool) -> list[Json]:
        """Return the two requests that ask it: of leases, of cooling addresses."""
        ask = listing if self.listed else count
        return [ask(*keys.between(kind, pool, self.first, self.last)) for kind in ("ip", "cool")]


class _Listed(NamedTuple):
    """One interval of which the taken addresses are known."""

    first: int
    last: int
    values: Sequence[int]

    def within(self, first: int, last: int) -> _Listed:
        """Return the part between the bounds."""
        return _Listed(first, last, _within(self.values, first, last))

    def free(self, limit: int) -> list[int]:
        """Return the lowest free addresses."""
        if len(self.values) > self.last - self.first:
            return []
        taken = frozenset(self.values)
        enough = range(self.first, min(self.last, self.first + len(taken) + limit) + 1)
        return [value for value in enough if value not in taken][:limit]


class Known:
    """What the store said; answers of several moments may stand side by side, for the claim itself is the proof."""

    def __init__(self, keys: Keys, pool: Pool, ask: Ask) -> None:
        self._keys = keys
        self._pool = pool
        self._ask = ask
        self._counts: dict[tuple[int, int], int] = {}
        self._listed: list[_Listed] = []

    def learn(self, questions: Sequence[Question], responses: Sequence[Json]) -> None:
        """Take in the answers to ``requests`` of the questions, two for each."""
        for at, question in enumerate(questions):
            self._add(question, responses[2 * at : 2 * at + 2])

    def free(self, limit: int) -> list[int]:
        """Return the lowest free addresses of those that were heard of, in ascending order."""
        free: list[int] = []
        heard = sorted(self._listed)
        for first, last in self._pool.range.spans:
            for each in heard:
                if each.first <= last and first <= each.last and len(free) < limit:
                    free += each.within(max(first, each.first), min(last, each.last)).free(limit - len(free))
        return free

    def likely(self, limit: int) -> list[int]:
        """Return addresses that are free or, as far as numbers tell, more likely so than not, in ascending order."""
        likely = self.free(limit)
        for (first, last), number in self._counts.items():
            if number <= (last - first + 1) // 2 and self._values(first, last) is None:
                likely += range(first, min(last, first + limit) + 1)
        return sorted(set(likely))[:limit]

    def full_before(self, value: int) -> int | None:
        """Return the highest address below that belongs to an interval known to be full."""
        full = [each.last for each in self._listed if each.last < value and len(each.values) > each.last - each.first]
        return max(full, default=None)

    def partial(self, limit: int) -> list[Question]:
        """Return what is to be asked to learn which addresses are free where only their number is known.

        The answers tell some ``limit`` addresses at most.
        """
        partial = [
            (Question(first, last, listed=True), number)
            for (first, last), number in sorted(self._counts.items())
            if 0 < number <= last - first < _LISTED and self._values(first, last) is None
        ]
        sums = accumulate(number for _, number in partial)
        return [question for (question, _), total in zip(partial, sums, strict=True) if total <= limit] or [
            question for question, _ in partial[:1]
        ]

    def ask_for(self, questions: Sequence[Question]) -> None:
        """Ask them now."""
        requests = [request for question in questions for request in question.requests(self._keys, self._pool)]
        self.learn(questions, self._ask(requests))

    def _values(self, first: int, last: int) -> list[int] | None:
        values: list[int] = []
        covered = 0
        for each in self._listed:
            if each.first <= last and first <= each.last:
                values += _within(each.values, first, last)
                covered += min(last, each.last) - max(first, each.first) + 1
        return values if covered == last - first + 1 else None

    def _add(self, question: Question, responses: Sequence[Json]) -> None:
        first, last, listed = question
        number = self._counts[first, last] = sum(map(counted, responses))
        if number == 0:
            values: Sequence[int] = ()
        elif number == last - first + 1:
            values = range(first, last + 1)
        elif listed:
            values = sorted(value_of(key) for response in responses for key in keys_of(response))
        else:
            return
        older = [each for each in self._listed if each.first <= last and first <= each.last]
        for each in older:
            self._listed.remove(each)
            if each.first < first:
                self._listed.append(each.within(each.first, first - 1))
            if last < each.last:
                self._listed.append(each.within(last + 1, each.last))
        self._listed.append(_Listed(first, last, values))


def _within(values: Sequence[int], first: int, last: int) -> Sequence[int]:
    return values[bisect_left(values, first) : bisect_right(values, last)]
