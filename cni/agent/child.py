"""The life of one child: it becomes what a cold executable is, serves its one request, answers and ends.

One thread, one request, the same skeleton. It differs from a cold process in where its answer goes, and in that it has
to look whether its caller is still there.
"""

from __future__ import annotations

import fcntl
import gc
import io
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from cni import skel, steps
from cni.agent.crew import REPORT_BYTES, SIGNALS, answer
from cni.agent.frames import Invocation
from cni.agent.spares import close_all_but
from cni.linux import mounts, netns, pipe
from cni.start import offer
from cni.undo import Undo
from conf.errors import TryAgainLater
from conf.executables import SUPPORTED_VERSIONS

LOG = logging.getLogger("vferry.agent.child")

# Where a child has its descriptors. Everything behind them is closed: what of other requests stayed open here would
# keep their shims from seeing that their own child has died.
_STDIN, _STDOUT, _STDERR, _CONNECTION, _REPORT, _AGENTS_LOG, _SANDBOX = range(7)
_OUT_OF_THE_WAY = 16
# A shim reads its answer at once, one that is stopped when it goes on.
_TO_BE_READ_S = 5.0


def live(invocation: Invocation, connection: socket.socket, report: int, *, host_mounts: str = "") -> NoReturn:
    """Serve the request in this process, just forked, and end it."""
    try:
        connection = _take_place(invocation, connection, report)
        if host_mounts:
            mounts.enter(host_mounts)
        time.tzset()  # by the caller's TZ, or the /etc/localtime that is here now
        _serve(invocation, Caller(connection, waits_for_add=invocation.command == "ADD"))
    except BaseException:
        LOG.critical("the child failed", exc_info=True)
        os._exit(70)  # sysexits.h EX_SOFTWARE
    os._exit(0)


def _serve(invocation: Invocation, caller: Caller) -> None:
    # A delegate that is another archive of ours must not wait for a place among those that wait for it.
    environ = {**invocation.environ, "VFERRY_AGENT": "off"}
    stdout = io.BytesIO()
    heard = steps.listen()
    try:
        caller.listen()
        with open(_STDIN, "rb", closefd=False) as stdin:
            status = skel.main(invocation.plugin, environ=environ, stdin=stdin, stdout=stdout)
        document = stdout.getvalue()
        caller.ignore()
    except TryAgainLater as late:
        # Before it began, or in the moment after its end: as with a cold start, a DEL finds what there is.
        caller.ignore()
        status, document = 1, json.dumps(late.to_json(SUPPORTED_VERSIONS[-1])).encode() + b"\n"
    if not caller.answer(status, document) and invocation.command == "ADD" and status == 0:
        _take_back(invocation, environ)
    code = json.loads(document)["code"] if status else 0
    told = {"pid": os.getpid(), "code": code, "seconds": heard.seconds, "events": heard.events}
    line = json.dumps(told).encode() + b"\n"
    if len(line) <= REPORT_BYTES:
        with suppress(BlockingIOError, BrokenPipeError):  # the parent is far behind, or killed: a figure less
            os.write(_REPORT, line)


def _take_place(invocation: Invocation, connection: socket.socket, report: int) -> socket.socket:
    """Take the caller's place: descriptors, working directory, name, sandbox; return the connection to the shim."""
    gc.disable()  # a collection would touch, and so copy, the pages shared with the parent
    signal.set_wakeup_fd(-1)
    came = invocation.descriptors
    wanted = {
        _STDIN: came[offer.STDIN],
        _STDOUT: came[offer.STDERR],  # as skel.main has it: what is printed by mistake must not spoil the document
        _STDERR: came[offer.STDERR],
        _CONNECTION: connection.detach(),  # its end must not close what has its number by then
        _REPORT: report,
        _AGENTS_LOG: 2,
    }
    sandbox = invocation.environ.get("CNI_NETNS", "")
    netns.receive(sandbox, _SANDBOX if offer.SANDBOX in came else netns.NOTHING)
    if offer.SANDBOX in came:
        wanted[_SANDBOX] = came[offer.SANDBOX]
    if offer.DIRECTORY in came:
        os.fchdir(came[offer.DIRECTORY])
    close_all_but(*wanted.values())  # what waits in the agent may leave no free one for us
    moved = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY) for place, fd in wanted.items()}
    for place, fd in moved.items():
        os.dup2(fd, place, inheritable=place <= _STDERR)
    os.closerange(max(wanted) + 1, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()  # libraries look there too: for certificates, for a time zone
    os.environ.update(invocation.environ)
    sys.argv = [invocation.called_as]  # what cni.delegate takes for our own file
    return socket.socket(fileno=_CONNECTION)


def _take_back(invocation: Invocation, environ: Mapping[str, str]) -> None:
    """Undo an ADD that nobody was told of."""
    LOG.warning("the caller has gone: the finished ADD is taken back")
    with open(_STDIN, "rb", closefd=False) as stdin:
        stdin.seek(0)
        skel.serve(invocation.plugin, environ={**environ, "CNI_COMMAND": "DEL"}, stdin=stdin)


class Caller:
    """The shim at the other end: it forwards signals as bytes, and its end is the end of the connection."""

    def __init__(self, connection: socket.socket, *, waits_for_add: bool) -> None:
        self._connection = connection
        self._waits_for_add = waits_for_add
        self._is_deaf = False

    def listen(self) -> None:
        """From here on be interrupted as a cold process is, and by the caller's end."""
        for number in skel.INTERRUPTING:
            signal.signal(number, self._interrupt)
        signal.signal(signal.SIGIO, self._hear)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        fcntl.fcntl(self._connection, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self._connection, fcntl.F_SETFL, os.O_ASYNC)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.kill(os.getpid(), signal.SIGIO)  # for what came before

    def ignore(self) -> None:
        """Be interrupted no more."""
        self._is_deaf = True
        skel.ignore_interruptions()

    def answer(self, status: int, document: bytes) -> bool:
        """Send the answer; false when an ADD was not read by anybody."""
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        try:
            self._connection.sendall(answer(status, document))
            if self._waits_for_add and status == 0:
                self._await_its_end()
        except OSError:
            self._leave_its_stderr()
            return False
        return True

    def _await_its_end(self) -> None:
        """Wait until the caller has closed the connection. Raises: OSError when it left the answer unread."""
        self._connection.settimeout(_TO_BE_READ_S)
        with suppress(TimeoutError):
            while self._connection.recv(1):
                pass  # a signal that came too late

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._is_deaf or Undo.is_settled(frame):
            return
        self.ignore()
        skel.interrupt(number, frame)

    def _hear(self, _number: int, frame: FrameType | None) -> None:
        try:
            said = self._connection.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said:
            os.kill(os.getpid(), signal.SIGIO)  # for what came behind it
            self._interrupt(said[0], frame)
            return
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        self._leave_its_stderr()
        # Every other verb is better brought to its end: it is repeated, or its answer is of no use any more.
        if self._waits_for_add and not self._is_deaf and not Undo.is_settled(frame):
            self.ignore()
            raise TryAgainLater("the caller has gone")

    def _leave_its_stderr(self) -> None:
        """Have the log go to the agent's: what is started from here on would die of a pipe that nobody reads."""
        with suppress(OSError):  # no pipe, then
            pipe.hold_reading_end(_STDERR)  # for what runs already
        for place in (_STDOUT, _STDERR):
            os.dup2(_AGENTS_LOG, place)
