"""The ``kubernetes`` datastore as networks see it whose IPPools may have been moved: ADDs go on in the one moved to.

So nobody waits for the networks to be switched (see ``ipam.migration``). An owner that was sent on is noted on this
node, for its DEL and CHECK; a note that is lost costs a lease that only a reconcile gives back.

Source: reference 8.5.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from conf.errors import CniError
from conf.whereabouts import StoreConf
from ipam.stores import door, kubernetes
from ipam.stores.contract import Allocation, Deadline, Lease, Moved, Owner, Pool, Store, Want
from ipam.stores.kubernetes import KubernetesStore
from ipam.stores.kubernetes_api import KubernetesApi
from ipam.stores.scratch import DIRECTORY, Scratch
from ipam.stores.upstream_cluster import Cluster
from ipam.stores.upstream_pool import MIGRATED, MIGRATED_TO, PoolObject

log = logging.getLogger("vferry.ipam.moved")


def open_store(conf: StoreConf, deadline: Deadline) -> Store:
    """Return the store a configuration names; nothing is read or connected yet."""
    moved_to = conf.model_copy(update={"datastore": MIGRATED_TO})
    return FollowingStore(
        kubernetes.open_store(conf, deadline), lambda: door.open_store(moved_to, deadline), deadline=deadline
    )


class FollowingStore:
    """Upstream's pools, and behind them the store that they were moved to, opened when it is needed."""

    name = "kubernetes"
    shared = True
    allocation: Allocation = KubernetesStore.allocation

    def __init__(
        self, pools: Store, open_next: Callable[[], Store], *, deadline: Deadline, scratch: Path = DIRECTORY
    ) -> None:
        self._deadline = deadline
        self._pools = pools
        self._open_next = open_next
        self._next: Store | None = None
        self._moved: list[PoolObject] | None = None
        self._scratch = Scratch(scratch)
        self._opened = ExitStack()

    def __enter__(self) -> FollowingStore:
        self._opened.enter_context(self._pools)
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def api(self) -> KubernetesApi:
        """The server."""
        return self._pools.api  # type: ignore[attr-defined,no-any-return]

    def reserve(self, owner: Owner, wants: Sequence[Want], *, allocation: Allocation) -> tuple[Lease, ...]:
        """Reserve in the pools, or where they were moved to; see the contract. Raises: also Moved."""
        try:
            return self._pools.reserve(owner, wants, allocation=allocation)
        except Moved as moved:
            following = self._following()
            try:
                self._note(owner)
                leases = following.reserve(owner, wants, allocation=following.allocation)
            except CniError as error:
                # Perhaps this node has no right to it yet.
                log.warning("%s; datastore %s: %s", moved.msg, following.name, error)
                raise moved from error
        return self._still_moved(owner, wants, leases, allocation=allocation)

    def _still_moved(
        self, owner: Owner, wants: Sequence[Want], leases: tuple[Lease, ...], *, allocation: Allocation
    ) -> tuple[Lease, ...]:
        """Return the leases if the pools are not on their way back, where these might have been missed already."""
        try:
            regained = self._pools.reserve(owner, wants, allocation=allocation)
        except Moved:
            return leases
        except BaseException:
            self._give_up(owner)
            raise
        self._give_up(owner)
        return regained

    def release(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Release in both; see the contract.

        In the pools first, where an ADD looks first: if this goes no further, and the container comes again, it must
        not find there what the other store may have given to somebody else. And last: it may be on its way back.
        """
        released = self._pools.release(owner, pools=pools)
        if self._is_noted(owner):
            given_up = self._give_up(owner)
            released += given_up
            if given_up:
                released += self._pools.release(owner, pools=pools)
            self._scratch.forget(_about(owner))
        return tuple({(each.space, each.address): each for each in released}.values())

    def find(self, owner: Owner, *, pools: Sequence[Pool] = ()) -> tuple[Lease, ...]:
        """Return what the owner has in both; see the contract."""
        found = self._pools.find(owner, pools=pools)
        return found + self._following().find(owner, pools=pools) if self._is_noted(owner) else found

    def leases(self, network_name: str | None = None, *, node: str | None = None) -> Iterator[Lease]:
        """Yield those in pools, and for pools that were moved those where they are now; see the contract."""
        moved = self._moved = self._moved_pools()
        if any(network_name in (None, pool.network_name) for pool in moved):
            yield from self._following().leases(network_name, node=node)
        for lease in self._pools.leases(network_name, node=node):
            if not any(_is_of(lease, pool) for pool in moved):
                yield lease

    def reap(self, lease: Lease) -> bool:
        """Give back exactly this lease, wherever it was listed; see the contract."""
        if self._moved is None:
            self._moved = self._moved_pools()
        if any(_is_of(lease, pool) for pool in self._moved):
            return self._following().reap(lease)
        return self._pools.reap(lease)

    def probe(self) -> None:
        """Check that a reserve could be written; see the contract."""
        self._pools.probe()

    def _moved_pools(self) -> list[PoolObject]:
        cluster = Cluster(self.api, deadline=self._deadline)
        return [pool for pool in cluster.pools() if pool.annotations.get(MIGRATED) == MIGRATED_TO]

    def _following(self) -> Store:
        if self._next is None:
            self._next = self._opened.enter_context(self._open_next())
        return self._next

    def _give_up(self, owner: Owner) -> tuple[Lease, ...]:
        return self._following().release(owner)

    def _note(self, owner: Owner) -> None:
        self._scratch.keep(_about(owner), {"moved": True})

    def _is_noted(self, owner: Owner) -> bool:
        return bool(self._scratch.read(_about(owner)))


def _is_of(lease: Lease, pool: PoolObject) -> bool:
    return pool.network_name == lease.network_name and lease.address in pool.network


def _about(owner: Owner) -> str:
    return f"moved {owner.container_id} {owner.ifname}"
