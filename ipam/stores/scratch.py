"""Files of this node that a store may find useful again and loses nothing without: hints, tokens.

Nothing here is ever the proof of anything, nor an error: what cannot be read or written is as if it were not there.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

Json = dict[str, Any]

DIRECTORY = Path("/run/vferry/stores")

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
            for directory in (self._directory.parent, self._directory):
                directory.mkdir(mode=0o700, exist_ok=True)
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

    def _path(self, about: str) -> Path:
        return self._directory / f"{crc32(about.encode()):08x}.json"
