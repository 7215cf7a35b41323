"""Spare children: who is handed a request, and when."""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.agent.frames import Invocation
from cni.agent.spares import Spares
from cni.start import offer


class Stage:
    """Spares that rehearse until they are let go; who is handed a request tells its pid and nice value."""

    def __init__(self, let_go: Path) -> None:
        self.let_go = let_go
        self.report = os.open(os.devnull, os.O_WRONLY)
        self.spares = Spares(life=self._live, rehearse=self._rehearse, report=self.report, signals=frozenset(), count=2)
        self.spares.fill()
        self.pids = list(self.spares._waiting)

    def _rehearse(self) -> None:
        while not self.let_go.exists():
            time.sleep(0.01)

    @staticmethod
    def _live(_invocation: Invocation, connection: socket.socket, _report: int) -> None:
        connection.send(array.array("i", [os.getpid(), os.getpriority(os.PRIO_PROCESS, 0)]).tobytes())
        os._exit(0)

    def take(self) -> tuple[int | None, list[int]]:
        """Hand a request over and return the pid of who has it, and what he says."""
        body = b"/opt/cni/bin/static\0CNI_COMMAND=ADD\0"
        size = len(body).to_bytes(offer.LENGTH_BYTES, "little")
        head = offer.MAGIC + bytes(offer.BUILD_BYTES + offer.INODE_BYTES) + bytes((offer.STDIN | offer.STDERR,))
        descriptors = {offer.STDIN: os.dup(0), offer.STDERR: os.dup(2)}
        invocation = Invocation(head + size + body, "", 0, "", {}, descriptors)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                pid = self.spares.take(invocation, theirs)
            invocation.close()
            ours.settimeout(120)
            return pid, list(array.array("i", ours.recv(8) if pid else b""))

    def take_when_ready(self) -> tuple[int | None, list[int]]:
        until = time.monotonic() + 120
        while (taken := self.take())[0] is None and time.monotonic() < until:
            time.sleep(0.01)
        return taken


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "let go")
    yield stage
    stage.let_go.touch()
    stage.spares.dismiss()
    for pid in stage.pids:
        os.waitpid(pid, 0)
    os.close(stage.report)


def test_spare_that_rehearses_is_handed_nothing(stage):
    assert stage.take() == (None, [])


def test_spares_are_taken_in_their_order_at_our_priority(stage):
    stage.let_go.touch()
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    first, second = stage.take_when_ready(), stage.take_when_ready()
    assert {first[0], second[0]} == set(stage.pids)
    assert [first[1], second[1]] == [[first[0], priority], [second[0], priority]]
    assert stage.take() == (None, [])


def test_spare_that_has_died_is_passed_over(stage):
    stage.let_go.touch()
    assert stage.take_when_ready()[0] is not None
    left = next(iter(stage.spares._waiting))
    os.kill(left, 9)
    os.waitid(os.P_PID, left, os.WEXITED | os.WNOWAIT)
    assert stage.take() == (None, [])
