"""One call to the kernel in a thread, so that what does not depend on it need not wait for it.

A netdev that leaves its netns waits for an RCU barrier, 12 to 16 ms in which nothing is computed; an address can be
found in that time. One call at a time: nothing else of a plugin is done by threads.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cni.steps import timed

A = TypeVar("A")
M = TypeVar("M")


def both(aside: Callable[[], A], meanwhile: Callable[[], M]) -> tuple[A, M]:
    """Run ``aside`` in a thread and ``meanwhile`` here; return what both returned when both have ended.

    ``meanwhile`` may be interrupted by a signal, ``aside`` never is. Raises: what ``aside`` raises, else what
    ``meanwhile`` does; whatever it is, nothing runs any more.
    """
    thread = _Aside(aside)
    # Until the thread is known to be there: a handler that raises in between would leave it to itself. The thread
    # keeps them blocked, so that they are all taken here.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    except RuntimeError:  # no thread left for us
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return aside(), meanwhile()
    except BaseException:
        # A handler raised: a thread that is not ours took the signal. Whatever it raises, ours is there or not.
        thread.call_off()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        found = meanwhile()
    finally:
        _wait_for(thread)
    return thread.returned(), found


@timed("move")
def _wait_for(thread: _Aside[A]) -> None:
    try:
        thread.done.wait()
    finally:
        # Once more: a handler may have raised in it, and only the first signal has one that does. Not join, which
        # takes an interrupted wait for the end (Python 3.11).
        thread.done.wait()
        if thread.raised is not None:
            raise thread.raised


class _Aside(threading.Thread, Generic[A]):
    def __init__(self, call: Callable[[], A]) -> None:
        super().__init__(daemon=True)
        self.done = threading.Event()
        self.raised: BaseException | None = None
        self._call = call
        self._returned: list[A] = []
        self._first = threading.Lock()

    def run(self) -> None:
        if not self._first.acquire(blocking=False):
            return
        try:
            self._returned.append(self._call())
        except BaseException as error:  # it is raised in the thread that waits
            self.raised = error
        finally:
            self.done.set()

    def call_off(self) -> None:
        """Have it never begin; where it has, wait for its end."""
        if not self._first.acquire(blocking=False):
            self.done.wait()

    def returned(self) -> A:
        return self._returned[0]
