"""One file per owner on this node: held while its addresses change, and the names of all it may have tried to take.

The API server has no transaction over two objects, so that "this owner has nothing yet" can't be part of the write
that takes an address. A container lives on one node: there a lock keeps its ADD and its DEL apart, and names written
before each try tell the next one what to look at. The directory is gone after a reboot, as are all containers.

Without a usable directory there is no lock and nothing is known, which costs a list and no address.

Each ADD writes a line when it begins. One of which no request got out, and of an owner that had no earlier one, leaves
the word that nothing was sent: the only proof by which a DEL may succeed with the API server out of reach.

Source: reference 8.3 (journal).
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ipam.stores.contract import Deadline, Owner

DIRECTORY = Path("/run/vferry/owners")
_POLL_S = 0.01
_BEGUN, _UNSENT = ".", "!"
# A runtime that has not come with its DEL by then has forgotten the container.
_KEPT_S = 86400

log = logging.getLogger("vferry.ipam.journal")


class Journal:
    """What one owner may have tried to take: ``tried`` has names and what they were for, None when nobody knows.

    ``is_settled``: the invocation that tried them ended, and has them all; else a request may still be on its way.
    ``is_unsent``: no ADD of the owner ever got as far as sending a request.
    """

    def __init__(self, fd: int | None, path: Path) -> None:
        self._fd = fd
        self._path = path
        self.is_settled = True
        self.is_unsent = False
        self._is_blank = fd is not None
        self.tried: dict[str, str] | None = None
        if fd is not None:
            self._read(fd)
        self._was_settled = self.is_settled

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names alone."""
        return None if self.tried is None else tuple(self.tried)

    def is_new(self, name: str) -> bool:
        """Whether the owner has certainly never tried it."""
        return self.tried is not None and name not in self.tried

    def begin(self) -> bool:
        """Write down that an ADD begins; whether nothing was sent by an earlier one."""
        is_first = self._is_blank or self.is_unsent
        if self.tried is not None:
            self._write(_BEGUN)
        return is_first

    def unsend(self) -> None:
        """Write down that nothing was sent, in place of all else. Only after a ``begin`` that was the first."""
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            self.tried = {}
            self._write(_UNSENT)

    def add(self, name: str, purpose: str = "") -> None:
        """Write down a name, and what it is for, before it is tried."""
        if self.tried is not None and (self.tried.get(name) != purpose or self.is_settled):
            self._write(f"+{name} {purpose}")

    def drop(self, name: str) -> None:
        """Cross out a name that was tried and certainly not taken."""
        if self.tried is not None:
            self._write(f"-{name}")

    def settle(self) -> None:
        """Write down that the owner has all that is not crossed out.

        Nothing is written after an invocation that did not get so far: what it sent may still be on its way.
        """
        if self.tried is not None and not self.is_settled and self._was_settled:
            self._write("=")

    def forget(self) -> None:
        """The owner has nothing any more."""
        if self._fd is not None:
            self._path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        # It need not last longer than the machine runs: the page cache survives every kill.
        assert self._fd is not None
        os.write(self._fd, f"{line}\n".encode())
        self._note(line)

    def _read(self, fd: int) -> None:
        self.tried = {}
        os.lseek(fd, 0, os.SEEK_SET)
        content = b"".join(iter(lambda: os.read(fd, 65536), b""))
        for line in content.decode().splitlines():
            self._note(line)

    def _note(self, line: str) -> None:
        assert self.tried is not None
        self._is_blank, self.is_unsent = False, line == _UNSENT
        name, _, purpose = line[1:].partition(" ")
        self.is_settled = line == "=" or (self.is_settled and not line.startswith("+"))
        if line.startswith("+"):
            self.tried[name] = purpose
        elif line.startswith("-"):
            self.tried.pop(name, None)


class Journals:
    """The journals of one node; ``about`` keeps those of several stores apart."""

    def __init__(self, directory: Path, about: str) -> None:
        self._directory = directory
        self._about = about

    @contextmanager
    def of(self, owner: Owner, deadline: Deadline, *, makes: bool) -> Iterator[Journal]:
        """Hold an owner's journal.

        ``makes``: where there is none yet, one is begun, empty: the owner has never tried anything on this node.
        Raises: TryAgainLater when another invocation for the same owner does not end.
        """
        digest = hashlib.sha256(f"{self._about}\0{owner.container_id}\0{owner.ifname}".encode()).hexdigest()
        path = self._directory / digest[:32]
        fd = self._hold(path, owner, deadline, makes=makes)
        try:
            yield Journal(fd, path)
        finally:
            if fd is not None:
                os.close(fd)

    def tidy(self) -> None:
        """Remove the words that nothing was sent of owners whose last DEL has long come."""
        with suppress(OSError):
            for path in self._directory.iterdir():
                status = path.stat()
                if status.st_size == len(_UNSENT) + 1 and time.time() - status.st_mtime > _KEPT_S:
                    path.unlink(missing_ok=True)

    def _hold(self, path: Path, owner: Owner, deadline: Deadline, *, makes: bool) -> int | None:
        while (fd := self._open(path, makes=makes)) is not None:
            try:
                while not locked(fd):
                    deadline.require(f"waiting for another invocation for {owner}")
                    time.sleep(_POLL_S)
                # Whoever held it may have removed it: the lock of a file without a name keeps nobody out.
                if os.fstat(fd).st_nlink:
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        return None

    def _open(self, path: Path, *, makes: bool) -> int | None:
        try:
            if makes:
                for directory in (self._directory.parent, self._directory):
                    directory.mkdir(mode=0o700, exist_ok=True)
            return os.open(path, os.O_RDWR | os.O_APPEND | (os.O_CREAT if makes else 0), 0o600)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("%s cannot be used: %s; the API server is asked instead", path, error.strerror)
            return None


def locked(fd: int) -> bool:
    """Take the lock of a file, to be let go of by closing it; false where another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
