"""Round robin over the ranges of a set, as upstream's ``host-local`` goes; pure, nothing here knows a file.

The search begins behind the last reserved address, goes through the ranges in their order and around once, and tries
the last reserved address itself last. Gateways are passed over.

Source: containernetworking/plugins plugins/ipam/host-local/backend/allocator/allocator.go GetIter, Next.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

from netaddr import IPAddress

from conf.host_local import RangeSet


def next_free(range_set: RangeSet, last_reserved: IPAddress | None, *, taken: Container[IPAddress]) -> IPAddress | None:
    """Return the address whose turn it is; None when all are taken."""
    for first, last in turns(range_set, last_reserved):
        for value in range(first, last + 1):
            address = IPAddress(value, range_set.version)
            if address not in taken:
                return address
    return None


def turns(range_set: RangeSet, last_reserved: IPAddress | None) -> Iterator[tuple[int, int]]:
    """Yield the intervals in the order in which they are tried, both bounds inclusive, some of them empty.

    A last reserved address that no range holds, as after a change of the configuration, counts for nothing.
    """
    ranges = range_set.ranges
    at = next((at for at, element in enumerate(ranges) if last_reserved is not None and last_reserved in element), None)
    if at is None or last_reserved is None:
        yield from ((element.first, element.last) for element in ranges)
        return
    yield last_reserved.value + 1, ranges[at].last
    yield from ((element.first, element.last) for element in (*ranges[at + 1 :], *ranges[:at]))
    yield ranges[at].first, last_reserved.value
