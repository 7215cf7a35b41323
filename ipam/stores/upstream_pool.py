"""Upstream's objects as this store reads and changes them: IPPool, OverlappingRangeIPReservation, and JSON patches.

Upstream's fields say who holds an address; what else a lease has (node, CNI network, pod UID, since when) is in one
annotation of its reservation. Where there is no reservation (``enable_overlapping_ranges: false``) it is in one of the
pool, as are the cooling addresses. Upstream leaves annotations alone; its schema would drop fields of ours.

Every change of a pool is a patch that tests what it rests on, so that it needs no resourceVersion and spoils nothing
of what others, upstream's plugin among them, changed meanwhile. It also takes out what the API server notes of who
manages which field: with a hundred allocations that is three quarters of the server's time for a patch, and a third of
the object.

Source: reference 1.2, 8.5; RFC 6902. That ``test`` of an absent member against null succeeds is the API server's, and
upstream counts on it too.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from typing import Any

from netaddr import AddrFormatError, IPAddress, IPNetwork

from conf.errors import TryAgainLater
from ipam.stores.contract import Lease, Moved, Owner
from ipam.stores.iplease import GROUP, OWNER_LABEL, Json, owner_label
from ipam.stores.upstream_names import OFFSETS, cidr, network_name_of, reserved_address
from ipam.stores.upstream_notes import Cooling, Mark, annotation, expecting, making

API_VERSION = "whereabouts.cni.cncf.io/v1alpha1"
POOL_KIND, RESERVATION_KIND = "IPPool", "OverlappingRangeIPReservation"
MARK = f"{GROUP}/lease"
# On a pool: our plugins enter nothing new, because its allocations are, or are being, moved to that datastore.
MIGRATED = f"{GROUP}/migrated-to"
# What the annotation says once all is there.
MIGRATED_TO = "kubernetes-leases"
_SLICE_OF = f"{GROUP}/slice-of-network"
# On every pool that we made: where there are annotations, one more can be added whatever others do.
_MADE_BY = f"{GROUP}/made-by"
_COOLING, _MARKS, _FENCES = f"cooling.{GROUP}/", f"lease.{GROUP}/", f"fence.{GROUP}/"
_MOST_COOLING, _MOST_FENCES = 1000, 500
# All annotations of an object may have 256 KiB, and one patch too much is refused for good: what may be left out stops
# well below, for the fences' sake, and since others add theirs at the same moment.
_FOR_MARKS, _FOR_COOLING = 160 * 1024, 200 * 1024
_SWEPT = 4
# No API server works on a request for longer than a minute.
_FENCED_S = 3600


class PoolObject:
    """One IPPool as it was read, or one that is not there yet.

    ``read_at``: when it was asked for at the latest (CLOCK_MONOTONIC); what was changed since may be missing.
    """

    def __init__(
        self,
        name: str,
        network: IPNetwork,
        obj: Json | None,
        *,
        slice_of: str | None = None,
        read_at: float | None = None,
    ) -> None:
        self.name = name
        self.read_at = time.monotonic() if read_at is None else read_at
        # Of a node's slice, network_name/RANGE: the object's name has node and slice in it, and not the range.
        self._slice_of = slice_of
        self.network = network
        self.exists = obj is not None
        metadata, spec = (obj or {}).get("metadata", {}), (obj or {}).get("spec", {})
        self._read_metadata(metadata)
        self._has_allocations = spec.get("allocations") is not None
        bound = min(OFFSETS, network.size)
        self.allocations: dict[int, Json] = {
            int(key): entry
            for key, entry in (spec.get("allocations") or {}).items()
            # What upstream could not read is nobody's; it skips it likewise.
            if key.isascii() and key.isdigit() and int(key) < bound
        }

    def _read_metadata(self, metadata: Json) -> None:
        self.annotations: dict[str, str] = metadata.get("annotations") or {}
        self._resource_version = metadata.get("resourceVersion", "")
        self.uid: str = metadata.get("uid", "")
        self._is_managed = bool(metadata.get("managedFields"))

    @classmethod
    def read(cls, obj: Json) -> PoolObject | None:
        """Return a pool as it was listed, None when its range is none."""
        try:
            network = IPNetwork(obj["spec"]["range"]).cidr
        except (AddrFormatError, ValueError, KeyError, TypeError):
            return None
        return cls(obj["metadata"]["name"], network, obj)

    @property
    def network_name(self) -> str:
        """The network_name, which only the object's name tells, and of a node's slice our annotation."""
        if self.slice_of is not None:
            return self.slice_of.partition("/")[0]
        return network_name_of(self.name, self.network)

    @property
    def network_names(self) -> list[str]:
        """The network_name, and what else it may be of a pool that upstream made: of a slice's, without the node."""
        if self.slice_of is not None or _MADE_BY in self.annotations:
            return [self.network_name]
        parts = self.network_name.split("-")
        return list(dict.fromkeys("-".join(parts[:number]) for number in range(len(parts), -1, -1)))

    @property
    def slice_of(self) -> str | None:
        """Of a node's slice ``network_name/RANGE``, as far as it is known."""
        return self._slice_of if self._slice_of is not None else self.annotations.get(_SLICE_OF)

    @property
    def own_space(self) -> str:
        """The name space of its addresses where overlaps are not checked."""
        return self.slice_of if self.slice_of is not None else f"{self.network_name}/{self.network}"

    def address(self, offset: int) -> IPAddress:
        """Return the address of an offset."""
        return IPAddress(int(self.network.first) + offset, self.network.version)

    def offsets_of(self, owner: Owner) -> Iterator[int]:
        """Yield what the owner holds; an entry of an old upstream, without interface, is left to reconcile."""
        yield from sorted(offset for offset, entry in self.allocations.items() if is_held_by(entry, owner))

    def mark(self, offset: int) -> Mark | None:
        """Return what an annotation of this pool says about one of its addresses."""
        mark = Mark.read(self.annotations.get(f"{_MARKS}{offset}"))
        return mark if mark and _is_of(mark, self.allocations.get(offset, {})) else None

    def cooling(self, now: float) -> list[int]:
        """Return the offsets that cool down."""
        return [offset for offset, state in self._cooling() if not state.is_over(now)]

    def given_back_by(self, pod_key: str) -> list[IPAddress]:
        """Return what a pod's interface gave back and nobody took since, the latest first."""
        if not pod_key:
            return []
        found = [(state.released_at, offset) for offset, state in self._cooling() if state.pod_key == pod_key]
        return [self.address(offset) for _, offset in sorted(found, reverse=True)]

    def new(self, offset: int, entry: Json, mark: Mark | None) -> Json:
        """Return the object with its first allocation, to be created."""
        return self._made({str(offset): entry}, self._notes(offset, mark))

    def new_fenced(self, owner: Owner, now: float) -> Json:
        """Return the object without allocations, to be created; see fencing."""
        return self._made({}, {_fence(owner): f"{now:.3f}"})

    def new_frozen(self, datastore: str) -> Json:
        """Return the object without allocations, to be created; see freezing."""
        return self._made({}, {MIGRATED: datastore})

    def _made(self, allocations: Json, notes: dict[str, str]) -> Json:
        metadata: Json = {"name": self.name, "annotations": {_MADE_BY: "vferry"} | notes}
        spec = {"range": cidr(self.network), "allocations": allocations}
        return {"apiVersion": API_VERSION, "kind": POOL_KIND, "metadata": metadata, "spec": spec}

    def adding(self, offset: int, owner: Owner, mark: Mark | None, *, migrates: bool = False) -> list[Json]:
        """Return the patch that enters an allocation where there is none.

        It fails once the pool is migrated, and once the owner is fenced off since the pool was read.
        Raises: TryAgainLater for a pool that is migrated already, unless ``migrates``: it is the migration that enters.
        """
        path, entry = f"/spec/allocations/{offset}", entry_of(owner)
        operations = [] if migrates else [self._not_migrated()]
        if self.annotations:
            operations.append(expecting(annotation(_fence(owner)), self.annotations.get(_fence(owner))))
        operations += [] if self._has_allocations else making("/spec/allocations")
        operations += [expecting(path, None), {"op": "add", "path": path, "value": entry}]
        operations += self._dropping(f"{_COOLING}{offset}")
        has_room = self._noted() + len(str(mark)) < _FOR_MARKS
        return operations + self._noting(self._notes(offset, mark if has_room else None)) + self._unmanaging()

    def unchanged(self) -> Json:
        """Return the test that nobody changed anything since it was read."""
        return expecting("/metadata/resourceVersion", self._resource_version)

    def fencing(self, owner: Owner, now: float) -> list[Json]:
        """Return the patch after which one fails that an earlier invocation of the owner's sent to enter something."""
        fences = sorted((value, key) for key, value in self.annotations.items() if key.startswith(_FENCES))
        operations = [each for _, key in fences[_MOST_FENCES:] for each in self._dropping(key)]
        return operations + self._noting({_fence(owner): f"{now:.3f}"})

    def is_fenced(self, owner: Owner, now: float) -> bool:
        """Whether the fence of this moment is there."""
        return self.annotations.get(_fence(owner)) == f"{now:.3f}"

    def with_entry(self, offset: int, entry: Json, obj: Json) -> PoolObject:
        """Return the pool with an allocation that was entered; ``obj``: its metadata as the server answered."""
        there = copy.copy(self)
        there.read_at = time.monotonic()
        there._read_metadata(obj["metadata"])
        there.allocations = {**self.allocations, offset: entry}
        there._has_allocations = True
        return there

    def removing(self, offset: int, owner: Owner, cooling: Cooling | None, *, now: float, sweeps: bool) -> list[Json]:
        """Return the patch that takes exactly this owner's allocation out, and lets the address cool.

        ``sweeps``: with it go a few annotations of addresses that have cooled; not when others are at it.
        """
        path = f"/spec/allocations/{offset}"
        operations = [
            expecting(f"{path}/id", owner.container_id),
            expecting(f"{path}/ifname", self.allocations[offset].get("ifname")),
            {"op": "remove", "path": path},
            *self._dropping(f"{_MARKS}{offset}"),
        ]
        known = dict(self._cooling())
        # What is remembered gives way to what cools.
        is_done = Cooling.is_over if len(known) > _MOST_COOLING // 2 else Cooling.is_forgotten
        over = [each for each, state in known.items() if each != offset and is_done(state, now)] if sweeps else []
        swept = [f"{_COOLING}{each}" for each in over] + (self._old_fences(now) if sweeps else [])
        for key in random.sample(swept, min(_SWEPT, len(swept))):
            operations += self._dropping(key)
        if cooling is not None and len(known) < _MOST_COOLING and self._noted() < _FOR_COOLING:
            operations += self._noting({f"{_COOLING}{offset}": str(cooling)})
        return operations + self._unmanaging()

    def freezing(self, datastore: str) -> list[Json]:
        """Return the patch after which our plugins enter nothing new; empty when that is so. Undo: thawing."""
        return [] if self.annotations.get(MIGRATED) == datastore else self._noting({MIGRATED: datastore})

    def thawing(self) -> list[Json]:
        """Return the patch after which our plugins enter allocations again; empty when that is so."""
        return self._dropping(MIGRATED)

    def require_not_migrated(self) -> None:
        """Raise TryAgainLater for a pool that is being migrated, Moved for one that is migrated."""
        self._not_migrated()

    def _not_migrated(self) -> Json:
        datastore = self.annotations.get(MIGRATED)
        if datastore:
            raise (Moved if datastore == MIGRATED_TO else TryAgainLater)(
                f"IPPool {self.name} is migrated to datastore {datastore}",
                details=f"its annotation {MIGRATED} says so",
                hint=f'set "datastore": "{datastore}" in the network, or "vferry ipam migrate --to kubernetes"',
            )
        return expecting(annotation(MIGRATED) if self.annotations else "/metadata/annotations", None)

    def _noted(self) -> int:
        return sum(len(key) + len(value) for key, value in self.annotations.items())

    def _old_fences(self, now: float) -> list[str]:
        fences = {key: Cooling.read(f"{value}/0") for key, value in self.annotations.items() if key.startswith(_FENCES)}
        return [key for key, since in fences.items() if since and abs(now - since.released_at) > _FENCED_S]

    def _unmanaging(self) -> list[Json]:
        # One empty entry is the API's word for "none"; of an object without, the server notes no more.
        return [{"op": "add", "path": "/metadata/managedFields", "value": [{}]}] if self._is_managed else []

    def _cooling(self) -> Iterator[tuple[int, Cooling]]:
        for key, value in self.annotations.items():
            offset = key.removeprefix(_COOLING)
            if offset == key or not offset.isdigit() or int(offset) in self.allocations:
                continue
            state = Cooling.read(value)
            if state is not None:
                yield int(offset), state

    def _dropping(self, key: str) -> list[Json]:
        if key not in self.annotations:
            return []
        return [expecting(annotation(key), self.annotations[key]), {"op": "remove", "path": annotation(key)}]

    def _notes(self, offset: int, mark: Mark | None) -> dict[str, str]:
        notes = {} if mark is None else {f"{_MARKS}{offset}": str(mark)}
        if self.slice_of is not None and _SLICE_OF not in self.annotations:
            notes[_SLICE_OF] = self.slice_of
        return notes

    def _noting(self, notes: dict[str, str]) -> list[Json]:
        made = making("/metadata/annotations") if notes and not self.annotations else []
        return [*made, *({"op": "add", "path": annotation(key), "value": value} for key, value in notes.items())]


