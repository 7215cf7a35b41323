"""One blocking netlink socket: requests, acknowledgements, dumps; it knows no message of any family.

Hot: every plugin imports it. Single-threaded, one request at a time; pyroute2 encodes and decodes, its own
sockets would bring asyncio. Serves NETLINK_ROUTE, NETLINK_RDMA and NETLINK_GENERIC alike.

Source: linux/netlink.h, Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import errno
import itertools
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, TypeVar

from cni.linux.netns import Netns
from conf.errors import KernelRefused

log = logging.getLogger("vferry.netlink")

T = TypeVar("T")

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x200, 0x400, 0x800
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSG_ERROR, NLMSG_DONE = 0x2, 0x3
NLMSGERR_ATTR_MSG = 1
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK = 270
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
_DUMP_TRIES = 10
_TRY_AGAIN = frozenset({errno.EINTR, errno.ENOBUFS})


class Transport(Protocol):
    """The part of a socket that is used here; tests hand over one that loses and interrupts."""

    def send(self, data: bytes, /) -> int: ...
    def recvfrom_into(self, buffer: bytearray, nbytes: int, flags: int, /) -> tuple[int, Any]: ...
    def close(self) -> None: ...


def open_socket(protocol: int, netns: Netns | None, timeout_s: float) -> socket.socket:
    """Open a netlink socket; it stays in ``netns``, wherever this thread goes afterwards."""
    if netns is None:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    else:
        with netns.entered():
            opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    try:
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK):
            with _tolerating(errno.ENOPROTOOPT):  # kernels before 4.20: less detail, no filtered dumps
                opened.setsockopt(SOL_NETLINK, option, 1)
        opened.bind((0, 0))
        opened.settimeout(timeout_s)
    except BaseException:
        opened.close()
        raise
    return opened


@contextmanager
def _tolerating(*numbers: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


class NetlinkSocket:
    """One netlink socket in one network namespace; a context manager.

    Every request names its ``operation`` and ``target``, the words of the error should the kernel refuse it.
    """

    def __init__(
        self,
        protocol: int,
        netns: Netns | None = None,
        *,
        timeout_s: float = 10.0,
        transport: Transport | None = None,
    ) -> None:
        try:
            self._socket: Transport = transport or open_socket(protocol, netns, timeout_s)
        except OSError as error:
            where = netns.path if netns else "this netns"
            raise KernelRefused("opening a netlink socket", where, error.errno or 0) from error
        self._sequence = itertools.count(1)
        self._buffer = bytearray(32768)  # what the kernel puts into one datagram of a dump at most

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> NetlinkSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(
        self,
        message: Any,
        kind: int,
        *,
        operation: str,
        target: str,
        decode: Callable[[bytes], T],
        flags: int = 0,
    ) -> list[T]:
        """Send one pyroute2 message and return the decoded replies that come before the acknowledgement.

        Raises: KernelRefused, with ETIMEDOUT when the kernel does not answer.
        """
        sequence = self._send(message, kind, flags | NLM_F_ACK, operation=operation, target=target)
        replies = self._replies(sequence, operation=operation, target=target)
        return [decode(data) for data, _flags in replies]

    def command(self, message: Any, kind: int, *, operation: str, target: str, flags: int = 0) -> None:
        """Send one pyroute2 message that asks for nothing but to be obeyed."""
        self.request(message, kind, operation=operation, target=target, decode=bytes, flags=flags)

    def dump(
        self,
        message: Callable[[], Any],
        kind: int,
        *,
        operation: str,
        target: str,
        decode: Callable[[bytes], T],
    ) -> list[T]:
        """Return every object the kernel lists, as it was at one moment.

        A list that changed while it was read is read again, from a new ``message()``.

        Raises: KernelRefused, with EINTR when it went on changing.
        """
        pause_s = 0.001
        for _try in range(_DUMP_TRIES):
            try:
                sequence = self._send(message(), kind, NLM_F_DUMP, operation=operation, target=target)
                replies = list(self._replies(sequence, operation=operation, target=target))
            except KernelRefused as error:
                if error.errno not in _TRY_AGAIN:
                    raise
                refusal = error
            else:
                if not any(flags & NLM_F_DUMP_INTR for _data, flags in replies):
                    return [decode(data) for data, _flags in replies if data]
                refusal = KernelRefused(operation, target, errno.EINTR, details="the list changed while read")
            time.sleep(pause_s)
            pause_s *= 2
        raise refusal

    def _send(self, message: Any, kind: int, flags: int, *, operation: str, target: str) -> int:
        sequence = next(self._sequence) & 0xFFFFFFFF
        message["header"].update(type=kind, flags=flags | NLM_F_REQUEST, sequence_number=sequence, pid=0)
        message.encode()
        try:
            self._socket.send(bytes(message.data))
        except OSError as error:
            raise KernelRefused(operation, target, error.errno or errno.EIO) from error
        return sequence

    def _replies(self, sequence: int, *, operation: str, target: str) -> Iterator[tuple[bytes, int]]:
        """Yield (message, flags) up to the acknowledgement; the end of a dump is yielded as an empty message."""
        while True:
            try:
                datagram = self._receive()
            except TimeoutError as error:
                raise KernelRefused(operation, target, errno.ETIMEDOUT) from error
            except OSError as error:
                raise KernelRefused(operation, target, error.errno or errno.EIO) from error
            for data in _split(datagram):
                _length, kind, flags, answered, _port = _HEADER.unpack_from(data)
                if answered != sequence:
                    continue  # the late answer to a request that was given up
                if kind not in (NLMSG_ERROR, NLMSG_DONE):
                    yield data, flags
                    continue
                number, text = _acknowledgement(data, kind, flags)
                if number:
                    raise KernelRefused(operation, target, number, ext_ack=text)
                if text:
                    log.warning("%s on %s: the kernel says: %s", operation, target, text)
                if kind == NLMSG_DONE:
                    yield b"", flags
                return

    def _receive(self) -> bytes:
        while True:
            size, _sender = self._socket.recvfrom_into(
                self._buffer, len(self._buffer), socket.MSG_PEEK | socket.MSG_TRUNC
            )
            if size > len(self._buffer):
                self._buffer = bytearray(size)
            size, (port, _groups) = self._socket.recvfrom_into(self._buffer, len(self._buffer), 0)
            if port == 0:  # only the kernel has port 0; other processes may write to us too
                return bytes(self._buffer[:size])


def _split(datagram: bytes) -> Iterator[bytes]:
    offset = 0
    while offset + _HEADER.size <= len(datagram):
        (length,) = struct.unpack_from("=I", datagram, offset)
        if length < _HEADER.size:
            return
        yield datagram[offset : offset + length]
        offset += (length + 3) & ~3


def _acknowledgement(data: bytes, kind: int, flags: int) -> tuple[int, str]:
    """Return errno and the kernel's extended text of an NLMSG_ERROR or NLMSG_DONE."""
    offset = _HEADER.size + 4
    # A dump that ends well carries its return value, 0 or the length of what was written last.
    number = struct.unpack_from("=i", data, _HEADER.size)[0] if len(data) >= offset else 0
    number = -number if number < 0 else 0
    if not flags & NLM_F_ACK_TLVS:
        return number, ""
    if kind == NLMSG_ERROR:
        # The header of the refused request follows, and all of it where it was not capped.
        (refused,) = struct.unpack_from("=I", data, offset)
        offset += _HEADER.size if flags & NLM_F_CAPPED else (refused + 3) & ~3
    while offset + 4 <= len(data):
        length, attribute = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        if attribute & NLA_TYPE_MASK == NLMSGERR_ATTR_MSG:
            return number, data[offset + 4 : offset + length].rstrip(b"\0").decode("utf-8", "replace")
        offset += (length + 3) & ~3
    return number, ""
