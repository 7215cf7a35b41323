"""Delegation: another plugin is called for a request, in this process when it is ours, else as the runtime would.

A foreign plugin gets our environment unchanged but for the command, and stdin byte for byte. Which plugin a
configuration delegates to, and when, is the plugin's business.

Source: https://www.cni.dev/docs/spec/#section-4-plugin-delegation, containernetworking/cni pkg/invoke; reference 1.9.
"""

from __future__ import annotations

import errno
import functools
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cni.plugins import Plugin, load
from conf import result
from conf.errors import CniError, DelegateFailed, InvalidNetworkConfig
from conf.executables import EXECUTABLES
from conf.request import Request
from conf.result import Result
from conf.section import decode, lookup, shown

# libcni does the same: an installer that writes a binary in place makes it "text file busy" for a moment.
_BUSY_TRIES = 5
_BUSY_PAUSE_S = 0.1
# More than the table of contents of our archive, which is at its end.
_TABLE_BYTES = 4096


class ForeignPlugin:
    """An executable found in CNI_PATH that is not ours."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, request: Request) -> Result:
        output = self._run(request, "ADD")
        document = {} if output.strip() in (b"", b"null") else decode(output, f"the result of {self.path}")
        return result.parse(document, cni_version=request.cni_version, what=f"the result of {self.path}")

    def delete(self, request: Request) -> None:
        self._run(request, "DEL")

    def check(self, request: Request) -> None:
        self._run(request, "CHECK")

    def gc(self, request: Request) -> None:
        self._run(request, "GC")

    def status(self, request: Request) -> None:
        self._run(request, "STATUS")

    def _run(self, request: Request, command: str) -> bytes:
        environ = {**request.environ, "CNI_COMMAND": command}
        for attempt in range(_BUSY_TRIES):
            try:
                done = subprocess.run(
                    [self.path], input=request.stdin, env=environ, stdout=subprocess.PIPE, check=False
                )
                break
            except OSError as error:
                if error.errno != errno.ETXTBSY or attempt == _BUSY_TRIES - 1:
                    raise DelegateFailed(
                        f"cannot run {self.path}", details=str(error), hint="is it executable, and for this machine?"
                    ) from error
                time.sleep(_BUSY_PAUSE_S)
        if done.returncode:
            raise _failure(self.path, command, done.returncode, done.stdout)
        return done.stdout


def find(plugin_type: str, path: Sequence[str], *, archive: str | None = None) -> Plugin:
    """Return the plugin that CNI_PATH would run, in this process when that is ours.

    ``archive`` is the file this process runs from; every executable of ours is a copy of one file, so being such a
    copy is being ours. A plugin of ours that is not in CNI_PATH at all needs no CNI_PATH.
    Raises: InvalidNetworkConfig naming the type and where it was looked for.
    """
    found = _file_of(plugin_type, path)
    if found is None:
        if plugin_type in EXECUTABLES:
            return load(plugin_type)
        raise _not_found(plugin_type, path)
    own = Path(archive or sys.argv[0])
    if plugin_type in EXECUTABLES and own.is_file() and _are_one_archive(found, own):
        return load(plugin_type)
    return ForeignPlugin(found)


def find_executable(plugin_type: str, path: Sequence[str]) -> ForeignPlugin:
    """Return the plugin that CNI_PATH has, always as a process of its own: as a runtime calls it.

    Raises: InvalidNetworkConfig naming the type and where it was looked for.
    """
    found = _file_of(plugin_type, path)
    if found is None:
        raise _not_found(plugin_type, path)
    return ForeignPlugin(found)


def _file_of(plugin_type: str, path: Sequence[str]) -> Path | None:
    # A DEL comes here with a configuration that nobody has read before.
    if not isinstance(plugin_type, str) or not plugin_type or "/" in plugin_type or plugin_type in (".", ".."):
        raise InvalidNetworkConfig(f"{shown('type', plugin_type)} is not the name of a plugin")
    # Absolute: "./bridge" is normalised to "bridge", which exec would look for in PATH.
    files = (Path(folder, plugin_type).absolute() for folder in path)
    return next((file for file in files if file.is_file()), None)


def _are_one_archive(one: Path, other: Path) -> bool:
    """Tell whether two zip files are the same: their tables of contents have the checksum of every member.

    The build id stands in a member; to read that would cost the import of zipfile.
    """
    try:
        return _table(one) == _table(other)
    except OSError:
        return False


def _table(path: Path) -> tuple[int, bytes]:
    status = path.stat()
    return _read_table(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=16)
def _read_table(path: Path, _as_it_is: tuple[int, ...]) -> tuple[int, bytes]:
    # Once for an invocation, which asks for its IPAM plugin several times.
    with path.open("rb") as archive:
        size = archive.seek(0, os.SEEK_END)
        archive.seek(max(0, size - _TABLE_BYTES))
        return size, archive.read()


def _not_found(plugin_type: str, path: Sequence[str]) -> InvalidNetworkConfig:
    return InvalidNetworkConfig(
        f'failed to find plugin "{plugin_type}" in path [{" ".join(path)}]',
        details="" if path else "CNI_PATH is not set",
        hint="install it there, or correct the type",
    )


def _failure(path: Path, command: str, status: int, output: bytes) -> CniError:
    try:
        document = decode(output, "its output")
    except CniError:
        said = "with no error message" if not output.strip() else "and did not say why in JSON"
        return DelegateFailed(f"{path} failed {said}", details=f"{command}, exit status {status}")
    code = lookup(document, "code")
    return DelegateFailed(
        f"{path.name}: {lookup(document, 'msg', 'no message')}",
        details=str(lookup(document, "details", "")),
        code=code if type(code) is int and code else DelegateFailed.code,  # true is no 1
    )
