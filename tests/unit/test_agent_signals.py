"""Signals as events of the agent's loop: none is lost, however many come while it is busy."""

from __future__ import annotations

import selectors
import signal

from cni.agent.server import _Signals


def turn(selector: selectors.BaseSelector) -> None:
    for key, _events in selector.select(0):
        key.data()


def test_request_to_stop_is_heard_behind_a_thousand_children_that_ended() -> None:
    """What wakes the loop holds a few hundred."""
    heard: list[int] = []
    with selectors.DefaultSelector() as selector, _Signals(selector, heard.append):
        for _each in range(1000):
            signal.raise_signal(signal.SIGCHLD)
        signal.raise_signal(signal.SIGTERM)
        turn(selector)
        assert sorted(heard) == [signal.SIGTERM, signal.SIGCHLD]
        turn(selector)
        assert len(heard) == 2
        signal.raise_signal(signal.SIGTERM)
        turn(selector)
        assert heard[2:] == [signal.SIGTERM]
