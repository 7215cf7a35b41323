"""The crew from inside: children that end at the worst moment, and machines that have no process left."""

from __future__ import annotations

import errno
import functools
import json
import os
import selectors
import socket
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cni.agent import crew as crew_module
from cni.agent.crew import UNDO_PATIENCE_S, Crew, Served
from cni.agent.frames import Invocation
from cni.agent.spares import close_all_but
from cni.start import offer
from conf.agent import AgentConf
from tests.descriptors import none_left_open


def report_success(_invocation: Invocation, _connection: socket.socket, report: int) -> None:
    os.write(report, json.dumps({"pid": os.getpid(), "code": 0, "seconds": {}, "events": {}}).encode() + b"\n")
    os._exit(0)


def invocation(command: str = "ADD") -> Invocation:
    return Invocation(
        frame=b"", build_id="b", netns_inode=1, called_as="/opt/cni/bin/static", environ={"CNI_COMMAND": command}
    )


class Scene:
    """A crew with a loop of its own, its clock standing still."""

    def __init__(
        self,
        *,
        life: Callable[..., None] = report_success,
        rehearse: Callable[[], object] = lambda: None,
        **conf: Any,
    ) -> None:
        self.selector = selectors.DefaultSelector()
        self.served: list[Served] = []
        self.now = 0.0
        self.crew = Crew(
            selector=self.selector,
            life=life,
            rehearse=rehearse,
            clock=lambda: self.now,
            finished=self.served.append,
            conf=AgentConf(**{"spare_children": 0, **conf}),
        )

    def admit(self) -> socket.socket:
        """Hand in a request and return the shim's end, which has been told that it was taken."""
        ours, theirs = socket.socketpair()
        assert self.crew.admit(invocation(), theirs)
        ours.settimeout(120)
        assert ours.recv(1) == offer.TAKEN
        return ours


class HeldBack:
    """Children that report success when they are let go."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def life(self, *place: Any) -> None:
        os.close(self.writing)
        os.read(self.reading, 1)  # its end too, should the test fail
        report_success(*place)

    def let_go(self) -> None:
        """Have the children go on, and wait until one has ended; nothing happens the second time."""
        if self.writing >= 0:
            os.write(self.writing, b".")  # pytest's process has this end open too
            os.close(self.writing)
            self.writing = -1
            wait_until_one_ended()


@pytest.fixture
def held_back() -> Iterator[HeldBack]:
    held = HeldBack()
    yield held
    for end in {held.reading, held.writing} - {-1}:
        os.close(end)


def without_other_children(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test in a process of its own: a crew reaps whatever child ends, and pytest's own are machines."""

    @functools.wraps(test)
    def in_its_process(**fixtures: Any) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                test(**fixtures)
                os._exit(0)
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    return in_its_process


def wait_until_one_ended() -> None:
    """Wait for the end of a child, and leave it to be reaped."""
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)


@without_other_children
def test_child_that_ends_while_others_are_reaped_has_its_answer_told(held_back, monkeypatch):
    """However late it reports: what its parent looks at first, its report or its end, must not matter."""
    scene = Scene(life=held_back.life)
    real = os.waitpid

    def just_then(*args: int) -> tuple[int, int]:
        held_back.let_go()
        return real(*args)

    with scene.admit():
        monkeypatch.setattr(os, "waitpid", just_then)
        scene.crew.reap()
    assert [each.code for each in scene.served] == [0]


@without_other_children
def test_request_without_a_process_is_answered_and_the_next_one_served(monkeypatch):
    real = crew_module.fork
    failures = [BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), OSError(errno.ENOMEM, "no memory")]

    def fork(*args: Any, **kwargs: Any) -> int:
        if failures:
            raise failures.pop(0)
        return real(*args, **kwargs)

    monkeypatch.setattr(crew_module, "fork", fork)
    scene = Scene()
    with none_left_open():
        for _each in range(2):
            with scene.admit() as shim:
                said = shim.recv(4096)
                assert (said[:1], said[1]) == (offer.ANSWER, 1)
                assert json.loads(said[len(offer.ANSWER) + offer.ANSWER_BYTES :])["code"] == 11
                assert shim.recv(1) == b""
    with scene.admit() as shim:
        wait_until_one_ended()
        scene.crew.reap()
    assert [each.code for each in scene.served] == [11, 11, 0]


@without_other_children
def test_waiting_requests_are_bounded_in_number_and_time(held_back):
    scene = Scene(life=held_back.life, max_children=1, max_waiting=2, request_timeout_s=5)
    shims = [scene.admit() for _each in range(3)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert not scene.crew.admit(invocation(), theirs)
    assert (scene.crew.running, scene.crew.waiting) == (1, 2)
    # One of those that wait is killed: its place is free at once.
    shims.pop().close()
    for key, _events in scene.selector.select(0):
        key.data()
    assert scene.crew.waiting == 1
    scene.now = 5.0
    scene.crew.expire()
    assert scene.crew.waiting == 0
    assert b"waiting too long" in shims[1].recv(4096)
    assert [(each.code, each.waited_s, each.took_s) for each in scene.served] == [(11, 5.0, 0.0)]
    scene.now = 5.0 + UNDO_PATIENCE_S  # this life does not hear SIGTERM
    scene.crew.expire()
    wait_until_one_ended()
    scene.crew.reap()
    assert [each.code for each in scene.served] == [11, None]
    for shim in shims:
        shim.close()


@without_other_children
def test_spares_that_die_of_themselves_are_not_forked_anew_at_once(monkeypatch):
    """For lack of memory, say: the next one would die as well, and each end of one wakes the loop."""
    forked: list[int] = []
    real = os.fork
    monkeypatch.setattr(os, "fork", lambda: (forked.append(0), real())[1])
    scene = Scene(spare_children=1, rehearse=lambda: os._exit(9))
    scene.crew.prepare()
    wait_until_one_ended()
    scene.crew.reap()
    scene.crew.prepare()
    assert len(forked) == 1
    scene.now += 60
    scene.crew.prepare()
    assert len(forked) == 2
    wait_until_one_ended()
    scene.crew.reap()
    # A request does not depend on them.
    with scene.admit():
        wait_until_one_ended()
        scene.crew.reap()
    assert [each.code for each in scene.served] == [0]


@without_other_children
def test_machine_without_processes_is_not_asked_for_spares_again_and_again(monkeypatch):
    asked: list[int] = []

    def refuse() -> int:
        asked.append(0)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    scene = Scene(spare_children=1)
    with none_left_open():
        for _each in range(5):
            scene.crew.prepare()
    assert len(asked) == 1


@pytest.mark.parametrize("kept", [(0, 1, 2, 40), (0, 41), (3,), (40, 41)])
def test_close_all_but_keeps_exactly_these(kept):
    pid = os.fork()
    if pid == 0:
        try:
            for number in (*range(20), 40, 41, 42):
                os.dup2(2, number)
            close_all_but(*kept)
            os._exit(0 if [number for number in range(100) if is_open(number)] == list(kept) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
