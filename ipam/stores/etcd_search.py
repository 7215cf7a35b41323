"""The really lowest free addresses of a pool in etcd, found by counting parts of it that get smaller and smaller.

What is taken is mostly the low end: so the first parts are short, each further one is longer, and
of the first one with a gap the number of its taken addresses tells where that is, if it is the only one. A part that is
full is not looked at again, and what is known to be leased (``ipam.stores.etcd_full``) not at all: etcd counts a range
key by key.

Answers of several moments may stand side by side: they tell where to try, and the claim itself is the proof.

Source: reference 8.2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from ipam.stores.contract import Pool
from ipam.stores.etcd_keys import Keys, value_of
from ipam.stores.etcd_requests import Json, count, counted, keys_of
from ipam.stores.etcd_scout import WINDOW, Line, Scout
from ipam.stores.etcd_taken import Ask, Question
from ipam.stores.runs import Runs

# So many addresses are listed at the low end, and where a gap is; of more it is counted how many are taken.
_LISTED, _LISTED_FOR_GAP = 256, 600
_PARTS = 56
# So many windows are asked about by one transaction: etcd allows 128 operations, and each window is two.
MOST_QUESTIONS = 60


class _Part(NamedTuple):
    """A part of a pool: from index to index, which one is beyond, and how many of it are taken."""

    end: int
    taken: int


class Search:
    """One search from the low end upwards; ``full``: what is known to be leased, to which it adds what it learns."""

    def __init__(self, line: Line, full: Runs, *, wanted: int, lost: Collection[int] = ()) -> None:
        self.free: list[int] = []
        self.full = full
        self._line = line
        self._wanted = wanted
        self._lost = lost
        self._at = self._behind_full(0)
        self._gap: _Part | None = None

    @property
    def is_over(self) -> bool:
        """Whether enough free addresses were found, or there are no more."""
        return len(self.free) >= self._wanted or self._at >= self._line.size

    def presumed(self, number: int) -> list[int]:
        """Return the lowest addresses that are not known to be leased."""
        presumed: list[int] = []
        at = self._at
        while at < self._line.size and len(presumed) < number:
            value = self._line.at(at)
            at = self._behind_full(at + 1)
            if value not in self._lost:
                presumed.append(value)
        return presumed

    def questions(self, most: int = MOST_QUESTIONS) -> list[Question]:
        """Return what is to be asked next, in ascending order: at least one, as long as it is not over.

        Where only few can be asked, their parts are longer.
        """
        if self._gap is not None:
            return self._within(self._gap)[:most]
        line, at = self._line, self._at
        asked = [line.window(at, size=WINDOW if at else _LISTED, listed=True)]
        at = self._behind_full(self._end(asked[-1]))
        while at < line.size and len(asked) < most:
            asked.append(line.window(at, size=max(_LISTED, at if most < MOST_QUESTIONS else at // 4)))
            at = self._behind_full(self._end(asked[-1]))
        return asked

    def hear(self, questions: Sequence[Question], responses: Sequence[Json]) -> None:
        """Take in the answers, two responses for each question: what is leased, what only cools down."""
        for question, leased, cooling in zip(questions, responses[::2], responses[1::2], strict=False):
            if self.is_over or self._line.index(question.first) != self._at:
                return
            taken, end = counted(leased) + counted(cooling), self._end(question)
            size = question.last - question.first + 1
            if taken >= size:
                if counted(leased) == size:
                    self.full.add(question.first, question.last)
            elif question.listed:
                values = [value_of(key) for key in keys_of(leased)]
                for value in values:
                    self.full.add(value, value)
                self._found(question, {*values, *map(value_of, keys_of(cooling))})
            elif taken == 0:
                self._found(question._replace(last=min(question.last, question.first + self._enough)), ())
            else:
                self._gap = _Part(end, taken)
                return
            if self._gap is not None and end >= self._gap.end:
                self._gap = None
            self._at = self._behind_full(end)

    def _within(self, gap: _Part) -> list[Question]:
        """Return the smaller parts of one with a gap, up to where that is if nothing else is free."""
        line, at = self._line, self._at
        if gap.end - at <= _LISTED_FOR_GAP:
            return [line.window(at, size=gap.end - at, listed=True)]
        guess = min(max(at + gap.taken - WINDOW // 4, at), gap.end - WINDOW)
        size = max(-(-(guess - at) // _PARTS), WINDOW)
        asked = [line.window(begin, size=min(size, guess - begin)) for begin in range(at, guess, size)]
        return [*asked, line.window(guess, listed=True)]

    def _found(self, question: Question, taken: Collection[int]) -> None:
        self.free += [
            value
            for value in range(question.first, question.last + 1)
            if value not in taken and value not in self._lost
        ]

    @property
    def _enough(self) -> int:
        return self._wanted + len(self._lost) + WINDOW

    def _end(self, question: Question) -> int:
        return self._line.index(question.last) + 1

    def _behind_full(self, index: int) -> int:
        while index < self._line.size:
            value = self._line.at(index)
            last = self.full.last_of(value)
            if last is None:
                break
            index = self._end(self._line.window(index, size=last - value + 1))
        return index


class Wanted(NamedTuple):
    """How many addresses are wanted of a pool, and of all pools of its name space and family, which may overlap."""

    of_pool: int
    of_space: int


def looked_for(search: Search, pool: Pool, keys: Keys, ask: Ask) -> Search:
    """Ask until a search is over."""
    while not search.is_over:
        questions = search.questions()
        search.hear(questions, ask([request for each in questions for request in each.requests(keys, pool)]))
    return search


def told(search: Search, pool: Pool, keys: Keys, ask: Ask) -> Scout:
    """Return what a search that is over says of its pool."""

    def cooling(first: int, last: int) -> int:
        (response,) = ask([count(*keys.between("cool", pool, first, last))])
        return counted(response)

    return _Told(pool, search.free, cooling)


class _Told(Scout):
    """All but some addresses is taken, maybe all; how many only cool is asked when it matters."""

    def __init__(self, pool: Pool, free: Sequence[int], cooling: Callable[[int, int], int]) -> None:
        super().__init__(pool, free)
        self._free = free
        self._cooling = cooling

    def cooling(self, first: int, last: int) -> int:
        return self._cooling(first, last)
