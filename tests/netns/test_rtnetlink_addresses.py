"""Addresses, duplicate address detection and routes by rtnetlink, in a scratch namespace."""

from __future__ import annotations

import errno
import json
import socket

import pytest

from cni.linux.address import IFA_F_NODAD
from cni.linux.dad import wait_dad
from cni.linux.route import Route
from conf.errors import KernelRefused
from tests.netns.conftest import ScratchNetns, Wire, prolong_dad, wait_until


def texts(sandbox: ScratchNetns, index: int) -> set[str]:
    return {each.address for each in sandbox.rtnl.addresses(index) if not each.address.startswith("fe80")}


def routes_to(sandbox: ScratchNetns, index: int, dst: str, **only: int) -> list[Route]:
    return [route for route in sandbox.rtnl.routes(index, **only) if route.dst == dst]


@pytest.fixture
def addressed(sandbox: ScratchNetns, wire: Wire) -> int:
    """Return the index of net1 with an address of each family."""
    index = wire.sandbox_link.index
    sandbox.rtnl.addr_add(index, "10.0.0.5/24")
    sandbox.rtnl.addr_add(index, "fd00::5/64", flags=IFA_F_NODAD)
    return index


def test_addresses_of_both_families(sandbox: ScratchNetns, addressed: int) -> None:
    assert texts(sandbox, addressed) == {"10.0.0.5/24", "fd00::5/64"}
    v4 = next(each for each in sandbox.rtnl.addresses(addressed) if each.family == socket.AF_INET)
    assert (v4.scope, v4.tentative, v4.dadfailed, v4.index) == (0, False, False, addressed)


def test_addresses_are_those_of_one_link(sandbox: ScratchNetns, addressed: int) -> None:
    sandbox.ip("link", "set", "lo", "up")
    assert {each.address for each in sandbox.rtnl.addresses(1)} == {"127.0.0.1/8", "::1/128"}


@pytest.mark.parametrize(
    ("address", "broadcast"),
    [("10.1.0.5/24", "10.1.0.255"), ("10.1.0.4/31", None), ("10.1.0.4/32", None)],
)
def test_ipv4_gets_its_broadcast_address(
    sandbox: ScratchNetns, wire: Wire, address: str, broadcast: str | None
) -> None:
    sandbox.rtnl.addr_add(wire.sandbox_link.index, address)
    (shown,) = json.loads(sandbox.ip("-4", "-json", "addr", "show", "net1"))
    assert shown["addr_info"][0].get("broadcast") == broadcast


@pytest.mark.parametrize("address", ["10.0.0.5/24", "fd00::5/64"])
def test_address_twice_is_eexist(sandbox: ScratchNetns, addressed: int, address: str) -> None:
    with pytest.raises(KernelRefused) as refused:
        sandbox.rtnl.addr_add(addressed, address)
    assert refused.value.errno == errno.EEXIST
    assert address in refused.value.msg and "net1" not in refused.value.details


def test_addr_del(sandbox: ScratchNetns, addressed: int) -> None:
    sandbox.rtnl.addr_del(addressed, "10.0.0.5/24")
    sandbox.rtnl.addr_del(addressed, "fd00::5/64")
    assert texts(sandbox, addressed) == set()
    with pytest.raises(KernelRefused) as refused:
        sandbox.rtnl.addr_del(addressed, "10.0.0.5/24")
    assert refused.value.errno == errno.EADDRNOTAVAIL


def test_wait_dad_waits_for_tentative_addresses(sandbox: ScratchNetns, wire: Wire) -> None:
    index = wire.sandbox_link.index
    prolong_dad(sandbox.netns, "net1", seconds=4)
    sandbox.rtnl.addr_add(index, "fd00::5/64")
    assert any(each.tentative for each in sandbox.rtnl.addresses(index))
    wait_dad(sandbox.rtnl, index, 120)
    assert not any(each.tentative or each.dadfailed for each in sandbox.rtnl.addresses(index))


def test_wait_dad_names_the_duplicate(host_ns: ScratchNetns, sandbox: ScratchNetns, wire: Wire) -> None:
    host_ns.rtnl.addr_add(wire.host_link.index, "fd00::5/64", flags=IFA_F_NODAD)
    wait_until(lambda: host_ns.link("wire0").running and sandbox.link("net1").running)
    sandbox.rtnl.addr_add(wire.sandbox_link.index, "fd00::5/64")
    with pytest.raises(KernelRefused) as refused:
        wait_dad(sandbox.rtnl, wire.sandbox_link.index, 120)
    assert refused.value.errno == errno.EADDRINUSE
    assert "fd00::5/64" in refused.value.msg


def test_wait_dad_gives_up_and_names_the_address(host_ns: ScratchNetns, sandbox: ScratchNetns, wire: Wire) -> None:
    host_ns.rtnl.link_set_down(wire.host_link.index)  # without a carrier it never ends
    wait_until(lambda: not sandbox.link("net1").running)
    sandbox.rtnl.addr_add(wire.sandbox_link.index, "fd00::5/64")
    with pytest.raises(KernelRefused) as refused:
        wait_dad(sandbox.rtnl, wire.sandbox_link.index, 0.1)
    assert refused.value.errno == errno.ETIMEDOUT
    assert "fd00::5/64" in refused.value.msg


