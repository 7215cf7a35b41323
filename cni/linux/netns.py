"""Network namespaces: opening, telling them apart, entering one and coming back; nothing here changes a link.

Hot: every plugin imports it. One thread per process is assumed throughout vferry, and setns(2) affects the
calling thread only, so ``/proc/thread-self`` is asked and never ``/proc/self``.

Source: setns(2), ioctl_ns(2), containernetworking/plugins pkg/ns/ns_linux.go.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from conf.errors import InvalidNetns, KernelRefused, NetnsGone

if sys.version_info < (3, 12):
    import ctypes  # os.setns came with 3.12; ctypes costs 2 ms

log = logging.getLogger("vferry.netns")

# linux/sched.h, linux/nsfs.h
CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703

CURRENT = "/proc/thread-self/ns/net"
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESRCH, errno.ENXIO})


NOTHING = -1
# Path -> what a caller has at it, see receive().
_received: dict[str, int] = {}


def receive(path: str, fd: int) -> None:
    """Have ``Netns.open`` take ``fd`` for this path, for as long as this process lives.

    A child of the agent serves a caller of another mount namespace, where the path may lead elsewhere. With ``NOTHING``
    what lies at the path here is not the caller's.
    """
    _received[path] = fd


@dataclass(frozen=True)
class NetnsIdentity:
    """What tells one network namespace from another; an inode alone is reused, after a reboot for certain."""

    inode: int
    device: int
    boot_id: str


@functools.cache
def boot_id(proc: str = "/proc") -> str:
    """Return the id the kernel gave this boot; no process lives to see another one."""
    return Path(proc, "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def has_vanished(path: str) -> bool:
    """Tell whether nothing is at ``path``, in a directory that is there.

    Something that is no namespace may be one in the mount namespace of the runtime, and a directory that is missing may
    be there too.
    """
    try:
        os.lstat(path)
    except FileNotFoundError:
        return Path(path).parent.is_dir()
    except OSError:
        return False
    return False


def is_inhabited(inode: int, device: int, proc: str = "/proc") -> bool:
    """Tell whether a process that can be seen is in this network namespace, or one cannot be looked at."""
    for process in Path(proc).glob("[0-9]*"):
        try:
            found = (process / "ns/net").stat()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        except OSError:
            return True
        if (found.st_ino, found.st_dev) == (inode, device):
            return True
    return False


class Netns:
    """One open network namespace: it lives at least as long as this object is open."""

    def __init__(self, path: str, fd: int) -> None:
        """Take over ``fd``, which must be open on a network namespace."""
        stat = os.fstat(fd)
        self.path = path
        self.fd = fd
        self.identity = NetnsIdentity(inode=stat.st_ino, device=stat.st_dev, boot_id=boot_id())

    @classmethod
    def open(cls, path: str) -> Netns:
        """Open the network namespace at ``path``.

        Raises: NetnsGone when nothing is there, or something that is no namespace (what stays of
        ``/run/netns/x`` after an unmount is an empty file). InvalidNetns when it is a namespace of another
        type, or cannot be opened for another reason.
        """
        try:
            # O_NONBLOCK: whatever else may lie at this path, a FIFO too, must not hold us up.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
            received = _received.get(path, NOTHING)
            fd = os.open(path, flags) if received == NOTHING else os.dup(received)
            if path in _received and received == NOTHING:
                os.close(fd)
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except OSError as error:
            cause = f"{errno.errorcode.get(error.errno or 0, error.errno)} ({error.strerror})"
            if error.errno in _GONE:
                raise NetnsGone(f"netns {path} does not exist", details=cause) from error
            raise InvalidNetns(f"netns {path} cannot be opened", details=cause) from error
        try:
            _require_netns(path, fd)
            return cls(path, fd)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def current(cls) -> Netns:
        """Open the network namespace this thread is in."""
        return cls.open(CURRENT)

    def close(self) -> None:
        """Let go of the namespace; it dies when nobody else holds it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Netns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Netns({self.path!r}, inode={self.identity.inode})"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be inside this namespace for the time of a ``with`` block.

        Raises: KernelRefused when it cannot be entered. Not coming back ends the process at once, because
        every later step, the undo steps too, would act on another machine's links as it were.
        """
        with Netns.current() as home:
            try:
                self._enter()  # in here: the handler of a signal may raise when the kernel has let us in
                yield
            finally:
                try:
                    self._go_to(home)
                except Exception:  # a handler has raised, before the way back or behind it; it does so once
                    self._go_to(home)
                    raise

    def _enter(self) -> None:
        try:
            if self.fd < 0:  # os.setns would call a closed one a ValueError
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            _setns(self.fd)
        except OSError as error:
            raise KernelRefused("entering the netns", self.path, error.errno or 0) from error

    def _go_to(self, home: Netns) -> None:
        try:
            _setns(home.fd)
        except OSError:
            log.critical("cannot leave netns %s, giving up", self.path, exc_info=True)
            os._exit(70)  # sysexits.h EX_SOFTWARE

    def same_as(self, other: Netns) -> bool:
        """Tell whether both are one namespace, whatever path they were opened by."""
        return self.identity == other.identity


def _require_netns(path: str, fd: int) -> None:
    try:
        nstype = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError as error:
        details = f"{errno.errorcode.get(error.errno or 0, error.errno)} ({error.strerror})"
        if error.errno == errno.ENOTTY:
            details = "it is another file; where a netns was unmounted, an empty one stays"
        raise NetnsGone(f"netns {path} is no namespace (any more)", details=details) from error
    if nstype != CLONE_NEWNET:
        raise InvalidNetns(f"{path} is a namespace, but not a network namespace", details=f"type {nstype:#x}")


if sys.version_info >= (3, 12):

    def _setns(fd: int) -> None:
        os.setns(fd, CLONE_NEWNET)

else:
    _libc = ctypes.CDLL(None, use_errno=True)

    def _setns(fd: int) -> None:
        if _libc.setns(fd, CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
