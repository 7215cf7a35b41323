"""A link, and a VF as its PF lists it, as the kernel reports them; no socket here, only messages read.

Source: linux/if_link.h, net/core/rtnetlink.c (rtnl_fill_ifinfo, rtnl_fill_vfinfo).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cni.linux.link_message import vfinfo

# linux/if.h
IFF_UP, IFF_RUNNING, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x40, 0x100, 0x200
# linux/if_link.h
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_TXQLEN, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 13, 18, 20
IFLA_PROMISCUITY, IFLA_LINK_NETNSID, IFLA_MIN_MTU, IFLA_MAX_MTU = 30, 37, 50, 51
IFLA_PROP_LIST, IFLA_ALT_IFNAME, IFLA_PERM_ADDRESS = 52, 53, 54
IFLA_PARENT_DEV_NAME, IFLA_PARENT_DEV_BUS_NAME = 56, 57
IFLA_INFO_KIND = 1
IFLA_NUM_VF, IFLA_VFINFO_LIST, IFLA_VF_INFO = 21, 22, 1
# linux/if_ether.h
VLAN_PROTOCOLS = {"802.1q": 0x8100, "802.1ad": 0x88A8}
# enum in linux/if_link.h: IFLA_VF_LINK_STATE_AUTO, _ENABLE, _DISABLE
VF_LINK_STATES = ("auto", "enable", "disable")

_NLMSGHDR = 16
_MESSAGE_HEADERS = _NLMSGHDR + 16  # and ifinfomsg
_UNSUPPORTED = 0xFFFFFFFF  # the kernel asks drivers with -1 in these fields, and reports what they leave
_NLA_TYPE_MASK = 0x3FFF


@dataclass(frozen=True)
class VfState:
    """One VF as the kernel reports it through its PF; None where the driver has no such setting.

    Rates in Mbit/s, 0 is no limit. ``mac`` is the administrative one, all zero when none was set.
    """

    index: int
    mac: str
    vlan_id: int
    vlan_qos: int
    vlan_proto: str
    min_tx_rate_mbps: int
    max_tx_rate_mbps: int
    spoofchk: bool | None
    trust: bool | None
    link_state: str | None


@dataclass(frozen=True)
class Link:
    """One network interface at the moment it was asked for.

    ``promisc`` and ``allmulti`` are what a user asked for, ``promiscuity`` counts everyone who wants it.
    ``num_vfs`` and ``vfs`` are None and empty unless the VFs were asked for.
    """

    index: int
    ifname: str
    mac: str
    mtu_bytes: int
    up: bool
    running: bool
    promisc: bool
    allmulti: bool
    promiscuity: int | None = None
    alias: str = ""
    altnames: tuple[str, ...] = ()
    parent_dev: str | None = None
    parent_bus: str | None = None
    kind: str | None = None
    perm_mac: str | None = None
    txqlen: int = 0
    min_mtu: int | None = None
    max_mtu: int | None = None
    num_vfs: int | None = None
    link_netnsid: int | None = None
    flags: int = 0
    vfs: tuple[VfState, ...] = ()


def link_from(data: bytes) -> Link:
    """Read one RTM_NEWLINK message.

    Attribute by attribute: to decode all sixty with what is nested in them takes pyroute2 ten times as long, and a host
    with 256 VFs has as many links to look through.
    """
    index, flags = struct.unpack_from("=iI", data, _NLMSGHDR + 4)
    given = {kind: data[start:end] for kind, start, end in _attributes(data, _MESSAGE_HEADERS, len(data))}
    return Link(
        index=index,
        ifname=_text(given[IFLA_IFNAME]),
        mac=_mac(given.get(IFLA_ADDRESS)) or "",
        mtu_bytes=_number(given.get(IFLA_MTU)) or 0,
        up=bool(flags & IFF_UP),
        running=bool(flags & IFF_RUNNING),
        promisc=bool(flags & IFF_PROMISC),
        allmulti=bool(flags & IFF_ALLMULTI),
        promiscuity=_number(given.get(IFLA_PROMISCUITY)),
        alias=_text(given.get(IFLA_IFALIAS, b"")),
        altnames=tuple(map(_text, _nested(given.get(IFLA_PROP_LIST, b""), IFLA_ALT_IFNAME))),
        parent_dev=_optional_text(given.get(IFLA_PARENT_DEV_NAME)),
        parent_bus=_optional_text(given.get(IFLA_PARENT_DEV_BUS_NAME)),
        kind=next(map(_text, _nested(given.get(IFLA_LINKINFO, b""), IFLA_INFO_KIND)), None),
        perm_mac=_mac(given.get(IFLA_PERM_ADDRESS)),
        txqlen=_number(given.get(IFLA_TXQLEN)) or 0,
        min_mtu=_number(given.get(IFLA_MIN_MTU)),
        max_mtu=_number(given.get(IFLA_MAX_MTU)),
        link_netnsid=_number(given.get(IFLA_LINK_NETNSID), "=i"),
        flags=flags,
    )


def vfs_from(data: bytes) -> tuple[int, tuple[VfState, ...]]:
    """Read the number of VFs and the VFs from one RTM_NEWLINK message asked for with RTEXT_FILTER_VF.

    Kernel: the list is one attribute, and an attribute's length has 16 bits. With more than about 330 VFs it
    wraps round without a word, and whatever follows is read askew. So the list is walked entry by entry for as
    many VFs as the kernel counts, not for as many bytes as it claims; nothing else of such a message is used.
    """
    count = 0
    for kind, payload, end in _attributes(data, _MESSAGE_HEADERS, len(data)):
        if kind == IFLA_NUM_VF:
            (count,) = struct.unpack_from("=I", data, payload)
        elif kind == IFLA_VFINFO_LIST:
            return count, tuple(_listed_vfs(data, payload, count if count else _entries(data, payload, end)))
    return count, ()


def _listed_vfs(data: bytes, offset: int, count: int) -> Iterator[VfState]:
    for kind, payload, _end in _attributes(data, offset, len(data)):
        if count == 0 or kind != IFLA_VF_INFO:
            return
        count -= 1
        entry = vfinfo(data, offset=payload - 4)
        entry.decode()
        yield _vf_state(entry)


def _entries(data: bytes, offset: int, end: int) -> int:
    return sum(1 for _entry in _attributes(data, offset, end))


def _attributes(data: bytes, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (type, start of the payload, end of the payload) of the attributes from ``offset`` on."""
    while offset + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & _NLA_TYPE_MASK, offset + 4, min(offset + length, end)
        offset += (length + 3) & ~3


