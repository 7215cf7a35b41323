"""What one node believes of pools in etcd before it asks, and what it remembers for its next ADD.

A belief only chooses the candidate; whether it is free is decided by the transaction that claims it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from netaddr import IPAddress

from ipam.choice import FIRST_WINDOW
from ipam.stores import etcd_full
from ipam.stores.contract import Allocation, Pool, Want
from ipam.stores.etcd_keys import Keys
from ipam.stores.etcd_lowest import LowestView
from ipam.stores.etcd_requests import Json
from ipam.stores.etcd_scout import SPREAD, Line, Scout
from ipam.stores.etcd_search import Search, Wanted, looked_for, told
from ipam.stores.etcd_taken import Ask, Inquiry, Known, Question
from ipam.stores.runs import Runs
from ipam.stores.scratch import Scratch

_WINDOW = FIRST_WINDOW["window"]
_HINTED = 2 * _WINDOW
_HINT_S = 30.0
_MOST_LISTED = 256
# So many sets of candidates are tried by one transaction, when they leave room for questions.
_SETS = 4


class Hint(NamedTuple):
    """Free addresses last seen, in ascending order; up to which address below them nothing was; and when that was."""

    free: Sequence[int] = ()
    full: int | None = None
    at: float = 0


class NearView:
    """What is believed of one pool of which any address near the lowest will do: where this node last saw free ones.

    Without such a hint nothing is presumed to be taken; then it is what etcd answers.
    """

    is_blank = False
    guards: Sequence[Json] = ()

    def __init__(self, pool: Pool, keys: Keys, ask: Ask, wanted: Wanted, hint: Hint, *, is_fresh: bool) -> None:
        self._pool = pool
        self._keys = keys
        self._ask = ask
        self._wanted = wanted
        self._known = Known(keys, pool, ask)
        self._revised = 0
        scout = Scout(pool, hint.free, full=hint.full)
        self._wants_news = not is_fresh or len(hint.free) <= _WINDOW or scout.unseen > _WINDOW
        self.lost: set[int] = set()
        self.heard = False
        self.occupancy = scout
        if pool.range.size < wanted.of_pool:
            # A presumption must not run out of addresses: only what was heard may say that a pool is exhausted.
            self.occupancy = self._searched()

    def changes(self, claimed: Collection[int]) -> list[Json]:
        """Return what a claim of these addresses leaves for others: nothing."""
        return []

    def news(self, room: int) -> Inquiry:
        """Return what a claim that succeeds should bring along, in so many operations."""
        return self._inquiry(self._news(room))

    def inquiry(self, room: int) -> Inquiry:
        """Return what a claim that fails should bring along besides, the most telling first."""
        told = self._news(room)
        return self._inquiry([each for each in self.occupancy.questions if each not in told][: room // 2 - len(told)])

    def revise(self) -> None:
        """Believe what was heard from now on."""
        self._revised += 1
        free = self._not_lost(self._known.likely(SPREAD))
        if len(free) < self._wanted.of_pool and (partial := self._known.partial(_MOST_LISTED)):
            self._known.ask_for(partial)
            free = self._not_lost(self._known.free(SPREAD))
        if len(free) >= self._wanted.of_pool:
            self.occupancy = Scout(self._pool, free, full=self._known.full_before(free[0]))
        else:
            self.occupancy = self._searched()

    def hint(self) -> Hint:
        """Return the lowest addresses that the next ADD may presume free, of those that were heard of."""
        free = self._known.free(_HINTED)
        return Hint(free, self._known.full_before(free[0]) if free else None)

    def _searched(self) -> Scout:
        # Who meets rivals at the last free addresses looks for more of them each time.
        wanted = self._wanted.of_space << min(self._revised, 6)
        search = Search(Line(self._pool.range.spans), Runs(), wanted=wanted, lost=self.lost)
        return told(looked_for(search, self._pool, self._keys, self._ask), self._pool, self._keys, self._ask)

    def _news(self, room: int) -> list[Question]:
        return self.occupancy.news[: room // 2] if self._wants_news else []

    def _inquiry(self, questions: Sequence[Question]) -> Inquiry:
        def hear(responses: Sequence[Json]) -> None:
            if questions:
                self.heard = True
                self._known.learn(questions, responses)

        return Inquiry([request for each in questions for request in each.requests(self._keys, self._pool)], hear)

    def _not_lost(self, values: Sequence[int]) -> list[int]:
        return [value for value in values if value not in self.lost]


class Views:
    """The pools of one reserve; what is remembered is read when a pool is first looked at."""

    def __init__(
        self,
        scratch: Scratch,
        *,
        keys: Keys,
        ask: Ask,
        cluster: str,
        clock: Callable[[], float],
        allocation: Allocation,
    ) -> None:
        self._scratch = scratch
        self._keys = keys
        self._ask = ask
        self._cluster = cluster
        self._clock = clock
        self._allocation = allocation
        self._views: dict[Pool, NearView | LowestView] = {}

    def of(self, pool: Pool, wanted: Wanted) -> NearView | LowestView:
        """Return what is believed of a pool."""
        if pool not in self._views:
            self._views[pool] = self._first_view(pool, wanted)
        return self._views[pool]

    def __getitem__(self, pool: Pool) -> NearView | LowestView:
        return self._views[pool]

    def sets(self, pools: Counter[Pool]) -> int:
        """Return how many sets of candidates are worth offering at once for so many addresses of these pools."""
        if self._allocation == "window":
            return _SETS
        # Where it was told what is full, the next ones may be taken since. Of two addresses, the lowest one would be
        # passed over where only the other is lost.
        views = [self._views[pool] for pool in pools if pool in self._views]
        are_told = all(view.is_blank and (view.heard or view.guards) for view in views)
        return _SETS if are_told and pools.total() == 1 else 1

    def lost(self, wants: Sequence[Want], taken: Sequence[tuple[int, IPAddress]]) -> None:
        """Take note of candidates that somebody else has."""
        for at, address in taken:
            if wants[at].requested is None:
                self._views[wants[at].pool].lost.add(address.value)

    def remember(self, claimed: dict[Pool, set[int]]) -> None:
        """Keep for the next ADD what is so after this one."""
        for pool, view in self._views.items():
            gone = claimed.get(pool, set())
            if isinstance(view, LowestView):
                if (full := view.to_remember(gone)) is not None:
                    self._scratch.keep(self._about(pool, "full"), full.to_json())
                continue
            hint = view.hint()._replace(at=self._clock()) if view.heard else self._kept(pool)
            free = [value for value in hint.free if value not in view.lost | gone]
            self._scratch.keep(self._about(pool, "free"), hint._replace(free=free)._asdict())

    def _first_view(self, pool: Pool, wanted: Wanted) -> NearView | LowestView:
        if self._allocation == "lowest":
            full = etcd_full.of_json(self._scratch.read(self._about(pool, "full")))
            remembered = full if full and full.is_recent(self._clock()) else None
            return LowestView(pool, self._keys, self._ask, wanted, clock=self._clock, remembered=remembered)
        hint = self._kept(pool)
        if len(hint.free) < wanted.of_pool:
            hint = Hint()
        is_fresh = abs(self._clock() - hint.at) < _HINT_S
        return NearView(pool, self._keys, self._ask, wanted, hint, is_fresh=is_fresh)

    def _kept(self, pool: Pool) -> Hint:
        kept = self._scratch.read(self._about(pool, "free"))
        free, full, at = kept.get("free"), kept.get("full"), kept.get("at")
        if not isinstance(free, list) or not isinstance(at, int | float):
            return Hint()
        if any(
            type(value) is not int or not _is_in(pool, value) for value in (*free, *([] if full is None else [full]))
        ):
            return Hint()
        return Hint(sorted(set(free)), full, at)

    def _about(self, pool: Pool, what: str) -> str:
        return f"{what} in {pool.space!r} {pool.range.network} {pool.range.spans} of {self._cluster}"


def _is_in(pool: Pool, value: int) -> bool:
    return any(first <= value <= last for first, last in pool.range.spans)
