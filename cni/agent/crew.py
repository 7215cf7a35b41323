"""The children: one for each request, so many at once, the others in their order; each bounded, each reaped.

What a child does is ``child.py``'s. The parent never waits for one, and none can harm it: it learns of a child's end
from the kernel, and of what the child did from one line in a pipe.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from cni.agent.frames import Invocation
from cni.agent.spares import Life, Spares, fork
from cni.start import offer
from conf.agent import AgentConf
from conf.errors import CniError, TryAgainLater
from conf.executables import SUPPORTED_VERSIONS

LOG = logging.getLogger("vferry.agent")

# What the parent listens to; a child must not be hit before it has its own handlers.
SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
# From SIGTERM, upon which a child undoes what it did, to SIGKILL. Together with the longest bound on a request this
# stays below the shim's patience.
UNDO_PATIENCE_S = 15.0
# What a spare has died of, lack of memory say, the next one would die of at once: each end wakes the loop.
_SPARES_PAUSE_S = 10.0
# PIPE_BUF of linux/limits.h: so much is written whole or not at all.
REPORT_BYTES = 4096


@dataclass(frozen=True)
class Served:
    """One request that has come to its end; ``code`` 0 is success, None an end that nobody could answer for."""

    plugin: str
    command: str
    container_id: str
    ifname: str
    code: int | None
    waited_s: float
    took_s: float
    seconds: Mapping[str, float]
    events: Mapping[str, int]


@dataclass(eq=False)
class _Task:
    invocation: Invocation
    connection: socket.socket
    since: float
    started: float = 0.0
    interrupted: bool = False


class Crew:
    """The requests an agent has taken; ``finished`` is told of each one that ends."""

    def __init__(
        self,
        *,
        selector: selectors.BaseSelector,
        life: Life,
        rehearse: Callable[[], object],
        clock: Callable[[], float],
        finished: Callable[[Served], None],
        conf: AgentConf,
    ) -> None:
        self.conf = conf
        self._selector = selector
        self._life = life
        self._clock = clock
        self._finished = finished
        self._waiting: deque[_Task] = deque()
        self._running: dict[int, _Task] = {}
        self._reports: dict[int, dict[str, Any]] = {}
        self._spares_from = clock()
        self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        selector.register(self._reading, selectors.EVENT_READ, self._read_reports)
        self._spares = Spares(
            life=life, rehearse=rehearse, report=self._writing, signals=SIGNALS, count=conf.spare_children
        )

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def admit(self, invocation: Invocation, connection: socket.socket) -> bool:
        """Take a request with its connection and say so to the shim; false when there are too many already."""
        if len(self._waiting) >= self.conf.max_waiting + max(0, self.conf.max_children - len(self._running)):
            return False
        try:
            connection.send(offer.TAKEN, socket.MSG_DONTWAIT)
        except OSError:  # the caller has gone, or has run it itself: it is not ours
            invocation.close()
            connection.close()
            return True
        task = _Task(invocation, connection, self._clock())
        self._waiting.append(task)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._look_after, task))
        self.start()
        return True

    def start(self) -> None:
        """Start as many of those that wait as may run."""
        while self._waiting and len(self._running) < self.conf.max_children:
            task = self._waiting.popleft()
            if task.connection in self._selector.get_map():
                self._selector.unregister(task.connection)
            self._begin(task)

    def prepare(self) -> None:
        """Make children ready for requests to come, while none is there that could use the time."""
        if self._running or self._waiting or self._clock() < self._spares_from:
            return
        try:
            self._spares.fill()
        except OSError as error:
            self._spares_from = self._clock() + _SPARES_PAUSE_S
            LOG.warning("no process for a spare child: %s", error.strerror)

    def dismiss(self) -> None:
        """Have the children end that have no request; there will be none."""
        self._spares.dismiss()

    def reap(self) -> None:
        """Take note of every child that has ended, and start others in their place."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                self._read_reports()  # not before: a child that ends just now has written its own since
                task = self._running.pop(pid, None)
                if task is not None:
                    self._end(task, self._reports.pop(pid, {}), status)
                elif self._spares.lost(pid):
                    self._spares_from = self._clock() + _SPARES_PAUSE_S
                    LOG.warning("a spare child ended: %s", _how(status))
                # Else, as process 1 of a container, it is an orphan of somebody else's.
        self.start()

    def expire(self) -> None:
        """Interrupt what takes too long, and kill what does not stop then."""
        now = self._clock()
        while self._waiting and self._waiting[0].since + self.conf.request_timeout_s <= now:
            self._answer(self._waiting.popleft(), f"{len(self._running)} others kept it waiting too long")
        for pid, task in self._running.items():
            if not task.interrupted and task.since + self.conf.request_timeout_s <= now:
                task.interrupted = True
                LOG.warning("child %d is interrupted: not done in %g s", pid, self.conf.request_timeout_s)
                os.kill(pid, signal.SIGTERM)
            elif task.interrupted and task.since + self.conf.request_timeout_s + UNDO_PATIENCE_S <= now:
                LOG.error("child %d is killed: it did not stop", pid)
                os.kill(pid, signal.SIGKILL)

    def interrupt(self) -> None:
        """Have every child undo what it did and end."""
        for pid, task in self._running.items():
            task.interrupted = True
            os.kill(pid, signal.SIGTERM)
        while self._waiting:
            self._answer(self._waiting.popleft(), "the agent is told to stop at once")

    def _begin(self, task: _Task) -> None:
        task.started = self._clock()
        try:
            pid = self._spares.take(task.invocation, task.connection) or fork(
                lambda: self._life(task.invocation, task.connection, self._writing), signals=SIGNALS
            )
        except OSError as error:
            self._answer(task, f"no process for it: {error.strerror}")
            return
        self._running[pid] = task
        task.invocation.close()
        task.connection.close()

    def _look_after(self, task: _Task) -> None:
        """See to a shim that says something while it waits: it was killed, or interrupted."""
        if task not in self._waiting:
            return
        try:
            said = task.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        self._selector.unregister(task.connection)
        if not said:
            self._waiting.remove(task)
            self._close(task)
        # A signal is for its child to read, which answers as every interrupted plugin does.

    def _answer(self, task: _Task, why: str) -> None:
        """Answer a request that no child will."""
        error: CniError = TryAgainLater("the agent cannot serve the request", details=why, hint="try again later")
        document = json.dumps(error.to_json(SUPPORTED_VERSIONS[-1])).encode() + b"\n"
        LOG.warning("%s %s: %s", task.invocation.plugin, task.invocation.command, why)
        with suppress(OSError):
            task.connection.send(answer(1, document), socket.MSG_DONTWAIT)
        self._tell(task, error.code, {})
        self._close(task)

    def _close(self, task: _Task) -> None:
        if task.connection in self._selector.get_map():
            self._selector.unregister(task.connection)
        task.invocation.close()
        task.connection.close()

    def _read_reports(self) -> None:
        with suppress(BlockingIOError):
            while lines := os.read(self._reading, 64 * REPORT_BYTES):
                for line in lines.splitlines():
                    report = json.loads(line)
                    self._reports[report.pop("pid")] = report

    def _end(self, task: _Task, report: dict[str, Any], status: int) -> None:
        if not report:
            LOG.error("a child ended without an answer: %s", _how(status))
        self._tell(task, report.get("code"), report)

    def _tell(self, task: _Task, code: int | None, report: Mapping[str, Any]) -> None:
        environ, now = task.invocation.environ, self._clock()
        started = task.started or now
        self._finished(
            Served(
                plugin=task.invocation.plugin,
                command=task.invocation.command,
                container_id=environ.get("CNI_CONTAINERID", ""),
                ifname=environ.get("CNI_IFNAME", ""),
                code=code,
                waited_s=started - task.since,
                took_s=now - started,
                seconds=report.get("seconds", {}),
                events=report.get("events", {}),
            )
        )


def answer(status: int, document: bytes) -> bytes:
    """Return the frame that a shim waits for."""
    return offer.ANSWER + bytes((status,)) + len(document).to_bytes(offer.LENGTH_BYTES, "little") + document


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
