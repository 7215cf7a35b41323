"""The host's mount namespace, as an agent in a container sees it: the place where its children serve requests.

Who has entered it is what a cold executable of the host is: each path of a configuration, a record or a delegate leads
where the runtime that named it means, ``/sys`` and ``/proc/sys`` can be written, and a foreign plugin finds its
libraries. Network namespaces are netns.py's.

Source: setns(2), mount_namespaces(7), util-linux sys-utils/nsenter.c.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from conf.errors import InvalidEnvironment, KernelRefused

CLONE_NEWNS = 0x00020000  # linux/sched.h
_OWN = "/proc/thread-self/ns/mnt"
# No errno: the exit status of a child that found another directory.
_ANOTHER = 254

_libc = ctypes.CDLL(None, use_errno=True)


def enter(path: str) -> None:
    """Be in the mount namespace at ``path`` for the rest of this process; nothing changes when it is in there already.

    The working directory stays the directory it is, and the root if it was that. Modules that are not imported yet are
    still the container's.
    Kernel: CAP_SYS_ADMIN and CAP_SYS_CHROOT, for the path of another's process CAP_SYS_PTRACE. Raises: KernelRefused.
    """
    opened: list[int] = []
    try:
        if Path(path).samefile(_OWN):
            return
        for each, flags in (("/", os.O_PATH), (_OWN, os.O_RDONLY), (".", os.O_PATH), (path, os.O_RDONLY)):
            opened.append(os.open(each, flags | os.O_CLOEXEC))
        root, _own, here, namespace = opened
        if _libc.setns(namespace, CLONE_NEWNS) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        # The agent's own directory, when the caller's was not handed over, is the container's root.
        os.chdir("/" if os.path.samestat(os.fstat(here), os.fstat(root)) else here)
        # Root and namespace stay open: what is imported later is found there, though the agent may be killed meanwhile.
        del opened[:2]
    except OSError as error:
        raise KernelRefused("entering the mount namespace", path, error.errno or 0) from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
    sys.meta_path.insert(0, _Below(f"/proc/self/fd/{root}"))


def require_another(path: str) -> None:
    """Raise when the mount namespace at ``path`` is our own: what is said of the host would be of a container.

    Raises: InvalidEnvironment.
    """
    is_own = False
    with suppress(OSError):  # entering tells of it
        is_own = Path(path).samefile(_OWN)
    if is_own:
        raise InvalidEnvironment(
            f"{path} is the mount namespace of this process itself",
            details="process 1 is not the host's, or this is no container",
            hint='set "hostPID: true", or leave --host-mounts out',
        )


def require_host(path: str, *, shared: Path) -> None:
    """Raise unless a child of this process can enter, and finds there the directory ``shared`` that we have here.

    Raises: KernelRefused; InvalidEnvironment when it is our own, or not the host's.
    """
    require_another(path)
    pid = os.fork()
    if pid == 0:
        number = 255
        try:
            number = _try(path, shared)
        finally:
            os._exit(number)
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if number == _ANOTHER:
        raise InvalidEnvironment(
            f"{shared} is another directory in the mount namespace {path}",
            details="plugins of the host would not find the agent, nor it their files",
            hint=f"mount the host's {shared} at the same path",
        )
    if number:
        raise KernelRefused("entering the mount namespace", path, number)


def _try(path: str, shared: Path) -> int:
    """Return 0, the errno, or _ANOTHER."""
    try:
        here = shared.stat() if shared.exists() else None
        enter(path)
        there = shared.stat() if shared.exists() else None
    except KernelRefused as error:
        return error.errno
    return 0 if here and there and os.path.samestat(here, there) else _ANOTHER


class _Below(MetaPathFinder):
    """Finds modules by the paths of a root that is no longer ours."""

    def __init__(self, root: str) -> None:
        self._root = root

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        # The path of a package that was found here begins there already.
        folders = [each if each.startswith(self._root) else self._root + each for each in path or sys.path]
        return PathFinder.find_spec(name, folders, target)
