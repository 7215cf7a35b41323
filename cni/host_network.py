"""The addresses and routes that a link has on the host: recorded before it is moved, which it loses them by, put back.

Only what an administrator gave it. The kernel's own come back with the addresses and with the link set up; what has
a lifetime, and what a daemon learnt (DHCP, router advertisements, BGP), is that daemon's to bring back.

Source: net/core/dev.c dev_change_net_namespace, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import logging

from cni.linux.rtnetlink import Rtnetlink
from conf.attachment import AddressRecord, LinkRecord, RouteRecord
from conf.errors import KernelRefused

LOG = logging.getLogger("vferry.host_network")
# linux/rtnetlink.h
_RT_SCOPE_UNIVERSE, _RT_TABLE_LOCAL, _RTN_UNICAST = 0, 255, 1
_ADMINISTRATORS = frozenset({3, 4})  # RTPROT_BOOT: a plain 'ip route add'; RTPROT_STATIC
# linux/if_addr.h
_IFA_F_NODAD, _IFA_F_PERMANENT, _IFA_F_NOPREFIXROUTE = 0x02, 0x80, 0x200
# A route is no better than what it leads over: a gateway in a subnet whose address a DHCP client has yet to bring.
_NO_WAY_YET = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EINVAL})


def addresses(host: Rtnetlink, index: int) -> list[AddressRecord]:
    """Return the global addresses that were given for good."""
    return [
        AddressRecord(
            address=each.address,
            broadcast=each.broadcast or "",
            flags=each.flags & (_IFA_F_NODAD | _IFA_F_NOPREFIXROUTE),
        )
        for each in host.addresses(index)
        if each.scope == _RT_SCOPE_UNIVERSE and each.flags & _IFA_F_PERMANENT
    ]


def routes(host: Rtnetlink, index: int) -> list[RouteRecord]:
    """Return the routes that were given, those that lead straight over the link first: others may need them."""
    found = [
        RouteRecord(
            dst=route.dst,
            gateway=route.gateway,
            table=route.table,
            scope=route.scope,
            priority=route.priority,
            mtu=route.mtu,
            advmss=route.advmss,
            src=route.src,
            protocol=route.protocol,
        )
        for route in host.routes(index)
        if route.protocol in _ADMINISTRATORS and route.kind == _RTN_UNICAST and route.table != _RT_TABLE_LOCAL
    ]
    return sorted(found, key=lambda route: route.gateway is not None)


def restore(host: Rtnetlink, index: int, record: LinkRecord) -> None:
    """Put back what is missing; the link must be up for its routes. Raises: KernelRefused."""
    there = {each.address for each in host.addresses(index)} if record.addresses else set()
    for address in record.addresses:
        if address.address not in there:
            host.addr_add(index, address.address, broadcast=address.broadcast, flags=address.flags)
    present = routes(host, index) if record.routes else []
    for route in record.routes:
        if route not in present:
            _restore_route(host, index, route)


def _restore_route(host: Rtnetlink, index: int, route: RouteRecord) -> None:
    try:
        host.route_add(
            dst=route.dst,
            gateway=route.gateway,
            index=index,
            mtu=route.mtu,
            advmss=route.advmss,
            priority=route.priority or None,
            table=route.table,
            scope=route.scope,
            src=route.src,
            protocol=route.protocol,
        )
    except KernelRefused as error:
        if error.errno not in _NO_WAY_YET:
            raise
        LOG.warning("%s; it was there before the link was moved, add it again", error)
