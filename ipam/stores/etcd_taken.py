"""What of a pool is taken in etcd, counted, for the really lowest free address: presumed, then heard, asked on a gap.

A presumption remembers the questions that the search for free addresses put to it; the transaction that claims a
presumed address asks the store the same ones, so that a wrong guess costs no call beside its own.

Source: ``ipam.ranges.Occupancy``; reference 8.2.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

from ipam.ranges import halves, segments
from ipam.stores.contract import Pool
from ipam.stores.etcd_keys import Keys, value_of
from ipam.stores.etcd_requests import Json, count, counted, keys_of, listing

# A gap in no more addresses than this is looked for in a listing of their keys, in more by counting.
_LISTED = 512
_HALVINGS = 6
_AHEAD = 10

Ask = Callable[[list[Json]], list[Json]]


class Question(NamedTuple):
    """Which, or only how many, addresses of an interval are taken."""

    first: int
    last: int
    listed: bool

    def requests(self, keys: Keys, pool: Pool) -> list[Json]:
        """Return the two requests that ask it: of leases, of cooling addresses."""
        ask = listing if self.listed else count
        return [ask(*keys.between(kind, pool, self.first, self.last)) for kind in ("ip", "cool")]


class Presumed:
    """Nothing is taken."""

    def __init__(self, pool: Pool) -> None:
        self._asked: dict[Question, None] = {}
        spans = pool.range.spans[:1]
        self._ahead = [Question(*each, listed=False) for span in spans for each in _segments_ahead(*span, _AHEAD)]

    @property
    def questions(self) -> list[Question]:
        """What the search asked, and what it asks next when the presumption is wrong."""
        return list(dict.fromkeys([*self._asked, *self._ahead]))

    def count(self, first: int, last: int) -> int:
        self._asked[Question(first, last, listed=False)] = None
        return 0

    def taken(self, first: int, last: int) -> Sequence[int]:
        self._asked[Question(first, last, listed=True)] = None
        return ()

    def cooling(self, first: int, last: int) -> int:
        return 0


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
    """What the store said; what does not follow from it is asked.

    Answers of several moments may stand side by side: they tell where to try, and the claim itself is the proof.
    """

    def __init__(self, keys: Keys, pool: Pool, ask: Ask) -> None:
        self._keys = keys
        self._pool = pool
        self._ask = ask
        self._counts: dict[tuple[int, int], int] = {}
        self._listed: list[_Listed] = []
        self._asked: dict[Question, None] = {}

    @property
    def questions(self) -> list[Question]:
        """What the search asked."""
        return list(self._asked)

    def learn(self, questions: Sequence[Question], responses: Sequence[Json]) -> None:
        """Take in the answers to ``requests`` of the questions, two for each."""
        for at, question in enumerate(questions):
            self._add(question, responses[2 * at : 2 * at + 2])

    def count(self, first: int, last: int) -> int:
        self._asked[Question(first, last, listed=False)] = None
        found = self._count(first, last)
        if found is None:
            self._fetch(first, last)
            found = self._count(first, last)
        assert found is not None
        return found

    def taken(self, first: int, last: int) -> Sequence[int]:
        values = self._values(first, last)
        if values is None:
            self._fetch(first, last)
            values = self._values(first, last)
        assert values is not None
        # Of what is full the number says it all.
        self._asked[Question(first, last, listed=len(values) <= last - first)] = None
        return values

    def cooling(self, first: int, last: int) -> int:
        (response,) = self._ask([count(*self._keys.between("cool", self._pool, first, last))])
        return counted(response)

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

    def _count(self, first: int, last: int) -> int | None:
        if (first, last) in self._counts:
            return self._counts[first, last]
        values = self._values(first, last)
        return None if values is None else len(values)

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

    def _fetch(self, first: int, last: int) -> None:
        if last - first < _LISTED:
            # The search goes on behind it: one listing of fixed size is worth several small ones.
            self.ask_for([Question(first, max(last, min(first + _LISTED - 1, self._span_end(first))), listed=True)])
            return
        levels = [[self._whole_of(first, last)]]
        behind = self._behind(first, last) if levels[0] == [(first, last)] else []
        for _ in range(_HALVINGS - bool(behind)):
            levels.append([half for each in levels[-1] for half in halves(*each)])
        self.ask_for([Question(*each, listed=False) for each in [*levels[-1], *behind]])
        for level in reversed(levels[:-1]):
            for each in level:
                self._counts[each] = sum(self._counts[half] for half in halves(*each))

    def _whole_of(self, first: int, last: int) -> tuple[int, int]:
        # The search that asks for one half asks for the other one next.
        return next((each for each in self._counts if halves(*each)[0] == (first, last)), (first, last))

    def _behind(self, first: int, last: int) -> list[tuple[int, int]]:
        for span in self._pool.range.spans:
            if span[0] <= first <= span[1]:
                return [each for each in _segments_ahead(*span, 3 * _AHEAD) if each[0] > last][:_AHEAD]
        return []

    def _span_end(self, first: int) -> int:
        return max((span[1] for span in self._pool.range.spans if span[0] <= first <= span[1]), default=first)


def _segments_ahead(first: int, last: int, number: int) -> list[tuple[int, int]]:
    """Return the segments of a search that follow the first one; their sizes double."""
    return list(islice(segments(first, last), 1, 1 + number))


def _within(values: Sequence[int], first: int, last: int) -> Sequence[int]:
    return values[bisect_left(values, first) : bisect_right(values, last)]
