"""What is wrong in a store and on this node, told as sentences: duplicates, contradictions, use without a lease; pure.

Where leases and uses come from is the caller's; what a store's own objects contradict is ``ipam.stores.survey``'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from netaddr import IPAddress

from ipam.stores.contract import Lease, Pool

Kind = Literal["duplicate", "contradiction", "unleased", "unaccounted", "outside"]
# What may be so for a good reason; the others never are.
NOTICES: tuple[Kind, ...] = ("unaccounted", "outside")


@dataclass(frozen=True)
class Disorder:
    """One thing that is wrong."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Use:
    """One address that an attachment of this node was given; ``holder`` is its container ID and ifname."""

    address: IPAddress
    holder: tuple[str, str]
    network_name: str
    cni_network: str


def duplicates(leases: Iterable[Lease]) -> Iterator[Disorder]:
    """Yield every address that has two owners in one name space, or in a range of its own and all of the network's."""
    first: dict[tuple[str, IPAddress], Lease] = {}
    for lease in leases:
        other = first.setdefault((lease.space, lease.address), lease)
        shared = first.get((lease.network_name, lease.address), lease)
        for holder in {other, shared} - {lease}:
            if holder.owner != lease.owner:
                yield Disorder("duplicate", f"{lease.address} is leased to {holder.owner} and to {lease.owner}")


def unleased(uses: Iterable[Use], leases: Iterable[Lease]) -> Iterator[Disorder]:
    """Yield every address in use on this node that its user does not hold."""
    holders: dict[tuple[str, IPAddress], set[tuple[str, str]]] = {}
    for lease in leases:
        owner = (lease.owner.container_id, lease.owner.ifname)
        holders.setdefault((lease.network_name, lease.address), set()).add(owner)
    for use in uses:
        held_by = holders.get((use.network_name, use.address), set())
        if use.holder in held_by:
            continue
        user = f"{use.address} is in use by container {use.holder[0]} interface {use.holder[1]} of {use.cni_network}"
        others = ", ".join(" ".join(holder) for holder in sorted(held_by))
        yield Disorder("unleased", f"{user}, but is leased to {others or 'nobody'}")


def unaccounted(
    leases: Iterable[Lease], *, node: str, known: set[tuple[str, str]], pools: Sequence[Pool]
) -> Iterator[Disorder]:
    """Yield leases of this node whose attachment nothing here knows, and leases that no known range offers."""
    networks = {pool.network_name for pool in pools}
    for lease in leases:
        owner = (lease.owner.container_id, lease.owner.ifname)
        if known and lease.owner.node == node and owner not in known:
            yield Disorder("unaccounted", f"{lease.address} of {lease.owner}: this node knows no such attachment")
        of_network = [pool for pool in pools if pool.network_name == lease.network_name]
        if lease.network_name in networks and not any(pool.range.offers(lease.address) for pool in of_network):
            yield Disorder("outside", f"{lease.address} of {lease.owner} is in no range of the configurations here")
