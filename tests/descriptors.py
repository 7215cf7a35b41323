"""What a block of a test leaves open, whatever else of this process is closed meanwhile."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def none_left_open() -> Iterator[None]:
    """Fail when a descriptor is open at the block's end that was not at its beginning."""
    # What earlier tests dropped in cycles goes now; a collection in the middle would free their numbers for the
    # block's own, and hide one of those behind a number that was there before.
    gc.collect()
    gc.disable()
    try:
        before = _opened()
        yield
        left = {number: what for number, what in _opened().items() if before.get(number) != what}
    finally:
        gc.enable()
    assert not left


def _opened() -> dict[int, str]:
    opened = {}
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(FileNotFoundError):  # the descriptor of the list itself
            opened[number] = os.readlink(f"/proc/self/fd/{number}")
    return opened
