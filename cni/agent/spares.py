"""Children forked ahead of their request: what one touches for the first time it has touched before anybody waits.

After a fork every page that is read or written for the first time costs a fault, 2,000 of them in an ADD; a spare takes
them while the agent is idle. Like every child it serves one request and ends.
"""

from __future__ import annotations

import array
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

from cni.agent.frames import Invocation, parse
from cni.start import offer

LOG = logging.getLogger("vferry.agent")

_FRAME_BYTES = offer.HEADER_BYTES + offer.BODY_BYTES
_DESCRIPTORS = 8
# What a spare says when it has rehearsed.
_READY = b"!"
_NICEST = 19
# The life of one child: it never returns.
Life = Callable[[Invocation, socket.socket, int], None]


class Spares:
    """The children that wait for a request; ``report`` is the pipe that they inherit."""

    def __init__(
        self, *, life: Life, rehearse: Callable[[], object], report: int, signals: frozenset[signal.Signals], count: int
    ) -> None:
        self.count = count
        self._life = life
        self._rehearse = rehearse
        self._report = report
        self._signals = signals
        self._waiting: dict[int, socket.socket] = {}

    def fill(self) -> None:
        """Fork those that are missing. Raises: OSError when there is no process for one."""
        while len(self._waiting) < self.count:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with ours, theirs:
                pid = fork(lambda: self._live(theirs), signals=self._signals)  # noqa: B023 called before it changes
                ours.setblocking(False)
                self._waiting[pid] = socket.socket(fileno=ours.detach())

    def take(self, invocation: Invocation, connection: socket.socket) -> int | None:
        """Hand a request over and return the pid of the child that has it; None when no spare is ready for it."""
        rights = array.array("i", [connection.fileno(), *invocation.descriptors.values()])
        for pid, channel in list(self._waiting.items()):
            try:
                channel.recv(len(_READY))
            except BlockingIOError:
                continue  # it is still rehearsing: a new child begins sooner
            except OSError:
                pass  # it has died, and takes nothing
            del self._waiting[pid]
            with channel:
                try:
                    channel.sendmsg([invocation.frame], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                except OSError:  # it has died, or the frame is too long for one message
                    continue
            return pid
        return None

    def lost(self, pid: int) -> bool:
        """Forget a spare that has ended; false when it is none."""
        channel = self._waiting.pop(pid, None)
        if channel is not None:
            channel.close()
        return channel is not None

    def dismiss(self) -> None:
        """Have all of them end."""
        self.count = 0
        while self._waiting:
            self._waiting.popitem()[1].close()

    def _live(self, channel: socket.socket) -> None:
        signal.set_wakeup_fd(-1)
        close_all_but(0, 1, 2, channel.fileno(), self._report)
        with _yielding():
            self._rehearse()
        # What is sent to all of the agent's processes is not meant for a request to come, and blocked waits for it.
        self._have_signals(signal.SIG_IGN, signal.SIG_UNBLOCK)
        try:
            channel.send(_READY)
            frame, ancillary, _flags, _address = channel.recvmsg(_FRAME_BYTES, socket.CMSG_SPACE(4 * _DESCRIPTORS))
        except ConnectionError:  # unix(7): so ends a peer that has not read what we sent
            frame = b""
        if not frame:
            os._exit(0)  # the agent has ended, or dismissed us
        self._have_signals(signal.SIG_DFL, signal.SIG_BLOCK)
        numbers = array.array("i")
        for _level, _kind, content in ancillary:
            numbers.frombytes(content)
        connection, *descriptors = numbers
        self._life(parse(frame, descriptors), socket.socket(fileno=connection), self._report)

    def _have_signals(self, action: signal.Handlers, mask: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        for number in self._signals:
            signal.signal(number, action)
        signal.pthread_sigmask(mask, self._signals)


@contextmanager
def _yielding() -> Iterator[None]:
    """Leave the processor to whoever wants it, where this process may take its place again afterwards."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    # getrlimit(2): up to this nice value, counted downwards from 20, a process may raise itself.
    may_return = 20 - resource.getrlimit(resource.RLIMIT_NICE)[0] <= before
    if may_return:
        os.setpriority(os.PRIO_PROCESS, 0, _NICEST)
    try:
        yield
    finally:
        if may_return:
            os.setpriority(os.PRIO_PROCESS, 0, before)


def close_all_but(*descriptors: int) -> None:
    """Close every other descriptor of this process."""
    kept = [-1, *sorted(set(descriptors)), os.sysconf("SC_OPEN_MAX")]
    for low, high in pairwise(kept):
        if low + 1 < high:  # closerange(0, 0) closes all: close_range(2) takes its last, -1, for unsigned
            os.closerange(low + 1, high)


def fork(act: Callable[[], None], *, signals: frozenset[signal.Signals]) -> int:
    """Run ``act`` in a child, which ends when it returns, and return the child's pid.

    The child has the signals blocked: it must not be hit by one before it has handlers of its own.
    Raises: OSError.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                act()
            except BaseException:
                LOG.critical("a child failed", exc_info=True)
            finally:
                os._exit(70)  # sysexits.h EX_SOFTWARE: nobody returns into the parent's loop
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
