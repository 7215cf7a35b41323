"""Put a built archive into a CNI directory, unpack its runtime, and put back what stood there before.

A node is in use while this runs: every name changes by one rename to a file that is whole and on the disk, the runtime
is unpacked before the first name points to it, and the one it replaces stays for those still starting from it.
Building is ``build.py``; ``scripts/install-binaries.sh`` calls both.

A file of the same name that is not ours (a Go plugin) is kept in a directory beside DEST and comes back by --restore.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import filecmp
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parent.parent
# A script's import path begins with its own directory, not with the repository.
sys.path.insert(0, str(ROOT))

from cni.start.runtime import Unusable, provide  # noqa: E402
from cni.start.unpack import prune, read_stamp, sync  # noqa: E402
from conf.executables import COMMAND, EXECUTABLES, PLUGIN_ENTRY  # noqa: E402

_NEW = ".vferry-new-"
# In the runtime directory: where archives that run from it were installed, one directory a line.
_DESTINATIONS = ".destinations"
# A kernel or file systems between which no content is shared.
_NO_CLONE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
# A file system without hard links, or one that this user may not link on.
_NO_LINK = {errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK, errno.EACCES}


class InstallError(Exception):
    """Nothing was changed that is not whole; the message says what to do."""


def install(archive: Path, dest: Path, *, only: str, backup: Path) -> None:
    """Unpack the runtime, then make every asked name in ``dest`` a copy of this archive.

    Undo: restore(). Raises: InstallError when the runtime cannot run here; OSError when a directory is not writable.
    """
    stamp = read_stamp(str(archive))
    names = chosen(only, known=stamp["names"].split())
    note("unpacking the runtime")
    tree = Path(unpacked(archive, stamp))
    try_out(tree, python=stamp["python"])
    dest.mkdir(0o755, parents=True, exist_ok=True)
    with locked(dest):
        replaced = installed_builds(dest)
        for name in names:
            set_aside(dest / name, backup)
        put_copies(archive, dest, names)
        keep = replaced | installed_builds(*destinations(tree.parent, dest))
    note(f"installed build {stamp['build_id']} in {dest}: {' '.join(names)}")
    pruned = prune(tree.parent, keep=frozenset(keep))
    if pruned:
        note(f"removed unused runtimes: {' '.join(pruned)}")


def unpacked(archive: Path, stamp: dict[str, str]) -> str:
    """Unpack the runtime where its archive will look for it and return the path."""
    try:
        return provide(str(archive), build_id=stamp["build_id"], runtime_dir=stamp["runtime_dir"])
    except Unusable as fault:
        raise InstallError(f"{fault.msg}; {fault.details}") from fault


def try_out(tree: Path, *, python: str) -> None:
    """Import the skeleton from the tree as a plugin will; a pod's ADD is not the place to find out."""
    module = PLUGIN_ENTRY.partition(":")[0]
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {module}"
    trial = subprocess.run([python, "-IS", "-c", code, str(tree)], capture_output=True, text=True, check=False)
    if trial.returncode:
        cause = (trial.stderr.strip().splitlines() or [f"exit status {trial.returncode}"])[-1]
        raise InstallError(f"{python} cannot load {tree}: {cause}; if it is damaged, remove it and install again")


def set_aside(path: Path, backup: Path) -> None:
    """Keep a file that is not ours; it stays in its place too until ours takes the name."""
    if not os.path.lexists(path) or build_of(path):
        return
    if path.is_dir() and not path.is_symlink():
        raise InstallError(f"{path} is a directory; move it away")
    kept = backup / path.name
    if os.path.lexists(kept):
        if same_file(path, kept):
            return
        kept.rename(unused_name(kept))
    backup.mkdir(0o755, parents=True, exist_ok=True)
    link_or_copy(path, kept)
    sync(backup)
    note(f"kept {path} as {kept}")


def put_copies(archive: Path, dest: Path, names: Sequence[str]) -> None:
    """Make every name a copy of the archive, each by one rename and none before all are on the disk.

    Copies and no hard links: a program that writes into the file of one name, as cp does, would change them all.
    """
    stale = [name for name in names if not is_own_copy(dest / name, archive)]
    besides = [dest / f"{_NEW}{name}" for name in stale]
    try:
        # From the first copy on, a file system that can shares what they hold.
        for source, beside in zip([archive, *besides], besides, strict=False):
            copy_file(source, beside)
        for name, beside in zip(stale, besides, strict=True):
            beside.rename(dest / name)
        sync(dest)
    finally:
        for beside in besides:
            beside.unlink(missing_ok=True)


