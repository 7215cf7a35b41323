"""Who comes in: connections are accepted, their senders checked, their frames read; what is whole goes to the crew.

Nothing here waits for a sender: one that is slow, silent or lies about its frame costs one slot for a few seconds.
"""

from __future__ import annotations

import logging
import os
import resource
import selectors
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cni.agent.frames import FrameReader, Invocation, MalformedFrame
from cni.agent.listener import Listener
from cni.start import offer
from conf.executables import EXECUTABLES
from conf.request import COMMANDS

LOG = logging.getLogger("vferry.agent.gate")

# A shim sends its frame at once, when it has read stdin; what takes longer is cut off, and runs on its own.
READ_PATIENCE_S = 5.0
# Frames being read at once; a further one takes the place of the one that has been at it for longest.
MAX_READERS = 128
_ACCEPTED_AT_ONCE = 64
# Descriptors that connections leave free, for those that come with a frame and those that a child needs to begin.
_DESCRIPTORS_LEFT = 32
# A connection that cannot be accepted stays in the kernel's queue; to try again at once would keep the loop busy.
_PAUSE_S = 1.0
_UCRED = struct.Struct("=iII")  # ucred of linux/socket.h: pid, uid, gid


@dataclass
class Reading:
    """One connection whose frame is not whole yet."""

    connection: socket.socket
    frame: FrameReader
    until: float


class Gate:
    """The way in; ``admit`` is given each whole request with its connection and tells whether it took both."""

    def __init__(
        self,
        listener: Listener,
        *,
        selector: selectors.BaseSelector,
        admit: Callable[[Invocation, socket.socket], bool],
        clock: Callable[[], float],
        build_id: str,
        netns_inode: int,
        peer_uid: int = 0,
    ) -> None:
        self.listener = listener
        self.is_open = True
        self._selector = selector
        self._admit = admit
        self._clock = clock
        self._build_id = build_id
        self._netns_inode = netns_inode
        self._peer_uid = peer_uid
        self._readings: dict[socket.socket, Reading] = {}
        self._pauses_until: float | None = None
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._highest_descriptor = limit - min(_DESCRIPTORS_LEFT, limit // 4)
        selector.register(listener.socket, selectors.EVENT_READ, self._accept)

    def expire(self) -> None:
        """Cut off those that have been too slow."""
        now = self._clock()
        if self._pauses_until is not None and self._pauses_until <= now:
            self._pauses_until = None
            self._selector.register(self.listener.socket, selectors.EVENT_READ, self._accept)
        for reading in [each for each in self._readings.values() if each.until <= now]:
            self._turn_away(reading, "no whole frame in time")

    def close(self) -> None:
        """Take the path away, and tell everybody who is not in yet to run on his own.

        The path of systemd's socket stays: who comes there is told the same until ``leave``.
        """
        if not self.is_open:
            return
        self.is_open = False
        self.listener.withdraw()
        if self._pauses_until is None:
            self._selector.unregister(self.listener.socket)
        self._pauses_until = None
        for reading in list(self._readings.values()):
            self._turn_away(reading, "")
        if self.listener.activated:
            self._selector.register(self.listener.socket, selectors.EVENT_READ, self._send_away)
        else:
            self._send_away()
            self.listener.close()

    def leave(self) -> None:
        """Stop listening; who comes to systemd's socket now is the next agent's."""
        if self.listener.socket.fileno() < 0:
            return
        with suppress(KeyError):  # it rests
            self._selector.unregister(self.listener.socket)
        self.listener.close()

    def _send_away(self) -> None:
        try:
            while True:
                self.listener.socket.accept()[0].close()  # said nothing is not taken
        except BlockingIOError:
            pass
        except OSError:  # nothing left to accept him with: he waits, or the kernel tells him when we close
            if self.listener.activated:
                self._selector.unregister(self.listener.socket)

    def _accept(self) -> None:
        for _each in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _address = self.listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors, or of memory: whoever has waited for longest makes room, if somebody has.
                LOG.warning("cannot accept: %s", error.strerror)
                if not self._made_room():
                    self._pauses_until = self._clock() + _PAUSE_S
                    self._selector.unregister(self.listener.socket)
                return
            placed = self._with_room(connection) if self._knows(connection) else None
            if placed is None:
                connection.close()
                continue
            reading = Reading(placed, FrameReader(placed), self._clock() + READ_PATIENCE_S)
            self._readings[placed] = reading
            self._selector.register(placed, selectors.EVENT_READ, partial(self._read, reading))
            self._read(reading)  # it is there already, almost always

    def _knows(self, connection: socket.socket) -> bool:
        """Tell whether the peer is who may come in."""
        pid, uid, _gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if uid != self._peer_uid:
            LOG.warning("process %d of user %d is not let in", pid, uid)
            return False
        return True

    def _with_room(self, connection: socket.socket) -> socket.socket | None:
        """Return the connection when it may stay open, somebody else's closed for it; None when nobody's could be."""
        # The kernel gives the lowest number that is free: one so high tells that all below are in use.
        is_last = connection.fileno() > self._highest_descriptor
        if not is_last and len(self._readings) < MAX_READERS:
            return connection
        if not self._made_room():
            LOG.warning("a connection is closed: no descriptors are left for it")
            return None
        with connection:
            return connection.dup()  # by the number that has become free

    def _made_room(self) -> bool:
        """Turn away whoever has been at his frame for longest; false when there is nobody."""
        if not self._readings:
            return False
        self._turn_away(next(iter(self._readings.values())), "others wait for its place")
        return True

    def _read(self, reading: Reading) -> None:
        if reading.connection not in self._readings:
            return  # turned away earlier in the same round
        try:
            invocation = reading.frame.read()
        except (MalformedFrame, OSError) as error:
            self._turn_away(reading, str(error))
            return
        if invocation is None:
            return
        self._forget(reading)
        refusal = self._refusal(invocation)
        if refusal or not self._admit(invocation, reading.connection):
            # Cut: what no shim sent may be as long as a frame, and there may be many of it.
            LOG.info("%.64s %.64s is refused%s", invocation.plugin, invocation.command, refusal and f": {refusal}")
            invocation.close()
            with suppress(OSError):
                reading.connection.send(offer.REFUSED, socket.MSG_DONTWAIT)
            reading.connection.close()

    def _refusal(self, invocation: Invocation) -> str:
        if invocation.plugin not in EXECUTABLES or invocation.command not in COMMANDS:
            return "no executable of ours sends that"
        if invocation.build_id != self._build_id:
            return f"it is of build {invocation.build_id!r}, this agent of {self._build_id}"
        if invocation.netns_inode != self._netns_inode:
            return "it comes from another network namespace, whose links are not ours"
        return "" if self._has_room_for(invocation) else "no descriptors are left for it"

    def _has_room_for(self, invocation: Invocation) -> bool:
        for what, descriptor in invocation.descriptors.items():
            if descriptor > self._highest_descriptor:
                if not self._made_room():
                    return False
                invocation.descriptors[what] = os.dup(descriptor)  # not inheritable, by the number that became free
                os.close(descriptor)
        return True

    def _turn_away(self, reading: Reading, why: str) -> None:
        if why:
            LOG.warning("a connection is closed: %s", why)
        self._forget(reading)
        reading.frame.close()
        reading.connection.close()

    def _forget(self, reading: Reading) -> None:
        del self._readings[reading.connection]
        self._selector.unregister(reading.connection)


def own_netns_inode() -> int:
    """Return what shims of the same network namespace send; sysfs and netlink show them the same links."""
    return Path(offer.OWN_NETNS).stat().st_ino
