"""The reservations of one network as upstream's ``host-local`` has them on disk; both plugins may share a directory.

``<dataDir>/<network>/`` holds ``lock`` (flock), ``last_reserved_ip.<set>`` and one file per reserved address, named by
it, that says whose it is: ``<container ID>\\r\\n<ifname>``, or in the format of old versions the container ID alone.
Which address is reserved is not decided here.

Differences that upstream's does not notice: a file appears with its content, by link(2), so that a kill at any moment
leaves no empty file behind; and what is reported as reserved is on the disk.

Source: containernetworking/plugins plugins/ipam/host-local/backend/disk/{backend,lock}.go.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from netaddr import IPAddress

from conf.address import parse_address
from conf.errors import IoFailure, TryAgainLater
from conf.host_local import address_text

log = logging.getLogger("vferry.ipam.host_local")

_LOCK = "lock"
_LAST_RESERVED = "last_reserved_ip."
# Unfinished; its name is no address, so upstream's search for addresses passes it over.
_DRAFT = ".vferry.draft"
_LINE_BREAK = "\r\n"
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.05


@dataclass(frozen=True)
class Owner:
    """One attachment."""

    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.container_id}/{self.ifname}"


@dataclass(frozen=True)
class Reservation:
    """One file; no ifname: of the old format, or made by hand; no container ID either: left empty by a crash."""

    path: Path
    address: IPAddress
    container_id: str
    ifname: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether it is nobody's. Under the lock nobody is about to write it, so that its writer has died."""
        return not self.container_id

    def is_of(self, owner: Owner) -> bool:
        """Whether it is the attachment's; what names no interface is of all interfaces of its container."""
        return self.container_id == owner.container_id and self.ifname in ("", owner.ifname)


