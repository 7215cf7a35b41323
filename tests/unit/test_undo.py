"""Taking back what an ADD did, and taking every step of a DEL."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from types import FrameType

import pytest

from cni import skel
from cni.undo import EveryStep, Undo
from conf.errors import CheckFailed, CniError, IoFailure, UndoneInPart


def broken():
    raise RuntimeError("broken")


def test_steps_are_taken_back_in_reverse_and_the_last_ones_last():
    done = []
    with pytest.raises(IoFailure) as ended, Undo() as undo:
        undo.push_last("record", lambda: done.append("record"))
        undo.push("a", lambda: done.append("a"))
        undo.push_last("files", lambda: done.append("files"))
        undo.push("b", lambda: done.append("b"))
        raise IoFailure("it")
    assert done == ["b", "a", "files", "record"]
    assert ended.value.hint == ""


@pytest.fixture
def signals() -> Iterator[None]:
    """The handlers of this process, as they were."""
    before = [(number, signal.getsignal(number)) for number in skel.INTERRUPTING]
    yield
    for number, action in before:
        signal.signal(number, action)


@pytest.mark.usefixtures("signals")
def test_signal_that_comes_while_the_last_call_fails_does_not_keep_the_undo_from_beginning(monkeypatch):
    """Python has its handler run when it enters the next function, which is the undo: before its first line."""
    monkeypatch.setattr(Undo, "settled", False)
    done = []

    def handle(frame: FrameType, _event: str, _argument: object) -> None:
        if frame.f_code is Undo.__exit__.__code__:
            sys.settrace(None)
            skel.interrupt(signal.SIGTERM, frame)

    with pytest.raises(IoFailure), Undo() as undo:
        undo.push("a", lambda: done.append("a"))
        sys.settrace(handle)
        raise IoFailure("it")
    assert done == ["a"]


def test_commit_and_success_take_nothing_back():
    done = []
    with Undo() as undo:
        undo.push("a", lambda: done.append("a"))
    with pytest.raises(IoFailure), Undo() as undo:
        undo.push("a", lambda: done.append("a"))
        undo.push_last("a", lambda: done.append("a"))
        undo.commit()
        raise IoFailure("it")
    assert done == []


def test_step_that_fails_stops_no_other_and_keeps_the_record(caplog):
    done = []
    with pytest.raises(IoFailure) as ended, Undo() as undo:
        undo.push_last("record", lambda: done.append("record"))
        undo.push("a", lambda: done.append("a"))
        undo.push("b", broken)
        undo.push("c", lambda: done.append("c"))
        raise IoFailure("it", hint="try")
    assert done == ["c", "a"]
    assert ended.value.hint == "try; not undone: b; DEL will try again"
    assert "the record is kept, because not undone: b" in caplog.text


@pytest.mark.parametrize("error", [KeyError("x"), KeyboardInterrupt()])
def test_whatever_ends_it_is_undone_and_passed_on(error):
    done = []
    with pytest.raises(type(error)), Undo() as undo:
        undo.push("a", lambda: done.append("a"))
        undo.push("b", broken)
        raise error
    assert done == ["a"]


def every(*errors):
    steps, done = EveryStep("DEL is not complete"), []
    for number, error in enumerate(errors):
        with steps.step(f"step {number}"):
            if error:
                raise error
        done.append(number)
    assert done == list(range(len(errors)))
    steps.raise_any()


def test_every_step_without_an_error():
    every(None, None)


def test_one_error_is_raised_as_it_is():
    error = CheckFailed("it")
    with pytest.raises(CheckFailed) as raised:
        every(None, error, None)
    assert raised.value is error


@pytest.mark.parametrize("errors", [(RuntimeError("odd"),), (IoFailure("one"), None, CniError("two"))])
def test_several_errors_or_an_odd_one_are_told_together(errors):
    with pytest.raises(UndoneInPart) as raised:
        every(*errors)
    assert raised.value.msg == "DEL is not complete"
    for number, error in enumerate(errors):
        assert error is None or f"step {number}: {error}" in raised.value.details
