"""What the invocations of one node need not fight out at the API server: whose turn it is, and who tries what.

A runtime that starts a hundred pods has a hundred of them change one object. They queue for it here, so that
only what other nodes do can make a change fail, and each tries an address of its own. Files of this node, without
which all goes on as among strangers (``ipam.stores.contention``): nothing here is proof of anything.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

from ipam.stores.contract import Deadline, Owner
from ipam.stores.scratch import Scratch

# Somebody who holds a file that long is stopped, or his server is: it is asked for another way then.
_PATIENCE_S = 10.0
# What takes no request is held for a moment only, however busy the machine is.
_SHORT_PATIENCE_S = 1.0
# A pool that was read before an address was taken is no longer acted upon then.
_TRIED_S = 5.0
_BYTES = 65536


class Changes:
    """What is known here of the changes of one object; only at the head of its queue."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._last = _number(_read(fd))

    def since(self, moment: float) -> bool:
        """Whether another invocation has changed the object since (CLOCK_MONOTONIC, one for all processes)."""
        return self._last >= moment

    def note(self) -> None:
        """Write down that we have just changed it."""
        _write(self._fd, repr(time.monotonic()))


class Queue:
    """The queues in which this node's invocations wait for what they change on the server."""

    def __init__(self, scratch: Scratch | None, deadline: Deadline) -> None:
        self._scratch = scratch
        self._deadline = deadline

    @contextmanager
    def at(self, about: str) -> Iterator[Changes]:
        """Hold the head of the queue for an object, or go on without it after a while."""
        if self._scratch is None:
            yield Changes(None)
            return
        with self._scratch.hold(f"changes of {about}", min(_PATIENCE_S, self._deadline.remaining_s() / 4)) as fd:
            yield Changes(fd)


class Tried:
    """The addresses of one object that this node's owners are trying at the moment, or have just taken."""

    def __init__(self, scratch: Scratch, about: str) -> None:
        self._scratch = scratch
        self._about = f"tried of {about}"

    def choose(self, free: Iterable[int], owner: Owner) -> int | None:
        """Return the first free one that no other owner here tries, and mark it; None without one. Undo: drop."""
        with self._scratch.hold(self._about, _SHORT_PATIENCE_S) as fd:
            if fd is None:
                return None
            tried, own = _tried(fd), _named(owner)
            others = {value for value, (_, who) in tried.items() if who != own}
            chosen = next((each for each in islice(free, len(others) + 1) if str(each) not in others), None)
            if chosen is not None:
                _write(fd, json.dumps({**tried, str(chosen): (time.monotonic(), own)}))
            return chosen

    def drop(self, owner: Owner, *, besides: Collection[int] = ()) -> None:
        """Let others try what the owner does not have after all.

        ``besides``: what it has taken. Who read the object before it did so still must not try that.
        """
        with self._scratch.hold(self._about, _SHORT_PATIENCE_S, makes=False) as fd:
            tried, own = _tried(fd), _named(owner)
            left = {value: each for value, each in tried.items() if each[1] != own or int(value) in besides}
            if left != tried:
                _write(fd, json.dumps(left))


def _tried(fd: int | None) -> dict[str, tuple[float, str]]:
    """Read who tries what since when, by the address; what is too old is left out."""
    try:
        tried = json.loads(_read(fd) or "{}")
        now = time.monotonic()
        return {str(int(value)): (at, who) for value, (at, who) in tried.items() if 0 <= now - at < _TRIED_S}
    except (ValueError, TypeError, AttributeError):
        return {}


def _named(owner: Owner) -> str:
    return f"{owner.container_id}/{owner.ifname}"


def _read(fd: int | None) -> str:
    return os.pread(fd, _BYTES, 0).decode(errors="replace") if fd is not None else ""


def _write(fd: int | None, content: str) -> None:
    if fd is None or len(content) > _BYTES:
        return
    os.ftruncate(fd, 0)
    try:
        os.pwrite(fd, content.encode(), 0)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # /run is full: the next one knows nothing.


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("-inf")
