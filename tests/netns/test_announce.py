"""Announcements, as the peer at the other end of the wire sees them."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from cni.linux.address import IFA_F_NODAD
from cni.linux.announce import announce
from cni.linux.sysctl import Sysctl
from tests.netns.conftest import ScratchNetns, Wire, prolong_dad, wait_until

ETH_P_ALL, ETH_P_ARP, ETH_P_IPV6 = 0x0003, 0x0806, 0x86DD
LONG_S = 120.0  # for what the kernel does in its own time


def packet_socket(ns: ScratchNetns, ifname: str) -> socket.socket:
    with ns.netns.entered():
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    opened.bind((ifname, ETH_P_ALL))
    opened.settimeout(LONG_S)
    return opened


def is_garp(frame: bytes) -> bool:
    return struct.unpack_from("!H", frame, 12)[0] == ETH_P_ARP


def is_unsolicited_advertisement(frame: bytes) -> bool:
    """Tell ours from the kernel's: Ethernet 14, IPv6 40, then ICMPv6 type 136 for fd00::/16."""
    is_na = struct.unpack_from("!H", frame, 12)[0] == ETH_P_IPV6 and frame[20] == 58 and frame[54] == 136
    return is_na and frame[62:64] == b"\xfd\x00"


def next_frame(opened: socket.socket, wanted: Callable[[bytes], bool]) -> bytes:
    while True:
        frame = opened.recv(2048)
        if wanted(frame):
            return frame


def frames_waiting(opened: socket.socket) -> Iterator[bytes]:
    opened.setblocking(False)
    while True:
        try:
            yield opened.recv(2048)
        except BlockingIOError:
            return


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


@pytest.fixture
def running(host_ns: ScratchNetns, sandbox: ScratchNetns, wire: Wire) -> Wire:
    wait_until(lambda: host_ns.link("wire0").running and sandbox.link("net1").running)
    return wire


def tell(sandbox: ScratchNetns, wire: Wire, *addresses: str, **bounds: float):
    link = wire.sandbox_link
    return announce(sandbox.netns, ifname="net1", ifindex=link.index, mac=link.mac, addresses=addresses, **bounds)


def test_ipv4_is_announced_by_a_gratuitous_arp_request(
    host_ns: ScratchNetns, sandbox: ScratchNetns, running: Wire
) -> None:
    sandbox.rtnl.addr_add(running.sandbox_link.index, "10.0.0.5/24")
    with packet_socket(host_ns, "wire0") as peer:
        assert tell(sandbox, running, "10.0.0.5/24") == ()
        frame = next_frame(peer, is_garp)
    mac = bytes.fromhex(running.sandbox_link.mac.replace(":", ""))
    address = ipaddress.IPv4Address("10.0.0.5").packed
    assert frame[:14] == b"\xff" * 6 + mac + b"\x08\x06"
    hardware, protocol, hlen, plen, operation = struct.unpack_from("!HHBBH", frame, 14)
    assert (hardware, protocol, hlen, plen, operation) == (1, 0x0800, 6, 4, 1)
    assert frame[22:42] == mac + address + b"\xff" * 6 + address


def test_the_peer_learns_the_new_mac(host_ns: ScratchNetns, sandbox: ScratchNetns, running: Wire) -> None:
    host_ns.rtnl.addr_add(running.host_link.index, "10.0.0.1/24")
    sandbox.rtnl.addr_add(running.sandbox_link.index, "10.0.0.5/24")
    host_ns.ip("neigh", "replace", "10.0.0.5", "lladdr", "02:00:00:00:00:99", "dev", "wire0", "nud", "stale")
    assert tell(sandbox, running, "10.0.0.5") == ()
    wait_until(lambda: running.sandbox_link.mac in host_ns.ip("neigh", "show", "10.0.0.5"))


def test_ipv6_is_announced_by_an_unsolicited_advertisement(
    host_ns: ScratchNetns, sandbox: ScratchNetns, running: Wire
) -> None:
    sandbox.rtnl.addr_add(running.sandbox_link.index, "fd00::5/64", flags=IFA_F_NODAD)
    with packet_socket(host_ns, "wire0") as peer:
        assert tell(sandbox, running, "fd00::5/64") == ()
        frame = next_frame(peer, is_unsolicited_advertisement)
    mac = bytes.fromhex(running.sandbox_link.mac.replace(":", ""))
    address = ipaddress.IPv6Address("fd00::5").packed
    assert frame[:14] == bytes.fromhex("333300000001") + mac + b"\x86\xdd"
    header, icmp = frame[14:54], frame[54:]
    assert (header[6], header[7]) == (58, 255)  # ICMPv6, hop limit
    assert (header[8:24], header[24:40]) == (address, ipaddress.IPv6Address("ff02::1").packed)
    assert struct.unpack_from("!BB", icmp) == (136, 0)
    assert icmp[4:] == bytes.fromhex("20000000") + address + b"\x02\x01" + mac
    pseudo = header[8:40] + struct.pack("!IHBB", len(icmp), 0, 0, 58)
    assert checksum(pseudo + icmp) == 0


