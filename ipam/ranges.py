"""Blocks of addresses as integers: what of a block may be handed out, and its free addresses in ascending order.

Nothing here knows a store, a plugin or a policy. Nothing here walks over a block: a /64 costs what a /24 costs, and a
long run of taken addresses is counted, not visited.

Source: reference 1.1 "range", 8.6; RFC 3021 (/31), RFC 6164 (/127), RFC 4291 2.6.1 (subnet-router anycast).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from netaddr import IPAddress, IPNetwork, IPRange, IPSet

# Below this many addresses a segment is listed; above, it is counted and halved.
LISTED = 256


class Occupancy(Protocol):
    """The taken addresses of one name space, as a store tells them. Bounds are inclusive."""

    def count(self, first: int, last: int) -> int:
        """Return how many addresses are taken."""
        ...

    def taken(self, first: int, last: int) -> Sequence[int]:
        """Return the taken addresses in any order; never asked for more than a few hundred addresses at once."""
        ...


@dataclass(frozen=True)
class Range:
    """One block of one family; ``spans`` are the disjoint, ascending, inclusive intervals that may be handed out."""

    network: IPNetwork
    first: int
    last: int
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls,
        network: IPNetwork,
        *,
        start: IPAddress | None = None,
        end: IPAddress | None = None,
        exclude: Iterable[IPNetwork | IPAddress] = (),
    ) -> Range:
        """Return the block, from ``start`` to ``end`` where given, less what is excluded and what is no host address.

        ``start`` and ``end`` must lie in the network; blocks of the other family exclude nothing.
        """
        first, last = usable(network)
        first = max(first, start.value) if start is not None else first
        last = min(last, end.value) if end is not None else last
        if first > last:
            return cls(network.cidr, first, last, ())
        version = network.version
        free = IPSet(IPRange(IPAddress(first, version), IPAddress(last, version))) - IPSet(
            IPNetwork(block) for block in exclude if block.version == version
        )
        return cls(network.cidr, first, last, tuple((span.first, span.last) for span in free.iter_ipranges()))

    @property
    def version(self) -> int:
        """4 or 6."""
        return int(self.network.version)

    @property
    def size(self) -> int:
        """How many addresses may be handed out."""
        return sum(last - first + 1 for first, last in self.spans)

    @property
    def excluded(self) -> int:
        """How many addresses between first and last may not be handed out."""
        return max(self.last - self.first + 1, 0) - self.size

    def offers(self, address: IPAddress) -> bool:
        """Whether the address may be handed out."""
        return address.version == self.version and any(first <= address.value <= last for first, last in self.spans)

    def count(self, occupancy: Occupancy) -> int:
        """Return how many of the addresses that may be handed out are taken."""
        return sum(occupancy.count(first, last) for first, last in self.spans)

    def free(self, occupancy: Occupancy) -> Iterator[IPAddress]:
        """Yield the free addresses in ascending order, asking the occupancy for no more than is consumed."""
        return (IPAddress(value, self.version) for value in self.free_values(occupancy))

    def free_values(self, occupancy: Occupancy) -> Iterator[int]:
        """Yield the same as numbers: of many that are looked at, one is taken."""
        for first, last in self.spans:
            yield from _free(first, last, occupancy)

    def __str__(self) -> str:
        if (self.first, self.last) == usable(self.network):
            return str(self.network)
        return f"{self.network} ({IPAddress(self.first, self.version)} to {IPAddress(self.last, self.version)})"


def usable(network: IPNetwork) -> tuple[int, int]:
    """Return the first and last host address: no network address, no IPv4 broadcast, no subnet-router anycast.

    A block of one or two addresses is for a point-to-point link or a host and is usable throughout.
    """
    if network.size <= 2:
        return network.first, network.last
    return network.first + 1, network.last - (network.version == 4)


def segments(first: int, last: int) -> Iterator[tuple[int, int]]:
    """Cut a span into the segments in which free addresses are looked for, one after the other.

    They grow as they are passed, so that n taken addresses before the first gap cost one count of each, and a gap near
    the start is found without counting what lies behind it.
    """
    size = LISTED
    while first <= last:
        segment_last = min(first + size - 1, last)
        yield first, segment_last
        first, size = segment_last + 1, size * 2


def halves(first: int, last: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Cut a segment with a gap as the search for it does."""
    middle = (first + last) // 2
    return (first, middle), (middle + 1, last)


def _free(first: int, last: int, occupancy: Occupancy) -> Iterator[int]:
    for segment in segments(first, last):
        yield from _free_in_segment(*segment, occupancy)


def _free_in_segment(first: int, last: int, occupancy: Occupancy) -> Iterator[int]:
    pending = [(first, last)]
    while pending:
        first, last = pending.pop()
        size = last - first + 1
        if size <= LISTED:
            taken = frozenset(occupancy.taken(first, last))
            yield from (value for value in range(first, last + 1) if value not in taken)
            continue
        count = occupancy.count(first, last)
        if count == 0:
            yield from range(first, last + 1)
        elif count < size:
            pending += reversed(halves(first, last))
