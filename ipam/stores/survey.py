"""What an operator wants to know of a store and no plugin asks: its pools, what cools, where it contradicts itself.

Nothing here is written. Opening a store for a plugin is ``ipam.stores.door``'s; here all four are imported.

Source: ``ipam.stores.contract``; reference 8.5 (which hazards upstream's own plugin leaves).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from netaddr import IPAddress

from conf.whereabouts import StoreConf
from ipam.ranges import Range
from ipam.stores import iplease, kubernetes, kubernetes_leases
from ipam.stores.contract import Deadline, Lease, Pool, Store
from ipam.stores.database import Database
from ipam.stores.etcd import EtcdStore
from ipam.stores.etcd_cluster import Cluster as EtcdCluster
from ipam.stores.etcd_keys import Keys
from ipam.stores.etcd_requests import count, counted
from ipam.stores.kubeconfig import find_access
from ipam.stores.kubernetes_api import KubernetesApi
from ipam.stores.local import DATABASE, SCHEMA_VERSION
from ipam.stores.upstream_cluster import Cluster
from ipam.stores.upstream_names import reservation_name
from ipam.stores.upstream_pool import PoolObject, belongs_to, mark_of

Json = dict[str, Any]


class Survey(Protocol):
    """One store, looked at."""

    def pools(self) -> list[Pool]:
        """Return the pools that the store itself knows; most leave them to the configurations."""
        ...

    def cooling(self, pool: Pool) -> int:
        """Return how many addresses of the pool cool down."""
        ...

    def contradictions(self, store: Store, leases: Iterable[Lease]) -> Iterator[str]:
        """Yield what cannot be so, one sentence each."""
        ...


def open_survey(conf: StoreConf, deadline: Deadline) -> Survey:
    """Return the survey of a configured store; nothing is read yet."""
    kinds: dict[str, Callable[[StoreConf, Deadline], Survey]] = {
        "local": _Local,
        "etcd": _Etcd,
        "kubernetes": _Upstream,
        "kubernetes-leases": _IPLeases,
    }
    return kinds[conf.chosen](conf, deadline)


class _Unpooled:
    def pools(self) -> list[Pool]:
        return []

    def contradictions(self, store: Store, leases: Iterable[Lease]) -> Iterator[str]:
        """What a DEL would not find, because the owner's record, or its label, does not lead to it."""
        found: dict[tuple[str, str], set[tuple[str, IPAddress]]] = {}
        for lease in leases:
            owner = (lease.owner.container_id, lease.owner.ifname)
            if owner not in found:
                found[owner] = {(each.space, each.address) for each in store.find(lease.owner)}
            if (lease.space, lease.address) not in found[owner]:
                yield f"{lease.address} is leased to {lease.owner}, but is not found by that owner"


class _Local(_Unpooled):
    def __init__(self, conf: StoreConf, deadline: Deadline) -> None:
        self._database = Database(Path(conf.data_dir) / DATABASE, schema="", version=SCHEMA_VERSION, deadline=deadline)

    def cooling(self, pool: Pool) -> int:
        if not self._database.exists():
            return 0
        cools = "released_at IS NOT NULL AND abs(? - released_at) < cooldown_s"
        query = f"SELECT address FROM lease WHERE space = ? AND {cools}"  # noqa: S608 - it is ours
        with self._database.reading() as db:
            keys = [key for (key,) in db.execute(query, (pool.space, time.time()))]
        self._database.close()
        # IPv4 is kept as IPv6 maps it.
        addresses = (IPAddress(int.from_bytes(key, "big"), 6) for key in keys)
        return sum(pool.range.offers(each.ipv4() if each.is_ipv4_mapped() else each) for each in addresses)