def test_every_address_is_announced_once(host_ns: ScratchNetns, sandbox: ScratchNetns, running: Wire) -> None:
    addresses = ("10.0.0.5/24", "10.0.0.6/24", "fd00::5/64")
    for address in addresses:
        sandbox.rtnl.addr_add(running.sandbox_link.index, address, flags=IFA_F_NODAD)
    with packet_socket(host_ns, "wire0") as peer:
        assert tell(sandbox, running, *addresses) == ()
        next_frame(peer, is_unsolicited_advertisement)  # the last of them; a veth keeps the order
        rest = list(frames_waiting(peer))
    assert not [frame for frame in rest if is_garp(frame) or is_unsolicited_advertisement(frame)]


def test_nothing_leaves_by_another_interface(host_ns: ScratchNetns, sandbox: ScratchNetns, running: Wire) -> None:
    host_ns.ip("link", "add", "other0", "type", "veth", "peer", "name", "eth0", "netns", sandbox.name)
    host_ns.ip("link", "set", "other0", "up")
    sandbox.ip("link", "set", "eth0", "up")
    sandbox.ip("addr", "add", "fd01::5/64", "dev", "eth0", "nodad")
    sandbox.ip("-6", "route", "add", "ff00::/8", "dev", "eth0", "table", "local", "metric", "1")
    wait_until(lambda: host_ns.link("other0").running)
    for address in ("10.0.0.5/24", "fd00::5/64"):
        sandbox.rtnl.addr_add(running.sandbox_link.index, address, flags=IFA_F_NODAD)
    with packet_socket(host_ns, "wire0") as peer, packet_socket(host_ns, "other0") as other:
        assert tell(sandbox, running, "10.0.0.5/24", "fd00::5/64") == ()
        next_frame(peer, is_unsolicited_advertisement)
        strays = [frame for frame in frames_waiting(other) if is_garp(frame) or is_unsolicited_advertisement(frame)]
    assert strays == []


def test_address_under_detection_is_a_failure_after_the_wait(sandbox: ScratchNetns, running: Wire) -> None:
    prolong_dad(sandbox.netns, "net1", seconds=600)
    sandbox.rtnl.addr_add(running.sandbox_link.index, "fd00::5/64")
    (failure,) = tell(sandbox, running, "fd00::5/64", tentative_wait_s=0.0)
    assert failure.errno == errno.EADDRNOTAVAIL
    assert "fd00::5" in failure.msg


def test_address_under_detection_is_waited_for(sandbox: ScratchNetns, running: Wire) -> None:
    sandbox.rtnl.addr_add(running.sandbox_link.index, "fd00::5/64")
    assert tell(sandbox, running, "fd00::5/64", tentative_wait_s=LONG_S) == ()


def test_optimistic_address_is_announced_at_once(sandbox: ScratchNetns, running: Wire) -> None:
    prolong_dad(sandbox.netns, "net1", seconds=600)
    with sandbox.netns.entered():
        Sysctl().write(("net", "ipv6", "conf", "net1", "optimistic_dad"), 1)
    sandbox.rtnl.addr_add(running.sandbox_link.index, "fd00::5/64")
    (address,) = [each for each in sandbox.rtnl.addresses(running.sandbox_link.index) if "fd00" in each.address]
    assert address.tentative and address.optimistic
    assert tell(sandbox, running, "fd00::5/64", tentative_wait_s=0.0) == ()


def test_one_failure_does_not_stop_the_others(host_ns: ScratchNetns, sandbox: ScratchNetns, running: Wire) -> None:
    sandbox.rtnl.addr_add(running.sandbox_link.index, "10.0.0.5/24")
    with packet_socket(host_ns, "wire0") as peer:
        (failure,) = tell(sandbox, running, "fd00::404", "10.0.0.5", tentative_wait_s=0.0)
        assert is_garp(next_frame(peer, is_garp))
    assert failure.errno == errno.EADDRNOTAVAIL


def test_link_without_carrier_is_a_failure_and_not_an_error(
    host_ns: ScratchNetns, sandbox: ScratchNetns, wire: Wire
) -> None:
    host_ns.rtnl.link_set_down(wire.host_link.index)
    wait_until(lambda: not sandbox.link("net1").running)
    (failure,) = tell(sandbox, wire, "10.0.0.5", running_wait_s=0.0)
    assert failure.errno == errno.ENETDOWN


def test_nothing_to_announce_is_nothing(sandbox: ScratchNetns, wire: Wire) -> None:
    assert tell(sandbox, wire) == ()


def test_infiniband_is_left_to_the_kernel(sandbox: ScratchNetns, wire: Wire) -> None:
    mac = ":".join(["80"] * 20)
    assert announce(sandbox.netns, ifname="net1", ifindex=1, mac=mac, addresses=["10.0.0.5/24"]) == ()
