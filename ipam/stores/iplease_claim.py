"""Claiming addresses for one owner, each by creating its IPLease, or by replacing one that has cooled down.

Which address is tried is ``ipam.choice``'s; here is what is believed about the taken ones, and what becomes of a try.

Source: reference 8.3.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from netaddr import IPAddress

from conf.errors import AddressesExhausted, CniError
from ipam.choice import PoolOccupancy, choose
from ipam.stores import iplease
from ipam.stores.contract import Allocation, Attempt, Candidates, Deadline, Lease, Owner, Pool, Want
from ipam.stores.iplease import COLLECTION, Cooling, Json
from ipam.stores.iplease_scout import index_of, lowest, presumed_taken
from ipam.stores.journal import Journal
from ipam.stores.known import Known
from ipam.stores.kubernetes_api import KubernetesApi, Refused, ReplyLost
from ipam.stores.scratch import Scratch

# After so many lost tries a belief is not believed any more: one that is a blank, a remembered one of who never looked,
# and of who did, one just listed.
_PATIENCE_BLANK, _PATIENCE_UNLOOKED, _PATIENCE_REMEMBERED, _PATIENCE_LISTED = 3, 2, 3, 4
# So many leases are not listed before it was tried without; narrower ranges are.
_MANY, _WIDE = 5000, 2000
# Where it is looked first whether there are very many: as far beyond the last try of a blank as that beyond the others.
_FIRST_LOOK = 8**5
# What the last tenth of the deadline is for: taking back what was claimed.
_SHARE_OF_CHOICE = 0.9
_CONFLICT = 409

log = logging.getLogger("vferry.ipam.kubernetes_leases")


class Beliefs:
    """What this node believes about each name space, remembered from one invocation to the next."""

    def __init__(self, api: KubernetesApi, scratch: Scratch) -> None:
        self._api = api
        self._scratch = scratch

    def remembered(self, prefix: str) -> Known:
        """Return what was remembered; a blank when there is nothing."""
        try:
            return Known.from_json(
                self._scratch.read(self._about(prefix))["known"],
                patience=_PATIENCE_REMEMBERED,
                patience_unlooked=_PATIENCE_UNLOOKED,
            )
        except (KeyError, TypeError, ValueError):
            return Known(patience=_PATIENCE_BLANK)

    def glimpsed(self, prefix: str, pool: Pool, believed: Known) -> Known:
        """Return what the server has in memory, or of many leases a guess: that the lowest addresses are taken.

        To list thousands takes seconds. Those below the guess that are free after all are chosen when somebody lists.
        """
        size, version = pool.range.size, pool.range.version
        seen, free = 0, None
        for look in (_FIRST_LOOK, _MANY):
            if size > look and not seen:
                if self._is_there(prefix, pool, look):
                    seen = look
                else:
                    free = look
        if not seen:
            # Not before: for their number a server with many goes through all of them.
            number = self._api.number(COLLECTION)
            if number is not None and number < _MANY:
                # From the server's memory, for it would read every lease of every network anew.
                return self.in_memory(prefix, pool)
            if number is None or size <= _WIDE:
                return self.listed(prefix, pool)
            highest = None if believed.looked else believed.highest(version)
            seen = index_of(pool.range.spans, highest) if highest is not None else 0
        presumed = presumed_taken(size, lambda index: self._is_there(prefix, pool, index), taken=seen, free=free)
        if presumed is None:
            return self.listed(prefix, pool)
        known = Known(patience=_PATIENCE_REMEMBERED, looked=True)
        for first, last in lowest(pool.range.spans, presumed):
            known.take_run(version, first, last)
        return known

    def _is_there(self, prefix: str, pool: Pool, index: int) -> bool:
        *_, (_, value) = lowest(pool.range.spans, index + 1)
        name = iplease.name_of(prefix, IPAddress(value, pool.range.version))
        return self._api.get(f"{COLLECTION}/{name}", cached=True) is not None

    def in_memory(self, prefix: str, pool: Pool) -> Known:
        """Return what the server has in memory."""
        return self._known(prefix, self._listed(pool, cached=True))

    def listed(self, prefix: str, pool: Pool) -> Known:
        """Return what the server says now."""
        known = self._known(prefix, self._listed(pool, cached=False))
        known.listed = True
        return known

    def _listed(self, pool: Pool, *, cached: bool) -> Iterable[Json]:
        return self._api.listed(COLLECTION, selector=_of_network(pool), metadata_only=True, cached=cached)

    def _known(self, prefix: str, objects: Iterable[Json]) -> Known:
        known = Known(patience=_PATIENCE_LISTED, looked=True)
        taken = []
        for obj in objects:
            address = iplease.address_in(obj["metadata"]["name"], prefix)
            if address is None:
                continue
            state = iplease.cooling(obj)
            if state is None:
                taken.append(address)
            else:
                known.cooling[address] = state
        known.fill(taken)
        return known

    def given_back(self, pod_key: str) -> dict[str, Cooling]:
        """Ask the server for what a pod's interface gave back, by the objects' names."""
        found = self._api.listed(COLLECTION, selector=f"{iplease.POD_LABEL}={pod_key}", metadata_only=True)
        cooling = {obj["metadata"]["name"]: iplease.cooling(obj) for obj in found}
        return {name: state for name, state in cooling.items() if state is not None}

    def remember(self, prefix: str, known: Known) -> None:
        """Keep it for the next invocation."""
        self._scratch.keep(self._about(prefix), {"known": known.to_json()})

    def released(self, cooled: Json) -> None:
        """Remember that an address was given back, and how it cools."""
        name, address = cooled["metadata"]["name"], IPAddress(cooled["spec"]["ip"])
        prefix = name.removesuffix(f".{iplease.name_of('', address)[1:]}")
        known = self.remembered(prefix)
        known.free(address, iplease.cooling(cooled))
        self.remember(prefix, known)

    def _about(self, prefix: str) -> str:
        return f"leases of {prefix} at {self._api.access}"


def _of_network(pool: Pool) -> str:
    return f"{iplease.NETWORK_LABEL}={iplease.label(iplease.network_of(pool.network_name))}"


class Claim:
    """One reserve: from what the owner ``held`` to one lease per want, or to what it held.

    ``cools_long``: a released address is not chosen again before every server has heard of it.
    """

    def __init__(
        self,
        api: KubernetesApi,
        owner: Owner,
        held: Iterable[Lease],
        *,
        journal: Journal,
        allocation: Allocation,
        beliefs: Beliefs,
        deadline: Deadline,
        clock: Callable[[], float],
        sticky: bool | None = None,
        cools_long: bool = False,
    ) -> None:
        self._cools_long = cools_long
        self._pod_key = "" if sticky is False else owner.pod_key
        self._asks_for_pod = bool(sticky and owner.pod_key)
        self._api = api
        self._owner = owner
        self._held = {(lease.space, lease.address) for lease in held}
        self._journal = journal
        self._allocation = allocation
        self._beliefs = beliefs
        self._deadline = deadline
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._glimpsed: set[str] = set()
        self._exhausted: set[str] = set()
        self._claimed: list[Json] = []
        # Names that may be ours without our knowing, and what they were tried for.
        self._doubtful: list[str] = []
        self._given_back: dict[str, Cooling] = {}

    def run(self, wants: Sequence[Want]) -> list[Lease]:
        """Claim one address per want.

        Raises: AddressesExhausted, TryAgainLater, StoreUnavailable; what was claimed is then given back.
        """
        try:
            leases = self._choose(wants)
        except BaseException:
            self._undo()
            raise
        self._put_in_order(
            iplease.name_of(iplease.prefix_of(want.pool), lease.address)
            for want, lease in zip(wants, leases, strict=True)
        )
        # A request whose reply was lost may be done later, even after a DEL.
        if not self._api.lost:
            self._journal.settle()
        for prefix, known in self._known.items():
            self._beliefs.remember(prefix, known)
        return leases

    def _put_in_order(self, returned: Iterable[str]) -> None:
        """Have the journal say what was returned in its order, and then what may turn out to be ours too.

        Who comes again is given the first that fits.
        """
        names, tried = [*returned, *self._doubtful], self._journal.tried or {}
        if [name for name in tried if name in names] == names:
            return
        for name in names:
            if name in tried:
                purpose = tried[name]
                self._journal.drop(name)
                self._journal.add(name, purpose)

    def _choose(self, wants: Sequence[Want]) -> list[Lease]:
        leases: dict[int, Lease] = {}
        # The same pod tries the same addresses first, wherever and whenever it starts.
        pod = (
            f"{self._owner.pod_namespace}/{self._owner.pod_name}" if self._owner.pod_name else self._owner.container_id
        )
        rng = random.Random(f"{pod}/{self._owner.ifname}")  # noqa: S311 - no secret
        while True:
            missing = [index for index in range(len(wants)) if index not in leases]
            try:
                choose(
                    [wants[index] for index in missing],
                    occupancy=self._occupancy,
                    attempt=lambda candidates, missing=missing: self._attempt(wants, missing, candidates, leases),  # type: ignore[misc]
                    allocation=self._allocation,
                    deadline=Deadline(self._deadline.remaining_s() * _SHARE_OF_CHOICE),
                    preferred=self._preferred,
                    window=partial(self._window, wants) if self._allocation == "window" else None,
                    rng=rng,
                )
            except AddressesExhausted:
                if not self._forget_beliefs():
                    raise
            else:
                return [leases[index] for index in range(len(wants))]

    def _window(self, wants: Sequence[Want]) -> int:
        return max((self._knowledge(want.pool).window for want in wants if want.requested is None), default=1)

    def _preferred(self, pool: Pool) -> list[IPAddress]:
        known = self._knowledge(pool)
        if self._asks_for_pod:
            self._asks_for_pod = False
            self._given_back = self._beliefs.given_back(self._pod_key)
        for name, state in self._given_back.items():
            address = iplease.address_in(name, iplease.prefix_of(pool))
            if address is not None and address not in known.cooling:
                known.free(address, state)
        return known.given_back_by(self._pod_key)

    def _forget_beliefs(self) -> bool:
        """Whether there were any: that nothing is free is only known from a list."""
        believed = {prefix: known for prefix, known in self._known.items() if not known.listed}
        for known in believed.values():
            known.patience = 0
        self._glimpsed.update(believed)
        self._exhausted.update(believed)
        return bool(believed)

    def _occupancy(self, pool: Pool) -> PoolOccupancy:
        return self._knowledge(pool).occupancy(pool.range.version, self._clock())

    def _knowledge(self, pool: Pool) -> Known:
        prefix = iplease.prefix_of(pool)
        known = self._known.get(prefix)
        if known is None and self._allocation == "window":
            known = self._beliefs.remembered(prefix)
        if known is None or known.patience <= 0:
            is_guess = known is not None and prefix not in self._glimpsed
            self._glimpsed.add(prefix)
            if self._allocation == "lowest" and self._cools_long and prefix not in self._exhausted:
                # What was released so lately that the server does not remember it yet, still cools down.
                known = self._beliefs.in_memory(prefix, pool)
            elif known is not None and is_guess and self._allocation == "window":
                known = self._beliefs.glimpsed(prefix, pool, known)
            else:
                known = self._beliefs.listed(prefix, pool)
        self._known[prefix] = known
        return known

    def _attempt(
        self, wants: Sequence[Want], missing: Sequence[int], candidates: Candidates, leases: dict[int, Lease]
    ) -> Attempt:
        held, taken = set(), set()
        for number, address in candidates.items():
            want = wants[missing[number]]
            known = self._known.get(iplease.prefix_of(want.pool)) or self._knowledge(want.pool)
            obj = self._claim(want, address, known)
            if obj is None:
                known.lose()
                taken.add(number)
            else:
                known.win()
                known.take(address)
                self._claimed.append(obj)
                leases[missing[number]] = iplease.read_lease(obj)
                held.add(number)
        return Attempt(frozenset(held), frozenset(taken))

    def _claim(self, want: Want, address: IPAddress, known: Known) -> Json | None:
        """Return the owner's lease of this address, None when somebody else has it."""
        if (want.pool.space, address) in self._held:
            known.take(address)  # the owner's own, and for another want
            return None
        new = iplease.make(self._owner, want.pool, address, self._clock())
        name = new["metadata"]["name"]
        cooling = known.cooling.get(address)
        # Nothing of ours should stand there; whether what does will soon have cooled down is not worth a request.
        is_new = want.requested is None and self._journal.is_new(name) and not self._is_former(cooling)
        certain = True
        self._journal.add(name, iplease.purpose_of(want.pool, address))
        while True:
            self._deadline.require(f"claiming {address}")
            try:
                return self._write(name, new, cooling)
            except Refused as refused:
                if certain and is_new and refused.status == _CONFLICT and cooling is None:
                    # A box between us may have sent it twice, and we see the second answer: the DEL looks at it.
                    known.take(address)
                    self._doubtful.append(name)
                    return None
                if certain and is_new:
                    # Somebody took the object that cooled there, or swept it away.
                    known.free(address)
                    cooling = None
                    continue
            except ReplyLost:
                certain = False
            stored = self._api.get(f"{COLLECTION}/{name}")
            if stored is not None and iplease.is_held_by(stored, self._owner):
                return stored
            cooling = iplease.cooling(stored) if stored is not None else None
            may_have = want.requested is not None or self._is_former(cooling)
            if stored is None or (cooling and (may_have or cooling.is_over(self._clock()))):
                continue
            if certain:
                self._journal.drop(name)
            if cooling is None:
                known.take(address)
            else:
                known.free(address, cooling)
            return None

    def _is_former(self, cooling: Cooling | None) -> bool:
        return bool(cooling and self._pod_key and cooling.pod_key == self._pod_key)

    def _write(self, name: str, new: Json, cooling: Cooling | None) -> Json:
        if cooling is None:
            return self._api.create(COLLECTION, new)
        guard = {"uid": cooling.uid, "resourceVersion": cooling.resource_version}
        return self._api.replace(f"{COLLECTION}/{name}", {**new, "metadata": {**new["metadata"], **guard}})

    def _undo(self) -> None:
        for obj in self._claimed:
            name = obj["metadata"]["name"]
            try:
                # It was never used and need not cool; the object stays, so that no late request makes it anew.
                self._api.replace(f"{COLLECTION}/{name}", iplease.released(obj, self._clock(), 0))
            except (CniError, Refused, ReplyLost) as error:
                log.warning("%s is not given back yet, the DEL does it: %s", name, error)
            else:
                self._journal.drop(name)
