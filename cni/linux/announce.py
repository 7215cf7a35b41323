"""Telling the network where an address lives now: gratuitous ARP and unsolicited neighbour advertisements.

Nothing here is fatal: what could not be told is logged and returned, and the network learns it later.

Source: RFC 5227 section 3, RFC 4861 section 7.2.6, pkg/utils/packet.go of sriov-cni (whose advertisements may
leave by another interface of the pod; these are bound to theirs).
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import ipaddress
import logging
import os
import socket
import struct
import time
from collections.abc import Iterable

from cni.linux.netns import Netns
from conf.errors import KernelRefused

log = logging.getLogger("vferry.announce")

# linux/if_ether.h, linux/sockios.h, linux/if_arp.h, linux/icmpv6.h
ETH_P_ARP, ETH_P_IP = 0x0806, 0x0800
SIOCGIFFLAGS = 0x8913
IFF_UP, IFF_RUNNING = 0x1, 0x40
ARPHRD_ETHER, ARPOP_REQUEST = 1, 1
ND_NEIGHBOR_ADVERT, ND_OPT_TARGET_LL_ADDR, ND_NA_FLAG_OVERRIDE = 136, 2, 0x20000000

_BROADCAST = b"\xff" * 6
_ALL_NODES = "ff02::1"


def announce(
    netns: Netns,
    *,
    ifname: str,
    ifindex: int,
    mac: str,
    addresses: Iterable[str],
    running_wait_s: float = 0.2,
    tentative_wait_s: float = 0.2,
) -> tuple[KernelRefused, ...]:
    """Announce ``addresses`` (with or without a prefix length) once each; return what failed.

    Waits for the link to run, and for IPv6 addresses that are still being checked (EADDRNOTAVAIL); for
    optimistic ones, see ``Rtnetlink.addr_add``, there is nothing to wait for. Ethernet only: an InfiniBand
    address does not fit Python's AF_PACKET, there the sysctl ``arp_notify`` does it.
    """
    hardware = bytes.fromhex(mac.replace(":", ""))
    targets = [ipaddress.ip_interface(address).ip for address in addresses]
    if not targets:
        return ()
    if len(hardware) != len(_BROADCAST):
        log.debug("not announcing %s: no Ethernet", ifname)
        return ()
    try:
        with netns.entered():
            # SOCK_DGRAM: the kernel writes the link header. Protocol 0: receives nothing.
            arp = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    except OSError as error:
        return _failed("opening a packet socket", ifname, error)
    failures: list[KernelRefused] = []
    try:
        if not _runs(arp, ifname, running_wait_s):
            refusal = KernelRefused(
                "announcing", ifname, errno.ENETDOWN, details=f"the link did not run within {running_wait_s:g} s"
            )
            log.warning("%s", refusal)
            return (refusal,)
        deadline = time.monotonic() + tentative_wait_s
        for target in targets:
            try:
                if isinstance(target, ipaddress.IPv4Address):
                    _send_garp(arp, ifname, hardware, target)
                else:
                    _send_advertisement(netns, ifname, ifindex, hardware, target, deadline=deadline)
            except OSError as error:
                failures += _failed(f"announcing {target}", ifname, error)
    finally:
        # Kernel: packet_release() waits for an RCU grace period, 10-20 ms that nobody else has to wait.
        _thread.start_new_thread(os.close, (arp.detach(),))
    return tuple(failures)


def garp_packet(hardware: bytes, target: ipaddress.IPv4Address) -> bytes:
    """Write an ARP request for one's own address."""
    head = struct.pack("!HHBBH", ARPHRD_ETHER, ETH_P_IP, len(hardware), 4, ARPOP_REQUEST)
    return head + hardware + target.packed + _BROADCAST + target.packed


def advertisement_packet(hardware: bytes, target: ipaddress.IPv6Address) -> bytes:
    """Write an unsolicited neighbour advertisement; the kernel fills in the checksum."""
    head = struct.pack("!BBHI", ND_NEIGHBOR_ADVERT, 0, 0, ND_NA_FLAG_OVERRIDE)
    return head + target.packed + struct.pack("!BB", ND_OPT_TARGET_LL_ADDR, 1) + hardware


def _failed(operation: str, ifname: str, error: OSError) -> tuple[KernelRefused, ...]:
    refusal = KernelRefused(operation, ifname, error.errno or errno.EIO)
    log.warning("%s", refusal)
    return (refusal,)


def _runs(opened: socket.socket, ifname: str, wait_s: float) -> bool:
    """Wait until the link is up and has a carrier; a VF may take some milliseconds."""
    deadline, pause_s = time.monotonic() + wait_s, 0.002
    wanted = IFF_UP | IFF_RUNNING
    while True:
        request = struct.pack("16sH22x", ifname.encode(), 0)
        try:
            answer = fcntl.ioctl(opened, SIOCGIFFLAGS, request)
        except OSError:
            return False
        if struct.unpack_from("H", answer, 16)[0] & wanted == wanted:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
        pause_s *= 1.5


def _send_garp(opened: socket.socket, ifname: str, hardware: bytes, target: ipaddress.IPv4Address) -> None:
    packet = garp_packet(hardware, target)
    opened.sendto(packet, (ifname, ETH_P_ARP, socket.PACKET_BROADCAST, ARPHRD_ETHER, _BROADCAST))


def _send_advertisement(
    netns: Netns, ifname: str, ifindex: int, hardware: bytes, target: ipaddress.IPv6Address, *, deadline: float
) -> None:
    with netns.entered():
        opened = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    with opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, ifname.encode() + b"\0")
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, ifindex)
        # RFC 4861 7.1.2: receivers drop an advertisement with any other hop limit.
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        _bind_when_usable(opened, (str(target), 0, 0, ifindex), deadline)
        opened.sendto(advertisement_packet(hardware, target), (_ALL_NODES, 0, 0, ifindex))


def _bind_when_usable(opened: socket.socket, source: tuple[str, int, int, int], deadline: float) -> None:
    while True:
        try:
            opened.bind(source)
            return
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL or time.monotonic() >= deadline:
                raise
        time.sleep(0.005)
