"""What lies where in etcd, and how keys and values are written; the requests are in etcd_requests.

Below ``<prefix>/v1/``, for an owner's record and for each of its addresses, always written by **one** transaction, so
that they bear one mod_revision, which is also the lease's revision::

    own/<container id>/<ifname>               who it is and what it holds
    ip/<network>/<scope>/<family>/<hex>       one lease; hex of fixed width, so that keys are in order of address
    cool/<network>/<scope>/<family>/<hex>     a released address, until its etcd lease expires
    node/<node>/<container id>/<ifname>       index of a node's owners, empty
    former/<pod key>                          what a pod's interface gave back, for a day or two
    freed/<network>/<scope>/<family>          written anew with each release, once it matters (``etcd_full``)
    full/<network>/<scope>/<family>           which addresses were all leased, while there was no release since

A record that holds nothing stays behind a release for a while: it fences out the ADD of a caller that is dead but
whose request is still on its way. ``network`` is the network_name, ``scope`` "all", or the range where overlaps are not
checked. Unlike in reference 8.2, ``own`` and ``node`` are above the networks: a DEL may come without a configuration.

Source: reference 8.2.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from netaddr import AddrFormatError, IPAddress

from conf.errors import StoreUnavailable
from ipam.stores.contract import Lease, Owner, Pool

Json = dict[str, Any]

_DEFAULT_NETWORK = "_default"  # no network_name can begin with an underscore
_HEX_DIGITS = {4: 8, 6: 32}
_OWNER_FIELDS = ("container_id", "ifname", "cni_network", "pod_namespace", "pod_name", "pod_uid", "node")


@dataclass(frozen=True)
class Record:
    """What an owner holds, as its key says, in the order of its wants; ``revision`` is 0 when there is no such key."""

    leases: tuple[Lease, ...] = ()
    revision: int = 0


@dataclass(frozen=True)
class Former:
    """What a pod's interface gave back last, as (space, address); ``revision`` is 0 when nobody remembers."""

    addresses: tuple[tuple[str, IPAddress], ...] = ()
    revision: int = 0


class Keys:
    """The keys below one prefix."""

    def __init__(self, prefix: str) -> None:
        self._root = f"{prefix}/v1/"

    def own(self, owner: Owner) -> str:
        return f"{self._root}own/{_segment(owner.container_id)}/{_segment(owner.ifname)}"

    def node(self, owner: Owner) -> str:
        return f"{self.nodes_owners(owner.node)}{_segment(owner.container_id)}/{_segment(owner.ifname)}"

    def former(self, owner: Owner) -> str:
        return f"{self._root}former/{owner.pod_key}"

    def nodes_owners(self, node: str) -> str:
        """The prefix of everything a node's owners have in the index."""
        return f"{self._root}node/{_segment(node)}/"

    def owner_in_index(self, key: str) -> str:
        """The record's key for a key of the index."""
        return f"{self._root}own/" + "/".join(key.rsplit("/", 2)[-2:])

    def networks_leases(self, network_name: str | None) -> str:
        """The prefix of every lease of a network, or of all."""
        return f"{self._root}ip/" + ("" if network_name is None else f"{network_name or _DEFAULT_NETWORK}/")

    def address(self, kind: str, network_name: str, space: str, address: IPAddress) -> str:
        """The key of one address; ``kind`` is ip or cool."""
        return self._family(kind, network_name, space, address.version) + _hex(address.value, address.version)

    def lease(self, kind: str, lease: Lease) -> str:
        return self.address(kind, lease.network_name, lease.space, lease.address)

    def candidate(self, kind: str, pool: Pool, address: IPAddress) -> str:
        return self.address(kind, pool.network_name, pool.space, address)

    def between(self, kind: str, pool: Pool, first: int, last: int) -> tuple[str, str]:
        """The keys from ``first`` to ``last`` as etcd wants them: the second one is beyond."""
        version = pool.range.version
        family = self._family(kind, pool.network_name, pool.space, version)
        return family + _hex(first, version), family + _hex(last, version) + "\0"

    def of_pool(self, kind: str, pool: Pool) -> str:
        """The key that speaks of all leases of a pool's name space and family; ``kind`` is freed or full."""
        return self._family(kind, pool.network_name, pool.space, pool.range.version)[:-1]

    def around(self, kind: str, lease: Lease) -> str:
        """The same for the name space that a lease is in."""
        return self._family(kind, lease.network_name, lease.space, lease.address.version)[:-1]

    def never(self) -> str:
        """A key that is never written."""
        return f"{self._root}probe"

    def _family(self, kind: str, network_name: str, space: str, version: int) -> str:
        scope = "all" if space == network_name else space.removeprefix(f"{network_name}/").replace("/", "_")
        return f"{self._root}{kind}/{network_name or _DEFAULT_NETWORK}/{scope}/v{version}/"