class _Etcd(_Unpooled):
    def __init__(self, conf: StoreConf, deadline: Deadline) -> None:
        self._keys = Keys(conf.etcd.prefix)
        store = EtcdStore(conf.etcd, deadline=deadline, cooldown_s=conf.cooldown_s)
        self._cluster = EtcdCluster(store.gateway, self._keys)

    def cooling(self, pool: Pool) -> int:
        requests = [count(*self._keys.between("cool", pool, first, last)) for first, last in pool.range.spans]
        return sum(map(counted, self._cluster.ask(requests))) if requests else 0


class _IPLeases(_Unpooled):
    def __init__(self, conf: StoreConf, deadline: Deadline) -> None:
        self._api = _api(conf, deadline, kubernetes_leases.CRDS, kubernetes_leases.RBAC)

    def cooling(self, pool: Pool) -> int:
        prefix, number = iplease.prefix_of(pool), 0
        for obj in self._api.listed(iplease.COLLECTION, selector=iplease.COOLING_LABEL, metadata_only=True):
            address, state = iplease.address_in(obj["metadata"]["name"], prefix), iplease.cooling(obj)
            if address is not None and state is not None and not state.is_over(time.time()):
                number += pool.range.offers(address)
        return number


class _Upstream:
    def __init__(self, conf: StoreConf, deadline: Deadline) -> None:
        self._api = _api(conf, deadline, kubernetes.CRDS, kubernetes.RBAC)
        self._cluster = Cluster(self._api, deadline=deadline)

    def pools(self) -> list[Pool]:
        return [Pool(each.network_name, Range.of(each.network)) for each in self._cluster.pools()]

    def cooling(self, pool: Pool) -> int:
        # Of all pools: a range may be kept in the slices of its nodes.
        return sum(
            pool.range.offers(there.address(offset))
            for there in self._cluster.pools()
            if there.network_name == pool.network_name
            for offset in there.cooling(time.time())
        )

    def contradictions(self, store: Store, leases: Iterable[Lease]) -> Iterator[str]:
        """Where pools and reservations say different things."""
        # Reservations after pools: one is there before its allocation is, and goes before it.
        pools = list(self._cluster.pools())
        reserved = {obj["metadata"]["name"]: obj for obj in self._api.listed(self._cluster.reservations)}
        allocated: set[str] = set()
        for pool in pools:
            names = {offset: _name_of(pool, offset, reserved) for offset in pool.allocations}
            allocated.update(names.values())
            # Without enable_overlapping_ranges there are none at all.
            checked = any(name in reserved for name in names.values())
            for offset, name in names.items():
                yield from _disagreement(pool, offset, reserved.get(name), checked=checked)
        for name in sorted(reserved.keys() - allocated):
            yield f"reservation {name} of pod {reserved[name]['spec'].get('podref')} is in no IPPool"


def _name_of(pool: PoolObject, offset: int, reserved: Mapping[str, Json]) -> str:
    """Return what the reservation of an allocation is called: where several names may be it, one that is there."""
    names = [reservation_name(network_name, pool.address(offset)) for network_name in pool.network_names]
    entry = pool.allocations[offset]
    return next((name for name in names if name in reserved and belongs_to(reserved[name], entry)), names[0])


def _disagreement(pool: PoolObject, offset: int, reserved: Json | None, *, checked: bool) -> Iterator[str]:
    entry, address = pool.allocations[offset], pool.address(offset)
    says = f"{address} of IPPool {pool.name} is held by {_holder(entry.get('id'), entry.get('podref'))}"
    if reserved is None:
        if checked and pool.mark(offset) is None:
            yield f"{says}, but is not reserved"
    elif not belongs_to(reserved, entry):
        mark, spec = mark_of(reserved), reserved["spec"]
        yield f"{says}, but reserved by {_holder(mark.cid if mark else spec.get('containerid'), spec.get('podref'))}"


def _holder(container_id: object, podref: object) -> str:
    return f"container {container_id or '(unknown)'} of pod {podref}"


def _api(conf: StoreConf, deadline: Deadline, crds: str, rbac: str) -> KubernetesApi:
    return KubernetesApi(find_access(conf.kubernetes.kubeconfig), deadline=deadline, crds=crds, rbac=rbac)
