"""What a shim sends: one frame with descriptors, read without ever waiting for the sender.

The layout and what it means is ``cni/start/offer.py``'s, which sends it; running a request is ``child.py``'s.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cni.start import offer

_NUMBER_BYTES = array.array("i").itemsize
# Of the sender's at most; the kernel drops what does not fit and says so.
_DESCRIPTORS = 8
_BITS = (offer.STDIN, offer.STDERR, offer.DIRECTORY, offer.SANDBOX)


class MalformedFrame(Exception):
    """What came is no request of a shim; the message says in which respect."""


@dataclass
class Invocation:
    """One request as a shim offers it, its descriptors open until ``close``."""

    frame: bytes
    build_id: str
    netns_inode: int
    called_as: str
    environ: Mapping[str, str]
    descriptors: dict[int, int] = field(default_factory=dict)

    @property
    def plugin(self) -> str:
        return Path(self.called_as).name

    @property
    def command(self) -> str:
        return self.environ.get("CNI_COMMAND", "")

    def close(self) -> None:
        """Close its descriptors."""
        while self.descriptors:
            os.close(self.descriptors.popitem()[1])


class FrameReader:
    """The frame of one connection, as far as it has come."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""
        self._missing = offer.HEADER_BYTES
        self._descriptors: list[int] = []

    def read(self) -> Invocation | None:
        """Read what is there; None while the frame is not whole. Nothing behind the frame is read.

        Raises: MalformedFrame, also when the sender is done; OSError when the connection is broken.
        """
        while self._missing:
            try:
                part, ancillary, flags, _address = self._connection.recvmsg(
                    self._missing,
                    socket.CMSG_SPACE(_DESCRIPTORS * _NUMBER_BYTES),
                    socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
                )
            except BlockingIOError:
                return None
            self._keep(ancillary)
            if flags & socket.MSG_CTRUNC or len(self._descriptors) > _DESCRIPTORS:
                raise MalformedFrame("too many descriptors came")
            if not part:
                raise MalformedFrame(f"ended after {len(self._received)} bytes")
            self._received += part
            self._missing -= len(part)
            if len(self._received) == offer.HEADER_BYTES:
                self._missing = self._body_bytes()
        invocation = parse(self._received, self._descriptors)
        self._descriptors = []
        return invocation

    def close(self) -> None:
        """Close the descriptors that came; the connection is the caller's."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _keep(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(content) - len(content) % _NUMBER_BYTES
                self._descriptors.extend(array.array("i", content[:whole]))

    def _body_bytes(self) -> int:
        if not self._received.startswith(offer.MAGIC):
            raise MalformedFrame("no frame of a shim")
        size = int.from_bytes(self._received[-offer.LENGTH_BYTES :], "little")
        if not 0 < size <= offer.BODY_BYTES:
            raise MalformedFrame(f"{size} bytes announced, at most {offer.BODY_BYTES} are accepted")
        return size


def parse(frame: bytes, descriptors: list[int]) -> Invocation:
    """Return the invocation of a whole frame; it takes over the descriptors.

    Raises: MalformedFrame; then they are still the caller's.
    """
    header, body = frame[: offer.HEADER_BYTES], frame[offer.HEADER_BYTES :]
    build_end = len(offer.MAGIC) + offer.BUILD_BYTES
    inode_end = build_end + offer.INODE_BYTES
    bits = [bit for bit in _BITS if header[inode_end] & bit]
    if len(bits) != len(descriptors) or not {offer.STDIN, offer.STDERR} <= set(bits):
        raise MalformedFrame(f"{len(descriptors)} descriptors came, {len(bits)} were announced")
    called_as, *variables = body.removesuffix(b"\0").split(b"\0")
    return Invocation(
        frame=frame,
        build_id=header[len(offer.MAGIC) : build_end].decode("ascii", "replace").strip(),
        netns_inode=int.from_bytes(header[build_end:inode_end], "little"),
        called_as=os.fsdecode(called_as),
        environ=dict(os.fsdecode(variable).partition("=")[::2] for variable in variables),
        descriptors=dict(zip(bits, descriptors, strict=True)),
    )