def value_of(key: str) -> int:
    """Return the address, as a number, that a key of one ends with."""
    return int(key.rpartition("/")[2], 16)


def _segment(name: str) -> str:
    return quote(name, safe="")


def _hex(value: int, version: int) -> str:
    return f"{value:0{_HEX_DIGITS[version]}x}"


# Values.


def record_value(owner: Owner, leases: Iterable[Lease]) -> str:
    """Return what the key of a record says."""
    return _dump({"owner": _owner_json(owner), "leases": [_lease_json(lease) for lease in leases]})


def lease_value(lease: Lease) -> str:
    """Return what the key of an address says."""
    return _dump({"owner": _owner_json(lease.owner), **_lease_json(lease)})


def cooling_value(released_at: float, cooldown_s: float) -> str:
    """Return what the key of a cooling address says, for those who look; etcd alone counts the time."""
    return _dump({"released_at": released_at, "cooldown_s": cooldown_s})


def former_value(leases: Iterable[Lease]) -> str:
    """Return what the key of a pod's former addresses says."""
    return _dump({"leases": [_lease_json(lease) for lease in leases]})


def read_former(kvs: Sequence[Json]) -> Former:
    """Read the former addresses from the answer to ``get`` of their key."""
    if not kvs:
        return Former()
    (kv,) = kvs
    try:
        given_back = [(str(each["space"]), IPAddress(each["address"])) for each in _load(kv)["leases"]]
    except (AddrFormatError, KeyError, TypeError, ValueError, StoreUnavailable):
        given_back = []  # it only saves trouble
    return Former(tuple(given_back), int(kv["mod_revision"]))


def read_record(kvs: Sequence[Json]) -> Record:
    """Read a record from the answer to ``get`` of its key.

    Raises: StoreUnavailable when it was not written by us.
    """
    if not kvs:
        return Record()
    (kv,) = kvs
    revision = int(kv["mod_revision"])
    value = _load(kv)
    try:
        owner = _owner(value["owner"])
        return Record(tuple(_lease(owner, each, revision) for each in value["leases"]), revision)
    except (AddrFormatError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(kv) from error


def read_lease(kv: Json) -> Lease:
    """Read the lease that the key of an address says.

    Raises: StoreUnavailable when it was not written by us.
    """
    value = _load(kv)
    try:
        return _lease(_owner(value["owner"]), value, int(kv["mod_revision"]))
    except (AddrFormatError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(kv) from error


def in_order(leases: Iterable[Lease]) -> tuple[Lease, ...]:
    """Return them in ascending order of address, one name space after the other."""
    return tuple(sorted(leases, key=lambda lease: (lease.space, lease.address.version, lease.address.value)))


def _dump(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"))


def _load(kv: Json) -> Json:
    try:
        value = json.loads(b64decode(kv.get("value", "")))
    except ValueError as error:
        raise _unreadable(kv) from error
    if not isinstance(value, dict):
        raise _unreadable(kv)
    return value


def _unreadable(kv: Json) -> StoreUnavailable:
    return StoreUnavailable(
        f"etcd key {b64decode(kv['key']).decode(errors='replace')} cannot be read",
        details="its value was not written by this vferry",
        hint='use another "prefix", or delete the key once its address is in no pod',
    )


def _owner_json(owner: Owner) -> Json:
    return {name: getattr(owner, name) for name in _OWNER_FIELDS}


def _owner(value: Json) -> Owner:
    return Owner(**{name: str(value.get(name, "")) for name in _OWNER_FIELDS})


def _lease_json(lease: Lease) -> Json:
    return {
        "address": str(lease.address),
        "network_name": lease.network_name,
        "space": lease.space,
        "allocated_at": lease.allocated_at,
    }


def _lease(owner: Owner, value: Json, revision: int) -> Lease:
    return Lease(
        owner,
        network_name=str(value["network_name"]),
        space=str(value["space"]),
        address=IPAddress(value["address"]),
        allocated_at=float(value["allocated_at"]),
        revision=str(revision),
    )
