"""What a journal keeps of one owner's places among upstream's objects, so that its DEL need not list them all.

A line is written before the first try, without a reservation, and again with the one that was made.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from netaddr import AddrFormatError, IPNetwork

from ipam.stores.iplease import Json
from ipam.stores.journal import Journal
from ipam.stores.upstream_cluster import Cluster, Place
from ipam.stores.upstream_names import cidr, reservation_name
from ipam.stores.upstream_pool import PoolObject


class Known(NamedTuple):
    """The pools an owner's addresses are in, as they are now, and the reservations it made, by name."""

    pools: list[PoolObject]
    reserved: dict[str, Json]


def write(journal: Journal, place: Place, reserved: Json | None, *, overlap_checked: bool) -> str:
    """Write down a place, and its reservation once there is one, and return the name it can be crossed out by."""
    pool = place.pool
    name = reservation_name(place.network_name, place.address) if overlap_checked else f"{pool.name}/{place.offset}"
    kept = reserved and {
        "metadata": {key: reserved["metadata"].get(key) for key in ("name", "uid", "annotations")},
        "spec": reserved["spec"],
    }
    where = [pool.name, cidr(pool.network), pool.slice_of, place.offset, place.network_name, kept]
    journal.add(name, json.dumps(where, separators=(",", ":")))
    return name


def read(journal: Journal, cluster: Cluster) -> Known | None:
    """Read what the owner tried; None when the journal does not tell."""
    pools: dict[str, PoolObject] = {}
    reserved: dict[str, Json] = {}
    for purpose in (journal.tried or {}).values():
        try:
            pool, network, slice_of, _, _, kept = json.loads(purpose)
            if pool not in pools:
                pools[pool] = cluster.named(pool, IPNetwork(network), slice_of=slice_of)
        except (ValueError, TypeError, AddrFormatError):
            return None
        if kept is not None:
            reserved[kept["metadata"]["name"]] = kept
    return Known(list(pools.values()), reserved) if pools else None
