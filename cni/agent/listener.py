"""The socket that shims connect to: made, given by systemd, taken over from another agent, taken away.

Who may connect: the directory is root's alone, and whoever gets through is asked for his user by ``gate.py``.

Source: unix(7), sd_listen_fds(3).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from conf.errors import InvalidEnvironment, IoFailure

_BACKLOG = 1024  # the kernel lowers it to net.core.somaxconn
_FIRST_ACTIVATED = 3  # SD_LISTEN_FDS_START of systemd/sd-daemon.h


class Listener:
    """One listening socket and the path that leads to it."""

    def __init__(self, opened: socket.socket, path: Path, *, activated: bool = False) -> None:
        self.socket = opened
        self.path = path
        self.activated = activated
        self._identity = _identity(path)
        opened.setblocking(False)

    def is_current(self) -> bool:
        """Tell whether the path still leads here, and not to an agent that has taken over."""
        return self.activated or _identity(self.path) == self._identity

    def has_successor(self) -> bool:
        """Tell whether another agent has the path and lives."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
                asking.connect(str(self.path))
        except OSError as error:
            # Of another type, EPROTOTYPE, is what a living agent listens on; it does not even hear of this.
            return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED)
        return False

    def withdraw(self) -> None:
        """Take the path away, so that shims run on their own; another agent's, and systemd's, stay."""
        if self.activated:
            return
        # A path that cannot be locked has gone with its directory; one that stays leads to nobody, as plugins find out.
        with suppress(OSError), _locked(self.path):
            if self.is_current():
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop listening; who is in the queue of the kernel is told that nobody took him."""
        self.socket.close()


def activated(environ: Mapping[str, str]) -> Listener | None:
    """Return the socket that systemd opened for this process, None when there is none. Raises: InvalidEnvironment."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or environ.get("LISTEN_FDS", "0") == "0":
        return None
    try:
        os.set_inheritable(_FIRST_ACTIVATED, False)
        opened = socket.socket(fileno=_FIRST_ACTIVATED)
        if opened.family != socket.AF_UNIX or not opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, "it is no Unix socket that listens")
    except OSError as error:
        raise InvalidEnvironment(
            "LISTEN_FDS tells of a socket that cannot be served",
            details=f"descriptor {_FIRST_ACTIVATED}: {error.strerror}",
            hint="see conf/deploy/vferry-agent.socket",
        ) from error
    return Listener(opened, Path(os.fsdecode(opened.getsockname())), activated=True)


def listen(path: Path) -> Listener:
    """Make the socket and put it into its place in one step: at every moment the path leads to an agent.

    Undo: withdraw(), close(). Raises: IoFailure.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make_private(path.parent)
        beside = path.with_name(f".{path.name}.new")
        with _locked(path):
            beside.unlink(missing_ok=True)  # of one that was killed at this point
            return _put_in_place(beside, path)
    except OSError as error:
        raise IoFailure(f"cannot listen on {path}", details=str(error)) from error


def _put_in_place(beside: Path, path: Path) -> Listener:
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        opened.bind(str(beside))
        beside.chmod(0o600)
        opened.listen(_BACKLOG)
        beside.rename(path)
        return Listener(opened, path)
    except BaseException:
        opened.close()
        beside.unlink(missing_ok=True)
        raise


def _make_private(directory: Path) -> None:
    """Close the directory to others; whoever came first, such as a plugin's lock, may have left it readable."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise IoFailure(
            f"{directory} is no directory of this user",
            details=f"owner {found.st_uid}, mode {found.st_mode & 0o7777:04o}",
            hint="remove it; shims send their sandbox to whoever listens there",
        )
    directory.chmod(0o700)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep an agent that comes and one that goes from changing the path at the same time."""
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
