"""Unpacking the runtime of an archive: once per build and machine, whoever comes first; and pruning old ones.

Stdlib only and Python 3.9. Who may trust and use the outcome is decided in ``runtime.py``.
"""

import errno
import fcntl
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .runtime import MARKER, TRY_AGAIN_LATER, Unusable, is_private

STAMP_MEMBER = "stamp.json"
RUNTIME_MEMBER = "runtime.zip"

_LOCK = ".lock"
# What is being made and what is being removed; whoever holds the lock may remove both.
_NEW, _OLD = ".new-", ".old-"
# Unpacking takes a second or two; a runtime waits minutes for its plugin.
_PATIENCE_S = 60.0
_POLL_S = 0.02


def unpack(archive: str, tree: str) -> None:
    """Unpack the runtime of the archive to ``tree``, which is named for its build, unless it is there already.

    Raises: OSError when the place cannot be written or is another user's; Unusable with code 11 when its lock is not
    free in time or the archive holds another build, 107 when the archive is damaged.
    """
    target = Path(tree)
    directory, build_id = target.parent, target.name
    content = read_runtime(archive, build_id=build_id)
    make_directory(directory)
    with locked(directory):
        sweep(directory)
        if is_whole(target):
            return
        beside = directory / f"{_NEW}{build_id}"
        try:
            write_tree(content, beside, build_id=build_id)
            if os.path.lexists(target):
                # Not whole, or others could change it; and rename() refuses a directory that is not empty.
                target.rename(directory / f"{_OLD}{build_id}")
            beside.rename(target)
        finally:
            sweep(directory)
        sync(directory)


def read_runtime(archive: str, *, build_id: str) -> zipfile.ZipFile:
    """Return the packed runtime, its checksum verified before anything is written."""
    try:
        with zipfile.ZipFile(archive) as outer:
            stamp = stamp_of(outer)
            content = io.BytesIO(outer.read(RUNTIME_MEMBER))
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        details = f"{type(error).__name__}: {error}; install it again"
        raise Unusable(f"the archive {archive} is damaged", details=details) from error
    if stamp["build_id"] != build_id:
        raise Unusable(
            f"the archive {archive} was replaced while it was starting",
            details=f"it holds build {stamp['build_id']} now, this process started from {build_id}; try again",
            code=TRY_AGAIN_LATER,
        )
    return zipfile.ZipFile(content)


def read_stamp(archive: str) -> "dict[str, str]":
    """Return what the builder wrote about the archive: build_id, tag, python, runtime_dir and more.

    Raises: OSError when it cannot be read, ValueError when it is no archive of ours.
    """
    try:
        with zipfile.ZipFile(archive) as outer:
            return stamp_of(outer)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ValueError(f"{archive} is no archive of vferry: {type(error).__name__}: {error}") from error


def stamp_of(archive: zipfile.ZipFile) -> "dict[str, str]":
    """Return the stamp of an open archive; the build id is in it."""
    stamp = json.loads(archive.read(STAMP_MEMBER))
    if not isinstance(stamp, dict) or "build_id" not in stamp:
        raise ValueError(f"{STAMP_MEMBER} names no build")
    return {key: str(value) for key, value in stamp.items()}


def make_directory(directory: Path) -> None:
    """Create the directory, readable by all; parents that are missing belong to root or the user alone.

    Raises: PermissionError when it is there and others may write to it: they could exchange what we unpack.
    """
    directory.parent.mkdir(0o700, parents=True, exist_ok=True)
    if not directory.exists():
        mkdir(directory, exist_ok=True)
    if not is_private(str(directory)):
        raise PermissionError(errno.EPERM, "others may write to it, or another user owns it", str(directory))


def mkdir(directory: Path, *, exist_ok: bool = False) -> None:
    """Create one directory that all may read and only its owner write, whatever the umask is."""
    directory.mkdir(0o700, exist_ok=exist_ok)
    directory.chmod(0o755)


def is_whole(tree: Path) -> bool:
    """Tell whether the tree was unpacked to its end and nobody else can have changed it."""
    return is_private(str(tree)) and (tree / MARKER).exists()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of the directory; the kernel drops it with the process."""
    path = directory / _LOCK
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        deadline = time.monotonic() + _PATIENCE_S
        while not try_lock(lock):
            if time.monotonic() > deadline:
                raise Unusable(
                    f"others are busy in {directory}",
                    details=f"{path} was not free within {_PATIENCE_S:.0f} s; try again",
                    code=TRY_AGAIN_LATER,
                )
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(lock)


def try_lock(descriptor: int) -> bool:
    """Lock the open file exclusively; false when another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sweep(directory: Path) -> None:
    """Remove what was left by an unpacking or pruning that was killed; the caller holds the lock."""
    for path in directory.iterdir():
        if not path.name.startswith((_NEW, _OLD)):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_tree(content: zipfile.ZipFile, tree: Path, *, build_id: str) -> None:
    """Write every member below the new directory, the marker last, all of it on the disk before returning."""
    mkdir(tree)
    made = {tree}
    for member in content.infolist():
        path = tree / member.filename
        make_parents(path.parent, made)
        write_file(path, content.read(member))
    write_file(tree / MARKER, build_id.encode("ascii") + b"\n")
    for directory in made:
        sync(directory)


def make_parents(directory: Path, made: "set[Path]") -> None:
    """Create the directory and its parents up to those already made."""
    if directory in made:
        return
    make_parents(directory.parent, made)
    mkdir(directory)
    made.add(directory)


def write_file(path: Path, content: bytes) -> None:
    """Write one new file, readable by all and writable by its owner, and wait until it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(descriptor, 0o644)
        os.fsync(descriptor)


def sync(directory: Path) -> None:
    """Wait until the names in the directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prune(directory: Path, *, keep: "frozenset[str]") -> "list[str]":
    """Remove the trees of other builds that no process runs from and return their build ids.

    A process holds its tree by a shared lock on the marker, so what can be locked exclusively is unused.
    """
    with locked(directory):
        others = sorted(path for path in directory.iterdir() if path.name not in keep and path.name[0] != ".")
        pruned = [tree.name for tree in others if tree.is_dir() and retire(tree)]
        sweep(directory)
    return pruned


def retire(tree: Path) -> bool:
    """Take an unused tree away from its name, for sweep() to remove; false when a process runs from it."""
    marker = tree / MARKER
    try:
        descriptor = os.open(marker, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        tree.rename(tree.with_name(f"{_OLD}{tree.name}"))
        return True
    try:
        if not try_lock(descriptor):
            return False
        # A process that has opened the marker and not locked it yet must see that the tree has gone.
        marker.unlink()
        tree.rename(tree.with_name(f"{_OLD}{tree.name}"))
    finally:
        os.close(descriptor)
    return True
