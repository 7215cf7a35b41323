"""Where the unpacked rooms and libraries live, whether they may be trusted, and the step into them.

On the way of every cold start: stdlib only, no import that the libraries would not make anyway, and Python 3.9.
Unpacking is ``unpack.py``, loaded when there is nothing to run yet.

A tree is ``<runtime_dir>/<build id>``. It appears under that name by one rename when it is whole, so a half-unpacked
one is never seen; its marker file is locked, shared, by every process that runs from it, so none is pruned in use.
"""

import errno
import fcntl
import gc
import importlib
import importlib.machinery
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cni.shim import Stamp

MARKER = ".complete"
LOWEST_PYTHON = (3, 10)

# The codes of conf/errors.py, which cannot be imported before the runtime is found.
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
TRY_AGAIN_LATER = 11
RUNTIME_UNUSABLE = 107


class Unusable(Exception):
    """The runtime of this archive cannot be run here; ``code`` is the CNI code."""

    def __init__(self, msg: str, *, details: str, code: int = RUNTIME_UNUSABLE) -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details
        self.code = code


def run(name: str, stamp: "Stamp") -> int:
    """Run the plugin, or the command, from the runtime in this process and return its exit status."""
    archive = sys.path[0]
    try:
        require_interpreter(stamp)
        tree = provide(archive, build_id=stamp.build_id, runtime_dir=stamp.runtime_dir)
        is_command = name == stamp.command
        if not is_command:
            gc.disable()  # nothing of an import is garbage, and of what a plugin makes the kernel takes care soon
        entry = enter(tree, stamp.command_entry if is_command else stamp.plugin_entry)
    except Unusable as fault:
        if name == stamp.command:
            sys.stderr.write(f"{name}: {fault.msg}; {fault.details}\n")
            return 1
        return refuse(fault, cni_version=stamp.versions[-1])
    # The agent, a subcommand, must know which build it is and where shims look for it.
    return entry(name, stamp) if is_command else entry(name)


def refuse_name(name: str, stamp: "Stamp") -> int:
    """Refuse a name that no executable has and return the exit status."""
    known = ", ".join((*stamp.executables, stamp.command))
    fault = Unusable(
        f'no executable is named "{name}"',
        details=f"the archive serves the name it is called by; it knows {known}",
        code=INVALID_ENVIRONMENT,
    )
    return refuse(fault, cni_version=stamp.versions[-1])


def refuse(fault: Unusable, *, cni_version: str) -> int:
    """Print the spec's error object on stdout and return the exit status.

    Stdin is not read for the asked version: what cannot start must not block on its caller either.
    """
    document = {"cniVersion": cni_version, "code": fault.code, "msg": fault.msg, "details": fault.details}
    try:
        os.write(1, json.dumps(document).encode() + b"\n")
    except OSError as error:
        sys.stderr.write(f"{fault.msg}; {fault.details}; and stdout is unusable: {error}\n")
    return 1


def require_interpreter(stamp: "Stamp") -> None:
    """Raise Unusable unless this interpreter can load the native parts of the archive."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    if sys.version_info >= LOWEST_PYTHON and suffix == stamp.tag:
        return
    fitting = sys.executable if sys.version_info >= LOWEST_PYTHON else "PYTHON-3.10-OR-LATER"
    raise Unusable(
        f"this Python cannot run the archive {sys.path[0]}",
        details=f"built for {stamp.tag}; {sys.executable} is Python {sys.version.split()[0]} and loads {suffix}; "
        f"install with: scripts/install-binaries.sh --python {fitting}",
    )


def provide(archive: str, *, build_id: str, runtime_dir: str) -> str:
    """Return the tree of this build, held against pruning, unpacking it on the first run.

    Raises: Unusable with code 5 when no place can be written, and what unpack() raises.
    """
    candidates = [os.path.join(directory, build_id) for directory in places(runtime_dir)]
    for tree in candidates:
        if hold(tree):
            return tree
    refusals = []
    for tree in candidates:
        refusal = unpack(archive, tree)
        if hold(tree):
            return tree
        refusals.append(refusal or f"{tree}: not to be trusted")
    raise Unusable(
        "no place to unpack the runtime",
        details="; ".join(refusals) + "; unpack it once with scripts/install-binaries.sh [--runtime-dir DIR]",
        code=IO_FAILURE,
    )


def unpack(archive: str, tree: str) -> str:
    """Unpack the archive to the tree and return what the place has against it, nothing when it is done.

    Raises: Unusable for what another place cannot cure.
    """
    try:
        unpacking = importlib.import_module(".unpack", __package__)
    except (ImportError, ValueError, EOFError) as error:
        raise Unusable(
            f"the archive {archive} was replaced while it was starting", details=str(error), code=TRY_AGAIN_LATER
        ) from error
    try:
        unpacking.unpack(archive, tree)
    except OSError as error:
        return f"{error.filename or tree}: {errno.errorcode.get(error.errno or 0, 'error')} ({error.strerror})"
    return ""


def places(runtime_dir: str) -> Iterator[str]:
    """Yield the directories to look into: the node's own, and for other users than root a private one."""
    yield runtime_dir
    if os.geteuid() == 0:
        return
    home = os.environ.get("HOME", "")
    cache = os.environ.get("XDG_CACHE_HOME", "") or (os.path.join(home, ".cache") if home else "")
    if os.path.isabs(cache):
        yield os.path.join(cache, "vferry", "runtime")
    # Its name can be guessed, so another user may have taken it; hold() then refuses what is in it.
    yield f"/tmp/vferry-{os.geteuid()}"  # noqa: S108


def hold(tree: str) -> bool:
    """Lock the tree, shared, until this process ends; false when it is absent, incomplete or not to be trusted.

    The descriptor is left open on purpose: children that the process forks run from the tree as well.
    """
    if not (is_private(os.path.dirname(tree)) and is_private(tree)):
        return False
    try:
        marker = os.open(os.path.join(tree, MARKER), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(marker, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        held = False
    else:
        # Between open() and flock() the tree can have been pruned.
        held = os.fstat(marker).st_nlink > 0
    if not held:
        os.close(marker)
    return held


def is_private(directory: str) -> bool:
    """Tell whether nobody but root and this user can have changed the directory."""
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid in {0, os.geteuid()} and not status.st_mode & 0o022


def enter(tree: str, target: str) -> "Callable[..., int]":
    """Put the tree in the place of the archive on the import path and return the entry "module:function"."""
    sys.path[0] = tree
    module, _, function = target.partition(":")
    try:
        entry: Callable[..., int] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, SyntaxError, EOFError, ValueError, OSError) as error:
        raise Unusable(
            f"the runtime {tree} cannot be loaded",
            details=f"{type(error).__name__}: {error}; if files of it are damaged, remove the directory, "
            "the next start unpacks it anew; it must not be mounted noexec",
        ) from error
    return entry