class NetworkFiles:
    """The directory of one network's reservations. Whoever changes something holds the lock."""

    def __init__(self, folder: Path, *, timeout_s: float = 30) -> None:
        self.folder = folder
        self._timeout_s = timeout_s
        self._draft = folder / _DRAFT

    @contextmanager
    def locked(self, *, make: bool = False) -> Iterator[None]:
        """Hold the lock that upstream's takes too; ``make`` the directory when it is not there.

        Raises: TryAgainLater when somebody else holds the lock for too long, IoFailure.
        """
        path = self.folder / _LOCK
        with _reported(f"lock {path}"):
            if make and not self.folder.is_dir():
                self.folder.mkdir(mode=0o755, parents=True, exist_ok=True)
                _sync(self.folder.parent)
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._acquire(descriptor, path)
            yield
        finally:
            os.close(descriptor)

    def reservations(self) -> tuple[Reservation, ...]:
        """Return every reservation, none when there is no directory.

        Raises: IoFailure for one that cannot be read: whose it is decides over an address.
        """
        with _reported(f"read the reservations of {self.folder}"):
            try:
                paths = list(self.folder.iterdir())
            except FileNotFoundError:
                return ()
            found = map(_read, paths)
            return tuple(reservation for reservation in found if reservation)

    def reclaimed(self) -> tuple[Reservation, ...]:
        """Return the reservations that are somebody's, after removing what a crash left empty.

        Raises: IoFailure.
        """
        found = self.reservations()
        self.release(each for each in found if each.is_empty)
        return tuple(each for each in found if not each.is_empty)

    def last_reserved(self, set_index: int) -> IPAddress | None:
        """Return where the round robin of one set stands; None when nobody knows.

        Raises: IoFailure.
        """
        path = self._last_reserved(set_index)
        with _reported(f"read {path}"):
            try:
                return parse_address(path.read_text(encoding="ascii", errors="replace"))
            except (FileNotFoundError, ValueError):
                return None

    def reserve(self, addresses: Sequence[IPAddress], owner: Owner) -> None:
        """Reserve one address per set, in the order of the sets, all or none; not yet on the disk.

        Raises: IoFailure, TryAgainLater when an address was taken without the lock. Undo: release.
        """
        content = f"{owner.container_id}{_LINE_BREAK}{owner.ifname}"
        with ExitStack() as undo:
            undo.callback(_drop, self._draft)
            for address in addresses:
                path = self.folder / address_text(address)
                with _reported(f"write {path}"):
                    self._write_draft(content)
                    _link_exclusively(self._draft, path)
                    undo.callback(_drop, path)
            for set_index, address in enumerate(addresses):
                path = self._last_reserved(set_index)
                with _reported(f"write {path}"):
                    path.write_text(address_text(address), encoding="ascii")
            undo.pop_all()
        _drop(self._draft)

    def release(self, reservations: Iterable[Reservation]) -> None:
        """Remove reservations, each even when another cannot be removed.

        Raises: IoFailure naming all that could not be removed.
        """
        _drop(self._draft)  # of a process that was killed: it would pass for a reservation in Go's CHECK
        failures = []
        for reservation in reservations:
            try:
                reservation.path.unlink(missing_ok=True)
            except OSError as error:
                failures.append(f"{reservation.path}: {error.strerror}")
        if failures:
            raise IoFailure(f"cannot release {len(failures)} addresses", details="; ".join(failures))

    def sync(self, addresses: Iterable[IPAddress] = ()) -> None:
        """Bring the directory, and the reservations of these addresses, to the disk.

        The lock is not needed, and not to be held: others need not wait for the disk.
        Raises: IoFailure.
        """
        paths = [self.folder / address_text(address) for address in addresses]
        for path in (*paths, self.folder):
            with _reported(f"bring {path} to the disk"):
                _sync(path)

    def require_writable(self) -> None:
        """Check that a reservation could be written; nothing is.

        Raises: IoFailure.
        """
        with _reported(f"find {self.folder}"):
            place = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise IoFailure(
                f"cannot write reservations to {self.folder}",
                details=f"{place} is {'not writable' if place.is_dir() else 'no directory'}",
                hint='correct "dataDir", the owner, or how the file system is mounted',
            )

    def _last_reserved(self, set_index: int) -> Path:
        return self.folder / f"{_LAST_RESERVED}{set_index}"

    def _write_draft(self, content: str) -> None:
        # A draft that is there already may be the other name of a live reservation: it is never opened for writing.
        self._draft.unlink(missing_ok=True)
        with open(self._draft, "x", encoding="utf-8", newline="", opener=_open_for_all_to_read) as file:
            file.write(content)

    def _acquire(self, descriptor: int, path: Path) -> None:
        # Upstream waits for ever. Pauses are drawn at random, so that many who wait don't come at the same moments.
        deadline = time.monotonic() + self._timeout_s
        pause = _FIRST_PAUSE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise TryAgainLater(
                        f"{path} is locked by another operation", hint="try again later; 'fuser' says who holds it"
                    ) from error
                time.sleep(random.uniform(pause / 2, pause))  # noqa: S311, no secret
                pause = min(pause * 2, _LONGEST_PAUSE_S)
            except OSError as error:
                raise _failure(f"lock {path}", error) from error
            else:
                return


def _read(path: Path) -> Reservation | None:
    try:
        address = parse_address(path.name)
        content = path.read_bytes()
    except ValueError:
        return None  # the lock, the round robin, or of other people
    except FileNotFoundError:
        return None  # released meanwhile; only readers without the lock see that
    # A file system that lost the content but not the length gives NULs.
    text = content.decode(errors="surrogateescape").strip("\0").strip()
    container_id, _, ifname = text.partition(_LINE_BREAK)
    return Reservation(path, address, container_id, ifname)


def _link_exclusively(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError as error:
        raise TryAgainLater(
            f"{path} was made while the network was locked", hint="who writes there without the lock?"
        ) from error


def _drop(path: Path) -> None:
    """Remove what is not to stay; a failure is logged, and stops no other undo."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot remove %s: %s", path, error.strerror)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_for_all_to_read(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o644)


@contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _failure(what, error) from error


def _failure(what: str, error: OSError) -> IoFailure:
    name = errno.errorcode.get(error.errno or 0, "?")
    return IoFailure(f"cannot {what}", details=f"{name} ({error.strerror})", hint='check "dataDir" and its file system')
