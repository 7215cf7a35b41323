"""Spare children: who is handed a request, and when."""

from __future__ import annotations

import array
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
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
        self.spares = Spares(
            life=self._live,
            rehearse=self._rehearse,
            report=self.report,
            signals=frozenset({signal.SIGTERM, signal.SIGHUP}),
            count=2,
        )
        self.spares.fill()
        self.pids = list(self.spares._waiting)

    def _rehearse(self) -> None:
        while not self.let_go.exists():
            time.sleep(0.01)

    @staticmethod
    def _live(_invocation: Invocation, connection: socket.socket, _report: int) -> None:
        # What is not blocked by now would end it here, what is pending once a request is listened for.
        os.kill(os.getpid(), signal.SIGHUP)
        pending = sum(1 << number for number in signal.sigpending())
        told = [os.getpid(), os.getpriority(os.PRIO_PROCESS, 0), pending]
        connection.send(array.array("i", told).tobytes())
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
            return pid, list(array.array("i", ours.recv(12) if pid else b""))

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
    assert [first[1][:2], second[1][:2]] == [[first[0], priority], [second[0], priority]]
    assert stage.take() == (None, [])


@pytest.mark.parametrize("rehearses", [True, False])
def test_signal_to_all_processes_of_the_agent_is_not_kept_for_the_next_request(stage, rehearses):
    """Such as ``systemctl kill -s HUP``: the request would be taken for interrupted as soon as it begins."""
    if not rehearses:
        stage.let_go.touch()
        wait_until_ready(stage)
    for pid in stage.pids:
        os.kill(pid, signal.SIGTERM)
    stage.let_go.touch()
    pid, said = stage.take_when_ready()
    assert pid in stage.pids
    assert said[2] == 1 << signal.SIGHUP  # its own, which is: its request has begun


def wait_until_ready(stage: Stage) -> None:
    until = time.monotonic() + 120
    for channel in stage.spares._waiting.values():
        while time.monotonic() < until:
            with suppress(BlockingIOError):
                channel.recv(1, socket.MSG_PEEK)
                break
            time.sleep(0.01)


def test_spare_that_has_died_is_passed_over(stage):
    stage.let_go.touch()
    assert stage.take_when_ready()[0] is not None
    left = next(iter(stage.spares._waiting))
    os.kill(left, 9)
    os.waitid(os.P_PID, left, os.WEXITED | os.WNOWAIT)
    assert stage.take() == (None, [])