def is_own_copy(path: Path, archive: Path) -> bool:
    """Tell whether the path is the archive already, in a file that has no other name."""
    if path.is_symlink() or not path.is_file():
        return False
    status = path.stat()
    is_alike = status.st_nlink == 1 and stat.S_IMODE(status.st_mode) == stat.S_IMODE(archive.stat().st_mode)
    return is_alike and filecmp.cmp(path, archive, shallow=False)


def restore(dest: Path, *, only: str, backup: Path) -> None:
    """Put the kept files back in the place of ours; names that nothing stood under before stay ours."""
    with locked(dest):
        for name in chosen(only, known=(*EXECUTABLES, COMMAND)):
            kept = backup / name
            if not os.path.lexists(kept):
                if build_of(dest / name):
                    note(f"{dest / name} replaced nothing: left as it is")
                continue
            beside = dest / f"{_NEW}{name}"
            link_or_copy(kept, beside)
            beside.rename(dest / name)
            sync(dest)
            kept.unlink()
            note(f"restored {dest / name}")
    if backup.is_dir() and not any(backup.iterdir()):
        backup.rmdir()


@contextmanager
def locked(dest: Path) -> Iterator[None]:
    """Keep other installers out of the directory, and remove what a killed one left."""
    descriptor = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for path in dest.glob(f"{_NEW}*"):
            path.unlink()
        yield
    finally:
        os.close(descriptor)


def installed_builds(*directories: Path) -> set[str]:
    """Return the builds that archives in the directories belong to."""
    return {build for directory in directories for path in directory.iterdir() if (build := build_of(path))}


def destinations(runtime_dir: Path, dest: Path) -> list[Path]:
    """Return every directory whose archives run from here, this one included, and remember it."""
    known = runtime_dir / _DESTINATIONS
    with known.open("a+", encoding="utf-8") as file:
        file.seek(0)
        paths = file.read().splitlines()
        if str(dest) not in paths:
            file.write(f"{dest}\n")
    return [path for path in map(Path, {*paths, str(dest)}) if path.is_dir()]


def build_of(path: Path) -> str:
    """Return the build of an archive of ours, nothing for any other file."""
    try:
        return read_stamp(str(path))["build_id"]
    except (OSError, ValueError):
        return ""


def copy_file(source: Path, target: Path) -> None:
    """Copy an executable and wait until it is on the disk."""
    with source.open("rb") as content, target.open("xb") as file:
        copy_content(content, file)
        file.flush()
        os.fchmod(file.fileno(), source.stat().st_mode & 0o7777)
        os.fsync(file.fileno())


def copy_content(source: BinaryIO, target: BinaryIO) -> None:
    """Fill the new file as cp --reflink=auto does: with shared blocks where the file system has those."""
    try:
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 30):
            pass
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        shutil.copyfileobj(source, target)


def link_or_copy(source: Path, target: Path) -> None:
    """Give the file, or the symbolic link, a second name; a copy where the file system has no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            copy_file(source, target)


def same_file(one: Path, other: Path) -> bool:
    """Tell whether both names hold the same, links by where they point."""
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return filecmp.cmp(one, other, shallow=False)


def unused_name(path: Path) -> Path:
    """Return the path with the first number that is free."""
    number = 1
    while os.path.lexists(numbered := path.with_name(f"{path.name}.{number}")):
        number += 1
    return numbered


def note(text: str) -> None:
    """Tell how far it is."""
    print(f"install: {text}", flush=True)


def chosen(only: str, *, known: Sequence[str]) -> Sequence[str]:
    """Return the names asked for, all that are known when none is."""
    names = tuple(dict.fromkeys(name for name in only.split(",") if name)) or known
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InstallError(f"no executable is named {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def main() -> int:
    """Install or restore as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", type=Path, help="what to install")
    parser.add_argument("--dest", type=Path, default=Path("/opt/cni/bin"), metavar="DIR")
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="these executables, not all")
    parser.add_argument("--backup", type=Path, metavar="DIR", help="for replaced files (DEST/../vferry-replaced)")
    parser.add_argument("--restore", action="store_true", help="put the replaced files back")
    options = parser.parse_args()
    dest = options.dest.absolute()
    backup = options.backup or dest.parent / "vferry-replaced"
    try:
        if options.restore:
            restore(dest, only=options.only, backup=backup)
        elif options.archive is None:
            parser.error("--archive or --restore")
        else:
            install(options.archive, dest, only=options.only, backup=backup)
    except (InstallError, OSError, ValueError) as error:
        print(f"install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