def entry_of(owner: Owner) -> Json:
    """Return an allocation as upstream writes it."""
    return {"id": owner.container_id, "podref": podref_of(owner), "ifname": owner.ifname}


def podref_of(owner: Owner) -> str:
    """Return the pod as upstream has it; without one, what can be no pod's: no namespace is called "_"."""
    return f"{owner.pod_namespace}/{owner.pod_name}" if owner.pod_name else f"_/{owner.container_id}"


def is_held_by(entry: Json, owner: Owner) -> bool:
    """Whether an allocation is this very owner's: another container of the same pod is another owner.

    Of what an old upstream entered, no interface is known: it is held by the owner that it was read as.
    """
    return (entry.get("id"), entry.get("ifname") or "") == (owner.container_id, owner.ifname)


def reservation(owner: Owner, name: str, mark: Mark) -> Json:
    """Return a reservation to be created."""
    return {
        "apiVersion": API_VERSION,
        "kind": RESERVATION_KIND,
        "metadata": {
            "name": name,
            "labels": {OWNER_LABEL: owner_label(owner)},
            "annotations": {MARK: str(mark)},
        },
        "spec": {"podref": podref_of(owner), "ifname": owner.ifname, "containerid": owner.container_id},
    }


def mark_of(obj: Json | None) -> Mark | None:
    """Return what a reservation of ours says, None for upstream's own."""
    annotations = ((obj or {}).get("metadata") or {}).get("annotations") or {}
    return Mark.read(annotations.get(MARK))


