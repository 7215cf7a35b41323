"""A route as the kernel reports it, and the request that adds one; no socket here.

Source: linux/rtnetlink.h, net/ipv4/fib_frontend.c, net/ipv6/route.c.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cni.linux.pyroute2_messages import rtmsg

# linux/rtnetlink.h
RT_TABLE_UNSPEC, RT_TABLE_MAIN = 0, 254
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTPROT_BOOT, RTN_UNICAST = 3, 1


@dataclass(frozen=True)
class Route:
    """One way to one destination over one link; ``dst`` of a default route is ``0.0.0.0/0`` or ``::/0``."""

    dst: str
    gateway: str | None
    index: int
    family: int
    table: int
    scope: int
    priority: int
    mtu: int | None
    advmss: int | None
    src: str | None
    protocol: int
    kind: int


def routes_from(data: bytes, index: int) -> tuple[Route, ...]:
    """Read what one RTM_NEWROUTE message says of the link ``index``; a multipath route may name it twice."""
    message = rtmsg(data)
    message.decode()
    return tuple(_routes(message, index))


def _routes(message: Any, index: int) -> Iterator[Route]:
    family = message["family"]
    anywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - a destination, not a bind
    hops = [(message.get_attr("RTA_OIF"), message.get_attr("RTA_GATEWAY"))]
    hops += [(hop["oif"], hop.get_attr("RTA_GATEWAY")) for hop in message.get_attr("RTA_MULTIPATH") or ()]
    for oif, gateway in hops:
        if oif != index:
            continue
        yield Route(
            dst=f"{message.get_attr('RTA_DST') or anywhere}/{message['dst_len']}",
            gateway=gateway,
            index=oif,
            family=family,
            table=message.get_attr("RTA_TABLE") or message["table"],
            scope=message["scope"],
            priority=message.get_attr("RTA_PRIORITY") or 0,
            mtu=message.get_nested("metrics", "RTAX_MTU"),
            advmss=message.get_nested("metrics", "RTAX_ADVMSS"),
            src=message.get_attr("RTA_PREFSRC"),
            protocol=message["proto"],
            kind=message["type"],
        )


def route_request(
    dst: str,
    *,
    gateway: str | None,
    index: int,
    mtu: int | None,
    advmss: int | None,
    priority: int | None,
    table: int | None,
    scope: int | None,
    src: str | None,
    protocol: int = RTPROT_BOOT,
) -> Any:
    """Write an RTM_NEWROUTE message; bits of ``dst`` beyond its prefix length are dropped, as Go does."""
    network = ipaddress.ip_network(dst, strict=False)
    table = RT_TABLE_MAIN if table is None else table
    if scope is None:
        scope = RT_SCOPE_UNIVERSE if gateway or network.version == 6 else RT_SCOPE_LINK
    message = rtmsg()
    message["family"] = socket.AF_INET6 if network.version == 6 else socket.AF_INET
    message["dst_len"] = network.prefixlen
    message["table"] = table if table < 256 else RT_TABLE_UNSPEC
    message["proto"], message["type"], message["scope"] = protocol, RTN_UNICAST, scope
    metrics = [(name, value) for name, value in (("RTAX_MTU", mtu), ("RTAX_ADVMSS", advmss)) if value]
    attributes = {
        "RTA_DST": str(network.network_address) if network.prefixlen else None,
        "RTA_GATEWAY": gateway,
        "RTA_OIF": index,
        "RTA_TABLE": table,
        "RTA_PRIORITY": priority,
        "RTA_PREFSRC": src,
        "RTA_METRICS": {"attrs": metrics} if metrics else None,
    }
    message["attrs"] = [(name, value) for name, value in attributes.items() if value is not None]
    return message
