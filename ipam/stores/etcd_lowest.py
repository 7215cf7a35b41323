"""One pool of a reserve that wants the really lowest free address.

A node that knows nothing presumes that nothing is taken; the transaction that claims the first address, and fails,
brings along what those left who counted before, else answers to questions of its own. What they left is proven by that
very transaction; what this node remembers is no proof, and is compared by the claim that rests on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from ipam.stores import etcd_full
from ipam.stores.contract import Pool
from ipam.stores.etcd_full import Freed, Full, nothing_known
from ipam.stores.etcd_keys import Keys
from ipam.stores.etcd_requests import Json
from ipam.stores.etcd_scout import WINDOW, Line, Scout
from ipam.stores.etcd_search import Search, Wanted, looked_for, told
from ipam.stores.etcd_taken import Ask, Inquiry, Question
from ipam.stores.runs import Runs

# So many questions go with a claim that will need none: of who knows nothing, or something.
_ASKED_BLANK, _ASKED = 11, 1


class LowestView:
    """What is believed of one pool, beginning with what this node ``remembered`` of an earlier ADD.

    ``is_blank``: a candidate is only presumed to be free, and to lose it says nothing about rivals.
    """

    def __init__(
        self, pool: Pool, keys: Keys, ask: Ask, wanted: Wanted, *, clock: Callable[[], float], remembered: Full | None
    ) -> None:
        self._pool = pool
        self._keys = keys
        self._ask = ask
        self._wanted = wanted
        self._clock = clock
        self._line = Line(pool.range.spans)
        self.lost: set[int] = set()
        self.heard = False
        self.is_blank = True
        self._is_guarded = remembered is not None
        self._full = remembered or nothing_known(Freed(), 0)
        self._search = self._begun()
        self._is_answered = False
        self.occupancy: Scout
        if not self._presume():
            # A presumption must not run out of addresses: only what was heard may say that a pool is exhausted.
            self._hear([], ask(etcd_full.questions(keys, pool)))
            self.revise()

    @property
    def guards(self) -> list[Json]:
        """What a claim compares that rests on what is remembered."""
        return [etcd_full.unreleased(self._keys, self._pool, self._full)] if self._is_guarded else []

    def changes(self, claimed: Collection[int]) -> list[Json]:
        """Return what a claim of these addresses leaves for others, besides its own."""
        return etcd_full.left(self._keys, self._pool, self._with(claimed))

    def to_remember(self, claimed: Collection[int]) -> Full | None:
        """Return what this node should know at its next ADD."""
        full = self._with(claimed)
        return full if full.revision and full.is_worth_keeping else None

    def news(self, room: int) -> Inquiry:
        """Return what a claim that succeeds should bring along: nothing."""
        return Inquiry()

    def inquiry(self, room: int) -> Inquiry:
        """Return what a claim that fails should bring along, in so many operations."""
        if self.heard:
            self._search = self._begun()
        left = etcd_full.questions(self._keys, self._pool)
        most = _ASKED if self._full.runs.size else _ASKED_BLANK
        questions = self._search.questions(max(min((room - len(left) - 1) // 2, most), 0))
        asked = [request for each in questions for request in each.requests(self._keys, self._pool)]
        if not self._full.runs.size:
            asked = [etcd_full.nobody_left(self._keys, self._pool, asked)]
        return Inquiry([*left, *asked], partial(self._hear, questions))

    def _hear(self, questions: Sequence[Question], responses: Sequence[Json]) -> None:
        self.heard = True
        now = self._clock()
        freed, left = etcd_full.read(responses[:2])
        answers = responses[2:]
        if answers and "response_txn" in answers[0]:
            answers = answers[0]["response_txn"].get("responses", [])
        known = self._full.as_of(freed, now)
        is_so = known is self._full or freed.revision == self._full.revision == 0
        if answers and (is_so or not self._full.runs.size):
            self._is_answered = True
            self._search.hear(questions, answers)
            self._full = Full(freed.revision, freed.version, self._full.counted_at or now, self._search.full)
        else:
            self._is_answered = False
            self._full = known or (left and left.as_of(freed, now)) or nothing_known(freed, now)
            self._search = self._begun()
        self._is_guarded = False

    def revise(self) -> None:
        """Believe what was heard from now on, and ask on where that does not tell the lowest free address."""
        if not self._is_answered and self._full.runs.size and self._presume():
            return
        looked_for(self._search, self._pool, self._keys, self._ask)
        if len(self._search.free) < self._wanted.of_pool and self._full.runs.size:
            # That a pool is exhausted is not taken from others.
            self._full = self._full._replace(counted_at=self._clock(), runs=Runs())
            self._search = looked_for(self._begun(), self._pool, self._keys, self._ask)
        self._full = self._full._replace(runs=self._search.full)
        self.occupancy = told(self._search, self._pool, self._keys, self._ask)
        self.is_blank = False

    def _presume(self) -> bool:
        """Presume that all is free that is not known to be full; whether that is enough."""
        presumed = self._search.presumed(WINDOW)
        self.occupancy = Scout(self._pool, presumed)
        return len(presumed) >= self._wanted.of_pool

    def _begun(self) -> Search:
        full = Runs(self._full.runs.to_json())
        return Search(self._line, full, wanted=self._wanted.of_space, lost=self.lost)

    def _with(self, claimed: Collection[int]) -> Full:
        runs = Runs(self._full.runs.to_json())
        for value in claimed:
            runs.add(value, value)
        return self._full._replace(runs=runs)
