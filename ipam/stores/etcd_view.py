"""What one node believes of pools in etcd before it asks, and what it leaves for its next ADD.

A belief only chooses the candidate; whether it is free is decided by the transaction that claims it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from netaddr import IPAddress

from ipam.choice import FIRST_WINDOW
from ipam.stores.contract import Pool, Want
from ipam.stores.etcd_keys import Keys
from ipam.stores.etcd_requests import Json
from ipam.stores.etcd_scout import SPREAD, Scout
from ipam.stores.etcd_taken import Ask, Known, Presumed, Question
from ipam.stores.scratch import Scratch

_WINDOW = FIRST_WINDOW["window"]
_HINTED = 2 * _WINDOW
_HINT_S = 30.0
_MOST_LISTED = 256


class Hint(NamedTuple):
    """Free addresses last seen, in ascending order; up to which address below them nothing was; and when that was."""

    free: Sequence[int] = ()
    full: int | None = None
    at: float = 0


class View:
    """What is believed of one pool: what this node last saw, else that nothing is taken; then what etcd answers.

    With a ``scout`` any address near the lowest will do; without, the really lowest is looked for.
    """

    def __init__(
        self, pool: Pool, know: Callable[[], Known], scout: Scout | None, *, wanted: int, wants_news: bool
    ) -> None:
        self._pool = pool
        self._know = know
        self._known = know()
        self._scouts = scout is not None
        self._wanted = wanted
        self._wants_news = wants_news
        self.lost: set[int] = set()
        self.heard = False
        self.occupancy: Scout | Presumed | Known = scout or Presumed(pool)
        if pool.range.size < wanted:
            # A presumption must not run out of addresses: only what was heard may say that a pool is exhausted.
            self.occupancy = self._known

    @property
    def is_blank(self) -> bool:
        """Whether nothing is known, so that a lost guess at the lowest says nothing about rivals."""
        return isinstance(self.occupancy, Presumed)

    @property
    def questions(self) -> list[Question]:
        """What etcd should be asked along with a claim that fails, the most telling first."""
        return self.occupancy.questions

    @property
    def news(self) -> list[Question]:
        """What etcd should be asked along with a claim that succeeds."""
        return self.occupancy.news if self._wants_news and isinstance(self.occupancy, Scout) else []

    def hear(self, questions: Sequence[Question], responses: Sequence[Json]) -> None:
        """Take in what etcd answered, two responses for each question."""
        self.heard = True
        if not self._scouts:
            self._known = self._know()
        self._known.learn(questions, responses)

    def revise(self) -> None:
        """Believe what was heard from now on."""
        self.occupancy = self._known
        if not self._scouts:
            return
        free = self._not_lost(self._known.likely(SPREAD))
        if len(free) < self._wanted and (partial := self._known.partial(_MOST_LISTED)):
            self._known.ask_for(partial)
            free = self._not_lost(self._known.free(SPREAD))
        if len(free) >= self._wanted:
            self.occupancy = Scout(self._pool, free, full=self._known.full_before(free[0]))

    def hint(self) -> Hint:
        """Return the lowest addresses that the next ADD may presume free, of those that were heard of."""
        free = self._known.free(_HINTED)
        return Hint(free, self._known.full_before(free[0]) if free else None)

    def _not_lost(self, values: Sequence[int]) -> list[int]:
        return [value for value in values if value not in self.lost]


class Views:
    """The pools of one reserve. Hints are read and left where ``hinted``: the really lowest address needs news."""

    def __init__(
        self, scratch: Scratch, *, keys: Keys, ask: Ask, cluster: str, clock: Callable[[], float], hinted: bool
    ) -> None:
        self._scratch = scratch
        self._keys = keys
        self._ask = ask
        self._cluster = cluster
        self._clock = clock
        self._hinted = hinted
        self._views: dict[Pool, View] = {}

    def of(self, pool: Pool, *, wanted: int) -> View:
        """Return what is believed of a pool of which so many addresses are wanted."""
        if pool not in self._views:
            self._views[pool] = self._first_view(pool, wanted)
        return self._views[pool]

    def __getitem__(self, pool: Pool) -> View:
        return self._views[pool]

    def are_near(self, pools: Iterable[Pool]) -> bool:
        """Tell whether addresses near the lowest are looked for, and believed to be known."""
        return all(isinstance(self._views[pool].occupancy, Scout) for pool in pools if pool in self._views)

    def lost(self, wants: Sequence[Want], taken: Sequence[tuple[int, IPAddress]]) -> None:
        """Take note of candidates that somebody else has."""
        for at, address in taken:
            if wants[at].requested is None:
                self._views[wants[at].pool].lost.add(address.value)

    def leave_hints(self, claimed: dict[Pool, set[int]]) -> None:
        """Keep for the next ADD what is free after this one."""
        if not self._hinted:
            return
        for pool, view in self._views.items():
            hint = view.hint()._replace(at=self._clock()) if view.heard else self._kept(pool)
            gone = view.lost | claimed.get(pool, set())
            free = [value for value in hint.free if value not in gone]
            self._scratch.keep(self._about(pool), hint._replace(free=free)._asdict())

    def _first_view(self, pool: Pool, wanted: int) -> View:
        def know() -> Known:
            return Known(self._keys, pool, self._ask)

        if not self._hinted:
            return View(pool, know, None, wanted=wanted, wants_news=False)
        hint = self._kept(pool)
        if len(hint.free) < wanted:
            hint = Hint()
        is_fresh = abs(self._clock() - hint.at) < _HINT_S
        scout = Scout(pool, hint.free, full=hint.full)
        wants_news = not is_fresh or len(hint.free) <= _WINDOW or scout.unseen > _WINDOW
        return View(pool, know, scout, wanted=wanted, wants_news=wants_news)

    def _kept(self, pool: Pool) -> Hint:
        kept = self._scratch.read(self._about(pool))
        free, full, at = kept.get("free"), kept.get("full"), kept.get("at")
        if not isinstance(free, list) or not isinstance(at, int | float):
            return Hint()
        if any(
            type(value) is not int or not _is_in(pool, value) for value in (*free, *([] if full is None else [full]))
        ):
            return Hint()
        return Hint(sorted(set(free)), full, at)

    def _about(self, pool: Pool) -> str:
        return f"free in {pool.space!r} {pool.range.network} {pool.range.spans} of {self._cluster}"


def _is_in(pool: Pool, value: int) -> bool:
    return any(first <= value <= last for first, last in pool.range.spans)