@pytest.mark.parametrize(("dst", "gateway"), [("10.9.0.0/16", "10.0.0.1"), ("fd09::/48", "fd00::1")])
def test_route_with_everything(sandbox: ScratchNetns, addressed: int, dst: str, gateway: str) -> None:
    assert sandbox.rtnl.route_add(
        dst=dst, gateway=gateway, index=addressed, mtu=1300, advmss=1200, priority=77, table=300
    )
    (route,) = routes_to(sandbox, addressed, dst)
    assert (route.gateway, route.mtu, route.advmss, route.priority, route.table) == (gateway, 1300, 1200, 77, 300)
    shown = sandbox.ip("-6" if ":" in dst else "-4", "route", "show", "table", "300")
    for word in (f"{dst} via {gateway}", "metric 77", "mtu 1300", "advmss 1200"):
        assert word in shown


@pytest.mark.parametrize("table", [1, 255, 256, 4294967295])
def test_tables_of_every_size(sandbox: ScratchNetns, addressed: int, table: int) -> None:
    sandbox.rtnl.route_add(dst="10.9.0.0/16", gateway="10.0.0.1", index=addressed, table=table)
    assert [route.table for route in routes_to(sandbox, addressed, "10.9.0.0/16")] == [table]
    assert routes_to(sandbox, addressed, "10.9.0.0/16", table=table)
    assert not routes_to(sandbox, addressed, "10.9.0.0/16", table=254)


def test_absent_table_has_no_routes(sandbox: ScratchNetns, addressed: int) -> None:
    assert sandbox.rtnl.routes(addressed, table=4711) == ()


@pytest.mark.parametrize(("dst", "gateway"), [("0.0.0.0/0", "10.0.0.1"), ("::/0", "fd00::1")])
def test_default_routes(sandbox: ScratchNetns, addressed: int, dst: str, gateway: str) -> None:
    sandbox.rtnl.route_add(dst=dst, gateway=gateway, index=addressed)
    (route,) = routes_to(sandbox, addressed, dst)
    assert (route.gateway, route.table, route.mtu, route.advmss) == (gateway, 254, None, None)
    family = "-6" if ":" in dst else "-4"
    assert sandbox.ip(family, "route", "show", "default").startswith(f"default via {gateway}")


def test_route_without_gateway_is_on_link(sandbox: ScratchNetns, addressed: int) -> None:
    sandbox.rtnl.route_add(dst="10.8.0.0/16", index=addressed)
    (route,) = routes_to(sandbox, addressed, "10.8.0.0/16")
    assert (route.gateway, route.scope) == (None, 253)


def test_route_scope_and_source_are_the_callers(sandbox: ScratchNetns, addressed: int) -> None:
    sandbox.rtnl.route_add(dst="10.8.0.0/16", index=addressed, scope=200, src="10.0.0.5")
    (route,) = routes_to(sandbox, addressed, "10.8.0.0/16")
    assert (route.scope, route.src) == (200, "10.0.0.5")


def test_bits_beyond_the_prefix_are_dropped(sandbox: ScratchNetns, addressed: int) -> None:
    sandbox.rtnl.route_add(dst="10.8.1.2/16", gateway="10.0.0.1", index=addressed)
    assert routes_to(sandbox, addressed, "10.8.0.0/16")


@pytest.mark.parametrize(("dst", "gateway"), [("10.9.0.0/16", "10.0.0.1"), ("fd09::/48", "fd00::1")])
def test_the_same_route_twice_is_one_route(sandbox: ScratchNetns, addressed: int, dst: str, gateway: str) -> None:
    assert sandbox.rtnl.route_add(dst=dst, gateway=gateway, index=addressed)
    assert not sandbox.rtnl.route_add(dst=dst, gateway=gateway, index=addressed)
    assert len(routes_to(sandbox, addressed, dst)) == 1


@pytest.mark.parametrize(
    ("dst", "gateways"),
    [("10.9.0.0/16", ("10.0.0.1", "10.0.0.2")), ("fd09::/48", ("fd00::1", "fd00::2"))],
)
def test_one_destination_by_two_gateways_is_no_error(
    sandbox: ScratchNetns, addressed: int, dst: str, gateways: tuple[str, str]
) -> None:
    for gateway in gateways:
        assert sandbox.rtnl.route_add(dst=dst, gateway=gateway, index=addressed)
    assert {route.gateway for route in routes_to(sandbox, addressed, dst)} == set(gateways)


def test_ipv4_route_added_last_is_used_first(sandbox: ScratchNetns, addressed: int) -> None:
    for gateway in ("10.0.0.1", "10.0.0.2"):
        sandbox.rtnl.route_add(dst="10.9.0.0/16", gateway=gateway, index=addressed)
    assert "via 10.0.0.2" in sandbox.ip("route", "get", "10.9.0.1")


def test_unreachable_gateway_is_refused_with_the_kernels_words(sandbox: ScratchNetns, addressed: int) -> None:
    with pytest.raises(KernelRefused) as refused:
        sandbox.rtnl.route_add(dst="10.9.0.0/16", gateway="192.0.2.1", index=addressed)
    assert refused.value.errno == errno.ENETUNREACH
    assert "10.9.0.0/16 via 192.0.2.1" in refused.value.msg
    assert refused.value.ext_ack == "Nexthop has invalid gateway"


def test_routes_are_those_of_one_link(sandbox: ScratchNetns, addressed: int) -> None:
    sandbox.ip("link", "set", "lo", "up")
    assert {route.index for route in sandbox.rtnl.routes(addressed)} == {addressed}
    assert "127.0.0.0/8" in {route.dst for route in sandbox.rtnl.routes(1)}
