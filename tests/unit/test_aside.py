"""A call in a thread beside another one here: both have ended whatever either of them does."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from cni import aside, steps
from cni.aside import both


class Interrupted(Exception):
    """What the handler of the first signal raises."""


@pytest.fixture
def interrupting():
    """Have SIGTERM raise once, as the skeleton has it."""

    def interrupt(_number, _frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Interrupted

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


def none_runs() -> bool:
    for thread in threading.enumerate():
        if isinstance(thread, aside._Aside):
            thread.join(60)  # it has said that it is done, and has yet to go
    return [thread for thread in threading.enumerate() if isinstance(thread, aside._Aside)] == []


def test_each_goes_on_while_the_other_does():
    moved, found = threading.Event(), threading.Event()

    def move() -> str:
        moved.set()
        return "moved" if found.wait(60) else "waited in vain"

    def find() -> str:
        found.set()
        return "found" if moved.wait(60) else "waited in vain"

    assert both(move, find) == ("moved", "found")
    assert none_runs()


def test_what_goes_wrong_here_waits_for_the_other():
    ended, raised = [], threading.Event()

    def move() -> None:
        raised.wait(60)
        ended.append(time.monotonic())

    def find() -> None:
        raised.set()
        raise KeyError("no address")

    with pytest.raises(KeyError):
        both(move, find)
    assert ended
    assert none_runs()


@pytest.mark.parametrize("found", [True, False])
def test_what_goes_wrong_aside_is_raised_first(found):
    def move() -> None:
        raise OSError("no move")

    def find() -> str:
        if not found:
            raise KeyError("no address")
        return "found"

    with pytest.raises(OSError, match="no move") as raised:
        both(move, find)
    assert isinstance(raised.value.__context__, KeyError) is not found


def test_interruption_ends_what_is_here_and_not_what_is_aside(interrupting):
    going, ended = threading.Event(), []

    def move() -> None:
        going.wait(60)
        ended.append("moved")

    def find() -> None:
        try:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
            time.sleep(60)
        finally:
            going.set()

    with pytest.raises(Interrupted):
        both(move, find)
    assert ended == ["moved"]
    assert none_runs()


def test_interruption_of_the_wait_still_waits(interrupting):
    ended = []

    def move() -> None:
        # Not to the process: a thread of pytest's might take it before this one, and both() is interrupted earlier.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
        time.sleep(0.3)
        ended.append("moved")

    with pytest.raises(Interrupted):
        both(move, lambda: None)
    assert ended == ["moved"]
    assert none_runs()


def test_signals_that_came_before_are_taken_before_anything_begins_or_when_both_have_ended(interrupting):
    ended = []
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
    try:
        assert both(lambda: ended.append("moved"), lambda: ended.append("found")) == (None, None)
        assert sorted(ended) == ["found", "moved"]
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())  # as it was
    finally:
        with pytest.raises(Interrupted):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def test_without_a_thread_one_goes_after_the_other(monkeypatch):
    def start(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(aside._Aside, "start", start)
    order: list[str] = []
    both(lambda: order.append("moved"), lambda: order.append("found"))
    assert order == ["moved", "found"]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.parametrize("starts", [True, False])
def test_interruption_of_the_start_leaves_nothing_to_itself(monkeypatch, starts):
    ended, really = [], aside._Aside.start

    def start(thread):
        if starts:
            really(thread)
        raise Interrupted  # as by a handler, for a signal that another thread has taken

    def move() -> None:
        time.sleep(0.3)
        ended.append("moved")

    monkeypatch.setattr(aside._Aside, "start", start)
    with pytest.raises(Interrupted):
        both(move, lambda: ended.append("found"))
    assert ended == ["moved"] * starts
    assert none_runs()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_thread_that_comes_late_does_nothing(monkeypatch):
    ended, late = [], []

    def start(thread):
        late.append(thread)
        raise Interrupted

    monkeypatch.setattr(aside._Aside, "start", start)
    with pytest.raises(Interrupted):
        both(lambda: ended.append("moved"), lambda: ended.append("found"))
    monkeypatch.undo()
    late[0].start()
    late[0].join(60)
    assert ended == []


def test_step_of_the_move_is_what_is_waited_for():
    heard, found = steps.listen(), threading.Event()
    both(lambda: found.wait(60), lambda: (time.sleep(0.5), found.set()))
    steps._listening.remove(heard)
    assert heard.seconds["move"] < 0.5  # the half second passed before anybody waited