def _nested(data: bytes, wanted: int) -> Iterator[bytes]:
    return (data[start:end] for kind, start, end in _attributes(data, 0, len(data)) if kind == wanted)


def _text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _optional_text(payload: bytes | None) -> str | None:
    return None if payload is None else _text(payload)


def _mac(payload: bytes | None) -> str | None:
    return None if payload is None else payload.hex(":")


def _number(payload: bytes | None, form: str = "=I") -> int | None:
    return None if payload is None else int(struct.unpack_from(form, payload)[0])


def _vf_state(entry: Any) -> VfState:
    mac = entry.get_attr("IFLA_VF_MAC")
    vlan = entry.get_nested("vlan_list", "IFLA_VF_VLAN_INFO") or entry.get_attr("IFLA_VF_VLAN") or {}
    rate = entry.get_attr("IFLA_VF_RATE") or {}
    state = entry.get_nested("link_state", "link_state")
    protocol = vlan.get("proto") if "proto" in vlan else VLAN_PROTOCOLS["802.1q"]
    return VfState(
        index=mac["vf"],
        mac=mac["mac"],
        vlan_id=vlan.get("vlan") or 0,
        vlan_qos=vlan.get("qos") or 0,
        vlan_proto="802.1ad" if protocol == VLAN_PROTOCOLS["802.1ad"] else "802.1q",
        min_tx_rate_mbps=rate.get("min_tx_rate") or 0,
        max_tx_rate_mbps=rate.get("max_tx_rate") or 0,
        spoofchk=_switch(entry.get_nested("spoofchk", "spoofchk")),
        trust=_switch(entry.get_nested("trust", "trust")),
        link_state=VF_LINK_STATES[state] if state is not None and state < len(VF_LINK_STATES) else None,
    )


def _switch(value: int | None) -> bool | None:
    return None if value is None or value == _UNSUPPORTED else bool(value)
