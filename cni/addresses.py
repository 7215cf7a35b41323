"""What an IPAM plugin answered, put on an interface in its sandbox, and checked there.

Which address it is was decided in ipam/ or by a foreign plugin.

Source: containernetworking/plugins pkg/ipam/ipam_linux.go ConfigureIface; reference 1.9.
"""

from __future__ import annotations

import errno
import logging
from ipaddress import ip_address, ip_interface, ip_network

from cni.kernel import Kernel
from cni.linux.dad import wait_dad
from cni.linux.netns import Netns
from cni.linux.rtnetlink import Rtnetlink
from cni.steps import timed
from conf.errors import DelegateFailed, InvalidNetworkConfig, KernelRefused
from conf.result import Ip, Result, Route

LOG = logging.getLogger("vferry.addresses")
_DAD_TIMEOUT_S = 5
_RT_SCOPE_LINK = 253  # linux/rtnetlink.h


@timed("addresses")
def apply(
    kernel: Kernel, inside: Rtnetlink, sandbox: Netns, *, index: int, ifname: str, ips: list[Ip], routes: list[Route]
) -> None:
    """Set up the link, add addresses and routes. Undo: the link leaves the sandbox, and they vanish.

    Raises: KernelRefused; CniError of ``wait_dad`` when a v6 address that has a gateway is a duplicate.
    """
    if any(ip.family == 6 for ip in ips):
        with sandbox.entered():
            _allow_ipv6(kernel, ifname)
    for ip in ips:
        inside.addr_add(index, ip.address)
    inside.link_set_up(index)
    if any(ip.family == 6 and ip.gateway for ip in ips):
        # A route through a gateway wants a source address, and a tentative one is none.
        wait_dad(inside, index, _DAD_TIMEOUT_S, sleep=kernel.sleep)
    for route in routes:
        _add_route(inside, index, route, gateway=_gateway(route, ips))


def announce_quietly(kernel: Kernel, sandbox: Netns, ifname: str) -> None:
    """Let the kernel announce what addresses the link has when it goes up or its MAC changes, now and after us.

    And let v6 addresses be used before DAD is done. Best effort.
    """
    with sandbox.entered():
        for family, key in (("ipv4", "arp_notify"), ("ipv6", "ndisc_notify"), ("ipv6", "optimistic_dad")):
            _set(kernel, ("net", family, "conf", ifname, key), "1")


def differences(inside: Rtnetlink, *, index: int, ips: list[Ip], routes: list[Route]) -> list[str]:
    """Say what of an earlier result is no longer on the interface; what came besides is no difference."""
    present = {ip_interface(address.address) for address in inside.addresses(index)}
    missing = [f"address {ip.address} is not on it" for ip in ips if ip_interface(ip.address) not in present]
    there = {(route.dst, route.gateway or "", route.table) for route in inside.routes(index)}
    for route in routes:
        gateway = _gateway(route, ips)
        dst = str(ip_network(route.dst, strict=False))
        if not any(
            seen[0] == dst and seen[1] == gateway and (route.table is None or seen[2] == route.table) for seen in there
        ):
            missing.append(f"route {dst} via {gateway or 'no gateway'} is not there")
    return missing


def require_ips(result: Result, plugin_type: str) -> None:
    """Raise DelegateFailed when an IPAM plugin answered without an address."""
    if not result.ips:
        raise DelegateFailed(
            f"IPAM plugin {plugin_type} returned missing IP config", hint="configure a range or addresses in ipam"
        )


def _add_route(inside: Rtnetlink, index: int, route: Route, *, gateway: str) -> None:
    if gateway and ip_address(gateway).version != route.family:
        raise InvalidNetworkConfig(f"route {route.dst} via {gateway}: gateway and destination are of two families")
    inside.route_add(
        dst=str(ip_network(route.dst, strict=False)),
        gateway=gateway or None,
        index=index,
        mtu=route.mtu or None,
        advmss=route.advmss or None,
        priority=route.priority or None,
        table=route.table,
        scope=route.scope,
    )


def _gateway(route: Route, ips: list[Ip]) -> str:
    if route.gw or route.scope == _RT_SCOPE_LINK:
        return route.gw
    return next((ip.gateway for ip in ips if ip.gateway and ip.family == route.family), "")


def _allow_ipv6(kernel: Kernel, ifname: str) -> None:
    for name in ("lo", ifname):
        _set(kernel, ("net", "ipv6", "conf", name, "disable_ipv6"), "0")
    _set(kernel, ("net", "ipv6", "conf", ifname, "keep_addr_on_down"), "1")


def _set(kernel: Kernel, key: tuple[str, ...], value: str) -> None:
    try:
        kernel.sysctl.write(key, value)
    except KernelRefused as error:
        # Upstream fails hard here; a kernel without IPv6, or without this switch, then fails at addr_add if it must.
        level = logging.DEBUG if error.errno in (errno.ENOENT, errno.EROFS) else logging.WARNING
        LOG.log(level, "%s", error)
