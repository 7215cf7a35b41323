"""Addresses and routes of one link: one kernel verb per method.

Source: rtnetlink(7), net/ipv4/devinet.c, net/ipv4/fib_frontend.c; vishvananda/netlink RouteAddEcmp.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any

from cni.linux.address import IFA_F_OPTIMISTIC, Address, address_from
from cni.linux.netlink import NLM_F_CREATE, NLM_F_EXCL
from cni.linux.pyroute2_messages import ifaddrmsg, rtmsg
from cni.linux.route import RTPROT_BOOT, Route, route_request, routes_from
from cni.linux.rtnetlink_socket import RtnetlinkSocket
from conf.errors import KernelRefused

# linux/rtnetlink.h
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26

_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class AddressVerbs(RtnetlinkSocket):
    """The verbs of addresses and routes; ``index`` is the link's."""

    def addr_add(self, index: int, address: str, *, broadcast: str | None = None, flags: int = 0) -> None:
        """Add an address written as ``10.0.0.5/24``. Raises: KernelRefused, EEXIST when the link has it.

        An IPv4 address gets its subnet's broadcast address, as Go and ``ip addr add brd +`` do, or none for ``""``.
        An IPv6 address is asked for as optimistic unless ``flags`` says otherwise: the sysctl ``optimistic_dad`` alone
        does that for link-local addresses only, and the kernel drops the flag where it is 0. Undo: addr_del.
        """
        interface = ipaddress.ip_interface(address)
        if broadcast is None and interface.version == 4 and interface.network.prefixlen < 31:
            broadcast = str(interface.network.broadcast_address)
        if interface.version == 6 and not flags:
            flags = IFA_F_OPTIMISTIC
        message = self._address(index, address)
        message["attrs"] += [("IFA_BROADCAST", broadcast)] if broadcast else []
        message["attrs"] += [("IFA_FLAGS", flags)] if flags else []
        operation = f"adding address {address}"
        self._command(message, RTM_NEWADDR, index, operation, flags=NLM_F_CREATE | NLM_F_EXCL)

    def addr_del(self, index: int, address: str) -> None:
        """Remove an address. Raises: KernelRefused, EADDRNOTAVAIL when the link has no such address."""
        self._command(self._address(index, address), RTM_DELADDR, index, f"removing address {address}")

    def addresses(self, index: int) -> tuple[Address, ...]:
        """Return the addresses of one link."""

        def question() -> Any:
            message = ifaddrmsg()
            message["index"] = index
            return message

        found = self._netlink.dump(
            question, RTM_GETADDR, operation="listing addresses", target=self._target(index), decode=address_from
        )
        # Kernels before 4.20 do not filter.
        return tuple(each for each in found if each.index == index)

    # Routes

    def route_add(
        self,
        *,
        dst: str,
        gateway: str | None = None,
        index: int,
        mtu: int | None = None,
        advmss: int | None = None,
        priority: int | None = None,
        table: int | None = None,
        scope: int | None = None,
        src: str | None = None,
        protocol: int = RTPROT_BOOT,
    ) -> bool:
        """Add a route; False when this very route is there already.

        A second route to one destination is no error: it goes before the first (IPv4) or shares the traffic
        with it (IPv6). Without a scope it is ``link`` when there is no gateway, as in ``ip route``.
        Source: RouteAddEcmp of vishvananda/netlink, which upstream's plugins use: CREATE without EXCL.
        """
        message = route_request(
            dst,
            gateway=gateway,
            index=index,
            mtu=mtu,
            advmss=advmss,
            priority=priority,
            table=table,
            scope=scope,
            src=src,
            protocol=protocol,
        )
        way = f"{dst} via {gateway}" if gateway else dst
        try:
            self._command(message, RTM_NEWROUTE, index, f"adding route {way}", flags=NLM_F_CREATE)
        except KernelRefused as error:
            if error.errno == errno.EEXIST:
                return False
            raise
        return True

    def routes(self, index: int, *, table: int | None = None) -> tuple[Route, ...]:
        """Return the routes over one link, of one table or of all of them, the local one too."""
        return tuple(route for family in _FAMILIES for route in self._routes(family, index, table=table))

    def _address(self, index: int, address: str) -> Any:
        interface = ipaddress.ip_interface(address)
        message = ifaddrmsg()
        message["family"] = socket.AF_INET if interface.version == 4 else socket.AF_INET6
        message["prefixlen"] = interface.network.prefixlen
        message["index"] = index
        message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
        return message

    def _routes(self, family: int, index: int, *, table: int | None) -> tuple[Route, ...]:
        def question() -> Any:
            message = rtmsg()
            message["family"] = family
            message["attrs"] = [("RTA_OIF", index)]
            message["attrs"] += [("RTA_TABLE", table)] if table is not None else []
            return message

        try:
            found = self._netlink.dump(
                question,
                RTM_GETROUTE,
                operation="listing routes",
                target=self._target(index),
                decode=lambda data: routes_from(data, index),
            )
        except KernelRefused as error:
            if error.errno == errno.ENOENT:  # no such table
                return ()
            raise
        # A kernel without IPv6 answers for IPv4 again; one before 4.20 does not filter.
        return tuple(
            route
            for routes in found
            for route in routes
            if route.family == family and (table is None or route.table == table)
        )
