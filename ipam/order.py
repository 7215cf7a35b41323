"""What one attachment is to get from whereabouts: addresses wanted out of pools, static ones, and their gateways.

Nothing here talks to a store.

Source: reference 1.1; design section 6.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from netaddr import IPAddress, IPNetwork

from conf.errors import InvalidNetworkConfig
from conf.ipam import (
    Asked,
    StaticAddress,
    asked,
    cni_args_addresses,
    cni_args_gateways,
    require_expressible,
    with_gateways,
)
from conf.request import Request
from conf.result import Ip
from conf.section import shown
from conf.whereabouts import RangeConf, WhereaboutsConf
from ipam.ranges import Range, usable
from ipam.stores.contract import Lease, NodeSlice, Pool, Want

log = logging.getLogger("vferry.ipam.order")


@dataclass(frozen=True)
class Order:
    """Everything one attachment is to get: one address per want, and the static addresses beside them.

    ``offered`` are the pools of the configuration's ranges, in their order.
    """

    conf: WhereaboutsConf
    offered: tuple[Pool, ...]
    wants: tuple[Want, ...]
    static: tuple[StaticAddress, ...]

    @property
    def pools(self) -> tuple[Pool, ...]:
        """The pools of the ranges, each once."""
        return tuple(dict.fromkeys(self.offered))

    def ips(self, leases: Iterable[Lease]) -> list[Ip]:
        """Return the addresses as a result has them; one lease per want, in their order."""
        elements = dict(zip(reversed(self.offered), reversed(self.conf.ranges), strict=True))
        given = []
        for want, lease in zip(self.wants, leases, strict=True):
            given.append(to_ip(self.conf, elements[want.pool_of(lease) or want.pool], lease))
        return [*given, *(address.to_ip() for address in self.static)]


def order_of(request: Request, conf: WhereaboutsConf, *, node_slice: NodeSlice | None = None) -> Order:
    """Return what the request asks for; with a slice, out of that where it is one of a range.

    IP= of CNI_ARGS is a static address, unless addresses are asked for out of the pools: the conventions then want
    CNI_ARGS ignored.
    Raises: InvalidNetworkConfig, InvalidEnvironment.
    """
    wanted = asked(request)
    from_args = [] if wanted.texts else cni_args_addresses(request)
    static = with_gateways([*conf.addresses, *from_args], cni_args_gateways(request))
    pools = pools_of(conf, static=[given.address.ip for given in static], node_slice=node_slice)
    wants = (first_of if conf.ip_ranges_allocation == "first_available" else wants_of)(pools, wanted)
    if not wants and not static:
        raise InvalidNetworkConfig(
            "ipam: whereabouts has no range", hint='set "range", "ipRanges" or "addresses" in the ipam object'
        )
    families = [want.pool.range.version for want in wants] + [given.address.version for given in static]
    require_expressible(families, request.cni_version)
    return Order(conf, tuple(pools), tuple(wants), tuple(static))


def pools_of(
    conf: WhereaboutsConf, *, static: Iterable[IPAddress] = (), node_slice: NodeSlice | None = None
) -> list[Pool]:
    """Return one pool per range. Gateways and the ``static`` addresses beside the pools are never handed out.

    The configuration's own ``exclude`` counts for every range: upstream drops it when there is no ``range``.
    Raises: InvalidNetworkConfig when nothing of a range is left, or the slice is of none of them.
    """
    if node_slice is not None and node_slice.whole not in [element.range.network for element in conf.ranges]:
        raise InvalidNetworkConfig(
            f"ipam: no range is {node_slice.whole}, of which node {node_slice.node} has the slice {node_slice.part}",
            hint='networks with one "network_name" have one range; give this one another, or the same range',
        )
    gateways = [element.gateway for element in [conf, *conf.ip_ranges] if element.gateway is not None]
    never = [*conf.exclude, *gateways, *static]
    pools = []
    for element in conf.ranges:
        start, end = element.bounds
        of_slice = node_slice if node_slice and node_slice.whole == element.range.network else None
        if of_slice is not None:
            start, end = _within(of_slice.part, start, end)
        block = Range.of(element.range.network, start=start, end=end, exclude=[*element.exclude, *never])
        if block.size == 0:
            raise InvalidNetworkConfig(
                f"ipam: range {block} has no address to hand out",
                details=f"{len(element.exclude)} excludes, gateways: {', '.join(map(str, gateways)) or 'none'}",
                hint='network, broadcast, gateway and "exclude" are never handed out: widen the range or exclude less',
            )
        pools.append(Pool(conf.network_name, block, conf.enable_overlapping_ranges, of_slice))
    return pools


def _within(part: IPNetwork, start: IPAddress | None, end: IPAddress | None) -> tuple[IPAddress, IPAddress]:
    """Narrow bounds to the addresses of a slice that upstream, too, hands out."""
    first, last = (IPAddress(value, part.version) for value in usable(part))
    return max(start or first, first), min(end or last, last)


def wants_of(pools: Sequence[Pool], asked: Asked) -> list[Want]:
    """Return one want per pool, with the addresses asked for in the first pool that can give each.

    Raises: InvalidNetworkConfig for an address that no pool, or no pool that is left, can give.
    """
    requested: dict[int, IPAddress] = {}
    for address in asked.addresses():
        left = [at for at, pool in enumerate(pools) if pool.range.offers(address) and at not in requested]
        if address in requested.values() or not left:
            raise InvalidNetworkConfig(
                f"{shown(asked.key, str(address))} cannot be given",
                details=_refusal(pools, address),
                hint="ask for one address per range, none that is excluded or a gateway",
            )
        requested[left[0]] = address
    return [Want(pool, requested.get(at)) for at, pool in enumerate(pools)]


def first_of(pools: Sequence[Pool], asked: Asked) -> list[Want]:
    """Return the one want of an address out of any of the pools, none without pools.

    Raises: InvalidNetworkConfig for a requested address that none can give, and for more than one.
    """
    if not pools:
        return wants_of(pools, asked)
    alternatives = tuple(dict.fromkeys(pools))
    addresses = asked.addresses()
    if not addresses:
        return [Want(alternatives[0], None, alternatives)]
    given = [pool for pool in alternatives if pool.range.offers(addresses[0])]
    if len(addresses) > 1 or not given:
        raise InvalidNetworkConfig(
            f"{shown(asked.key, str(addresses[-1]))} cannot be given",
            details=_refusal(pools, addresses[0]) if not given else 'one address in all with "first_available"',
            hint="ask for one address, none that is excluded or a gateway",
        )
    return [Want(given[0], addresses[0])]


def _refusal(pools: Sequence[Pool], address: IPAddress) -> str:
    containing = [pool.range for pool in pools if address in pool.range.network]
    if not containing:
        return f"it is in none of the ranges {', '.join(str(pool.range) for pool in pools) or '(there are none)'}"
    if not any(block.offers(address) for block in containing):
        return f"range {containing[0]} never hands it out"
    return f"another address of range {containing[0]} was asked for already"


def to_ip(conf: WhereaboutsConf, element: RangeConf, lease: Lease) -> Ip:
    """Return a lease as a result has it: with the prefix length of its range, and the gateway where it is on-link."""
    network = element.range.network
    return Ip(address=f"{lease.address}/{network.prefixlen}", gateway=str(_gateway(conf, element) or ""))


def _gateway(conf: WhereaboutsConf, element: RangeConf) -> IPAddress | None:
    network = element.range.network
    gateway = element.gateway or conf.gateway
    if gateway is None or gateway.version != network.version:
        return None
    # A host route has no subnet to lie in, and a link-local router is on every IPv6 link.
    if gateway in network or network.size == 1 or (gateway.version == 6 and gateway.is_link_local()):
        return gateway
    log.warning("gateway %s is not in range %s and is left out of its addresses", gateway, network)
    return None
