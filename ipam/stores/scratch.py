"""Files of this node that a store may find useful again and loses nothing without: hints, tokens.

Nothing here is ever the proof of anything, nor an error: what cannot be read or written is as if it were not there.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

from ipam.stores.journal import locked

Json = dict[str, Any]

DIRECTORY = Path("/run/vferry/stores")
_SHORTEST_POLL_S, _LONGEST_POLL_S = 0.002, 0.02

log = logging.getLogger("vferry.ipam.scratch")


class Scratch:
    """One directory (0700) of small files (0600), each named by what it is about."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, about: str) -> Json:
        """Return what was last kept, empty when there is nothing that can be used."""
        try:
            kept = json.loads(self._path(about).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.debug("%s is not read: %s", self._path(about), error)
            return {}
        # Two subjects may share a file's name.
        return kept if isinstance(kept, dict) and kept.get("about") == about else {}

    def keep(self, about: str, kept: Json) -> None:
        """Keep it; the last one wins."""
        path = self._path(about)
        draft = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            self._make()
            with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
                json.dump({**kept, "about": about}, file, separators=(",", ":"))
            draft.rename(path)
        except OSError as error:
            log.debug("%s is not kept: %s", path, error)
            with suppress(OSError):
                draft.unlink()

    def forget(self, about: str) -> None:
        """Keep it no longer."""
        with suppress(OSError):
            self._path(about).unlink()

    @contextmanager
    def hold(self, about: str, patience_s: float, *, makes: bool = True) -> Iterator[int | None]:
        """Hold a file of the subject's, to be read and written by ``os.pread`` and ``os.pwrite``; None without it.

        None too when somebody else has it for longer than ``patience_s``, stopped for instance. ``makes``: where there
        is none yet.
        """
        try:
            if makes:
                self._make()
            flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if makes else 0)
            fd = os.open(self._path(about).with_suffix(".held"), flags, 0o600)
        except OSError as error:
            log.debug("nothing of this node is held about %s: %s", about, error)
            yield None
            return
        try:
            yield fd if _is_locked(fd, patience_s) else None
        finally:
            os.close(fd)

    def _make(self) -> None:
        for directory in (self._directory.parent, self._directory):
            directory.mkdir(mode=0o700, exist_ok=True)

    def _path(self, about: str) -> Path:
        return self._directory / f"{crc32(about.encode()):08x}.json"


def _is_locked(fd: int, patience_s: float) -> bool:
    until, pause = time.monotonic() + patience_s, _SHORTEST_POLL_S
    while not locked(fd):
        if time.monotonic() >= until:
            return False
        # Not all of a hundred at the same moment, nor each so often that they keep the processors from the one.
        time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        pause = min(1.5 * pause, _LONGEST_POLL_S)
    return True
