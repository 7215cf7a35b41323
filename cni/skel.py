"""The protocol skeleton: environment and stdin in, at most one JSON document and an exit status out.

Only this module reads the environment, prints or exits. What a plugin does is the plugin's business.

Source: https://www.cni.dev/docs/spec/#section-2-execution-protocol, containernetworking/cni pkg/skel/skel.go.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import BinaryIO

from cni import journal, plugins
from cni.linux.netns import Netns
from cni.plugins import Plugin
from cni.undo import Undo
from conf.errors import CniError, InvalidNetns, IoFailure, TryAgainLater
from conf.executables import SUPPORTED_VERSIONS
from conf.request import COMMANDS, Request, read_command, read_request, read_version
from conf.section import Json, decode

INTERRUPTING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_OVERRIDE = {"1", "true"}
_LATEST = SUPPORTED_VERSIONS[-1]


def main(
    name: str,
    *,
    environ: Mapping[str, str] = os.environ,
    stdin: BinaryIO | None = None,
    stdout: BinaryIO | None = None,
    load: Callable[[str], Plugin] = plugins.load,
) -> int:
    """Serve one invocation of the executable ``name`` and return its exit status.

    Without ``stdout`` this is the whole process: descriptor 1 becomes stderr until the one document is written, so
    that nothing a library prints can spoil it, and SIGTERM, SIGINT and SIGHUP end the plugin by its undo.
    """
    if not environ.get("CNI_COMMAND"):
        return _about(name)
    with _process_streams() if stdout is None else _given(stdout) as out:
        document, status = serve(name, environ=environ, stdin=stdin or _stdin(), load=load)
        if document is not None:
            try:
                out(json.dumps(document, separators=(",", ":")).encode() + b"\n")
            except OSError as error:
                sys.stderr.write(f"cannot write the answer: {error}\n")
                return 1  # to the runtime it has failed, and its DEL follows
    return status


def serve(
    name: str, *, environ: Mapping[str, str], stdin: BinaryIO | None, load: Callable[[str], Plugin] = plugins.load
) -> tuple[Json | None, int]:
    """Return the document to print, None for nothing, and the exit status; the one place that catches everything."""
    version = _LATEST
    Undo.settled = False
    try:
        if read_command(environ) == "VERSION":
            return {"cniVersion": _LATEST, "supportedVersions": list(SUPPORTED_VERSIONS)}, 0
        text = _read(stdin)
        version = _version_to_answer_in(text)
        request = read_request(environ, text)
    except Exception as error:
        return _refusal(name, version, error), 1
    with journal.opened(name, request):
        try:
            return _dispatch(load(name), request), 0
        except Exception as error:
            return _refusal(name, version, error), 1


def _refusal(name: str, version: str, error: Exception) -> Json:
    """Return the error object for whatever happened, and log it, once; the trace only for a cause nobody foresaw."""
    journal.failure(error)
    if isinstance(error, CniError):
        return error.to_json(version)
    unforeseen = CniError(f"{name}: internal error", details=f"{type(error).__name__}: {_first_line(error)}")
    return unforeseen.to_json(version)


def _dispatch(plugin: Plugin, request: Request) -> Json | None:
    if request.command in ("ADD", "DEL", "CHECK"):
        _refuse_own_netns(request)
    if request.command == "ADD":
        return _added(plugin, request)
    verbs: dict[str, Callable[[Request], None]] = {
        "DEL": plugin.delete,
        "CHECK": plugin.check,
        "GC": plugin.gc,
        "STATUS": plugin.status,
    }
    verbs[request.command](request)
    return None


def _added(plugin: Plugin, request: Request) -> Json:
    result = plugin.add(request)
    try:
        return result.to_json(request.cni_version)
    except CniError:
        # 0.1.0 and 0.2.0 cannot say every result. To the runtime this ADD has failed, so nothing of it may stay.
        plugin.delete(request.as_command("DEL"))
        raise


def _refuse_own_netns(request: Request) -> None:
    """Refuse a sandbox that is the netns we run in; the Go library finds out only after the plugin has acted."""
    if not request.netns or request.environ.get("CNI_NETNS_OVERRIDE", "").lower() in _OVERRIDE:
        return
    try:
        sandbox = Netns.open(request.netns)
    except InvalidNetns:
        return  # the plugin says what that means for its command
    with sandbox, Netns.current() as own:
        if sandbox.same_as(own):
            raise InvalidNetns(
                f"plugin's netns and netns from CNI_NETNS should not be the same: {request.netns}",
                hint="give the pod's netns, or set CNI_NETNS_OVERRIDE=1 if you mean it",
            )


def _about(name: str) -> int:
    sys.stderr.write(
        f"vferry {name}: a CNI plugin; it is run by a container runtime, with CNI_COMMAND set to one of "
        f"{', '.join(COMMANDS)}\nCNI protocol versions supported: {', '.join(SUPPORTED_VERSIONS)}\n"
    )
    return 0


def _stdin() -> BinaryIO | None:
    return sys.stdin.buffer if sys.stdin else None  # None: descriptor 0 is closed


def _read(stdin: BinaryIO | None) -> bytes:
    try:
        if stdin is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return stdin.read()
    except OSError as error:
        raise IoFailure("cannot read the network configuration from stdin", details=str(error)) from error


def _version_to_answer_in(text: bytes) -> str:
    try:
        return read_version(decode(text, "stdin"))
    except CniError:
        return _LATEST  # the request itself is refused for it, with the reason


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


@contextmanager
def _given(stdout: BinaryIO) -> Iterator[Callable[[bytes], object]]:
    yield stdout.write


@contextmanager
def _process_streams() -> Iterator[Callable[[bytes], object]]:
    for number in INTERRUPTING:
        signal.signal(number, interrupt)
    original = os.dup(1)  # not inheritable: a delegate gets descriptor 1 of its own
    os.dup2(2, 1)
    try:
        yield lambda document: _write_all(original, document)
    finally:
        os.close(original)


def _write_all(stdout: int, document: bytes) -> None:
    """Write to descriptor 1, which is stdout again for that long: what traces us looks for writes to 1."""
    os.dup2(stdout, 1)
    try:
        while document:
            document = document[os.write(1, document) :]
    finally:
        os.dup2(2, 1)


def ignore_interruptions() -> None:
    """Let no signal stop what must come to its end: an undo, an answer."""
    for number in INTERRUPTING:
        signal.signal(number, signal.SIG_IGN)


def interrupt(number: int, frame: FrameType | None) -> None:
    """End the request by its undo, as the handler of a signal; what is settled comes to its end."""
    if Undo.is_settled(frame):
        return
    ignore_interruptions()
    raise TryAgainLater(f"interrupted by {signal.Signals(number).name}")