def is_reserved_by(obj: Json, owner: Owner) -> bool:
    """Whether a reservation is this very owner's. Upstream's names a pod only, and that may have another sandbox."""
    mark = mark_of(obj)
    return mark is not None and (mark.cid, mark.ifname) == (owner.container_id, owner.ifname)


def belongs_to(obj: Json, entry: Json) -> bool:
    """Whether a reservation, ours or upstream's, is the one of an allocation; fields a schema dropped say nothing.

    Upstream's ADD takes the allocation of another sandbox of its pod over, and leaves the reservation as it is: with
    our mark, and the other container's id.
    """
    mark, spec = mark_of(obj), obj.get("spec") or {}
    if mark is not None and _is_of(mark, entry):
        return True
    wanted = _reserved(entry) if mark is None else _attached(entry)
    return all(spec.get(key, value) in ("", value) for key, value in wanted.items())


def read_lease(pool: PoolObject, offset: int, mark: Mark | None, *, space: str | None = None) -> Lease:
    """Return an allocation as a lease; what upstream made has no time, node or network."""
    entry, in_pool = pool.allocations[offset], pool.mark(offset)
    known = mark if mark and _is_of(mark, entry) else in_pool
    namespace, _, name = str(entry.get("podref") or "").partition("/")
    if namespace == "_":
        namespace = name = ""
    network_name = pool.network_name
    if space is None:
        space = pool.own_space if in_pool else network_name
    owner = Owner(str(entry.get("id") or ""), str(entry.get("ifname") or ""), "", namespace, name)
    if known is not None:
        owner = Owner(known.cid, known.ifname, known.network, namespace, name, known.uid, known.node)
    return Lease(
        owner=owner,
        network_name=network_name,
        space=space,
        address=pool.address(offset),
        allocated_at=known.at if known else 0.0,
        revision=known.id if known else f"{owner.container_id}/{owner.ifname}",
    )


def read_reservation(obj: Json) -> Lease | None:
    """Return a reservation that has no allocation as a lease, None for one that does not say whose it is."""
    mark = mark_of(obj)
    if mark is None or not mark.pool:
        return None
    address = reserved_address(obj["metadata"]["name"], mark.network_name)
    if address is None:
        return None
    namespace, _, name = str(obj["spec"].get("podref") or "").partition("/")
    if namespace == "_":
        namespace = name = ""
    return Lease(
        owner=Owner(mark.cid, mark.ifname, mark.network, namespace, name, mark.uid, mark.node),
        network_name=mark.network_name,
        space=mark.network_name,
        address=address,
        allocated_at=mark.at,
        revision=mark.id,
    )


def _attached(entry: Json) -> dict[str, Any]:
    return {"podref": entry.get("podref"), "ifname": entry.get("ifname")}


def _reserved(entry: Json) -> dict[str, Any]:
    return {**_attached(entry), "containerid": entry.get("id")}


def _is_of(mark: Mark, entry: Json) -> bool:
    return (mark.cid, mark.ifname) == (entry.get("id"), entry.get("ifname"))


def _fence(owner: Owner) -> str:
    return f"{_FENCES}{owner_label(owner)}"
