"""Where the time of one request goes: steps that plugins mark, and events that they count; free when nobody listens.

A child of the agent listens and reports to its parent; what becomes of it there is cni/agent/metrics.py's.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class Heard:
    """What one request has told: seconds by step, and how often each event came."""

    seconds: dict[str, float] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)


_listening: list[Heard] = []


def listen() -> Heard:
    """Listen from here on to the end of the process, and return what will be heard."""
    _listening.append(Heard())
    return _listening[-1]


def timed(step: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Mark a function as a step, or as a part of one; steps do not contain one another."""

    def mark(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            if not _listening:
                return function(*args, **kwargs)
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.perf_counter() - begin
                for heard in _listening:
                    heard.seconds[step] = heard.seconds.get(step, 0) + took

        return run

    return mark


def count(event: str) -> None:
    """Tell that something happened which should be rare."""
    for heard in _listening:
        heard.events[event] += 1
