"""The undo stack of one ADD: pushed the moment a step succeeds, run in reverse on any error, dropped at commit.

An undo that fails is logged and does not stop the others; what depends on all of them, the record, is deleted last
and only when none failed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import ClassVar

from cni.steps import count
from conf.errors import CniError, UndoneInPart

LOG = logging.getLogger("vferry.undo")


class Undo:
    """What has been done so far, as the calls that take it back."""

    # Of the process, which serves one request: the ADD stands, or its undo has begun. Interrupting it then would only
    # leave half of either.
    settled: ClassVar[bool] = False

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []
        self._at_last: list[tuple[str, Callable[[], object]]] = []

    @classmethod
    def is_settled(cls, frame: FrameType | None) -> bool:
        """Tell whether an interruption comes too late; ``frame`` is what the handler of a signal is given."""
        # A handler that runs before the first line of __exit__ would, by what it raises, be the end of the undo.
        return cls.settled or (frame is not None and frame.f_code is cls.__exit__.__code__)

    def push(self, what: str, step: Callable[[], object]) -> None:
        """Remember how to take back the step that has just succeeded."""
        self._steps.append((what, step))

    def push_last(self, what: str, step: Callable[[], object]) -> None:
        """Remember what may be forgotten only when every undo has succeeded."""
        self._at_last.append((what, step))

    def commit(self) -> None:
        """Drop everything: the ADD stands."""
        Undo.settled = True
        self._steps.clear()
        self._at_last.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        Undo.settled = True
        count("rollback")
        failed = [what for what, step in reversed(self._steps) if not _taken_back(what, step)]
        if failed:
            LOG.error("the record is kept, because not undone: %s", ", ".join(failed))
            if isinstance(error, CniError):
                error.hint = "; ".join(
                    filter(None, (error.hint, f"not undone: {', '.join(failed)}; DEL will try again"))
                )
            return
        for what, step in reversed(self._at_last):
            _taken_back(what, step)


def _taken_back(what: str, step: Callable[[], object]) -> bool:
    try:
        step()
    except Exception as error:  # whatever it is, the other steps must still be taken back
        count("undo_failure")
        LOG.error("undo of %s failed: %s", what, error)
        return False
    LOG.debug("undone: %s", what)
    return True


class EveryStep:
    """Steps that are all taken whatever happens to the others, as a DEL must."""

    def __init__(self, msg: str) -> None:
        self.msg = msg
        self.failed: list[tuple[str, Exception]] = []

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Take one step; its failure is kept for the end."""
        try:
            yield
        except Exception as error:  # whatever it is, the other steps must still be taken
            LOG.warning("%s: %s", what, error)
            self.failed.append((what, error))

    def raise_any(self) -> None:
        """Raise the one error there was, or UndoneInPart telling all of them."""
        errors = [error for _what, error in self.failed]
        if len(errors) == 1 and isinstance(errors[0], CniError):
            raise errors[0]
        if errors:
            raise UndoneInPart(
                self.msg, details="; ".join(f"{what}: {error}" for what, error in self.failed)
            ) from errors[0]
