"""A kernel with one PF behind a netlink transport: reads and writes messages by struct, never by pyroute2.

It can refuse the n-th request, interrupt dumps, lose replies, and answer late. Layouts: linux/if_link.h.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from dataclasses import dataclass, field

PF_INDEX = 7
RTM_NEWLINK, RTM_GETLINK, RTM_SETLINK = 16, 18, 19
IFLA_IFNAME, IFLA_NUM_VF, IFLA_VFINFO_LIST, IFLA_EXT_MASK, IFLA_PARENT_DEV_NAME = 3, 21, 22, 29, 56
VF_MAC, VF_VLAN, VF_TX_RATE, VF_SPOOFCHK, VF_LINK_STATE, VF_RATE, VF_TRUST, VF_VLAN_LIST = 1, 2, 3, 4, 5, 6, 9, 12
NOT_KNOWN = 0xFFFFFFFF


def attribute(kind: int, payload: bytes) -> bytes:
    # The length is cut to 16 bits, as nla_nest_end() does.
    return struct.pack("=HH", (len(payload) + 4) & 0xFFFF, kind) + payload + b"\0" * (-len(payload) % 4)


def attributes(data: bytes) -> list[tuple[int, bytes]]:
    found, offset = [], 0
    while offset < len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        assert length >= 4
        found.append((kind & 0x3FFF, data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


def message(kind: int, payload: bytes, *, sequence: int, flags: int = 0) -> bytes:
    return struct.pack("=IHHII", 16 + len(payload), kind, flags, sequence, 0) + payload


def error(request: bytes, number: int, *, text: str = "", capped: bool = True) -> bytes:
    (sequence,) = struct.unpack_from("=I", request, 8)
    payload = struct.pack("=i", -number) + (request[:16] if capped else request)
    flags = 0x100 if capped else 0
    if text:
        flags |= 0x200
        payload += attribute(1, text.encode() + b"\0")
    return message(2, payload, sequence=sequence, flags=flags)


@dataclass
class FakeVf:
    mac: bytes = b"\0" * 6
    vlan: int = 0
    qos: int = 0
    proto: int = 0x8100
    min_rate: int = 0
    max_rate: int = 0
    spoofchk: int = 1
    trust: int = 0
    link_state: int = 0


@dataclass
class FakeKernel:
    """Answers like the kernel; ``refuse`` maps the number of a request (from 1) to an errno and a text."""

    vfs: dict[int, FakeVf] = field(default_factory=dict)
    refuse: dict[int, tuple[int, str]] = field(default_factory=dict)
    interrupted_dumps: int = 0
    overruns: int = 0
    knows_vlan_list: bool = True
    silent: bool = False
    requests: list[bytes] = field(default_factory=list)
    waiting: deque[tuple[bytes, int]] = field(default_factory=deque)
    closed: bool = False

    # The transport

    def send(self, data: bytes, /) -> int:
        self.requests.append(data)
        if not self.silent:
            self._answer(data)
        return len(data)

    def recvfrom_into(self, buffer: bytearray, nbytes: int, flags: int, /) -> tuple[int, tuple[int, int]]:
        if self.overruns:
            self.overruns -= 1
            self.waiting.clear()
            raise OSError(errno.ENOBUFS, "No buffer space available")
        if not self.waiting:
            raise TimeoutError("timed out")
        datagram, port = self.waiting[0]
        buffer[: min(len(datagram), nbytes)] = datagram[:nbytes]
        if flags & 0x2:  # MSG_PEEK
            return len(datagram), (port, 0)
        self.waiting.popleft()
        return min(len(datagram), nbytes), (port, 0)

    def close(self) -> None:
        self.closed = True

    # The kernel

    def _answer(self, data: bytes) -> None:
        length, kind, flags, sequence, _port = struct.unpack_from("=IHHII", data)
        assert length == len(data)
        number, text = self.refuse.get(len(self.requests), (0, ""))
        if number:
            self.waiting.append((error(data, number, text=text), 0))
        elif flags & 0x300 == 0x300:
            self._dump(sequence)
        elif kind == RTM_GETLINK:
            self._get(data, sequence)
        else:
            assert kind == RTM_SETLINK
            self.waiting.append((error(data, self._set(data)), 0))

    def _dump(self, sequence: int) -> None:
        flags = 0x2
        if self.interrupted_dumps:
            self.interrupted_dumps -= 1
            flags |= 0x10
        links = message(RTM_NEWLINK, self._link(0), sequence=sequence, flags=flags)
        self.waiting.append((links, 0))
        self.waiting.append((message(3, struct.pack("=i", 0), sequence=sequence, flags=flags), 0))

    def _get(self, data: bytes, sequence: int) -> None:
        (index,) = struct.unpack_from("=i", data, 20)
        asked = dict(attributes(data[32:]))
        if index not in (0, PF_INDEX) or (index == 0 and asked.get(IFLA_IFNAME) != b"ens1\0"):
            self.waiting.append((error(data, errno.ENODEV), 0))
            return
        (mask,) = struct.unpack("=I", asked.get(IFLA_EXT_MASK, b"\0\0\0\0"))
        self.waiting.append((message(RTM_NEWLINK, self._link(mask), sequence=sequence), 0))
        self.waiting.append((error(data, 0), 0))

    def _link(self, mask: int) -> bytes:
        text = struct.pack("=BxHiII", 0, 1, PF_INDEX, 0x1003, 0)
        text += attribute(IFLA_IFNAME, b"ens1\0") + attribute(4, struct.pack("=I", 1500))
        if mask & 1:
            text += attribute(IFLA_NUM_VF, struct.pack("=I", len(self.vfs)))
            listed = b"".join(attribute(1, self._listed(index, vf)) for index, vf in self.vfs.items())
            text += attribute(IFLA_VFINFO_LIST, listed)
        return text + attribute(IFLA_PARENT_DEV_NAME, b"0000:01:00.0\0")

    def _listed(self, index: int, vf: FakeVf) -> bytes:
        vlan = struct.pack("=III", index, vf.vlan, vf.qos)
        return b"".join(
            (
                attribute(VF_MAC, struct.pack("=I32s", index, vf.mac)),
                attribute(13, b"\xff" * 32),  # IFLA_VF_BROADCAST, unknown to pyroute2
                attribute(VF_VLAN, vlan),
                attribute(VF_RATE, struct.pack("=III", index, vf.min_rate, vf.max_rate)),
                attribute(VF_TX_RATE, struct.pack("=II", index, vf.max_rate)),
                attribute(VF_SPOOFCHK, struct.pack("=II", index, vf.spoofchk)),
                attribute(VF_LINK_STATE, struct.pack("=II", index, vf.link_state)),
                attribute(VF_TRUST, struct.pack("=II", index, vf.trust)),
                attribute(VF_VLAN_LIST, attribute(1, vlan + struct.pack(">H2x", vf.proto))),
            )
        )

    def _set(self, data: bytes) -> int:
        family, kind, index, flags, change = struct.unpack_from("=BxHiII", data, 16)
        assert (family, kind, flags, change) == (0, 0, 0, 0)
        if index != PF_INDEX:
            return errno.ENODEV
        ((outer, entries),) = attributes(data[32:])
        assert outer == IFLA_VFINFO_LIST
        ((inner, entry),) = attributes(entries)
        assert inner == 1
        ((what, value),) = attributes(entry)
        return self._set_vf(what, value)

    def _set_vf(self, what: int, value: bytes) -> int:
        if what == VF_VLAN_LIST:
            if not self.knows_vlan_list:
                return errno.EOPNOTSUPP
            ((kind, value),) = attributes(value)
            assert kind == 1
        sizes = {VF_MAC: 36, VF_VLAN: 12, VF_VLAN_LIST: 16, VF_RATE: 12}
        if len(value) != sizes.get(what, 8):
            return errno.EINVAL
        vf = self.vfs.get(struct.unpack_from("=I", value)[0])
        if vf is None:
            return errno.EINVAL
        if what == VF_MAC:
            vf.mac = value[4:10]
        elif what in (VF_VLAN, VF_VLAN_LIST):
            vf.vlan, vf.qos = struct.unpack_from("=II", value, 4)
            vf.proto = struct.unpack_from(">H", value, 12)[0] if what == VF_VLAN_LIST else 0x8100
        elif what == VF_RATE:
            vf.min_rate, vf.max_rate = struct.unpack_from("=II", value, 4)
        else:
            names = {VF_SPOOFCHK: "spoofchk", VF_TRUST: "trust", VF_LINK_STATE: "link_state"}
            setattr(vf, names[what], struct.unpack_from("=I", value, 4)[0])
        return 0
