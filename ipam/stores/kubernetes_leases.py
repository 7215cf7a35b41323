"""The ``kubernetes-leases`` datastore: one cluster-scoped object IPLease per address; creating it is the lock.

A released lease stays as long as its address cools, and after that until it is replaced: by whoever chooses the
address, guarded by UID and resourceVersion, or until ``sweep`` deletes it.

What a node believes to be taken saves the list (``ipam.stores.known``), what an owner may have tried to take is in its
journal (``ipam.stores.journal``); a quiet ADD is one POST, a quiet DEL a GET and a PUT.

Source: reference 8.3, 8.4; ``ipam.stores.contract``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from netaddr import IPNetwork

from conf.whereabouts import StoreConf
from ipam.choice import first_available, match
from ipam.ranges import Range
from ipam.stores import iplease
from ipam.stores.api_store import ApiStore
from ipam.stores.contract import REMEMBERED_S, Allocation, Deadline, Lease, Owner, Pool, Store, Want
from ipam.stores.iplease import COLLECTION, Json
from ipam.stores.iplease_claim import Beliefs, Claim
from ipam.stores.journal import Journal
from ipam.stores.kubernetes_api import Refused, ReplyLost

CRDS, RBAC = "ipleases.yaml", "rbac-kubernetes-leases.yaml"
# No API server works on a request for longer.
_SETTLED_S = 60.0
# What a server has in memory is hardly ever older.
_HEARD_S = 10.0
_PROBE = Pool("", Range.of(IPNetwork("192.0.2.1/32")))

log = logging.getLogger("vferry.ipam.kubernetes_leases")


def open_store(conf: StoreConf, deadline: Deadline) -> Store:
    """Return the store a configuration names; nothing is read or connected yet."""
    return KubernetesLeasesStore.of(conf, deadline, crds=CRDS, rbac=RBAC)


class KubernetesLeasesStore(ApiStore):
    """The leases of one cluster."""

    name = "kubernetes-leases"
    allocation: Allocation = "window"

    def reserve(self, owner: Owner, wants: Sequence[Want], *, allocation: Allocation) -> tuple[Lease, ...]:
        """Create one lease per want that the owner does not hold already; see the contract."""
        pools = [want.pool for want in wants]
        with self._reserving(owner) as journal:
            # One that was just begun is the owner's word that nothing was ever tried.
            known = () if journal.names == () else self._held(owner, journal)
            held = _spelled_as_in(pools, map(iplease.read_lease, known))
            leases = match(wants, held)
            missing = [index for index in range(len(wants)) if index not in leases]
            if missing:
                claimed = first_available(
                    [wants[index] for index in missing],
                    lambda asked: self._claim(asked, owner, held, journal, allocation),
                )
                claimed = _spelled_as_in(pools, claimed)
                leases |= dict(zip(missing, claimed, strict=True))
        return tuple(leases[index] for index in range(len(wants)))

    def _claim(
        self, wants: Sequence[Want], owner: Owner, held: Sequence[Lease], journal: Journal, allocation: Allocation
    ) -> list[Lease]:
        return Claim(
            self.api,
            owner,
            held,
            journal=journal,
            allocation=allocation,
            beliefs=self._beliefs(),
            deadline=self._deadline,
            clock=self._clock,
            sticky=self._sticky,
            cools_long=self._cooldown_s >= _HEARD_S,
        ).run(wants)

    def release(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Let everything cool that the owner holds; see the contract."""
        with self._lock(owner, makes=False) as journal:
            if not self._has_sent(owner, journal) or not self._may_hold(owner):
                return ()
            given_back = [
                iplease.read_lease(obj)
                for obj in self._held(owner, journal)
                if self._give_back(obj, lambda stored: iplease.is_held_by(stored, owner))
            ]
            if not journal.is_settled:
                self._fence(owner, journal)
            journal.forget()
        return tuple(_spelled_as_in(pools, given_back))

    def find(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Return what the owner holds; see the contract."""
        with self._lock(owner, makes=False) as journal:
            leases = map(iplease.read_lease, self._held(owner, journal))
            return tuple(sorted(_spelled_as_in(pools, leases), key=lambda lease: lease.address))

    def leases(self, network_name: str | None = None, *, node: str | None = None) -> Iterator[Lease]:
        """Yield page by page; see the contract."""
        network = None if network_name is None else iplease.network_of(network_name)
        labels = {iplease.NETWORK_LABEL: network, iplease.NODE_LABEL: node}
        selector = ",".join(f"{key}={iplease.label(value)}" for key, value in labels.items() if value)
        for obj in self.api.listed(COLLECTION, selector=f"{selector},!{iplease.COOLING_LABEL}".lstrip(",")):
            spec = obj["spec"]
            # A label may be a digest, and anybody may have changed it.
            is_asked = network in (None, spec["network"]) and node in (None, spec.get("node"))
            if is_asked and not iplease.is_released(obj) and (lease := iplease.listed_lease(obj)) is not None:
                yield lease

    def reap(self, lease: Lease) -> bool:
        """Give back exactly this lease; see the contract."""
        obj = self.api.get(f"{COLLECTION}/{_name(lease)}")
        if obj is None:
            return False
        is_this = self._give_back(
            obj,
            lambda stored: not iplease.is_released(stored) and iplease.read_lease(stored).revision == lease.revision,
        )
        with self._lock(lease.owner, makes=False) as journal:
            if journal.names == (_name(lease),):
                journal.forget()
        return is_this

    def sweep(self) -> int:
        """Delete the objects whose addresses have cooled down and nobody chose again; return how many.

        Raises: StoreUnavailable, without the right to delete too; TryAgainLater.
        """
        swept, now = 0, self._clock()
        # What is listed may be a moment old: only exactly that is deleted.
        for obj in self.api.listed(COLLECTION, selector=iplease.COOLING_LABEL, metadata_only=True, cached=True):
            state = iplease.cooling(obj)
            since_s = abs(now - state.released_at) if state else 0.0
            # An object that is younger may still keep a request of a killed ADD's from making it anew.
            if state is None or not state.is_over(now) or since_s < _SETTLED_S:
                continue
            if state.pod_key and since_s < REMEMBERED_S:
                continue  # its pod may come again
            try:
                self.api.delete(
                    f"{COLLECTION}/{obj['metadata']['name']}", uid=state.uid, resource_version=state.resource_version
                )
            except (Refused, ReplyLost):
                continue  # it is somebody's again, or gone
            swept += 1
        return swept

    def probe(self) -> None:
        """Have the server check a lease as if it were written; see the contract."""
        self.api.patient = False
        try:
            self.api.create(
                COLLECTION, iplease.make(Owner("probe", "probe"), _PROBE, _PROBE.range.network.ip, 0), dry_run=True
            )
        except Refused:
            pass  # 409: somebody has that address, and only that stands in the way
        finally:
            self.api.patient = True

    def _held(self, owner: Owner, journal: Journal) -> list[Json]:
        if not journal.names:
            found: Iterable[Json | None] = self.api.listed(
                COLLECTION, selector=f"{iplease.OWNER_LABEL}={iplease.owner_label(owner)}"
            )
        else:
            found = (self.api.get(f"{COLLECTION}/{name}") for name in journal.names)
        return [obj for obj in found if obj is not None and iplease.is_held_by(obj, owner)]

    def _give_back(self, obj: Json, is_this: Callable[[Json], bool]) -> bool:
        path = f"{COLLECTION}/{obj['metadata']['name']}"
        stored: Json | None = obj
        sent = False
        while stored is not None and is_this(stored):
            self._deadline.require(f"giving back {stored['spec']['ip']}")
            try:
                # Without cool-down, too, the object stays: no late request of its holder's can make it anew.
                cooled = self.api.replace(path, iplease.released(stored, self._clock(), self._cooldown_s))
            except Refused:
                pass  # it was changed since we read it
            except ReplyLost:
                sent = True
            else:
                self._beliefs().released(cooled)
                return True
            stored = self.api.get(path)
        return sent

    def _fence(self, owner: Owner, journal: Journal) -> None:
        """See that what a killed invocation has sent, and the server not yet done, will fail."""
        for name, purpose in (journal.tried or {}).items():
            pool, address = iplease.meant_by(purpose)
            path, now = f"{COLLECTION}/{name}", self._clock()
            while True:
                self._deadline.require(f"giving back {address}")
                stored = self.api.get(path)
                try:
                    if stored is None:
                        self.api.create(COLLECTION, iplease.released(iplease.make(owner, pool, address, now), now, 0))
                    elif iplease.is_held_by(stored, owner):
                        self._give_back(stored, lambda there: iplease.is_held_by(there, owner))
                    elif (state := iplease.cooling(stored)) is not None:
                        # A replacement on its way names the version that we change here.
                        self.api.replace(path, iplease.released(stored, now, state.remaining_s(now)))
                except (Refused, ReplyLost):
                    continue
                break

    def _beliefs(self) -> Beliefs:
        return Beliefs(self.api, self._scratch)


def _name(lease: Lease) -> str:
    network = iplease.network_of(lease.network_name)
    block = lease.space.removeprefix(lease.network_name).removeprefix("/")
    pool = Pool(network, Range.of(IPNetwork(block)), overlap_checked=False) if block else None
    return iplease.name_of(iplease.prefix_of(pool) if pool else network, lease.address)


def _spelled_as_in(pools: Iterable[Pool], leases: Iterable[Lease]) -> list[Lease]:
    """Name the network without a name as the configuration does: "default" is the same one."""
    if not any(pool.network_name == iplease.DEFAULT_NETWORK for pool in pools):
        return list(leases)
    name = iplease.DEFAULT_NETWORK
    return [
        lease if lease.network_name else replace(lease, network_name=name, space=name + lease.space) for lease in leases
    ]
