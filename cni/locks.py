"""Device locks: cold processes, agent children and the Go plugin exclude each other by flock on the same files.

A lock is held until its ``with`` block ends or the process dies, whichever comes first; nothing is ever stuck.

Source: flock(2); sriov-cni pkg/utils/pci_allocator.go.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cni.attachments import private_folder
from cni.steps import timed
from conf.errors import IoFailure, TryAgainLater

FOLDER = Path("/run/vferry/locks")
# The Go sriov plugin's own lock, so that both may serve one node during a roll-out.
GO_SRIOV_FOLDER = Path("/var/lib/cni/sriov/pci/vf_lock")
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.1


@contextmanager
def device_lock(
    pci_address: str, folders: Sequence[Path] = (FOLDER, GO_SRIOV_FOLDER), *, timeout_s: float = 60
) -> Iterator[None]:
    """Hold a device's lock in each of the folders, taken in their order.

    Raises: TryAgainLater when somebody else holds one for longer than ``timeout_s``; IoFailure.
    """
    deadline = time.monotonic() + timeout_s
    with ExitStack() as held:
        for folder in folders:
            descriptor = _open(folder / f"{pci_address}.lock")
            held.callback(os.close, descriptor)
            _acquire(descriptor, deadline, what=pci_address)
        yield


def _open(path: Path) -> int:
    try:
        private_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise IoFailure(f"cannot open the lock {path}", details=str(error)) from error


@timed("lock")
def _acquire(descriptor: int, deadline: float, *, what: str) -> None:
    pause = _FIRST_PAUSE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise IoFailure(f"cannot lock {what}", details=str(error)) from error
            if time.monotonic() > deadline:
                raise TryAgainLater(f"{what} is locked by another operation", hint="try again later") from error
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        else:
            return
